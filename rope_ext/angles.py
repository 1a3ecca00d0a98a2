"""Angles from positions: cos and sin of position * inv_freq, exact at any position, on every device the same bits."""

from typing import NamedTuple

import torch
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import reference
from ._library import torch_ops as _ops


class Turns(NamedTuple):
    """inv_freq in turns per position as a sum of two numbers: what the kernels take. Made by `turns`."""

    high: torch.Tensor  # (axes, heads or 1, pairs), float32 or float64
    low: torch.Tensor


def turns(inv_freq, dtype=torch.float32, device=None):
    """inv_freq, in radians per position, as `apply` and `cos_sin` work with it; to make once what is used often.

    inv_freq: (pairs,), (heads, pairs) or (axes, heads or 1, pairs), of any floating point dtype. dtype: of the
    arithmetic, float32 (float64 for float64 x). device: default that of inv_freq.
    Equivalent to: high = (inv_freq.double() / (2 * pi)).to(dtype); low = what that rounding loses
    """
    if isinstance(inv_freq, Turns):
        return inv_freq
    if not isinstance(inv_freq, torch.Tensor):
        raise TypeError(f"rope_ext: inv_freq must be a Tensor, got {inv_freq!r}")
    if not 1 <= inv_freq.dim() <= 3 or not inv_freq.is_floating_point():
        rule = "be floating point of shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs)"
        raise ValueError(f"rope_ext: inv_freq must {rule}, got {inv_freq.dtype} of shape {tuple(inv_freq.shape)}")
    inv_freq = inv_freq.detach().to(torch.float64)
    high, low = reference.product(inv_freq[(None,) * (3 - inv_freq.dim())], *reference.ONE_TURN_PER_RADIAN)
    if dtype != torch.float64:
        high, low = high.to(dtype), (high - high.to(dtype).to(torch.float64) + low).to(dtype)
    return Turns(high.to(device).contiguous(), low.to(device).contiguous())


def cos_sin(positions, inv_freq, attention_scaling=1.0, *, dtype=torch.float32):
    """cos and sin of positions * inv_freq, times attention_scaling.

    positions: int32, int64 or `dtype`, negative ones too, of any shape; (axes, ...) when inv_freq has three axes.
    inv_freq: radians per position: (pairs,), (heads, pairs), or (axes, heads or 1, pairs), whose angle is the sum over
        axes of positions[axis] * inv_freq[axis]: see `frequencies.per_axis`. Or what `turns` made of it.
    dtype: of the result and of the arithmetic, float32 or float64.

    Returns (cos, sin), each (*positions.shape, pairs), with heads (*positions.shape, heads, pairs), without the axes of
    positions. Differentiable in positions and inv_freq, to every order, in reverse and forward mode.

    Exact: whole turns are dropped without error, so in float32 results are off by less than 1.5e-7 up to position 2^24
    (float64: 3e-16), and equal bit for bit on every device. What `apply(inv_freq=...)` does in its kernel.

    Equivalent to: angles = positions.double()[..., None] * inv_freq.double(); (angles.cos(), angles.sin())
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"rope_ext: dtype must be float32 or float64, got {_name(dtype)}")
    if positions.dtype not in (torch.int32, torch.int64, dtype):
        raise TypeError(f"rope_ext: positions must be int32, int64 or {_name(dtype)}, got {_name(positions.dtype)}")
    rates = turns(inv_freq, dtype, positions.device)
    axes, heads = _axes_and_heads(inv_freq)
    if axes and (positions.dim() == 0 or positions.shape[0] != rates.high.shape[0]):
        rule = f"have the {rates.high.shape[0]} axes of inv_freq first"
        raise ValueError(f"rope_ext: positions must {rule}, got shape {tuple(positions.shape)}")
    shape = positions.shape[1:] if axes else positions.shape
    flat = positions.detach().reshape(rates.high.shape[0], -1) if axes else positions.detach().reshape(1, -1)
    results = _ops.cos_sin(flat, *rates, float(attention_scaling))
    results = [t.reshape(*shape, *((t.shape[1],) if heads else ()), t.shape[2]) for t in results]
    if not differentiable(positions, inv_freq):
        return tuple(results)
    return _with_derivatives(*results, positions, inv_freq, dtype, axes, heads)


def differentiable(positions, inv_freq):
    """Whether derivatives with respect to one of them can be asked for."""
    tensors = [t for t in (positions, inv_freq) if isinstance(t, torch.Tensor)]
    if is_compiling():
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return any(t.is_floating_point() for t in tensors)
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _axes_and_heads(inv_freq):
    """Whether positions have axes, and the result has heads."""
    if isinstance(inv_freq, Turns):
        return inv_freq.high.shape[0] > 1, inv_freq.high.shape[1] > 1
    return inv_freq.dim() == 3, inv_freq.dim() > 1 and inv_freq.shape[-2] > 1


def _with_derivatives(cos, sin, positions, inv_freq, dtype, axes, heads):
    """cos(angle + change), sin(angle + change) of a change that is 0 and has the derivatives of the angle.

    So the value stays that of the op, bit for bit, and derivatives are those of PyTorch's own functions.
    """
    if isinstance(inv_freq, Turns):
        inv_freq = (inv_freq.high + inv_freq.low) * reference.TWO_PI[0]
    rates = inv_freq.to(dtype)[(None,) * (3 - inv_freq.dim())]
    per_axis = positions.to(dtype) if axes else positions.to(dtype)[None]
    angle = sum(p[..., None, None] * rate for p, rate in zip(per_axis.unbind(0), rates.unbind(0)))
    change = (angle - angle.detach()) if heads else (angle - angle.detach()).squeeze(-2)
    c, s = change.cos(), change.sin()
    return cos * c - sin * s, sin * c + cos * s
