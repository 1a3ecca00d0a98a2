"""Compares one small model of diffusers or timm in eager mode and patched: forward, backward, float32, bfloat16."""

import torch

import rope_ext
from tests.conformance.rotations import rotations

DTYPES = (torch.float32, torch.bfloat16)


def made(make, dtype):
    torch.manual_seed(0)
    model = make().eval()
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()  # parameters that from_pretrained keeps in float32
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not any(k in name for k in kept):
            tensor.data = tensor.data.to(dtype)
    for parameter in model.parameters():  # many start at 0, or so small that attention is uniform
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
    """None if all tensors are equal bit for bit, else the largest difference as a share of the largest value."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    if all(torch.equal(a, b) for a, b in pairs):
        return None
    return max((a - b).abs().max().item() for a, b in pairs) / max(b.abs().max().item() for _, b in pairs)


def compared(model, inputs, dtype, rounding, eager, backward=False):
    """(report of `patch`, "equal" or the largest difference from eager mode, number of rotations)"""
    with rope_ext.patched(model, rounding) as report, rotations() as counted:
        found = difference(run(model, inputs, dtype, backward), eager)
    return report, "equal" if found is None else f"{found:.1e}", len(counted)


def row(name, make, inputs):
    """(cells of the row of a model, whether it has the properties that `patch` promises)"""
    reports, counts, right = {}, {}, True
    forward, gradients, once = [], [], []
    for dtype in DTYPES:
        model = made(make, dtype)
        try:
            eager = run(model, inputs, dtype)
        except RuntimeError:  # the eager model does not run in 16 bits, or on a CPU
            for cells in (forward, gradients, once):
                cells.append("does not run")
            continue
        for rounding, cells in (("eager", forward), ("once", once)):
            reports[rounding], cell, counts[rounding] = compared(model, inputs, dtype, rounding, eager)
            cells.append(cell)
            with rope_ext.patched(model, rounding), rotations(change=lambda y, x: x):
                right &= bool(counts[rounding]) == (difference(run(model, inputs, dtype), eager) is not None)
        right &= forward[-1] == "equal"
        try:
            eager = run(model, inputs, dtype, backward=True)
        except RuntimeError:
            gradients.append("does not run")
        else:
            gradients.append(compared(model, inputs, dtype, "eager", eager, backward=True)[1])
    always = [f"{_short(e)} ({e.dialect.partition('.')[2]})" for e in reports["eager"].replaced]
    later = [f"{_short(e)} ({e.dialect.partition('.')[2]})" for e in reports["once"].replaced]
    later = [text for text in later if text not in always]
    alone = [f"{_short(e)}: {e.reason}" for e in reports["once"].left_alone]
    names = (", ".join(column) or "-" for column in (always, later, alone))
    return [name, *names, f"{counts['eager']} / {counts['once']}", *forward, *gradients, *once], right


def _short(entry):
    return f"`{entry.name.split('.')[-1]}`"
