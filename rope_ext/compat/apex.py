"""The four functions of apex.transformer.functional.fused_rope (NVIDIA/apex; its Python side was removed in 2026).

Channels are paired in halves, (i, i + rotary_dim / 2). Results are contiguous, whatever the strides of t. Here freqs,
cos and sin get gradients (there: none).

rounding: "eager" rounds cos, sin and each product to the dtype of t, also in the gradient of t, as their CUDA kernels
do: they compute in that dtype. "once" keeps float32, and rounds the result and the gradient once. Both are equal for
float32 t, where their kernels may fuse a product and a sum. Their cos and sin of freqs are CUDA's sincosf, which can
differ from PyTorch's in the last bit.
"""

from typing import Any

import torch
from torch import Tensor

from ..reference import Rounding
from ._angles import rotate_by
from ._arguments import flag, integer, rounding, tensor
from ._called import called
from ._errors import refused
from ._results import rotated, rounded_tables

_T, _FREQS = tensor("x", ranks=4), tensor("cos", "sin", "offset", "rotary_dim")


@called(t=_T, freqs=_FREQS, transpose_output_memory=flag(), rounding=rounding())
def fused_apply_rotary_pos_emb(
    t: Tensor, freqs: Tensor, transpose_output_memory: bool = False, *, rounding: Rounding = "once"
) -> Tensor:
    """Rotates the first freqs.shape[-1] channels of t by the angles freqs.

    t: (seqlen, batch, heads, head_dim), any strides. freqs: (rows, 1, 1, rotary_dim), float32, one angle per channel.
    transpose_output_memory: the result lies in memory as (batch, seqlen, heads, head_dim).

    Source: apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb.
    """
    contiguous = (0, 1) if transpose_output_memory else ()
    return rotate_by(_rows(freqs, "freqs"), t, "sbhd", rounding=rounding, contiguous=contiguous)


@called(
    t=_T,
    cos_=tensor("cos", "offset", "rotary_dim"),
    sin_=tensor("sin"),
    transpose_output_memory=flag(),
    rounding=rounding(),
)
def fused_apply_rotary_pos_emb_cached(
    t: Tensor, cos_: Tensor, sin_: Tensor, transpose_output_memory: bool = False, *, rounding: Rounding = "once"
) -> Tensor:
    """`fused_apply_rotary_pos_emb` with cos_ and sin_, (rows, 1, 1, rotary_dim), float32 or the dtype of t.

    Source: apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb_cached.
    """
    cos, sin = rounded_tables(_rows(cos_, "cos_"), _rows(sin_, "sin_"), t, rounding)
    options: dict[str, Any] = {"rotary_dim": cos.shape[-1], "per_channel": True, "rounding": rounding}
    contiguous = (0, 1) if transpose_output_memory else ()
    return rotated(t, cos, sin, layout="sbhd", contiguous=contiguous, **options)


@called(t=tensor("x", ranks=3), cu_seqlens=tensor("cu_seqlens"), freqs=_FREQS, rounding=rounding())
def fused_apply_rotary_pos_emb_thd(
    t: Tensor, cu_seqlens: Tensor, freqs: Tensor, *, rounding: Rounding = "once"
) -> Tensor:
    """`fused_apply_rotary_pos_emb` of packed sequences, each from the first row of freqs on.

    t: (tokens, heads, head_dim). cu_seqlens: (nseq + 1,) int32. freqs: (rows, 1, 1, rotary_dim), float32.

    Source: apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb_thd.
    """
    return rotate_by(_rows(freqs, "freqs"), t, "thd", rounding=rounding, cu_seqlens=cu_seqlens)


@called(
    t=_T,
    img_h=integer(),
    img_w=integer(),
    cos_h=tensor("cos"),
    sin_h=tensor("sin"),
    cos_w=tensor(),
    sin_w=tensor(),
    rounding=rounding(),
)
def fused_apply_rotary_pos_emb_2d(
    t: Tensor,
    img_h: int,
    img_w: int,
    cos_h: Tensor,
    sin_h: Tensor,
    cos_w: Tensor,
    sin_w: Tensor,
    *,
    rounding: Rounding = "once",
) -> Tensor:
    """Images: the first half of each head is rotated by the row of its pixel, the second half by the column.

    t: (batch, img_h * img_w, heads, head_dim), row by row. cos_h, sin_h: (1, rows, 1, head_dim / 2) with at least img_h
    rows, cos_w, sin_w likewise for img_w; one entry per channel. Pairs are (i, i + head_dim / 4) within each half.

    Source: apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb_2d.
    """
    if img_h < 0 or img_w < 0:
        raise refused("img_h", "not be negative", img_h) if img_h < 0 else refused("img_w", "not be negative", img_w)
    fits = t.dim() == 4 and t.shape[1] == img_h * img_w and t.shape[3] % 4 == 0
    if not fits:
        rule = f"have shape (batch, {img_h} * {img_w}, heads, head_dim) with head_dim a multiple of 4"
        raise refused("t", rule, t)
    half = t.shape[3] // 2
    tables = {"cos_h": cos_h, "sin_h": sin_h, "cos_w": cos_w, "sin_w": sin_w}
    for name, table in tables.items():
        rows = img_h if name.endswith("h") else img_w
        fits = table.dim() == 4 and table.shape[0] == table.shape[2] == 1 and table.shape[3] == half
        if not (fits and table.shape[1] >= rows):
            rule = f"have shape (1, {rows} or more, 1, {half})"
            raise refused(name, rule, table)
    image = torch.unflatten(t, 1, (img_h, img_w))
    # Rows: (batch, img_h, img_w * heads, head_dim). Columns: (batch * img_h, img_w, heads, head_dim).
    options: dict[str, Any] = {"rotary_dim": half, "per_channel": True, "rounding": rounding}
    cos, sin = rounded_tables(cos_h[0, :, 0], sin_h[0, :, 0], t, rounding)
    y = rotated(image.flatten(2, 3), cos, sin, contiguous=(), **options)
    y = torch.unflatten(y, 2, (img_w, t.shape[2])).flatten(0, 1)
    cos, sin = rounded_tables(cos_w[0, :, 0], sin_w[0, :, 0], t, rounding)
    y = _rotated_columns(y, cos, sin, rotary_offset=half, **options)
    return torch.unflatten(y, 0, (t.shape[0], img_h)).flatten(1, 2)


# Errors of `rope_ext.apply` about its tables name those of the columns.
_rotated_columns = called(x=tensor("x", shown="t"), cos=tensor("cos", shown="cos_w"), sin=tensor("sin", shown="sin_w"))(
    rotated
)


def _rows(table: Tensor, name: str) -> Tensor:
    fits = table.dim() == 4 and table.shape[1:3] == (1, 1)
    if not fits:
        raise refused(name, "have shape (rows, 1, 1, rotary_dim)", table)
    return table[:, 0, 0]
