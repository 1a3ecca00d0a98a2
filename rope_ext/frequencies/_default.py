"""Frequencies without a schedule, frequencies divided by one factor, and the building blocks of every schedule."""

from typing import NamedTuple

import torch

from .. import _numbers
from .._shown import shown
from ..errors import ArgumentTypeError


class Frequencies(NamedTuple):
    """The result of a schedule.

    Attributes:
        inv_freq: radians per position, on the CPU: (pairs,), or (axes, heads or 1, pairs) for positions with several
            axes, where the angle is the sum over axes of positions[axis] * inv_freq[axis].
        attention_scaling: the factor on cos and sin.
    """

    inv_freq: torch.Tensor
    attention_scaling: float


def default(rotary_dim: int, base: float = 10000.0, *, dtype: torch.dtype = torch.float64) -> Frequencies:
    """Compute the frequencies of the original RoPE: base ** (-2 i / rotary_dim), from 1 down to almost 1 / base.

    Args:
        rotary_dim: number of rotated channels, even.
        base: the constant that sets the slowest frequency, "rope_theta" in configurations. Default: 10000.
        dtype: torch.float64 (default), accurate to its last bits; or torch.float32, bit-identical to transformers 5.23.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and dtype `dtype`, and with attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to::

        inv_freq = base ** -(torch.arange(0, rotary_dim, 2, dtype=dtype) / rotary_dim)

    Source: Su et al. 2021, RoFormer, section 3.3.2; base 10000 from Vaswani et al. 2017, section 3.5.
    """
    return Frequencies(1.0 / positions_per_radian(rotary_dim, base, dtype), 1.0)


def linear(rotary_dim: int, base: float = 10000.0, *, factor: float, dtype: torch.dtype = torch.float64) -> Frequencies:
    """Compute frequencies for position interpolation: each is divided by factor, as if the positions were.

    Args:
        rotary_dim, base: as in `default`.
        factor: a positive number.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to::

        inv_freq = default(rotary_dim, base).inv_freq / factor

    Source: Chen et al. 2023, Extending Context Window of Large Language Models via Positional Interpolation, eq. 4.
    """
    _numbers.positive(factor=factor)
    return Frequencies(1.0 / positions_per_radian(rotary_dim, base, dtype) / factor, 1.0)


def positions_per_radian(
    rotary_dim: int, base: float | torch.Tensor, dtype: torch.dtype, pairs: int | None = None
) -> torch.Tensor:
    """base ** (2 i / rotary_dim), 1 / inv_freq of `default`, for the first pairs (default: all). Checks arguments."""
    _numbers.channels(rotary_dim)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float64, torch.float32):
        raise ArgumentTypeError("dtype", "be torch.float64 or torch.float32", shown(dtype))
    if not (isinstance(base, torch.Tensor) and base.numel() == 1):
        _numbers.positive(base=base)
    pairs = rotary_dim // 2 if pairs is None else pairs
    # Integers first, as in transformers. "cpu": bit-identical results for every default device of PyTorch.
    exponents = torch.arange(0, 2 * pairs, 2, device="cpu").to(dtype) / rotary_dim
    found: torch.Tensor = base**exponents
    return found
