"""The decay of xPos."""

import torch

from .. import _numbers
from .._float64 import may_lack_float64, widest


def xpos_scale(
    positions: torch.Tensor,
    rotary_dim: int,
    *,
    scale_base: float = 512,
    gamma: float = 0.4,
    center: float | torch.Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Compute the factor of xPos: multiply cos and sin of q by it, and divide those of k by it.

    The score of q at position m and k at position n is then multiplied by zeta ** ((m - n) / scale_base) per pair:
    decay for keys in the past but growth for keys in the future, so it suits causal attention only.

    Args:
        positions: Tensor of any shape and dtype.
        rotary_dim: number of rotated channels, even.
        scale_base: positions over which the factor changes by zeta. Default: 512.
        gamma: sets the strongest decay, zeta = gamma / (1 + gamma), which is that of the first pair. Default: 0.4.
        center: any position; it cancels between q and k. Half the sequence length keeps both factors in range. Default:
            0.
        dtype: of the result, floating-point; the factor is computed in float64 and rounded once. Default:
            torch.float32.

    Returns:
        Tensor `(*positions.shape, rotary_dim / 2)`, on the device of positions.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to::

        zeta = (torch.arange(0, rotary_dim, 2) / rotary_dim + gamma) / (1 + gamma)
        zeta ** ((positions[..., None] - center) / scale_base)

    Source: Sun et al. 2022, A Length-Extrapolatable Transformer, eq. 13 and algorithm 1 (gamma 0.4); scale_base 512:
    microsoft/torchscale, XPOS.
    """
    _numbers.tensor(positions=positions)
    _numbers.channels(rotary_dim)
    _numbers.positive(scale_base=scale_base, gamma=gamma)
    if not isinstance(center, torch.Tensor):
        _numbers.real(center=center)
    _numbers.floating_point(dtype)
    if may_lack_float64(device := positions.device):
        center = center.cpu() if isinstance(center, torch.Tensor) else center
        on_cpu = xpos_scale(positions.cpu(), rotary_dim, scale_base=scale_base, gamma=gamma, center=center, dtype=dtype)
        return on_cpu.to(device)
    pairs = torch.arange(0, rotary_dim, 2, dtype=widest(device), device=device)
    zeta = (pairs / rotary_dim + gamma) / (1 + gamma)
    exponents = (positions.to(widest(device)) - center) / scale_base
    scale: torch.Tensor = zeta ** exponents.unsqueeze(-1)
    return scale.to(dtype)
