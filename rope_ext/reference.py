"""The rotation in plain PyTorch, to which every kernel must be bit-identical.

Read it to know what `rope_ext.apply` computes. It validates almost nothing and is slow. PyTorch differentiates it: in
float64 and float32 its derivatives are bit-identical to those of rope_ext; for 16-bit x, `transposed` yields the
bit-identical gradient. With norm they are not: _reference_norm.py has the formula of those gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from ._reference_angles import ONE_REVOLUTION_PER_RADIAN, TWO_PI, cos_sin, fma, product_error
from ._reference_norm import normalise

__all__ = [
    "LAYOUTS",
    "ONE_REVOLUTION_PER_RADIAN",
    "ROUNDINGS",
    "TWO_PI",
    "Layout",
    "Rounding",
    "Tensors",
    "apply",
    "cos_sin",
    "fma",
    "product_error",
    "rotate",
    "table_rows",
]

fused, ONE_TURN_PER_RADIAN = fma, ONE_REVOLUTION_PER_RADIAN  # former names, kept for one release

# The dtypes of the kernels, and their names in error messages.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = "float64, float32, bfloat16 or float16"

Layout: TypeAlias = Literal["bshd", "bhsd", "sbhd", "thd", "shd"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Rounding: TypeAlias = Literal["once", "eager"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

# What rotations accept and return: a Tensor, or a tuple or list of them. The last is for code that accepts all three.
Tensors = TypeVar(
    "Tensors",
    Tensor,
    tuple[Tensor, Tensor],
    tuple[Tensor, Tensor, Tensor],
    tuple[Tensor, ...],
    list[Tensor],
    Tensor | tuple[Tensor, ...] | list[Tensor],
)


def apply(
    x: Tensors,
    cos: Tensor,
    sin: Tensor,
    *,
    layout: Layout = "bshd",
    interleaved: bool = False,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    per_channel: bool | None = None,
    positions: Tensor | None = None,
    offset: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    rounding: Rounding = "once",
    out_interleaved: bool | None = None,
    norm: Tensor | Sequence[Tensor | None] | None = None,
    eps: float | None = None,
    transposed: bool = False,
) -> Tensors:
    """Rotate like `rope_ext.apply`, in plain PyTorch, without inv_freq, attention_scaling and out.

    Args:
        x, cos, sin, layout, interleaved, rotary_dim, rotary_offset, per_channel: as in `rope_ext.apply`.
        positions, offset, cu_seqlens, inverse, rounding, out_interleaved, norm, eps: as in `rope_ext.apply`.
        transposed: apply the transposed 2x2 blocks, which maps the gradient of the result to that of x. Not with norm.

    Returns:
        What `rope_ext.apply` returns, apart from strides.

    Raises:
        ValueError: per_channel contradicts the width of cos, or norm is given without eps. Nothing else is checked.
    """
    if norm is not None and eps is None:
        raise ValueError("norm needs eps")

    def one(t: Tensor, weight: Tensor | None) -> Tensor:
        x4 = as_bshd(t, layout)
        end = x4.shape[-1] if rotary_dim is None else rotary_offset + rotary_dim
        arithmetic = torch.float64 if t.dtype == torch.float64 else torch.float32
        n4 = x4 if weight is None or eps is None else _normalised(x4, weight, eps, rounding)
        cos4, sin4, rows = cos.to(arithmetic), sin.to(arithmetic), None
        if cos.dim() == 2:
            rows = table_rows(x4.shape[0], x4.shape[1], positions, offset, cu_seqlens, cos.device)
            cos4, sin4 = _looked_up(cos4, rows), _looked_up(sin4, rows)
        else:
            cos4, sin4 = tables_bshd(cos4, layout), tables_bshd(sin4, layout)
        rounds_products = rounding == "eager" and (cos.dtype == t.dtype or transposed)
        middle = rotate(
            n4[..., rotary_offset:end].to(arithmetic),
            cos4,
            -sin4 if inverse else sin4,
            interleaved=interleaved,
            out_interleaved=out_interleaved,
            transposed=transposed,
            products=t.dtype if rounds_products else arithmetic,
        )
        y4 = torch.cat([part.to(t.dtype) for part in (n4[..., :rotary_offset], middle, n4[..., end:])], dim=-1)
        if cu_seqlens is not None and rows is not None:
            y4 = torch.where((rows >= 0)[:, :, None, None], y4, x4)
        return from_bshd(y4, layout)

    if per_channel is not None:
        head_dim = (x if isinstance(x, Tensor) else x[0]).shape[-1]
        width = head_dim - rotary_offset if rotary_dim is None else rotary_dim
        if cos.shape[-1] != (width if per_channel else width // 2):
            raise ValueError(f"per_channel {per_channel} contradicts the width {cos.shape[-1]} of cos")
    if isinstance(x, Tensor):
        return one(x, norm if isinstance(norm, Tensor) or norm is None else norm[0])
    structure: Any = type(x)
    weights = [norm] * len(x) if isinstance(norm, Tensor) or norm is None else norm
    rotated: Tensors = structure(one(t, weight) for t, weight in zip(x, weights))
    return rotated


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    out_interleaved: bool | None = None,
    transposed: bool = False,
    products: torch.dtype | None = None,
) -> Tensor:
    """Rotate all channels of x: the formula.

    A pair (x1, x2) of channels becomes (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2).

    Args:
        x: (..., rotary_dim), in the dtype of the arithmetic.
        cos, sin: broadcastable to x, or to half of its last axis (one entry per pair).
        interleaved, out_interleaved, transposed: as in `apply`.
        products: dtype that each product is rounded to. Default: that of x.

    Returns:
        The rotated x, in the dtype of x.

    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, equation 34.
    """
    products = x.dtype if products is None else products
    out_interleaved = interleaved if out_interleaved is None else out_interleaved
    in_tables = interleaved if transposed else out_interleaved
    per_channel = cos.shape[-1] == x.shape[-1]
    x1, x2 = split(x, interleaved)
    cos1, cos2 = split(cos, in_tables) if per_channel else (cos, cos)
    sin1, sin2 = split(sin, in_tables) if per_channel else (sin, sin)
    pairs = rotated_pairs(x1, x2, cos1, cos2, sin1, sin2, transposed, lambda p: p.to(products).to(x.dtype))
    return join(*pairs, out_interleaved)


def rotated_pairs(
    x1: Any, x2: Any, cos1: Any, cos2: Any, sin1: Any, sin2: Any, transposed: bool, rounded: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """The formula of `rotate`, for tensors or for values of an ONNX graph. rounded: rounds each product."""
    if transposed:
        sin1, sin2 = -sin2, -sin1
    x1_cos, x2_sin, x2_cos, x1_sin = (rounded(p) for p in (x1 * cos1, x2 * sin1, x2 * cos2, x1 * sin2))
    return x1_cos - x2_sin, x2_cos + x1_sin


def table_rows(
    batch: int,
    seqlen: int,
    positions: Tensor | None = None,
    offset: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Compute the row of the table for each token.

    Args:
        batch, seqlen: the number of sequences, and of tokens in each.
        positions, offset, cu_seqlens: as in `apply`.
        device: of the result, if positions is None. Default: PyTorch's default device.

    Returns:
        int64 Tensor (batch or 1, seqlen); -1 after the last boundary of cu_seqlens.
    """
    tokens = torch.arange(seqlen, device=device)
    rows: Tensor = torch.atleast_2d(tokens if positions is None else positions.to(torch.int64))
    rows = rows + (offset.to(torch.int64).reshape(-1, 1) if isinstance(offset, Tensor) else offset)
    if cu_seqlens is not None:
        boundaries = cu_seqlens.to(torch.int64)
        sequence = torch.searchsorted(boundaries, tokens, right=True) - 1
        rows = torch.where(tokens < boundaries[-1], rows - boundaries[sequence], -1)
    return rows


