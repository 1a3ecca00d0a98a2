"""Schedules with a larger base: NTK-aware scaling, with a fixed factor or one that depends on the sequence length."""

import math

import torch

from .. import _numbers
from ..errors import ArgumentError
from ._default import Frequencies, default, positions_per_radian


def ntk(rotary_dim: int, base: float = 10000.0, *, alpha: float, dtype: torch.dtype = torch.float64) -> Frequencies:
    """Compute NTK-aware frequencies, with the larger base base' = base * alpha ** (rotary_dim / (rotary_dim - 2)).

    The exponent makes the slowest frequency, that of pair rotary_dim / 2 - 1, exactly alpha times slower; the fastest
    stays 1.

    Args:
        rotary_dim: as in `default`, at least 4.
        base: as in `default`.
        alpha: a positive number.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to::

        inv_freq = default(rotary_dim, base * alpha ** (rotary_dim / (rotary_dim - 2))).inv_freq

    Source: u/bloc97 2023, "NTK-aware scaled RoPE"; transformers, hunyuan_v1_dense, compute_ntk_alpha_rope_parameters.
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
    """Compute `ntk` with an alpha that grows with seqlen: alpha = factor * seqlen / max_position - (factor - 1).

    Up to the training length, and with seqlen=None, the frequencies are those of `default`. alpha is 1 at the training
    length, and approximately factor * seqlen / max_position far beyond it. Keys cached at another seqlen do not match.

    Args:
        rotary_dim: as in `default`, at least 4.
        base: as in `default`.
        factor: a positive number.
        max_position: the training length.
        seqlen: length of the sequence. Default: None, as for any length up to the training length.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to, for seqlen > max_position::

        inv_freq = ntk(rotary_dim, base, alpha=alpha).inv_freq

    Source: u/emozilla 2023, "Dynamically Scaled RoPE"; transformers, _compute_dynamic_ntk_parameters.
    """
    _numbers.positive(base=base, factor=factor, max_position=max_position)
    _numbers.channels(rotary_dim, at_least=4)
    _numbers.seqlen(seqlen)
    if seqlen is None or seqlen <= max_position:
        return default(rotary_dim, base, dtype=dtype)
    # A tensor, because transformers computes seqlen as positions.max(), and hence alpha in float32.
    length = torch.tensor(seqlen, device="cpu").to(dtype)
    alpha = factor * length / max_position - (factor - 1)
    larger_base = base * alpha ** (rotary_dim / (rotary_dim - 2))
    return Frequencies(1.0 / positions_per_radian(rotary_dim, larger_base, dtype), 1.0)
