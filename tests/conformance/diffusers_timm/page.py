"""Generates docs/models_diffusers.md from the rows of compare.py."""

import importlib

import torch

HEADING = """# Models of diffusers and timm on rope_ext

This page compares `rope_ext.patched(model)` with the same model in eager mode (torch TORCH, CPU), for small
configurations with random weights. The command `python -m tests.conformance.diffusers_timm.run` generates it.

The columns:

* *replaced*: the functions that were recognized and proven equal, and what they were recognized as
  (`rope_ext/integrations/diffusers.py`, `rope_ext/integrations/timm.py`).
* *only with once*: the functions that only `rounding="once"` replaces. They multiply complex numbers or use addcmul,
  for which PyTorch fuses a product and a sum on some devices and for some shapes.
* *left alone*: the functions that look rotary but were not replaced, and the reason.
* *calls*: the number of rotations in one forward, with `rounding="eager"` / `"once"`. Without these rotations the
  result of every model changes.
* *forward*: "equal" means equal bit for bit; otherwise the largest difference as a share of the largest value.
* *gradients*: the same for the gradients of all parameters. The gradients of learned tables, and of weights before the
  rotation, are sums over tokens that may add in another order.
* *once*: the forward with `rounding="once"` compared with eager mode.
* A model that "does not run" does not run in eager mode either, in bfloat16 or on a CPU.
"""


def page(rows):
    head = ["model", "replaced", "only with once", "left alone", "calls"]
    head += [f"{what} {dtype}" for what in ("forward", "gradients", "once:") for dtype in ("fp32", "bf16")]
    lines = [HEADING.replace("TORCH", torch.__version__)]
    for library, table in rows.items():
        patched = [cells for cells in table if not cells[4].startswith("0")]
        equal = [sum(cells[column] == "equal" for cells in patched) for column in (5, 6)]
        later = [cells for cells in table if cells[2] != "-"]
        lines += [
            f"## {library} {importlib.import_module(library).__version__}",
            "",
            f"{len(patched)} of {len(table)} models rotate with rope_ext by default. Their forward is equal bit for bit"
            f" in {equal[0]} models (float32)\nand {equal[1]} models (bfloat16)."
            f' {len(later)} models have functions that only `rounding="once"` replaces.',
            "",
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *(f"| {' | '.join(cells)} |" for cells in table),
            "",
        ]
    return "\n".join(lines)
