"""apply_rot_embed, apply_rot_embed_list and apply_rot_embed_cat of timm (huggingface/pytorch-image-models 1.0.31)."""

from ._broadcast import rotate
from ._errors import called, refused


@called(cos="cos_emb", sin="sin_emb")
def apply_rot_embed(x, sin_emb, cos_emb, half=False):
    """Turns x; sin before cos. half: pairs are (i, i + head_dim / 2), else (2i, 2i + 1).

    x: (..., head_dim). sin_emb, cos_emb: (..., head_dim), one entry per channel, broadcasting to x on the other axes.

    Bit-equal.

    Source: timm/layers/pos_embed_sincos.py, apply_rot_embed.
    """
    if cos_emb.shape[-1] != x.shape[-1]:
        raise refused("cos_emb", f"have the head_dim {x.shape[-1]} of x last", cos_emb)
    return rotate(x, cos_emb, sin_emb, interleaved=not half)


def apply_rot_embed_list(x, sin_emb, cos_emb, half=False):
    """[apply_rot_embed(t, sin_emb, cos_emb, half) for t in x]; x may be one Tensor.

    Source: timm/layers/pos_embed_sincos.py, apply_rot_embed_list.
    """
    return [apply_rot_embed(t, sin_emb, cos_emb, half) for t in (x if isinstance(x, (tuple, list)) else [x])]


def apply_rot_embed_cat(x, emb, half=False):
    """apply_rot_embed with emb = cat(sin, cos), (..., 2 * head_dim).

    Source: timm/layers/pos_embed_sincos.py, apply_rot_embed_cat.
    """
    sin_emb, cos_emb = emb.chunk(2, dim=-1)
    return apply_rot_embed(x, sin_emb, cos_emb, half)
