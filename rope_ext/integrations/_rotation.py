"""What a rotary function computes, in terms of `rope_ext.apply`, and how to run that bit-identically to eager code."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._torch.library import DEVICES
from ..compat._broadcast import rotate as rotate_broadcast
from ..ops import apply
from ..reference import DTYPES, Rounding


class Convention(NamedTuple):
    """How a rotary function pairs channels and rounds.

    Attributes:
        interleaved, out_interleaved, inverse: as in `rope_ext.apply`.
        per_pair: whether a table has one entry per pair; otherwise one per channel, and the two of a pair may differ.
        min_dtype: the arithmetic has the dtype of x * cos, or with a min_dtype that of x.to(min_dtype) * cos.
        keep_dtype: whether the result is cast back to the dtype of x.
        num_casts: how often the function casts x to a wider dtype. 1: a 16-bit gradient is rounded once. 2 (one cast
            for each product): it is the sum of two rounded terms.
    """

    interleaved: bool = False
    out_interleaved: bool | None = None
    inverse: bool = False
    per_pair: bool = False
    min_dtype: torch.dtype | None = None
    keep_dtype: bool = False
    num_casts: int = 2


# INTERLEAVED: pairs (2i, 2i + 1) instead of halves. PER_PAIR: tables with one entry per pair instead of per channel.
PROMOTED = Convention()
KEPT = Convention(keep_dtype=True)
FLOAT32 = Convention(min_dtype=torch.float32, keep_dtype=True, num_casts=1)
FLOAT32_TERMS = FLOAT32._replace(num_casts=2)
INTERLEAVED = PROMOTED._replace(interleaved=True)
INTERLEAVED_PER_PAIR = INTERLEAVED._replace(per_pair=True)
FLOAT32_INTERLEAVED = FLOAT32._replace(interleaved=True)
FLOAT32_INTERLEAVED_PER_PAIR = FLOAT32_INTERLEAVED._replace(per_pair=True)
TERMS_INTERLEAVED = FLOAT32_TERMS._replace(interleaved=True)
TERMS_INTERLEAVED_PER_PAIR = TERMS_INTERLEAVED._replace(per_pair=True)


class Rotation(NamedTuple):
    """A rotation of x, or of each tensor of a tuple x.

    cos, sin: broadcast to x on all axes except the last, after unsqueeze(axis) unless axis is None.
    rotary_dim, rotary_offset: as in `rope_ext.apply`.
    may_fuse: whether the function may fuse a product and a sum; with rounding="eager" the function then runs itself.
    """

    x: Tensor | tuple[Tensor, ...]
    cos: Tensor
    sin: Tensor
    convention: Convention = PROMOTED
    axis: int | None = None
    rotary_dim: int | None = None
    rotary_offset: int = 0
    may_fuse: bool = False


class Rotations(NamedTuple):
    """Several rotations, or one whose result changes form: the function returns `finish(*rotated)`.

    If one of the parts is None, the original function runs.
    """

    parts: Sequence[Rotation | None]
    finish: Callable[..., Any]


Read = Rotation | Rotations | None  # what a call computes; None: the original function runs
Reader = Callable[..., Read]

# Forms that `apply` accepts directly: (rank of x, rank of cos, axis added to cos) -> (layout, axis of seqlen).
_Layout = Literal["bhsd", "bshd", "shd"]
_LAYOUTS: dict[tuple[int, int, int | None], tuple[_Layout, int]] = {
    (4, 3, 1): ("bhsd", 2),
    (4, 3, 2): ("bshd", 1),
    (4, 3, -2): ("bshd", 1),
    (4, 2, 0): ("bhsd", 2),
    (4, 2, None): ("bhsd", 2),
    (3, 2, 1): ("shd", 0),
    (3, 2, -2): ("shd", 0),
}
_NO_LAYOUT = None, 0


def run(read: Read, rounding: Rounding) -> Any:
    """The result of the function whose call was read, or None if `rope_ext.apply` cannot compute it."""
    if isinstance(read, Rotation):
        return rotate(read, rounding)
    if read is None:
        return None
    results: list[Any] = []
    for part in read.parts:
        y = None if part is None else rotate(part, rounding)
        if y is None:
            return None
        results.append(y)
    return read.finish(*results)


def rotate(rotation: Rotation, rounding: Rounding) -> Any:
    """The rotated x, bit-identical to eager code, or None if `rope_ext.apply` cannot compute it."""
    x, cos, sin, convention, axis, rotary_dim, rotary_offset, may_fuse = rotation
    tensors = x if isinstance(x, tuple) else (x,)
    layout = _layout(tensors, cos, axis, convention, rotary_dim)
    if layout is not None and convention is PROMOTED and rotary_dim is None and cos.dtype == tensors[0].dtype:
        return apply(x, cos, sin, layout=layout, per_channel=True, rounding=rounding)  # the call of most models
    if may_fuse and rounding == "eager":
        return None
    dtype, min_dtype, keep_dtype = tensors[0].dtype, convention.min_dtype, convention.keep_dtype
    if layout is None:
        if axis is not None:
            cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
        if not all(_can(t, cos, sin, convention, rotary_dim) for t in tensors):
            return None
        if any(t.dtype != dtype for t in tensors):
            single = rotation._replace(cos=cos, sin=sin, axis=None)
            return tuple(rotate(single._replace(x=t), rounding) for t in tensors)
    work = dtype if min_dtype is None and cos.dtype == dtype else torch.promote_types(min_dtype or dtype, cos.dtype)
    if cos.dtype != work:
        cos, sin = cos.to(work), sin.to(work)
    kernel_casts = keep_dtype and work == torch.float32 and dtype.itemsize == 2
    if dtype != work and not kernel_casts:
        tensors = tuple(t.to(work) for t in tensors)
    options: dict[str, Any] = {
        "interleaved": convention.interleaved,
        "out_interleaved": convention.out_interleaved,
        "inverse": convention.inverse,
        "rotary_dim": rotary_dim,
        "rotary_offset": rotary_offset,
        "per_channel": not convention.per_pair,
        "rounding": "once" if convention.num_casts == 1 else rounding,
    }
    if layout is None:
        y = rotate_broadcast(tensors, cos, sin, **options)
    else:
        y = apply(tensors, cos, sin, layout=layout, **options)
    if keep_dtype and y[0].dtype != dtype:
        y = tuple(t.to(dtype) for t in y)
    return y if isinstance(x, tuple) else y[0]


def _layout(
    tensors: tuple[Tensor, ...], cos: Tensor, axis: int | None, convention: Convention, rotary_dim: int | None
) -> _Layout | None:
    """The layout in which `apply` accepts tensors and tables directly, or None. `apply` itself checks the rest.

    A direct call takes a third of the time of one that broadcasts.
    """
    first, table = tensors[0], cos.shape
    shape, dtype, rank = first.shape, first.dtype, first.dim()
    layout, seqlen = _LAYOUTS.get((rank, len(table), axis), _NO_LAYOUT)
    if layout is None or table[-2] != shape[seqlen]:
        return None
    width = shape[-1] if rotary_dim is None else rotary_dim
    if table[-1] != (width // 2 if convention.per_pair else width):
        return None
    if convention.min_dtype is not None and convention.min_dtype == torch.float32 and dtype == torch.float64:
        return None
    for t in tensors:
        if t is not first and (t.dtype != dtype or t.dim() != rank or t.shape[seqlen] != table[-2]):
            return None
    return layout


def _can(x: Tensor, cos: Tensor, sin: Tensor, convention: Convention, rotary_dim: int | None) -> bool:
    """Whether `rope_ext.apply` can rotate x."""
    width = x.shape[-1] if rotary_dim is None else rotary_dim
    return (
        x.device.type in DEVICES
        and x.device == cos.device == sin.device
        and x.dtype in DTYPES
        and not (convention.min_dtype == torch.float32 and x.dtype == torch.float64)  # would round the copied channels
        and cos.dtype == sin.dtype in DTYPES
        and cos.shape == sin.shape
        and 0 < cos.dim() <= x.dim()
        and 0 < width <= x.shape[-1]
        and width % 2 == 0
        and cos.shape[-1] == (width // 2 if convention.per_pair else width)
        and all(n in (1, m) for n, m in zip(cos.shape[-2::-1], x.shape[-2::-1]))
    )
