"""apply_rot_embed, apply_rot_embed_list and apply_rot_embed_cat of timm (huggingface/pytorch-image-models 1.0.31)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._arguments import at_least, flag, tensor
from ._broadcast import rotate
from ._called import called
from ._errors import last_size, refused

_X = tensor("x", ranks=at_least(1))
_TABLES = {
    "sin_emb": tensor("sin", ranks=at_least(1)),
    "cos_emb": tensor("cos", ranks=at_least(1)),
    "half": flag(),
}


@called(x=_X, **_TABLES)
def apply_rot_embed(x: Tensor, sin_emb: Tensor, cos_emb: Tensor, half: bool = False) -> Tensor:
    """Rotate all channels of x, bit-identical to the original. sin comes before cos.

    Args:
        x: (..., head_dim), any strides.
        sin_emb, cos_emb: (..., head_dim), one entry per channel, broadcast to x on the other axes.
        half: whether pairs are (i, i + head_dim / 2); otherwise they are (2i, 2i + 1).

    Returns:
        A new tensor with the shape and dtype of x.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for x (batch, heads, seqlen, head_dim) in the dtype of the tables::

        rope_ext.apply(x, cos_emb, sin_emb, layout="bhsd", interleaved=not half, rounding="eager")

    Source: timm 1.0.31, timm/layers/pos_embed_sincos.py, apply_rot_embed.
    """
    if cos_emb.shape[-1] != x.shape[-1]:
        raise refused("cos_emb", last_size(x.shape[-1], "x"), cos_emb)
    return rotate(x, cos_emb, sin_emb, per_channel=True, interleaved=not half)


@called(**_TABLES)
def apply_rot_embed_list(
    x: Tensor | Sequence[Tensor], sin_emb: Tensor, cos_emb: Tensor, half: bool = False
) -> list[Tensor]:
    """Rotate each tensor of a list, as `apply_rot_embed` does.

    Args:
        x: Tensor, or list or tuple of Tensors, each (..., head_dim).
        sin_emb, cos_emb: (..., head_dim), one entry per channel, broadcast to each tensor on the other axes.
        half: whether pairs are (i, i + head_dim / 2); otherwise they are (2i, 2i + 1).

    Returns:
        A list of new tensors, also for one Tensor.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for a list::

        [rope_ext.compat.timm.apply_rot_embed(t, sin_emb, cos_emb, half) for t in x]

    Source: timm 1.0.31, timm/layers/pos_embed_sincos.py, apply_rot_embed_list.
    """
    states: Sequence[Any] = x if isinstance(x, (tuple, list)) else [x]
    return [apply_rot_embed(t, sin_emb, cos_emb, half) for t in states]


@called(x=_X, emb=tensor("cos", "sin", ranks=at_least(1)), half=flag())
def apply_rot_embed_cat(x: Tensor, emb: Tensor, half: bool = False) -> Tensor:
    """Rotate all channels of x by a table that holds sin and then cos, bit-identical to the original.

    Args:
        x: (..., head_dim), any strides.
        emb: (..., 2 * head_dim), sin and then cos, one entry per channel, broadcast to x on the other axes.
        half: whether pairs are (i, i + head_dim / 2); otherwise they are (2i, 2i + 1).

    Returns:
        A new tensor with the shape and dtype of x.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for x (batch, heads, seqlen, head_dim) in the dtype of emb::

        sin, cos = emb.chunk(2, dim=-1)
        rope_ext.apply(x, cos, sin, layout="bhsd", interleaved=not half, rounding="eager")

    Source: timm 1.0.31, timm/layers/pos_embed_sincos.py, apply_rot_embed_cat.
    """
    if emb.shape[-1] != 2 * x.shape[-1]:
        raise refused("emb", f"have a last dimension of {2 * x.shape[-1]}, twice the head_dim of x", emb)
    sin, cos = emb.chunk(2, dim=-1)
    return rotate(x, cos, sin, per_channel=True, interleaved=not half)
