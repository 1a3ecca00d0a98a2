"""Schedules with a larger base: NTK-aware scaling, fixed and by the length of the sequence."""

import math

import torch

from .. import _numbers
from ..errors import ArgumentError
from ._default import Frequencies, default, positions_per_radian


def ntk(rotary_dim: int, base: float = 10000.0, *, alpha: float, dtype: torch.dtype = torch.float64) -> Frequencies:
    """A larger base, with a fixed alpha: base' = base * alpha ** (rotary_dim / (rotary_dim - 2)).

    The exponent makes the slowest frequency, that of pair rotary_dim / 2 - 1, exactly alpha times slower; the fastest
    stays 1. rotary_dim is at least 4.
    Equivalent to: inv_freq = default(rotary_dim, base * alpha ** (rotary_dim / (rotary_dim - 2))).inv_freq
    Source: u/bloc97 2023, "NTK-aware scaled RoPE"; transformers hunyuan_v1_dense, compute_ntk_alpha_rope_parameters.
    """
    _numbers.positive(base=base, alpha=alpha)
    _numbers.channels(rotary_dim, at_least=4)
    try:
        base = base * alpha ** (rotary_dim / (rotary_dim - 2))
    except OverflowError:
        base = math.inf
    if not 0 < base < math.inf:
        raise ArgumentError("alpha", "keep the base positive and finite", alpha)
    return default(rotary_dim, base, dtype=dtype)


def dynamic_ntk(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    factor: float,
    max_position: float,
    seqlen: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
    """`ntk` with an alpha that grows with seqlen: alpha = factor * seqlen / max_position - (factor - 1).

    max_position: positions of the training. Up to that seqlen, and with seqlen=None, nothing changes; there alpha is 1,
    and far beyond it about factor * seqlen / max_position. Keys that were cached at another seqlen do not fit.
    rotary_dim is at least 4.
    Equivalent to, for seqlen > max_position: inv_freq = ntk(rotary_dim, base, alpha=alpha).inv_freq
    Source: u/emozilla 2023, "Dynamically Scaled RoPE"; transformers _compute_dynamic_ntk_parameters.
    """
    _numbers.positive(base=base, factor=factor, max_position=max_position)
    _numbers.channels(rotary_dim, at_least=4)
    _numbers.seqlen(seqlen)
    if seqlen is None or seqlen <= max_position:
        return default(rotary_dim, base, dtype=dtype)
    # A tensor, since transformers takes seqlen from positions.max(): its arithmetic here is float32.
    length = torch.tensor(seqlen, device="cpu").to(dtype)
    alpha = factor * length / max_position - (factor - 1)
    larger_base = base * alpha ** (rotary_dim / (rotary_dim - 2))
    return Frequencies(1.0 / positions_per_radian(rotary_dim, larger_base, dtype), 1.0)
