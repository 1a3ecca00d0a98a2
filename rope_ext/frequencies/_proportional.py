"""The schedule of pruned RoPE (p-RoPE)."""

import torch

from .. import _numbers
from ._default import Frequencies, positions_per_radian


def proportional(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    partial_rotary_factor: float,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
    """Compute the frequencies of pruned RoPE: the first n = floor(partial_rotary_factor * rotary_dim / 2), then zeros.

    A pair with frequency 0 is copied. With pairs (i, i + rotary_dim / 2) the rotated channels are therefore 0 to n - 1
    and rotary_dim / 2 to rotary_dim / 2 + n - 1, not a prefix.

    Args:
        rotary_dim: number of channels of the whole head, also in the exponent; even.
        base: as in `default`.
        partial_rotary_factor: fraction of the pairs that rotate, 0 to 1.
        factor: divisor of all frequencies. Default: 1.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to::

        inv_freq = default(rotary_dim, base).inv_freq / factor
        inv_freq[n:] = 0

    Source: Barbero et al. 2024, Round and Round We Go, section 6 (p-RoPE); Gemma 4 (a quarter, base 1e6, its global
    layers); transformers, _compute_proportional_rope_parameters.
    """
    _numbers.channels(rotary_dim)
    _numbers.positive(factor=factor)
    _numbers.fraction(partial_rotary_factor=partial_rotary_factor)
    rotated = int(partial_rotary_factor * rotary_dim // 2)
    inv_freq = 1.0 / positions_per_radian(rotary_dim, base, dtype, pairs=rotated)
    zeros = torch.zeros(rotary_dim // 2 - rotated, dtype=dtype, device="cpu")
    return Frequencies(torch.cat((inv_freq, zeros)) / factor, 1.0)
