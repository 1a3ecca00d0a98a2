"""docs/models_diffusers.md from the rows of compare.py."""

import importlib

import torch

HEADING = """# Models of diffusers and timm on rope_ext

`with rope_ext.patched(model): ...` against the same model in eager PyTorch (torch TORCH, CPU), small configurations
with random weights. `python -m tests.conformance.diffusers_timm.run` makes this page.

* *replaced*: functions that were recognised and proven equal, and what they were recognised as
  (`rope_ext/integrations/diffusers.py`, `timm.py`). *only with once*: those that `rounding="once"` adds. They multiply
  complex numbers or use addcmul, and PyTorch fuses a product and a sum there on some devices and for some shapes.
  *left alone*: functions that look rotary, and why.
* *calls*: rotations in one forward, with `rounding="eager"` / `"once"`. In every model the result changes without them.
* *forward*: "equal" is bit for bit, else the largest difference as a share of the largest value.
* *gradients*: the same for the gradients of all parameters. Those of learned tables and of weights before the rotation
  are sums over tokens, which may be added in another order.
* *once*: the forward with `rounding="once"`, against eager code.
* "does not run": nor does it in eager code, in bfloat16 or on a CPU.
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
            f"{len(table)} models; {len(patched)} rotate by rope_ext, forward bit-equal in {equal[0]} (float32) and"
            f" {equal[1]} (bfloat16); {len(later)} have functions that only rounding='once' replaces.",
            "",
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *(f"| {' | '.join(cells)} |" for cells in table),
            "",
        ]
    return "\n".join(lines)
