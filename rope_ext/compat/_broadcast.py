"""Converts tables that broadcast to x over any axes, the form of eager code, to the layouts of `rope_ext.apply`."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._shown import name_of
from ..errors import ArgumentError
from ..reference import Rounding
from ._errors import check_dtype, refused, refused_type
from ._results import X, rotated


def rotate(
    x: X,
    cos: Tensor,
    sin: Tensor,
    *,
    per_channel: bool,
    keep_dtype: bool = True,
    rounding: Rounding = "eager",
    **options: Any,
) -> X:
    """`rotated` for x, or for the tensors of a tuple x, with cos and sin that broadcast to it as in x * cos.

    Args:
        x: (..., head_dim).
        cos, sin: (..., rotary_dim) with per_channel, else (..., rotary_dim / 2). Axes before the last are 1, missing,
            or equal to those of x. Dtypes are promoted as in x * cos.
        keep_dtype: whether the result is cast back to the dtype of x, as in (x * cos).to(x.dtype).
        rounding: "eager" rounds each product of x * cos, "once" rounds the result only.
        **options: further arguments of `rotated`.
    """
    options |= {"per_channel": per_channel, "rounding": rounding}
    if sin.shape != cos.shape:
        raise refused("sin", f"have the shape of cos, {tuple(cos.shape)}", sin)
    y: Any
    if not isinstance(x, tuple):
        y = _one(x, cos, sin, keep_dtype, options)
    elif all(t.dim() == 4 and t.dtype == x[0].dtype for t in x):  # one launch
        y = _rotate4(x, cos, sin, keep_dtype, options)
    else:
        y = tuple(_one(t, cos, sin, keep_dtype, options) for t in x)
    result: X = y
    return result


def _one(x: Tensor, cos: Tensor, sin: Tensor, keep_dtype: bool, options: dict[str, Any]) -> Tensor:
    rank = x.dim()
    if rank == 4:
        return _rotate4((x,), cos, sin, keep_dtype, options)[0]
    if cos.dim() > rank:
        raise _does_not_broadcast(cos, (x,))
    if rank < 4:
        return _rotate4((x[(None,) * (4 - rank)],), cos, sin, keep_dtype, options)[0][(0,) * (4 - rank)]
    # Axes along which the tables are shared become the batch; the other axes become tokens of one head.
    sizes = (1,) * (rank - cos.dim()) + cos.shape
    shared = next((axis for axis in range(rank - 1) if sizes[axis] != 1), rank - 1)
    tokens = x.shape[shared:-1]
    if any(n not in (1, m) for n, m in zip(sizes[shared:-1], tokens)):
        raise _does_not_broadcast(cos, (x,))
    last, seqlen = len(tokens) + 1, math.prod(tokens)
    cos, sin = (t.reshape(t.shape[-last:]).expand(*tokens, -1).reshape(1, seqlen, 1, t.shape[-1]) for t in (cos, sin))
    x4 = x.reshape(math.prod(x.shape[:shared]), seqlen, 1, x.shape[-1])
    return _rotate4((x4,), cos, sin, keep_dtype, options)[0].reshape(x.shape)


def _rotate4(
    x: tuple[Tensor, ...], cos: Tensor, sin: Tensor, keep_dtype: bool, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    sizes = (1,) * (4 - cos.dim()) + cos.shape
    for axis, size in enumerate(sizes[:3]):
        if len(sizes) > 4 or (size != 1 and any(t.shape[axis] != size for t in x)):
            raise _does_not_broadcast(cos, x)
    # The axis of heads is one along which the tables are shared; q and k may differ in its size.
    heads = 1 if sizes[1] == 1 and (sizes[2] != 1 or any(t.shape[1] != x[0].shape[1] for t in x)) else 2
    axes = [0, 3 - heads, 3] if sizes[heads] == 1 else [0, 1, 2, 3]  # axes of the tables
    given, expanded = [sizes[axis] for axis in axes], [sizes[axis] for axis in axes]
    expanded[axes.index(3 - heads)] = x[0].shape[3 - heads]
    dtype = x[0].dtype
    x, cos, sin = _promoted(x, cos.reshape(given).expand(expanded), sin.reshape(given).expand(expanded), keep_dtype)
    y = rotated(x, cos, sin, layout="bhsd" if heads == 1 else "bshd", **options)
    return tuple(t.to(dtype) for t in y) if keep_dtype else y


def _does_not_broadcast(cos: Tensor, x: tuple[Tensor, ...]) -> ArgumentError:
    shapes = " and ".join(str(tuple(t.shape)) for t in x)
    return refused("cos", f"broadcast to x of shape {shapes} on all axes except the last", cos)


def _promoted(
    x: tuple[Tensor, ...], cos: Tensor, sin: Tensor, keep_dtype: bool
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """(x, cos, sin) in the dtypes of x * cos, except that 16-bit x with float32 tables is promoted by the kernel."""
    x_dtype = x[0].dtype
    in_kernel = keep_dtype and x_dtype.itemsize == 2  # the terms of the gradient then have the dtype of x
    if cos.dtype == x_dtype or (in_kernel and cos.dtype == torch.float32):
        return x, cos, sin
    check_dtype("x", x[0])
    check_dtype("cos", cos)
    if sin.dtype != cos.dtype:
        raise refused_type("sin", f"have the dtype of cos, {name_of(cos.dtype)}", name_of(sin.dtype))
    dtype = torch.promote_types(x_dtype, cos.dtype)
    if not (in_kernel and dtype == torch.float32):
        x = tuple(t.to(dtype) for t in x)
    return x, cos.to(dtype), sin.to(dtype)


def scaled_tables(freqs: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """(freqs.cos() * scale, freqs.sin() * scale). Errors name the arguments cos and scale."""
    check_dtype("cos", freqs)
    cos, sin = freqs.cos(), freqs.sin()
    if isinstance(scale, Tensor):
        check_dtype("scale", scale)
    elif not is_compiling() and scale == 1:  # saves two products; in a graph the number may be symbolic
        return cos, sin
    try:
        return cos * scale, sin * scale
    except RuntimeError:  # shapes that do not broadcast, or out of memory
        if isinstance(scale, Tensor) and not _broadcast_together(freqs, scale):
            raise refused("scale", f"broadcast to angles of shape {tuple(freqs.shape)}", scale) from None
        raise


def _broadcast_together(a: Tensor, b: Tensor) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(a.shape[::-1], b.shape[::-1]))
