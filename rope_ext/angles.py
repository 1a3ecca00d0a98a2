"""Angles from positions: exact cos and sin of position * inv_freq, with the same bits on every device."""

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from . import _reference_angles, reference
from ._float64 import may_lack_float64
from ._numbers import UNINITIALIZED
from ._shown import converted, name_of, shown
from ._torch.arguments import ORDINARY_TYPES, Scalars
from ._torch.dtensor import is_dtensor
from ._torch.errors import raises_typed
from ._torch.flags import FREQUENCIES
from ._torch.library import torch_ops as _ops
from ._torch.private import is_exporting
from ._torch.revolutions import by_op
from .errors import ArgumentError, ArgumentTypeError

_SHD = reference.LAYOUTS.index("shd")
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)  # packs two numbers in one element; torch cannot convert it
_make = raises_typed("cos_sin", _ops.cos_sin)


class Revolutions(NamedTuple):
    """inv_freq in revolutions per position, high + low, as the kernels take it. Made by `revolutions`."""

    high: Tensor  # (axes, heads or 1, pairs), float32 or float64
    low: Tensor
    per_axis: bool  # inv_freq has an axis per axis of positions


def revolutions(inv_freq: Tensor | Revolutions, dtype: torch.dtype = torch.float32) -> Revolutions:
    """inv_freq, in radians per position, as `apply` and `cos_sin` compute with it: converting it once saves time.

    inv_freq: (pairs,), (heads, pairs) or (axes, heads or 1, pairs), of any floating point dtype; Revolutions of this
        dtype are returned as they are.
    dtype: of the arithmetic and of the result, float32 (float64 for float64 x).
    Returns Revolutions on the device of inv_freq, differentiable. Raises ArgumentError or ArgumentTypeError.
    Equivalent to: high = (inv_freq.double() / (2 * pi)).to(dtype); low = what that rounding loses
    """
    if dtype is not torch.float32 and dtype is not torch.float64:
        got = name_of(dtype) if isinstance(dtype, torch.dtype) else shown(dtype)
        raise ArgumentTypeError("dtype", "be torch.float32 or torch.float64", got)
    if isinstance(inv_freq, Revolutions):
        if inv_freq.high.dtype != dtype:
            made = f"made for {name_of(inv_freq.high.dtype)}"
            raise ArgumentTypeError("inv_freq", f"be made for the arithmetic of x, {name_of(dtype)}", made)
        return inv_freq
    if high_and_low := by_op(inv_freq, dtype is torch.float64):
        return Revolutions(*high_and_low, inv_freq.dim() == 3)
    _check_strided("inv_freq", inv_freq)
    if not 1 <= inv_freq.dim() <= 3 or not inv_freq.is_floating_point() or inv_freq.dtype == _PACKED:
        rule = "be floating point of shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs)"
        raise ArgumentError("inv_freq", rule, f"{name_of(inv_freq.dtype)} of {tuple(inv_freq.shape)}")
    if may_lack_float64(inv_freq.device):
        high, low, per_axis = revolutions(inv_freq.cpu(), dtype)
        return Revolutions(high.to(inv_freq.device), low.to(inv_freq.device), per_axis)
    if inv_freq.device.type == "meta":
        high = inv_freq.to(dtype)[(None,) * (3 - inv_freq.dim())].contiguous()
        return Revolutions(high, torch.empty_like(high.detach()), inv_freq.dim() == 3)
    if is_exporting():  # one op, not many whose float64 a translation of the program may round to float32
        high, low = _ops.revolutions(inv_freq.double(), dtype is torch.float64)
        return Revolutions(high, low, inv_freq.dim() == 3)
    return Revolutions(*_reference_angles.revolutions(inv_freq, dtype), inv_freq.dim() == 3)


turns = revolutions  # former names, for one release
Turns = Revolutions
torch.serialization.add_safe_globals([(Revolutions, f"{__name__}.Turns")])  # the name in files saved before


