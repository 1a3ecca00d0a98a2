"""The schedule that warps the frequency axis."""

import torch

from .. import _numbers
from ..errors import ArgumentError
from ._default import Frequencies, positions_per_radian


def warped(rotary_dim: int, base: float = 10000.0, *, factor: float, dtype: torch.dtype = torch.float64) -> Frequencies:
    """Compute frequencies by a bilinear warp of the frequency axis: inv_freq' = 2 atan(tan(inv_freq / 2) / factor).

    Slow pairs rotate factor times slower, as in `linear`. Half a revolution per position, the fastest rotation that
    integer positions can resolve, is unchanged, and the frequencies in between bend smoothly.

    Derivation: a rotation by w per position is the value of z^-1 at z = e^(iw). Replace the delay by a first-order
    allpass::

        z^-1 -> (z^-1 - a) / (1 - a z^-1),   a real, |a| < 1.

    It maps the unit circle onto itself, so a frequency w maps to another one, w', with::

        e^-iw' = (e^-iw - a) / (1 - a e^-iw).

    Substitute e^-iw = (1 - i t) / (1 + i t) with t = tan(w / 2), and likewise for w' and t'::

        (1 - i t') / (1 + i t') = ((1 - a) - i t (1 + a)) / ((1 - a) + i t (1 + a)),   so   t' = t (1 + a) / (1 - a).

    Hence tan(w' / 2) = (1 + a) / (1 - a) tan(w / 2). With factor = (1 - a) / (1 + a) this is the formula above. For
    small w it is w' = w / factor, and w = pi (t infinite) is a fixed point. Two successive warps multiply their
    factors.

    Args:
        rotary_dim: as in `default`.
        base: as in `default`, at least 1.
        factor: a positive number.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (rotary_dim / 2,) and attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to::

        inv_freq = 2 * torch.atan(torch.tan(default(rotary_dim, base).inv_freq / 2) / factor)

    Source: the allpass transformation of Constantinides 1970, Spectral transformations for digital filters; the warped
    frequency axis of Oppenheim and Johnson 1972. No released model is known to use it.
    """
    _numbers.positive(factor=factor)
    inv_freq = 1.0 / positions_per_radian(rotary_dim, base, dtype)
    if base < 1:
        raise ArgumentError("base", "be at least 1 for warped", base)
    return Frequencies(2 * torch.atan(torch.tan(inv_freq / 2) / factor), 1.0)
