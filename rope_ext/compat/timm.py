"""apply_rot_embed, apply_rot_embed_list and apply_rot_embed_cat of timm (huggingface/pytorch-image-models 1.0.31)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._arguments import at_least, flag, tensor
from ._broadcast import rotate
from ._called import called
from ._errors import refused

_X = tensor("x", ranks=at_least(1))
_TABLES = {
    "sin_emb": tensor("sin", ranks=at_least(1)),
    "cos_emb": tensor("cos", ranks=at_least(1)),
    "half": flag(),
}


@called(x=_X, **_TABLES)
def apply_rot_embed(x: Tensor, sin_emb: Tensor, cos_emb: Tensor, half: bool = False) -> Tensor:
    """Rotates x, bit-equal to the original (sin comes first). half: pairs are (i, i + head_dim / 2), else (2i, 2i + 1).

    x: (..., head_dim). sin_emb, cos_emb: (..., head_dim), one entry per channel, broadcasting to x on the other axes.

    Source: timm/layers/pos_embed_sincos.py, apply_rot_embed.
    """
    if cos_emb.shape[-1] != x.shape[-1]:
        raise refused("cos_emb", f"have the head_dim {x.shape[-1]} of x last", cos_emb)
    return rotate(x, cos_emb, sin_emb, per_channel=True, interleaved=not half)


@called(**_TABLES)
def apply_rot_embed_list(
    x: Tensor | Sequence[Tensor], sin_emb: Tensor, cos_emb: Tensor, half: bool = False
) -> list[Tensor]:
    """[apply_rot_embed(t, sin_emb, cos_emb, half) for t in x]; x may be one Tensor.

    Source: timm/layers/pos_embed_sincos.py, apply_rot_embed_list.
    """
    states: Sequence[Any] = x if isinstance(x, (tuple, list)) else [x]
    return [apply_rot_embed(t, sin_emb, cos_emb, half) for t in states]


@called(x=_X, emb=tensor("cos", "sin", ranks=at_least(1)), half=flag())
def apply_rot_embed_cat(x: Tensor, emb: Tensor, half: bool = False) -> Tensor:
    """apply_rot_embed with emb = cat(sin, cos), (..., 2 * head_dim).

    Source: timm/layers/pos_embed_sincos.py, apply_rot_embed_cat.
    """
    if emb.shape[-1] != 2 * x.shape[-1]:
        raise refused("emb", f"have twice the head_dim {x.shape[-1]} of x last", emb)
    sin, cos = emb.chunk(2, dim=-1)
    return rotate(x, cos, sin, per_channel=True, interleaved=not half)
