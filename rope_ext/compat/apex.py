"""The four functions of apex.transformer.functional.fused_rope (NVIDIA/apex; its Python front end was removed in 2026).

Channels are paired in halves, (i, i + rotary_dim / 2). Results are contiguous, whatever the strides of t. freqs, cos
and sin receive gradients, which apex does not compute.

The CUDA kernels of apex compute in the dtype of t. `rounding="eager"` does the same: it rounds cos, sin and each
product to the dtype of t, also in the gradient of t. `rounding="once"`, the default, computes in float32 and rounds the
result and the gradient once. For float32 t both give equal results; the kernels of apex may fuse a product and a sum
there. apex computes the cosine and sine of freqs with CUDA's sincosf, which can differ from PyTorch's in the last bit.
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
    """Rotate the first rotary_dim channels of t by the angles freqs.

    Args:
        t: (seqlen, batch, heads, head_dim), any strides.
        freqs: (rows, 1, 1, rotary_dim) float32, at least seqlen rows; one angle in radians per channel.
        transpose_output_memory: whether the memory of the result has the order (batch, seqlen, heads, head_dim).
        rounding: "eager" rounds cos, sin and each product to the dtype of t; "once" rounds the result only.

    Returns:
        A new tensor with the shape and dtype of t; contiguous, or with transpose_output_memory contiguous after
        `transpose(0, 1)`.

    Raises:
        ArgumentError: when a shape does not fit, or freqs has fewer rows than t has tokens.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, with rounding="once"::

        angles = freqs[:, 0, 0]
        rope_ext.apply(t, angles.cos(), angles.sin(), layout="sbhd", rotary_dim=angles.shape[-1])

    Source: apex, apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb.
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
    """Rotate the first rotary_dim channels of t by the angles whose cosines and sines are given.

    Args:
        t: (seqlen, batch, heads, head_dim), any strides.
        cos_, sin_: (rows, 1, 1, rotary_dim), float32 or the dtype of t; one entry per channel.
        transpose_output_memory: whether the memory of the result has the order (batch, seqlen, heads, head_dim).
        rounding: "eager" rounds cos, sin and each product to the dtype of t; "once" rounds the result only.

    Returns:
        A new tensor with the shape and dtype of t; contiguous, or with transpose_output_memory contiguous after
        `transpose(0, 1)`.

    Raises:
        ArgumentError: when a shape does not fit, or the tables have fewer rows than t has tokens.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, with rounding="once"::

        cos, sin = cos_[:, 0, 0], sin_[:, 0, 0]
        rope_ext.apply(t, cos, sin, layout="sbhd", rotary_dim=cos.shape[-1])

    Source: apex, apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb_cached.
    """
    cos, sin = rounded_tables(_rows(cos_, "cos_"), _rows(sin_, "sin_"), t, rounding)
    options: dict[str, Any] = {"rotary_dim": cos.shape[-1], "per_channel": True, "rounding": rounding}
    contiguous = (0, 1) if transpose_output_memory else ()
    return rotated(t, cos, sin, layout="sbhd", contiguous=contiguous, **options)


@called(t=tensor("x", ranks=3), cu_seqlens=tensor("cu_seqlens"), freqs=_FREQS, rounding=rounding())
def fused_apply_rotary_pos_emb_thd(
    t: Tensor, cu_seqlens: Tensor, freqs: Tensor, *, rounding: Rounding = "once"
) -> Tensor:
    """Rotate packed sequences, each starting at the first row of freqs.

    Args:
        t: (tokens, heads, head_dim), any strides.
        cu_seqlens: (nseq + 1,) int32, boundaries of the sequences, ascending from 0.
        freqs: (rows, 1, 1, rotary_dim) float32; one angle in radians per channel.
        rounding: "eager" rounds cos, sin and each product to the dtype of t; "once" rounds the result only.

    Returns:
        A new contiguous tensor with the shape and dtype of t.

    Raises:
        ArgumentError: when a shape does not fit, or a sequence is longer than freqs.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, with rounding="once"::

        angles = freqs[:, 0, 0]
        options = {"layout": "thd", "rotary_dim": angles.shape[-1], "cu_seqlens": cu_seqlens}
        rope_ext.apply(t, angles.cos(), angles.sin(), **options)

    Source: apex, apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb_thd.
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
    """Rotate the first half of each head by the row of its pixel, and the second half by the column.

    Pairs are (i, i + head_dim / 4) within each half.

    Args:
        t: (batch, img_h * img_w, heads, head_dim), the pixels row by row; any strides.
        img_h, img_w: rows and columns of the image.
        cos_h, sin_h: (1, img_h or more, 1, head_dim / 2), float32 or the dtype of t; one entry per channel.
        cos_w, sin_w: (1, img_w or more, 1, head_dim / 2), likewise.
        rounding: "eager" rounds cos, sin and each product to the dtype of t; "once" rounds each half once.

    Returns:
        A new contiguous tensor with the shape and dtype of t.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, with rounding="once"::

        half, pixel = t.shape[-1] // 2, torch.arange(img_h * img_w)
        y = rope_ext.apply(t, cos_h[0, :, 0], sin_h[0, :, 0], rotary_dim=half, positions=pixel // img_w)
        options = {"rotary_dim": half, "rotary_offset": half, "positions": pixel % img_w}
        rope_ext.apply(y, cos_w[0, :, 0], sin_w[0, :, 0], **options)

    Source: apex, apex/transformer/functional/fused_rope.py, fused_apply_rotary_pos_emb_2d.
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


# The second rotation: an error of `rope_ext.apply` about its tables names cos_w or sin_w.
_rotated_columns = called(x=tensor("x", shown="t"), cos=tensor("cos", shown="cos_w"), sin=tensor("sin", shown="sin_w"))(
    rotated
)


def _rows(table: Tensor, name: str) -> Tensor:
    fits = table.dim() == 4 and table.shape[1:3] == (1, 1)
    if not fits:
        raise refused(name, "have shape (rows, 1, 1, rotary_dim)", table)
    return table[:, 0, 0]
