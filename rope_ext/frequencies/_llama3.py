"""The schedule of Llama 3."""

import math

import torch

from .. import _numbers
from ..errors import ArgumentError
from ._default import Frequencies, positions_per_radian


def llama3(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_max_position: float = 8192,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
    """Compute the frequencies of Llama 3: divided by factor at long wavelengths, kept at short ones, else blended.

    A wavelength is 2 pi / inv_freq, in positions. It is long above original_max_position / low_freq_factor, and short
    below original_max_position / high_freq_factor.

    Args:
        rotary_dim, base: as in `default`.
        factor: divisor of the frequencies with long wavelengths.
        low_freq_factor: sets the bound of long wavelengths. Default: 1.
        high_freq_factor: sets the bound of short wavelengths; greater than low_freq_factor. Default: 4.
        original_max_position: the training length. Default: 8192.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to, for the wavelengths in between, with default = default(rotary_dim, base).inv_freq::

        s = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
        inv_freq = (1 - s) * default / factor + s * default

    Source: meta-llama/llama-models, apply_scaling, whose constants are 8 (factor), 1, 4 and 8192; transformers,
    _compute_llama3_parameters.
    """
    _numbers.positive(factor=factor, low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor)
    _numbers.positive(original_max_position=original_max_position)
    if not high_freq_factor > low_freq_factor:
        raise ArgumentError("high_freq_factor", f"be above low_freq_factor {low_freq_factor}", high_freq_factor)
    inv_freq = 1.0 / positions_per_radian(rotary_dim, base, dtype)
    wavelength = 2 * math.pi / inv_freq
    is_long = wavelength > original_max_position / low_freq_factor
    is_short = wavelength < original_max_position / high_freq_factor
    smooth = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    return Frequencies(torch.where(is_long, inv_freq / factor, torch.where(is_short, inv_freq, between)), 1.0)
