"""Tables that broadcast to x over any axes, as eager code has them, in the layouts of `rope_ext.apply`."""

import math

import torch

from ..ops import apply
from ._errors import require


def rotate(x, cos, sin, *, interleaved=False, rotary_dim=None, rotary_offset=0, keep_dtype=True):
    """`rope_ext.apply` to x, or to the tensors of a tuple x, with cos and sin that broadcast to it like x * cos.

    x: (..., head_dim). cos, sin: (..., rotary_dim / 2 or rotary_dim); axes before the last are 1, missing, or those of
    x. dtypes are promoted as in x * cos: keep_dtype casts the result back to the dtype of x, as in (x *
    cos).to(x.dtype).
    """
    if not isinstance(x, tuple):
        return _one(x, cos, sin, interleaved, rotary_dim, rotary_offset, keep_dtype)
    if x[0].dim() == 4 and all(t.dim() == 4 and t.dtype == x[0].dtype for t in x):  # one launch
        return _rotate4(x, cos, sin, interleaved, rotary_dim, rotary_offset, keep_dtype)
    return tuple(_one(t, cos, sin, interleaved, rotary_dim, rotary_offset, keep_dtype) for t in x)


def _one(x, cos, sin, *options):
    require(x.dim() >= 2, "x", "have at least 2 dimensions", f"shape {tuple(x.shape)}")
    if x.dim() <= 4:
        missing = 4 - x.dim()
        y = _rotate4((x[(None,) * missing],), cos, sin, *options)[0]
        return y[(0,) * missing]
    # Axes that share their tables become the batch, the others tokens of one head.
    cos, sin = (_as_broadcast(t, (x,)) for t in (cos, sin))
    shared = next((axis for axis in range(x.dim() - 1) if cos.shape[axis] > 1), x.dim() - 1)
    tokens = x.shape[shared:-1]
    cos, sin = (t.expand(*t.shape[:shared], *tokens, t.shape[-1]).reshape(1, -1, 1, t.shape[-1]) for t in (cos, sin))
    x4 = x.reshape(math.prod(x.shape[:shared]), math.prod(tokens), 1, x.shape[-1])
    return _rotate4((x4,), cos, sin, *options)[0].reshape(x.shape)


def _rotate4(x, cos, sin, interleaved, rotary_dim, rotary_offset, keep_dtype):
    cos, sin = (_as_broadcast(t, x) for t in (cos, sin))
    # Heads are the axis that shares its tables, and along which q and k may differ.
    axes = [axis for axis in (1, 2) if cos.shape[axis] == 1] or [2]
    heads = next((axis for axis in axes if len({t.shape[axis] for t in x}) > 1), axes[0])
    seqlen = 3 - heads
    sizes = [-1, -1, -1, -1]
    sizes[seqlen] = x[0].shape[seqlen]
    dtype = x[0].dtype
    x, cos, sin = _promoted(x, cos.expand(sizes), sin.expand(sizes), keep_dtype)
    y = apply(
        x,
        cos,
        sin,
        layout="bhsd" if heads == 1 else "bshd",
        interleaved=interleaved,
        rotary_dim=rotary_dim,
        rotary_offset=rotary_offset,
    )
    return tuple(t.to(dtype) for t in y) if keep_dtype else y


def _as_broadcast(table, x):
    """table with the axes of the tensors of x, of size 1 where it has none."""
    rank = x[0].dim()
    whole = table[(None,) * (rank - table.dim())]
    fits = whole.dim() == rank and all(n in (1, *(t.shape[i] for t in x)) for i, n in enumerate(whole.shape[:-1]))
    shapes = " and ".join(str(tuple(t.shape)) for t in x)
    require(fits, "cos", f"broadcast to x of shape {shapes} on all axes but the last", f"shape {tuple(table.shape)}")
    return whole


def _promoted(x, cos, sin, keep_dtype):
    """Dtypes as in x * cos. The kernel itself reads float32 tables with 16-bit x, and rounds once."""
    x_dtype = x[0].dtype
    if cos.dtype == x_dtype or (keep_dtype and cos.dtype == torch.float32 and x_dtype.itemsize == 2):
        return x, cos, sin
    dtype = torch.promote_types(x_dtype, cos.dtype)
    return tuple(t.to(dtype) for t in x), cos.to(dtype), sin.to(dtype)
