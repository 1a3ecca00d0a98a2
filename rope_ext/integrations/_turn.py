"""The rotation that dialects call: tables that broadcast, dtypes that are promoted, as in eager code."""

import inspect

import torch

from .._torch.library import build_info
from ..compat._broadcast import rotate
from ..ops import apply

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DEVICES = {"cpu", "meta"} | ({"cuda"} if build_info()["cuda"] else set())
# Forms that `apply` takes as they are: axes of x, axes of the table, axis that the table gets -> layout.
LAYOUTS = {(4, 3, 1): "bhsd", (4, 3, 2): "bshd", (4, 3, -2): "bshd", (4, 2, 0): "bhsd", (4, 2, None): "bhsd"}
LAYOUTS |= {(3, 2, 1): "shd", (3, 2, -2): "shd"}
SEQLEN = {"bhsd": 2, "bshd": 1, "shd": 0}


def adapter(read, bits=False):
    """The adapter of a function whose arguments `read` maps to x, cos, sin and options of `turn`; None: to original.

    bits: so do calls with an entry per pair, unless rounding is "once": a branch of complex numbers, see `fused`.
    """

    def call(original, rounding, *args, **kwargs):
        there = read(*args, **kwargs)
        if there is None or (bits and rounding == "eager" and there[3].get("per_pair")):
            return original(*args, **kwargs)
        y = turn(*there[:3], rounding, **there[3])
        return original(*args, **kwargs) if y is None else y

    first = list(inspect.signature(call).parameters.values())[:2]
    call.__signature__ = inspect.Signature(first + list(inspect.signature(read).parameters.values()))
    return call


def turn(
    x,
    cos,
    sin,
    rounding,
    *,
    axis=None,
    least=None,
    keep_dtype=False,
    casts=2,
    per_pair=False,
    rotary_dim=None,
    **options,
):
    """x or the tensors of a tuple x, rotated as eager code does it; None where `rope_ext.apply` cannot.

    cos, sin after unsqueeze(axis) broadcast to x on all axes but the last, which is rotary_dim wide, or half of that
    with per_pair.
    Arithmetic and result have the dtype of x * cos, or of x.to(least) * cos; keep_dtype casts back to the dtype of x.
    casts: how often the original casts x to a wider dtype, with 1 a gradient of 16 bits is rounded once.
    rotary_dim: leading channels, the default is all. options: of `rope_ext.apply`.
    """
    tensors = x if isinstance(x, tuple) else (x,)
    first, dtype = tensors[0], tensors[0].dtype
    layout = LAYOUTS.get((first.dim(), cos.dim(), axis))
    if layout is not None and _fits(tensors, cos, layout, rotary_dim, per_pair, least):  # a third of the time
        options["layout"] = layout
    else:
        layout = None
        if axis is not None:
            cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
        if not all(_can(t, cos, sin, rotary_dim, per_pair, least) for t in tensors):
            return None
        if any(t.dtype != dtype for t in tensors):
            how = {"least": least, "keep_dtype": keep_dtype, "casts": casts, "per_pair": per_pair}
            return tuple(turn(t, cos, sin, rounding, rotary_dim=rotary_dim, **how, **options) for t in x)
    work = dtype if least is None and cos.dtype == dtype else torch.promote_types(least or dtype, cos.dtype)
    if cos.dtype != work:
        cos, sin = cos.to(work), sin.to(work)
    if dtype != work and not (keep_dtype and work == torch.float32 and dtype.itemsize == 2):  # that the kernel does
        tensors = tuple(t.to(work) for t in tensors)
    options |= {"rotary_dim": rotary_dim, "per_channel": not per_pair, "rounding": "once" if casts == 1 else rounding}
    y = rotate(tensors, cos, sin, **options) if layout is None else apply(tensors, cos, sin, **options)
    if keep_dtype and y[0].dtype != dtype:
        y = tuple(t.to(dtype) for t in y)
    return y if isinstance(x, tuple) else y[0]


def _fits(tensors, cos, layout, rotary_dim, per_pair, least):
    """True where x and the table have the form that a layout of `apply` asks for; apply checks the rest."""
    first, seqlen = tensors[0], SEQLEN[layout]
    width = first.shape[-1] if rotary_dim is None else rotary_dim
    return (
        cos.shape[-1] == (width // 2 if per_pair else width)
        and not (least == torch.float32 and first.dtype == torch.float64)
        and all(t.dim() == first.dim() and t.dtype == first.dtype and t.shape[seqlen] == cos.shape[-2] for t in tensors)
    )


def _can(x, cos, sin, rotary_dim, per_pair, least):
    width = x.shape[-1] if rotary_dim is None else rotary_dim
    return (
        type(x).__name__ != "DTensor"
        and x.device.type in _DEVICES
        and x.device == cos.device == sin.device
        and x.dtype in _FLOATS
        and not (least == torch.float32 and x.dtype == torch.float64)  # would round what is copied
        and cos.dtype == sin.dtype in _FLOATS
        and cos.shape == sin.shape
        and 0 < cos.dim() <= x.dim()
        and 0 < width <= x.shape[-1]
        and width % 2 == 0
        and cos.shape[-1] == (width // 2 if per_pair else width)
        and all(n in (1, m) for n, m in zip(cos.shape[-2::-1], x.shape[-2::-1]))
    )


def examples(calls):
    """`Dialect.examples` of calls(x, table) -> [(args, kwargs), ...].

    x(*shape) and table(*shape) draw tensors of the dtype of the states, or of float32. cos and sin are drawn like any
    others, so that no two entries of a table agree by chance.
    """

    def draw(seed, dtype):
        generator = torch.Generator().manual_seed(seed)
        return [
            call
            for table_dtype in (torch.float32, dtype)
            for call in calls(_drawn(generator, dtype), _drawn(generator, table_dtype))
        ]

    return draw


def _drawn(generator, dtype):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def fused(read):
    """`Dialect.bound` of functions that may fuse a product and the sum (complex products, addcmul), by their `read`.

    Complex products do on a GPU, and on CPUs where fewer are left than two vectors hold.
    Then one of three roundings is missing, each of at most half a unit in the last place of |x1 cos| + |x2 sin|; and
    where the result is rounded to a narrower dtype, that can go to the next number.
    """

    def bound(args, kwargs, y):
        x, cos, sin, options = read(*args, **kwargs)
        if not options.get("per_pair"):  # the branch of real numbers, which has none
            return torch.zeros_like(y)
        work = torch.promote_types(options["least"], cos.dtype)
        size = torch.maximum(cos.abs(), sin.abs()).to(work)
        x = x.abs().to(work)
        if options.get("interleaved"):
            pairs = x.unflatten(-1, (-1, 2)).sum(-1).repeat_interleave(2, -1)
            size = size.repeat_interleave(2, -1)
        else:
            pairs = x.unflatten(-1, (2, -1)).sum(-2)
            pairs, size = torch.cat((pairs, pairs), -1), torch.cat((size, size), -1)
        eps = torch.finfo(work).eps
        next_number = 0 if y.dtype == work else torch.finfo(y.dtype).eps * y.abs().to(work)
        return 1.5 * eps * pairs * size + next_number

    return bound
