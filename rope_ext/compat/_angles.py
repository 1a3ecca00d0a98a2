"""Rotation by angles with one entry per channel, the form of Transformer Engine and apex."""

from typing import Any

import torch
from torch import Tensor

from ..reference import Rounding
from ._errors import check_dtype
from ._results import rotated


def rotate_by(
    angles: Tensor,
    t: Tensor,
    layout: str,
    *,
    rounding: Rounding,
    contiguous: tuple[int, int] | tuple[()] = (),
    **options: Any,
) -> Tensor:
    """`rope_ext.apply` to t with the cosines and sines of angles, (rows, rotary_dim) or four axes.

    Args:
        rounding: "once": cos and sin are float32 (float64 for float64 t), and the result and the gradient of t are
            rounded once. "eager": cos, sin and each product, also in the gradient, are rounded to the dtype of t.
        contiguous: see `rotated`.
        **options: further arguments of `apply`.
    """
    check_dtype("cos", angles)
    dtype = t.dtype
    if rounding == "once":
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        angles = angles.to(dtype)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    options |= {"layout": layout, "rotary_dim": angles.shape[-1], "per_channel": True, "rounding": rounding}
    return rotated(t, cos, sin, contiguous=contiguous, **options)
