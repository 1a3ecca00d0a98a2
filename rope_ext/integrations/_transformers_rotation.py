"""The conventions that the readers of transformers share, and the checks of a call."""

from typing import Any

import torch
from torch import Tensor

from ._rotation import INTERLEAVED_PER_PAIR, PROMOTED, Convention, Rotation

PER_PAIR = PROMOTED._replace(per_pair=True)
INTERLEAVED_PER_PAIR_TO_HALVES = INTERLEAVED_PER_PAIR._replace(out_interleaved=False)


def rotation_of(
    x: Any,
    cos: Tensor,
    sin: Tensor,
    axis: int | None = None,
    convention: Convention = PROMOTED,
    *,
    partial: str | None = None,
    halved: bool = False,
    joined: bool = False,
) -> Rotation | None:
    """The `Rotation` of x, or of the tensors of a tuple x; None for calls that the functions refuse or do differently.

    Args:
        partial: "leading" or "trailing" if the table may have fewer channels than x.
        halved: whether the table has one entry per channel, of which the function reads the first half, one per pair.
        joined: whether the result is a new tensor whose channels are adjacent in memory (torch.cat), even if those of x
            are not. Implied by partial.
    """
    states = x if isinstance(x, tuple) else (x,)
    head_dim = states[0].shape[-1]
    if halved:
        cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2]
    rotary_dim = cos.shape[-1] * (2 if convention.per_pair else 1)
    if rotary_dim != head_dim and (partial is None or rotary_dim > head_dim):
        return None
    if convention.keep_dtype and any(t.dtype != states[0].dtype for t in states):
        return None
    if convention.min_dtype is not None and cos.dtype == torch.float64:
        return None
    if (partial or joined) and any(t.stride(-1) != 1 for t in states):
        x = tuple(t.contiguous() for t in states) if isinstance(x, tuple) else x.contiguous()
    if rotary_dim == head_dim:
        return Rotation(x, cos, sin, convention, axis)
    offset = head_dim - rotary_dim if partial == "trailing" else 0
    return Rotation(x, cos, sin, convention, axis, rotary_dim, offset)
