"""The schedule of LongRoPE."""

import math
from collections.abc import Iterable

import torch

from .. import _numbers
from ..errors import ArgumentError
from ._default import Frequencies, positions_per_radian
from ._length_ratio import needed_ratio, ratio


def longrope(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    short_factor: Iterable[float] | torch.Tensor,
    long_factor: Iterable[float] | torch.Tensor,
    original_max_position: float,
    factor: float | None = None,
    max_position: float | None = None,
    attention_factor: float | list[float] | tuple[float, ...] | None = None,
    seqlen: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
    """Compute the frequencies of LongRoPE: one searched divisor per pair, from one of two lists.

    All positions of a sequence have the same divisors: those of short_factor up to original_max_position, those of
    long_factor if seqlen is larger. Keys cached before that change do not match queries after it.

    Args:
        rotary_dim, base: as in `default`.
        short_factor, long_factor: rotary_dim / 2 positive numbers each.
        original_max_position: the training length.
        factor: the ratio of the context length to the training length. Default: max_position / original_max_position.
        max_position: the context length; used only for the default of factor.
        attention_factor: attention_scaling: one number, or two for (short, long), as in Phi-3.5-MoE. Default: sqrt(1 +
            ln(factor) / ln(original_max_position)), or 1 for factor <= 1, for short and long alike.
        seqlen: length of the sequence, which selects the list. Default: None, the short one.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,).

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to, up to original_max_position (beyond it with long_factor)::

        inv_freq = default(rotary_dim, base).inv_freq / torch.tensor(short_factor)

    Source: Ding et al. 2024, LongRoPE, eq. 3; the scaling: the code of Phi-3; transformers,
    _compute_longrope_parameters.
    """
    per_radian = positions_per_radian(rotary_dim, base, dtype)
    _numbers.seqlen(seqlen)
    ratio(factor, max_position, original_max_position)  # validates them even if attention_factor is given
    factors = {
        "short_factor": _numbers.as_tuple("short_factor", short_factor),
        "long_factor": _numbers.as_tuple("long_factor", long_factor),
    }
    for name, values in factors.items():
        if len(values) != rotary_dim // 2:
            raise ArgumentError(name, f"have rotary_dim / 2 = {rotary_dim // 2} numbers", len(values))
        _numbers.all_positive(**{name: values})
    is_long = seqlen is not None and seqlen > original_max_position
    divisors = torch.tensor(factors["long_factor" if is_long else "short_factor"], dtype=dtype, device="cpu")
    if attention_factor is None:
        factor = needed_ratio(factor, max_position, original_max_position)
        if factor > 1 and not original_max_position > 1:
            raise ArgumentError("original_max_position", "be above 1", original_max_position)
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_position))
    elif isinstance(attention_factor, (list, tuple)):
        _numbers.all_positive(attention_factor=attention_factor)
        if len(attention_factor) != 2:
            raise ArgumentError("attention_factor", "be one number or two", len(attention_factor))
        attention_factor = attention_factor[is_long]
    else:
        _numbers.positive(attention_factor=attention_factor)
    return Frequencies(1.0 / (divisors * per_radian), float(attention_factor))