def _normalised(x: Tensor, weight: Tensor, eps: float, rounding: Rounding) -> Tensor:
    """The normalized heads in the dtype of the arithmetic, rounded as in transformers if rounding is "eager".

    Qwen3RMSNorm returns weight * (x / rms).to(x.dtype), Gemma3RMSNorm ((x / rms) * (1 + weight.float())).to(x.dtype).
    """
    rounded = x.dtype if rounding == "eager" else None
    arithmetic = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return normalise(arithmetic, weight, eps, unweighted=rounded if weight.dtype == x.dtype else None, weighted=rounded)


def _looked_up(table: Tensor, rows: Tensor) -> Tensor:
    """(batch or 1, seqlen, 1, width): the rows of a table (rows, width)."""
    return table.index_select(0, rows.clamp(min=0).flatten()).reshape(*rows.shape, 1, table.shape[-1])


def split(t: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    first, second = (t[..., 0::2], t[..., 1::2]) if interleaved else t.chunk(2, dim=-1)
    return first, second


def join(first: Tensor, second: Tensor, interleaved: bool) -> Tensor:
    return torch.stack((first, second), dim=-1).flatten(-2) if interleaved else torch.cat((first, second), dim=-1)


def as_bshd(x: Tensor, layout: Layout) -> Tensor:
    return x.unsqueeze(0) if len(layout) == 3 else x.permute(*(layout.index(axis) for axis in "bshd"))


def from_bshd(x: Tensor, layout: Layout) -> Tensor:
    return x.squeeze(0) if len(layout) == 3 else x.permute(*("bshd".index(axis) for axis in layout))


def tables_bshd(table: Tensor, layout: Layout) -> Tensor:
    """Tables with a row per token, as (batch or 1, seqlen, heads or 1, width)."""
    return table.unsqueeze(2) if table.dim() == 3 else table if len(layout) == 3 else as_bshd(table, layout)
