"""Frequencies: how far each pair of channels turns from one position to the next."""

import torch


def default(rotary_dim, base=10000.0):
    """inv_freq of the original RoPE: base ** (-2 i / rotary_dim) radians per position for pair i.

    Returns (rotary_dim / 2,) float64 on the CPU, falling from 1. Source: Su et al. 2021, RoFormer, section 3.3.2.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device="cpu") / rotary_dim
    return torch.pow(base, -exponent)
