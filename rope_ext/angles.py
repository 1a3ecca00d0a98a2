"""Angles from positions: exact cos and sin of position * inv_freq, bit-identical on every device."""

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

__all__ = ["Revolutions", "cos_sin", "revolutions"]

_SHD = reference.LAYOUTS.index("shd")
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)  # packs two numbers into one element; PyTorch cannot convert it
_make = raises_typed("cos_sin", _ops.cos_sin)


class Revolutions(NamedTuple):
    """Frequencies in revolutions per position, in the form that the kernels read; returned by `revolutions`.

    Attributes:
        high: (axes, heads or 1, pairs), float32 or float64, rounded.
        low: what that rounding lost: high + low are the revolutions per position.
        per_axis: whether inv_freq has one axis per axis of positions.
    """

    high: Tensor  # (axes, heads or 1, pairs), float32 or float64
    low: Tensor
    per_axis: bool


def revolutions(inv_freq: Tensor | Revolutions, dtype: torch.dtype = torch.float32) -> Revolutions:
    """Convert inv_freq to the form in which `rope_ext.apply` and `cos_sin` compute, which saves time if done once.

    Args:
        inv_freq: radians per position, of shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs) and any
            floating-point dtype. Revolutions of the requested dtype are returned unchanged.
        dtype: of the arithmetic and of the result: torch.float32 (default), or torch.float64 for float64 x.

    Returns:
        Revolutions on the device of inv_freq, differentiable.

    Raises:
        ArgumentError: the shape or dtype of inv_freq is wrong; a ValueError.
        ArgumentTypeError: a type is wrong, or Revolutions are of another dtype; a TypeError.

    Equivalent to::

        high = (inv_freq.double() / (2 * pi)).to(dtype)
        low = inv_freq / (2 * pi) - high    # what the rounding lost
    """
    if dtype is not torch.float32 and dtype is not torch.float64:
        got = name_of(dtype) if isinstance(dtype, torch.dtype) else shown(dtype)
        raise ArgumentTypeError("dtype", "be torch.float32 or torch.float64", got)
    if isinstance(inv_freq, Revolutions):
        if inv_freq.high.dtype != dtype:
            got = f"Revolutions of {name_of(inv_freq.high.dtype)}"
            raise ArgumentTypeError("inv_freq", f"be converted for the arithmetic of x, {name_of(dtype)}", got)
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
    if is_exporting():  # a single op: a translation of the program may round the float64 of separate ops to float32
        high, low = _ops.revolutions(inv_freq.double(), dtype is torch.float64)
        return Revolutions(high, low, inv_freq.dim() == 3)
    return Revolutions(*_reference_angles.revolutions(inv_freq, dtype), inv_freq.dim() == 3)


turns = revolutions  # former names, kept for one release
Turns = Revolutions
torch.serialization.add_safe_globals([(Revolutions, f"{__name__}.Turns")])  # the name in older files


def cos_sin(
    positions: Tensor,
    inv_freq: Tensor | Revolutions,
    attention_scaling: float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of positions * inv_freq, times attention_scaling.

    Exact: whole revolutions are removed without error, and the results are bit-identical on every device. For inv_freq
    up to 1 the error in float32 is below 1.5e-7 up to position 2^24, and 1.2e-6 + position * inv_freq * 2^-47 beyond
    it; in float64 it is below 3e-16 up to position 2^53. For float32 positions, which are below 2^24, positions *
    inv_freq must stay below 2^24 radians. The kernel of `rope_ext.apply` with inv_freq computes the same values.

    Args:
        positions: int32, int64 or `dtype`, negative ones included, of any shape, or (axes, ...) if inv_freq has three
            axes. Positions of floating-point `dtype` have at most 3 axes: with more they are probably x.
        inv_freq: radians per position, of shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs). With several
            axes the angle is the sum over axes of positions[axis] * inv_freq[axis]: see
            `rope_ext.frequencies.per_axis`. The result of `revolutions` is accepted too.
        attention_scaling: factor on both results. Default: 1.
        dtype: of the result and of the arithmetic: torch.float32 (default) or torch.float64.

    Returns:
        (cos, sin), each `(*positions.shape, pairs)`, or `(*positions.shape, heads, pairs)` if inv_freq has several
        heads; without the first axis of positions if inv_freq has three axes. Differentiable in positions and inv_freq,
        to any order, in reverse and forward mode. Results for devices other than CPU and CUDA are computed on the CPU,
        which waits for the device.

    Raises:
        ArgumentError: a size, a value or a device is wrong; a ValueError.
        ArgumentTypeError: a type or a dtype is wrong; a TypeError.

    Equivalent to::

        angles = positions.double()[..., None] * inv_freq.double()
        angles.cos(), angles.sin()
    """
    _check_strided("positions", positions)
    if type(positions) not in ORDINARY_TYPES and is_dtensor(positions):
        cure = "use positions.to_local(), the positions of this rank"
        raise ArgumentTypeError("positions", "be a Tensor", "a DTensor", cure)
    check_scaling(attention_scaling)
    high, low, per_axis = revolutions(inv_freq, dtype)
    if may_lack_float64(positions.device):  # rope_ext has no kernels for such a device either
        on_cpu = Revolutions(high.cpu(), low.cpu(), per_axis)
        cos, sin = cos_sin(positions.cpu(), on_cpu, attention_scaling, dtype=dtype)
        return cos.to(positions.device), sin.to(positions.device)
    _check_shapes(positions, high, low, per_axis)
    axes, heads, pairs = high.shape
    shape = positions.shape[1:] if per_axis else positions.shape
    count = math.prod(shape)  # shape.numel() would specialize the symbolic sizes of torch.export
    flat = positions.reshape(axes, 1, count) if per_axis else positions.reshape(count)
    x = high.detach().new_empty(()).expand(count, heads, 2 * pairs)  # the op reads only its shape
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
        got, cure = f"shape {tuple(positions.shape)}", "to rotate x call apply(x, inv_freq=inv_freq)"
        raise ArgumentError("positions", f"have at most 3 axes when they are {name_of(dtype)}", got, cure)
    if high.dim() != 3 or high.shape != low.shape:
        got = f"{tuple(high.shape)} and {tuple(low.shape)}"
        raise ArgumentError("inv_freq", "be Revolutions of two tensors (axes, heads or 1, pairs)", got)
    axes, heads, pairs = high.shape
    if not (axes and heads and pairs):
        raise ArgumentError("inv_freq", "have at least one axis, one head and one pair", f"{axes}, {heads} and {pairs}")
    if per_axis and (positions.dim() == 0 or positions.shape[0] != axes):
        got = f"shape {tuple(positions.shape)}"
        raise ArgumentError("positions", f"begin with the {axes} axes of inv_freq", got)


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
        cure = "rope.apply(x) uses its frequencies" if hasattr(value, "inv_freq") else converted(name, value)
        raise ArgumentTypeError(name, "be a Tensor", shown(value), cure)
    is_lazy = isinstance(value, UNINITIALIZED)
    if is_lazy or value.is_nested or value.layout != torch.strided:
        got = type(value).__name__ if is_lazy else "a nested tensor" if value.is_nested else value.layout
        raise ArgumentTypeError(name, "be strided", got)
