"""The table of what the CUDA kernel's machine code costs: `python -m benchmarks.machine_code`, or `make machine-code`
to write it. Counts are exact; times are those of a model, not measured.

They change with the compiler: tests/test_machine_code_cost.py compares them where nvcc is that of the table.
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
RENEW = "`make machine-code` writes the table anew"
HEAD = ["shape", "dtype", "variant", "per KiB", "longest thread", "sectors", "registers", "blocks", "threads"]
HEAD += ["waves", "occupancy", "copy", "issue", "model", "% of copy", "bound"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} and its page anew")
    parser.add_argument("--library", type=Path, default=LIBRARY, help="another _ops.so, or a .cubin with some kernels")
    names = [f"{shape.name} {dtype} {variant.name}" for shape, dtype, variant in CASES]
    parser.add_argument("--listing", choices=names, metavar="CASE", help=f"what it executes: {names[0]}, ..")
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
    """instructions: of all warps of a launch, by case."""
    return {"environment": environment(), "instructions": {c.name: c.cost.instructions for c in found}}


def environment() -> dict[str, object]:
    return {"nvcc": rope_ext.build_info()["cuda"]}


def complaints(table: dict[str, dict[str, object]], found: list[Counted]) -> list[str]:
    """A sentence per case whose count is not that of the table, within benchmarks.instructions.TOLERANCE."""
    return list(complaints_of(table, {c.name: c.cost.instructions for c in found}, RENEW))


def markdown(found: list[Counted]) -> str:
    shapes = {c.shape.name: c.shape for c in found}
    parts = [
        "# The machine code of the CUDA kernel",
        "What the code for compute capability 9.0 in `_ops.so` executes, counted without a GPU (tools/machine_code): "
        "instructions issued by all warps per 1,024 bytes of q and k read and written, and by the warp with most. "
        "sectors: of 32 bytes, that warps read / write at once, of 1,024 bytes of q and k each: 32 at best; those of "
        f"cos and sin come on top. Compiled by nvcc {rope_ext.build_info()['cuda']}.",
        "Times, in microseconds, are a model of an H200, not measured: max(copy, issue / "
        f"{ISSUED}) + {LATENCY * 1e6:.0f}. copy: the bytes at {COPY / 1e12} TB/s. issue: the instructions if all "
        f"{4 * MULTIPROCESSORS} issue slots of {MULTIPROCESSORS} multiprocessors are used at {CLOCK / 1e9} GHz. "
        "% of copy: (copy + 2) / model. waves and occupancy are those of its multiprocessors too.",
        "\n".join(f"* {name}: {shape}" for name, shape in shapes.items()),
        grid(HEAD, 12, [line(c) for c in found if c.variant is FUNCTIONAL]),
        "## Variants",
        "positions: int64, one per token. partial: half of the channels are rotated, the others copied. norm: heads "
        "are normalised first, by weights like x. norm's gradient: to x and the weights; it reads q and k and their "
        "gradients, and its bytes are three times those of q and k.",
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
