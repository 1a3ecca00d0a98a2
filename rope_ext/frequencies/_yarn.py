"""The schedule of YaRN."""

import math

import torch

from .. import _numbers
from ..errors import ArgumentError
from ._default import Frequencies, positions_per_radian
from ._length_ratio import needed_ratio


def yarn(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    original_max_position: float,
    factor: float | None = None,
    max_position: float | None = None,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    attention_factor: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
    """Compute the frequencies of YaRN: kept for fast pairs, divided by factor for slow ones, blended in between.

    The pair that makes r revolutions within the training length has the (real) index::

        d(r) = rotary_dim * ln(original_max_position / (2 pi r)) / (2 ln(base))

    The linear ramp extends from low = d(beta_fast) to high = d(beta_slow), rounded outwards to whole pairs unless
    truncate=False. With m(k) = 0.1 * k * ln(factor) + 1, or 1 for factor <= 1, the default attention_scaling is
    m(mscale) / m(mscale_all_dim) if both are given and not 0, else m(1).

    Args:
        rotary_dim: as in `default`.
        base: as in `default`, greater than 1.
        original_max_position: the training length.
        factor: the ratio of the context length to the training length. Default: max_position / original_max_position.
        max_position: the context length; used only for the default of factor.
        beta_fast, beta_slow: numbers of revolutions between which the ramp extends. Default: 32 and 1.
        truncate: whether the ends of the ramp are rounded to whole pairs. Default: True; gpt-oss has False.
        mscale, mscale_all_dim: the arguments of m above. DeepSeek sets both to the same number, so that cos and sin are
            not scaled, and multiplies the softmax scale by m(mscale_all_dim) ** 2 instead; that part is left to the
            caller.
        attention_factor: attention_scaling, which overrides its default.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,).

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to, with default = default(rotary_dim, base).inv_freq::

        ramp = ((torch.arange(rotary_dim // 2) - low) / (high - low)).clamp(0, 1)
        inv_freq = default / factor * ramp + default * (1 - ramp)

    Source: Peng et al. 2023, YaRN, eq. 13 to 15, 21 and 22; section 3.2 for beta_slow 1 and beta_fast 32 (its alpha and
    beta, for Llama); mscale from DeepSeek-V2, yarn_get_mscale; transformers, _compute_yarn_parameters.
    """
    factor = needed_ratio(factor, max_position, original_max_position)
    _check(beta_fast, beta_slow, truncate, mscale, mscale_all_dim, attention_factor)
    per_radian = positions_per_radian(rotary_dim, base, dtype)
    if base <= 1:
        raise ArgumentError("base", "be above 1 for yarn", base)

    def pair_with(revolutions: float) -> float:
        positions = original_max_position / (revolutions * 2 * math.pi)  # per radian
        if not 0 < positions < math.inf:
            rule = f"be a number of positions in which {revolutions} revolutions fit"
            raise ArgumentError("original_max_position", rule, original_max_position)
        return rotary_dim * math.log(positions) / (2 * math.log(base))

    low, high = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # as in the paper's code: a step instead of a division by zero
    ramp = ((torch.arange(rotary_dim // 2, dtype=dtype, device="cpu") - low) / (high - low)).clamp(0, 1)
    extrapolated = 1 - ramp
    interpolated = 1.0 / (factor * per_radian) * (1 - extrapolated)
    inv_freq = interpolated + 1.0 / per_radian * extrapolated

    if attention_factor is None:
        attention_factor = _attention(factor, 1)
        if mscale and mscale_all_dim:
            attention_factor = _attention(factor, mscale) / _attention(factor, mscale_all_dim)
    return Frequencies(inv_freq, float(attention_factor))


def _check(
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
    mscale: float | None,
    mscale_all_dim: float | None,
    attention_factor: float | None,
) -> None:
    _numbers.positive(beta_fast=beta_fast, beta_slow=beta_slow)
    _numbers.boolean(truncate=truncate)
    for name, value in (("mscale", mscale), ("mscale_all_dim", mscale_all_dim)):
        if value is not None:
            _numbers.not_negative(**{name: value})
    if attention_factor is not None:
        _numbers.positive(attention_factor=attention_factor)
    if beta_fast < beta_slow:
        raise ArgumentError("beta_fast", f"be at least beta_slow {beta_slow}", beta_fast)


def _attention(factor: float, mscale: float) -> float:
    """m(mscale), as defined in the docstring of `yarn`."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