def cos_sin(
    positions: Tensor,
    inv_freq: Tensor | Revolutions,
    attention_scaling: float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """cos and sin of positions * inv_freq, times attention_scaling.

    positions: int32, int64 or `dtype`, negative ones too, of any shape (of `dtype`: at most 3 axes, more would be x by
        mistake); (axes, ...) when inv_freq has three axes.
    inv_freq: radians per position: (pairs,), (heads, pairs), or (axes, heads or 1, pairs), whose angle is the sum over
        axes of positions[axis] * inv_freq[axis]: see `frequencies.per_axis`. Or what `revolutions` made of it.
    dtype: of the result and of the arithmetic, float32 or float64.

    Returns (cos, sin), each (*positions.shape, pairs), with heads (*positions.shape, heads, pairs), without the axes of
    positions. Differentiable in positions and inv_freq, to every order, in reverse and forward mode.

    Exact: whole revolutions are dropped without error, and every device gives the same bits. For inv_freq up to 1 the
    error in float32 is below 1.5e-7 up to position 2^24, beyond it 1.2e-6 + position * inv_freq * 2^-47 (float64: 3e-16
    up to position 2^53). In float32 positions (below 2^24) times inv_freq must stay below 2^24 radians.
    The kernel of `apply(inv_freq=...)` computes the same. Results for devices other than CPU and CUDA are made on the
    CPU, which waits for the device. Raises ArgumentError (a ValueError) or ArgumentTypeError (a TypeError).

    Equivalent to: angles = positions.double()[..., None] * inv_freq.double(); (angles.cos(), angles.sin())
    """
    _check_strided("positions", positions)
    if type(positions) not in ORDINARY_TYPES and is_dtensor(positions):
        raise ArgumentTypeError("positions", "be a Tensor", "a DTensor", "positions.to_local() has those of this rank")
    check_scaling(attention_scaling)
    high, low, per_axis = revolutions(inv_freq, dtype)
    if may_lack_float64(positions.device):  # such a device has no kernels either
        on_cpu = Revolutions(high.cpu(), low.cpu(), per_axis)
        cos, sin = cos_sin(positions.cpu(), on_cpu, attention_scaling, dtype=dtype)
        return cos.to(positions.device), sin.to(positions.device)
    _check_shapes(positions, high, low, per_axis)
    axes, heads, pairs = high.shape
    shape = positions.shape[1:] if per_axis else positions.shape
    count = math.prod(shape)  # shape.numel() would make the symbolic sizes of torch.export static
    flat = positions.reshape(axes, 1, count) if per_axis else positions.reshape(count)
    x = high.detach().new_empty(()).expand(count, heads, 2 * pairs)  # only its shape is read
    scalars = Scalars(flags=_SHD | FREQUENCIES, attention_scaling=float(attention_scaling))
    try:
        cos, sin, _ = _make([x], high, low, *scalars, flat)
    except (ValueError, NotImplementedError):
        if positions.device == high.device:
            raise
        rule = f"be on the device of inv_freq, {high.device}"
        raise ArgumentError("positions", rule, positions.device) from None
    of_angles = (*shape, heads, pairs) if heads > 1 else (*shape, pairs)
    return cos.reshape(of_angles), sin.reshape(of_angles)


def _check_shapes(positions: Tensor, high: Tensor, low: Tensor, per_axis: bool) -> None:
    dtype = high.dtype
    if positions.dtype not in (torch.int32, torch.int64, dtype):
        raise ArgumentTypeError("positions", f"be int32, int64 or {name_of(dtype)}", name_of(positions.dtype))
    if positions.is_floating_point() and positions.dim() > 3:
        got, cure = f"shape {tuple(positions.shape)}", "apply(x, inv_freq=inv_freq) rotates x"
        raise ArgumentError("positions", f"have at most 3 axes where they are {name_of(dtype)}", got, cure)
    if high.dim() != 3 or high.shape != low.shape:
        got = f"{tuple(high.shape)} and {tuple(low.shape)}"
        raise ArgumentError("inv_freq", "be Revolutions of two tensors (axes, heads or 1, pairs)", got)
    axes, heads, pairs = high.shape
    if not (axes and heads and pairs):
        raise ArgumentError("inv_freq", "have an axis, a head and a pair", f"{axes}, {heads} and {pairs}")
    if per_axis and (positions.dim() == 0 or positions.shape[0] != axes):
        got = f"shape {tuple(positions.shape)}"
        raise ArgumentError("positions", f"have the {axes} axes of inv_freq first", got)


def check_scaling(attention_scaling: object) -> None:
    if not isinstance(attention_scaling, numbers.Real) or isinstance(attention_scaling, bool):
        raise ArgumentTypeError("attention_scaling", "be a number", shown(attention_scaling))
    try:
        is_finite = abs(float(attention_scaling)) < math.inf  # torch.compile does not trace math.isfinite of a symbol
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise ArgumentError("attention_scaling", "be finite", shown(attention_scaling))


def _check_strided(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        cure = "its own apply(x) uses them" if hasattr(value, "inv_freq") else converted(name, value)
        raise ArgumentTypeError(name, "be a Tensor", shown(value), cure)
    is_lazy = isinstance(value, UNINITIALIZED)
    if is_lazy or value.is_nested or value.layout != torch.strided:
        got = type(value).__name__ if is_lazy else "a nested one" if value.is_nested else value.layout
        raise ArgumentTypeError(name, "be strided", got)
