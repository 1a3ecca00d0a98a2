"""Models of diffusers and timm, eager against rope_ext.patched: writes docs/models_diffusers.md.

    python -m tests.conformance.diffusers_timm.run              # all, or the names given; what is not installed is left out

Small configurations (configs.py) with random weights, on the CPU. Each model runs forward and backward in
float32 and bfloat16, and once more without any rotation, which must change the result. Ends with 1 if a result is not
bit-equal although all that was replaced should be.
"""

import argparse
import contextlib
import importlib
import pathlib
import sys
from unittest import mock

import torch

import rope_ext
from rope_ext.compat import _results
from rope_ext.integrations import _turn
from tests.conformance.diffusers_timm import configs as diffusion_configs

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "models_diffusers.md"
DTYPES = (torch.float32, torch.bfloat16)
SMALL = {"depth": 2, "embed_dim": 128, "num_heads": 2, "img_size": 64}
TIMM = {
    "eva02_tiny_patch14_224": SMALL | {"img_size": 56},
    "vit_small_patch16_rope_224": SMALL,
    "vit_small_patch16_rope_mixed_224": SMALL,
    "vit_medium_patch16_rope_reg1_gap_256": SMALL,
    "vit_tiny_patch16_dinov3_qkvb": SMALL,
    "vit_pe_core_tiny_patch16_384": SMALL,
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 128, "num_heads": 2, "rope_type": "axial"},
    "qwen3_vit_88m": {"depth": 2, "embed_dim": 128, "num_heads": 2},
    "deepseek_vit_412m": {"depth": 2, "embed_dim": 128, "num_heads": 2, "img_size": 56},
    "gemma4_vit_167m": {"depth": 2, "embed_dim": 128, "num_heads": 2},
}


@contextlib.contextmanager
def rotations(skip=False):
    """A list that gets an entry for each rotation. skip: what should have been rotated stays as it is."""
    counted = []

    def rotate(x, *tables, **options):
        counted.append(options)
        return x if skip else apply(x, *tables, **options)

    apply = _results.apply
    with mock.patch.object(_results, "apply", rotate), mock.patch.object(_turn, "apply", rotate):
        yield counted


def models():
    """(library, name, how to make the model, how to make its inputs)."""
    for library in ("diffusers", "timm"):
        try:
            module = importlib.import_module(library)
        except ImportError as error:
            print(f"{library} is left out: {error}")
            continue
        if library == "diffusers":
            for name, (config, inputs) in diffusion_configs.CASES.items():
                kind = getattr(module, name.split()[0])
                yield library, name, lambda kind=kind, config=config: kind(**config), inputs
        else:
            for name, config in TIMM.items():
                size = config.get("img_size", 64)
                yield (
                    library,
                    name,
                    lambda make=module.create_model, name=name, config=config: make(name, **config),
                    lambda r, size=size: {"x": r(2, 3, size, size)},
                )


def made(make, dtype):
    torch.manual_seed(0)
    model = make().eval()
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()  # what from_pretrained leaves in float32
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not any(k in name for k in kept):
            tensor.data = tensor.data.to(dtype)
    for parameter in model.parameters():  # many start at 0, or so small that all tokens attend to all alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.abs().max() < 0.05:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def run(model, inputs, dtype, backward=False):
    """The outputs, or the gradients of all parameters."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    with torch.set_grad_enabled(backward):
        leaves = torch.utils._pytree.tree_leaves(model(**inputs(random)))
        outputs = [y for y in leaves if isinstance(y, torch.Tensor) and y.is_floating_point()]
        if not backward:
            return outputs
        sum((y.float() * torch.randn(y.shape, generator=generator)).sum() for y in outputs).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return gradients


def difference(ours, theirs):
    """None if all tensors are bit-equal, else the largest difference as a share of the largest value of all."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    if all(torch.equal(a, b) for a, b in pairs):
        return None
    return max((a - b).abs().max().item() for a, b in pairs) / max(b.abs().max().item() for _, b in pairs)


def compared(model, inputs, dtype, rounding, eager, backward=False):
    """Report of patch, "equal" or the largest difference to eager, and the number of rotations."""
    with rope_ext.patched(model, rounding) as report, rotations() as counted:
        found = difference(run(model, inputs, dtype, backward), eager)
    return report, "equal" if found is None else f"{found:.1e}", len(counted)


def row(name, make, inputs):
    """The cells of a model, and whether it keeps what `patch` promises."""
    reports, counts, right = {}, {}, True
    forward, gradients, once = [], [], []
    for dtype in DTYPES:
        model = made(make, dtype)
        try:
            eager = run(model, inputs, dtype)
        except RuntimeError:  # eager code that does not run in 16 bits, or on a CPU
            for cells in (forward, gradients, once):
                cells.append("does not run")
            continue
        for rounding, cells in (("eager", forward), ("once", once)):
            reports[rounding], cell, counts[rounding] = compared(model, inputs, dtype, rounding, eager)
            cells.append(cell)
            with rope_ext.patched(model, rounding), rotations(skip=True):
                right &= bool(counts[rounding]) == (difference(run(model, inputs, dtype), eager) is not None)
        right &= forward[-1] == "equal"
        try:
            eager = run(model, inputs, dtype, backward=True)
        except RuntimeError:
            gradients.append("does not run")
        else:
            gradients.append(compared(model, inputs, dtype, "eager", eager, backward=True)[1])
    always = {e.name: f"`{e.name.split('.')[-1]}` ({e.dialect.partition('.')[2]})" for e in reports["eager"].replaced}
    later = {
        e.name: f"`{e.name.split('.')[-1]}` ({e.dialect.partition('.')[2]})"
        for e in reports["once"].replaced
        if e.name not in always
    }
    alone = [f"`{e.name.split('.')[-1]}`: {e.reason}" for e in reports["once"].left_alone]
    names = (", ".join(column) or "-" for column in (always.values(), later.values(), alone))
    return [name, *names, f"{counts['eager']} / {counts['once']}", *forward, *gradients, *once], right


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="models; then nothing is written")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    rows, failed = {}, []
    chosen = [m for m in models() if not names or m[1] in names]
    for library, name, make, inputs in _progress(chosen):
        cells, ok = row(name, make, inputs)
        rows.setdefault(library, []).append(cells)
        failed += [] if ok else [name]
        if names or not ok:
            print(" | ".join(cells))
    if not names:
        PAGE.write_text(page(rows))
    print(f"{sum(map(len, rows.values()))} models, {len(failed)} wrong: {', '.join(failed)}")
    return bool(failed)


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


def _progress(items):
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, disable=None, leave=False)


if __name__ == "__main__":
    sys.exit(main())
