"""Count what the machine code of the CUDA kernels executes: `python -m benchmarks.machine_code`, or `make machine-code`
to write the table. Counts are exact; times come from a model and are not measured.

Counts depend on the compiler: tests/test_machine_code_cost.py compares them where nvcc has the version of the table.
"""

import argparse
import json
from pathlib import Path

import rope_ext
from benchmarks.bench import RESULTS
from benchmarks.harness.machine_code import (
    CASES,
    CLOCK,
    COPY,
    FUNCTIONAL,
    ISSUED,
    LATENCY,
    LIBRARY,
    MULTIPROCESSORS,
    Counted,
    counted,
    launch_of,
    machine_of,
)
from benchmarks.instructions import complaints as complaints_of
from benchmarks.report.markdown import grid
from tools.machine_code.cost import listing
from tools.machine_code.disassembly import NotFound

TABLE = RESULTS / "machine_code.json"
RENEW = "`make machine-code` rewrites the table"
HEAD = ["shape", "dtype", "variant", "per KiB", "longest thread", "sectors", "registers", "blocks", "threads"]
HEAD += ["waves", "occupancy", "copy", "issue", "model", "% of copy", "bound"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite {TABLE.name} and its page")
    parser.add_argument("--library", type=Path, default=LIBRARY, help="another _ops.so, or a .cubin with some kernels")
    names = [f"{shape.name} {dtype} {variant.name}" for shape, dtype, variant in CASES]
    parser.add_argument("--listing", choices=names, metavar="CASE", help=f"list the instructions of {names[0]}, ..")
    options = parser.parse_args()
    try:
        machine = machine_of(options.library)
    except NotFound as why:
        raise SystemExit(str(why)) from None
    if options.listing:
        print(*listing(machine, launch_of(*CASES[names.index(options.listing)])), sep="\n")
        return
    found = counted(machine)
    page = markdown(found)
    print(page)
    if options.write:
        TABLE.write_text(json.dumps(table_of(found), indent=1) + "\n")
        TABLE.with_suffix(".md").write_text(page)


def table_of(found: list[Counted]) -> dict[str, dict[str, object]]:
    """The committed table; instructions: those of all warps of a launch, by case."""
    return {"environment": environment(), "instructions": {c.name: c.cost.instructions for c in found}}


def environment() -> dict[str, object]:
    return {"nvcc": rope_ext.build_info()["cuda"]}


def complaints(table: dict[str, dict[str, object]], found: list[Counted]) -> list[str]:
    """A sentence per case whose count differs from the table by more than benchmarks.instructions.TOLERANCE."""
    return list(complaints_of(table, {c.name: c.cost.instructions for c in found}, RENEW))


ABOUT = f"""\
# The machine code of the CUDA kernels

This page shows what the code for compute capability 9.0 in `_ops.so` executes. `tools/machine_code` counts it without a
GPU.

* *per KiB*: instructions issued by all warps per 1,024 bytes of q and k read and written.
* *longest thread*: instructions of the warp that issues the most.
* *sectors*: 32-byte sectors that warps read / write, each per 1,024 bytes of q and k. The minimum is 32; sectors of cos
  and sin come on top.
* *waves*, *occupancy*: on the {MULTIPROCESSORS} multiprocessors of an H200.
* *copy*, *issue*, *model*: microseconds of a model of an H200, not measured. copy: time to move the bytes at
  {COPY / 1e12} TB/s. issue: time to issue the instructions if all {4 * MULTIPROCESSORS} issue slots are used at
  {CLOCK / 1e9} GHz. model: max(copy, issue / {ISSUED}) + {LATENCY * 1e6:.0f}.
* *% of copy*: (copy + 2) / model. *bound*: what the modeled time is spent on."""
ABOUT_VARIANTS = """\
## Variants

* *positions*: int64, one per token.
* *partial*: half of the channels are rotated, the others are copied.
* *norm*: heads are normalized first, with weights of the dtype of x.
* *norm's gradient*: gradients of x and the weights. The kernel reads q, k and the gradients of their results and writes
  the gradients of q and k, so its bytes are three times those of q and k."""


def markdown(found: list[Counted]) -> str:
    shapes = {c.shape.name: c.shape for c in found}
    listed = "\n".join(f"* {name}: {shape}" for name, shape in shapes.items())
    parts = [
        ABOUT,
        f"Compiled by nvcc {rope_ext.build_info()['cuda']}. Shapes:\n\n{listed}",
        grid(HEAD, 12, [line(c) for c in found if c.variant is FUNCTIONAL]),
        ABOUT_VARIANTS,
        grid(HEAD, 12, [line(c) for c in found if c.variant is not FUNCTIONAL]),
    ]
    return "\n\n".join(parts) + "\n"


def line(c: Counted) -> list[str]:
    cost = c.cost
    cells = [c.shape.name, c.dtype, c.variant.name, f"{c.per_kib:.1f}"]
    cells += [str(cost.longest_warp), c.sectors, *(str(n) for n in (cost.registers, cost.blocks, cost.threads))]
    cells += [f"{cost.waves(MULTIPROCESSORS):.2f}", f"{cost.occupancy():.0%}"]
    cells += [f"{seconds * 1e6:.1f}" for seconds in (c.copy, c.issue, c.seconds)]
    return [*cells, f"{(c.copy + LATENCY) / c.seconds:.0%}", c.bound]


if __name__ == "__main__":
    main()
