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
    """The factor of xPos, (*positions.shape, rotary_dim / 2): multiply cos and sin of q by it, and divide those of k.

    The score of q at m and k at n gets the factor zeta ** ((m - n) / scale_base) per pair: a decay for keys in the
    past, and growth for keys in the future, so causal attention only.
    positions: any shape and dtype; the result lies on their device. center: any position, which cancels between q and
    k; half the length keeps both factors in range. Computed in float64, rounded once to dtype.
    Equivalent to:
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
