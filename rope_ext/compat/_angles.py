"""Rotation by angles that are given one per channel, as Transformer Engine and apex take them."""

import torch

from ..ops import apply
from ._errors import check_dtype


def rotate_by(angles, t, layout, *, fused, **options):
    """`rope_ext.apply` to t with the cosines and sines of angles, (rows, rotary_dim) or four axes.

    fused: True computes as their CUDA kernels do: cos and sin stay float32 (float64 for float64 t), and the result and
    the gradient of t are rounded once. False computes as eager code does: cos, sin and each product, also those of the
    gradient, are rounded to the dtype of t. options: others of apply.
    """
    check_dtype("cos", angles)
    dtype = t.dtype
    if fused:
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        angles = angles.to(dtype)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    rounding = "once" if fused else "eager"
    options |= {"rotary_dim": angles.shape[-1], "per_channel": True, "rounding": rounding}
    return apply(t, cos, sin, layout=layout, **options)
