"""cos and sin of positions times frequencies in plain PyTorch, bit-identical to csrc/core/angles.h, with its names."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# 2 pi and its reciprocal, each as a sum of two float64 numbers.
TWO_PI = (6.283185307179586, 2.4492935982947064e-16)
ONE_REVOLUTION_PER_RADIAN = (0.15915494309189535, -9.839338337591243e-18)
_TWO_PI_FLOAT32 = (6.2831854820251465, -1.7484555314695172e-07)
_SIN_TERMS = {torch.float32: 4, torch.float64: 8}
_COS_TERMS = {torch.float32: 5, torch.float64: 9}
_EXACT_IN_FLOAT = 1 << 24


def cos_sin(positions: Tensor, high: Tensor, low: Tensor, attention_scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of positions * (high + low) revolutions, in the dtype of high.

    Args:
        positions: (axes, tokens), integers or the dtype of high.
        high, low: revolutions per position, (axes, heads, pairs), float32 or float64.
        attention_scaling: factor on both results. Default: 1.

    Returns:
        (cos, sin), each (tokens, heads, pairs).
    """
    dtype = high.dtype
    zero = torch.zeros(positions.shape[1], *high.shape[1:], dtype=dtype, device=high.device)
    revolutions = zero, zero
    for position, rate_high, rate_low in zip(positions, high, low):
        multiple, rest = (p[:, None, None] for p in _position_parts(position, dtype))
        product, error = two_prod(multiple, rate_high)
        product_low = multiple * rate_low
        beyond = product - product.round(), (error - error.round()) + (product_low - product_low.round())
        total, total_low = _add(revolutions, beyond)
        revolutions = (
            torch.where(multiple == 0, revolutions[0], total),
            torch.where(multiple == 0, revolutions[1], total_low),
        )
        product, error = two_prod(rest, rate_high)
        revolutions = _add(revolutions, (product - product.round(), fma(rest, rate_low, error)))
    high, low = revolutions
    quarter = (4 * (high + low)).round()
    rest = (high - 0.25 * quarter) + low
    two_pi = torch.tensor(TWO_PI if dtype == torch.float64 else _TWO_PI_FLOAT32, dtype=dtype, device=rest.device)
    x, x_low = two_prod(rest, two_pi[0])
    x_low = fma(rest, two_pi[1], x_low)
    x2 = x * x
    sin = x + fma(x, x2 * _series(x2, 3, _SIN_TERMS[dtype]), x_low)
    cos = 1 + fma(x2, _series(x2, 2, _COS_TERMS[dtype]), -x_low * x)
    quarter = quarter.remainder(4)
    odd = quarter.remainder(2) == 1
    c, s = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    c, s = torch.where((quarter == 1) | (quarter == 2), -c, c), torch.where(quarter >= 2, -s, s)
    return c * attention_scaling, s * attention_scaling


def revolutions(inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """inv_freq, radians per position, in revolutions per position: high + low, each (axes or 1, heads or 1, pairs).

    dtype: of both, float32 or float64. high is rounded to it; low is what that rounding lost, and has no derivative.
    """
    radians = inv_freq.to(torch.float64)[(None,) * (3 - inv_freq.dim())]
    per_radian, per_radian_low = ONE_REVOLUTION_PER_RADIAN
    high = radians * per_radian
    rounded = high.detach()
    low = product_error(radians.detach(), torch.full_like(rounded, per_radian), rounded)
    low = low + radians.detach() * per_radian_low
    if dtype != torch.float64:
        high = high.to(dtype)
        low = (rounded - high.detach().to(torch.float64) + low).to(dtype)
    return high.contiguous(), low.contiguous()


def _position_parts(position: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The multiple of 2^24 in the position, and the rest, which float32 holds exactly if the position is an integer."""
    if position.is_floating_point():
        multiple = (position * (1 / _EXACT_IN_FLOAT)).trunc() * _EXACT_IN_FLOAT
        return torch.where(position.isnan(), 0, multiple), position - multiple
    rest = position.to(torch.int64).fmod(_EXACT_IN_FLOAT)
    return (position - rest).to(dtype), rest.to(dtype)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute a * b + c, rounded once.

    Args:
        a, b, c: float32 or float64 Tensors of one dtype.

    Returns:
        Tensor of that dtype.

    Source: Boldo and Melquiond 2008, Emulation of a FMA, figure 1.
    """
    product, product_lost = two_prod(a, b)
    first, first_lost = two_sum(c, product_lost)
    total, lost = two_sum(product, first)
    rest, beyond = two_sum(lost, first_lost)
    # Round `rest` to odd, so that the last sum is rounded as the exact sum would be.
    even = rest.view(torch.int32 if rest.dtype == torch.float32 else torch.int64) & 1 == 0
    rest = torch.where((beyond != 0) & even, torch.nextafter(rest, beyond * torch.inf), rest)
    return total + rest


def two_prod(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a * b, and its rounding error."""
    product = a * b
    return product, product_error(a, b, product)


def product_error(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """Compute a * b - product exactly.

    Args:
        a, b: float32 or float64 Tensors of one dtype.
        product: a * b, as rounded.

    Returns:
        Tensor of that dtype.

    Source: Dekker 1971, A floating-point technique for extending the available precision.
    """
    if product.dtype == torch.float32:
        return (a.double() * b.double() - product.double()).float()
    error: Tensor = product_error_of_float64(a, b, product)
    return error


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b, and its rounding error."""
    total = a + b
    b_of_total = total - a
    return total, (a - (total - b_of_total)) + (b - b_of_total)


def _add(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """a + b, of numbers in two parts, high and low: Knuth, The Art of Computer Programming, volume 2, section 4.2.2."""
    total, lost = two_sum(a[0], b[0])
    return total, lost + (a[1] + b[1])


def _series(x2: Tensor, first: int, terms: int) -> Tensor:
    """Sum over k < terms of (-1) ** (k + 1) * x2 ** k / (first + 2 k)!."""
    total = torch.zeros_like(x2)
    for k in reversed(range(terms)):
        coefficient = (1 if k % 2 else -1) / math.factorial(first + 2 * k)
        total = fma(x2, total, torch.full_like(x2, coefficient))
    return total


# ---- float64, for tensors and for values of an ONNX graph, in which constants are values too ----


def product_error_of_float64(a: Any, b: Any, product: Any, number: Callable[[float], Any] = float) -> Any:
    """a * b - product, exactly (Dekker 1971). number: creates a float64 operand from a number."""
    (a1, a2), (b1, b2) = (_halves(t, number(134217729.0)) for t in (a, b))
    return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: Any, splitter: Any) -> tuple[Any, Any]:
    """a as a sum of two float64 numbers of 26 bits each. splitter: 2^27 + 1."""
    scaled = a * splitter
    high = scaled - (scaled - a)
    return high, a - high


def reduced_angle(
    position: Any,
    high: Any,
    low: Any,
    high_is_wide: bool,
    nearest: Callable[[Any], Any],
    sum_of_axes: Callable[[Any], Any],
    number: Callable[[float], Any] = float,
) -> Any:
    """The sum over axes of position * (high + low) revolutions, without whole revolutions, in radians.

    high_is_wide: high has more bits than float32, so that its product with the position is not exact.
    """
    product, beyond = position * high, position * low
    if high_is_wide:
        beyond = beyond + product_error_of_float64(position, high, product, number)
    revolutions = sum_of_axes((product - nearest(product)) + beyond)
    return (revolutions - nearest(revolutions)) * number(TWO_PI[0])
