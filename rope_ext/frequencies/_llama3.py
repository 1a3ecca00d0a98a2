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
    """Frequencies with long wavelengths are divided by factor, those with short ones stay, others are blended.

    A wavelength is 2 pi / inv_freq, in positions. Long: above original_max_position / low_freq_factor. Short: below
    original_max_position / high_freq_factor; high_freq_factor is above low_freq_factor.
    Equivalent to, for the wavelengths between:
        s = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
        inv_freq = (1 - s) * default / factor + s * default, with default = default(rotary_dim, base).inv_freq
    Source: meta-llama/llama-models, apply_scaling, whose constants are 8 (factor), 1, 4 and 8192; transformers
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
