"""The rotation in plain PyTorch: what every kernel must equal, bit for bit.

Read it to know what `rope_ext.apply` computes. It checks almost nothing, is slow, and PyTorch differentiates it: to the
bits of rope_ext in float64 and float32; those of the gradient of 16-bit x are given by `transposed`.
"""

import math
from typing import Literal, TypeAlias, get_args

import torch

Layout: TypeAlias = Literal["bshd", "bhsd", "sbhd", "thd", "shd"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Rounding: TypeAlias = Literal["once", "eager"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


def apply(
    x,
    cos,
    sin,
    *,
    layout="bshd",
    interleaved=False,
    rotary_dim=None,
    rotary_offset=0,
    per_channel=None,
    positions=None,
    offset=0,
    cu_seqlens=None,
    inverse=False,
    rounding="once",
    out_interleaved=None,
    transposed=False,
):
    """`rope_ext.apply` in plain PyTorch: its arguments and result, without `out`.

    A per_channel that cos contradicts is an error here too. `transposed` applies the transposed 2x2 blocks, which
    gives the gradient with respect to x.
    """
    if per_channel is not None:
        head_dim = (x if isinstance(x, torch.Tensor) else x[0]).shape[-1]
        width = head_dim - rotary_offset if rotary_dim is None else rotary_dim
        if cos.shape[-1] != (width if per_channel else width // 2):
            raise ValueError(f"per_channel {per_channel} contradicts the width {cos.shape[-1]} of cos")
    options = (layout, interleaved, rotary_dim, rotary_offset, positions, offset, cu_seqlens, inverse)
    options = (*options, rounding, out_interleaved, transposed)
    if isinstance(x, torch.Tensor):
        return _apply(x, cos, sin, *options)
    return type(x)(_apply(t, cos, sin, *options) for t in x)


def rotate(x, cos, sin, *, interleaved=False, out_interleaved=None, transposed=False, products=None):
    """The formula. x: (..., rotary_dim); cos, sin: broadcastable to it, or half as wide (one entry per pair).

    A pair (x1, x2) of channels becomes (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2): Su et al. 2021, RoFormer, equation 34.
    products: dtype that each product is rounded to, default that of x.
    """
    products = x.dtype if products is None else products
    out_interleaved = interleaved if out_interleaved is None else out_interleaved
    in_tables = interleaved if transposed else out_interleaved
    per_channel = cos.shape[-1] == x.shape[-1]
    x1, x2 = _split(x, interleaved)
    cos1, cos2 = _split(cos, in_tables) if per_channel else (cos, cos)
    sin1, sin2 = _split(sin, in_tables) if per_channel else (sin, sin)
    if transposed:
        sin1, sin2 = -sin2, -sin1
    x1_cos, x2_sin, x2_cos, x1_sin = (p.to(products).to(x.dtype) for p in (x1 * cos1, x2 * sin1, x2 * cos2, x1 * sin2))
    return _join(x1_cos - x2_sin, x2_cos + x1_sin, out_interleaved)


def table_rows(batch, seqlen, positions=None, offset=0, cu_seqlens=None, device=None):
    """(batch or 1, seqlen) int64: row of the table for each token, -1 past the last boundary of cu_seqlens."""
    tokens = torch.arange(seqlen, device=device)
    rows = torch.atleast_2d(tokens if positions is None else positions.to(torch.int64))
    rows = rows + (offset.to(torch.int64).reshape(-1, 1) if isinstance(offset, torch.Tensor) else offset)
    if cu_seqlens is not None:
        boundaries = cu_seqlens.to(torch.int64)
        sequence = torch.searchsorted(boundaries, tokens, right=True) - 1
        rows = torch.where(tokens < boundaries[-1], rows - boundaries[sequence], -1)
    return rows


# ---- angles without a table ----

# 2 pi and its reciprocal, each as a sum of two float64.
TWO_PI = (6.283185307179586, 2.4492935982947064e-16)
ONE_TURN_PER_RADIAN = (0.15915494309189535, -9.839338337591243e-18)
_TWO_PI_FLOAT32 = (6.2831854820251465, -1.7484555314695172e-07)
_SIN_TERMS = {torch.float32: 4, torch.float64: 8}
_COS_TERMS = {torch.float32: 5, torch.float64: 9}
_EXACT_IN_FLOAT = 1 << 24


def cos_sin(positions, high, low, attention_scaling=1.0):
    """cos and sin of positions * (high + low) turns, in the dtype of high: csrc/core/angles.h in plain PyTorch.

    positions: (axes, tokens), integers or the dtype of high; high, low: (axes, heads, pairs). Returns two of
    (tokens, heads, pairs).
    """
    dtype = high.dtype
    turns = (torch.zeros(positions.shape[1], *high.shape[1:], dtype=dtype, device=high.device),) * 2
    for position, rate_high, rate_low in zip(positions, high, low):
        multiple, rest = (p[:, None, None] for p in _position_parts(position, dtype))
        product, product_low = multiple * rate_high, multiple * rate_low
        error = product_error(multiple, rate_high, product)
        beyond = product - product.round(), (error - error.round()) + (product_low - product_low.round())
        turns = (torch.where(multiple == 0, a, b) for a, b in zip(turns, _add(turns, beyond)))
        product = rest * rate_high
        turns = _add(
            tuple(turns), (product - product.round(), fused(rest, rate_low, product_error(rest, rate_high, product)))
        )
    high, low = turns
    quarter = (4 * (high + low)).round()
    rest = (high - 0.25 * quarter) + low
    two_pi = torch.tensor(TWO_PI if dtype == torch.float64 else _TWO_PI_FLOAT32, dtype=dtype, device=rest.device)
    x = rest * two_pi[0]
    x_low = fused(rest, two_pi[1], product_error(rest, two_pi[0], x))
    x2 = x * x
    sin = x + fused(x, x2 * _series(x2, 3, _SIN_TERMS[dtype]), x_low)
    cos = 1 + fused(x2, _series(x2, 2, _COS_TERMS[dtype]), -x_low * x)
    quarter = quarter.remainder(4)
    odd = quarter.remainder(2) == 1
    c, s = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    c, s = torch.where((quarter == 1) | (quarter == 2), -c, c), torch.where(quarter >= 2, -s, s)
    return c * attention_scaling, s * attention_scaling


def _position_parts(position, dtype):
    """A multiple of 2^24, and the rest, which float32 holds exactly where the position is an integer."""
    if position.is_floating_point():
        multiple = (position * (1 / _EXACT_IN_FLOAT)).trunc() * _EXACT_IN_FLOAT
        return torch.where(position.isnan(), 0, multiple), position - multiple
    rest = position.to(torch.int64).fmod(_EXACT_IN_FLOAT)
    return (position - rest).to(dtype), rest.to(dtype)


def fused(a, b, c):
    """a * b + c, rounded once (Boldo and Melquiond 2008, Emulation of a FMA, figure 1)."""
    product = a * b
    first, first_lost = _sum(c, product_error(a, b, product))
    total, lost = _sum(product, first)
    rest, beyond = _sum(lost, first_lost)
    # rounded to odd, so that the last sum is rounded as if all of it were there
    even = rest.view(torch.int32 if rest.dtype == torch.float32 else torch.int64) & 1 == 0
    rest = torch.where((beyond != 0) & even, torch.nextafter(rest, beyond * torch.inf), rest)
    return total + rest


def product_error(a, b, rounded):
    """a * b - rounded, exactly."""
    if rounded.dtype == torch.float32:
        return (a.double() * b.double() - rounded.double()).float()
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return ((a1 * b1 - rounded) + a1 * b2 + a2 * b1) + a2 * b2  # Dekker 1971


def _halves(a):
    """a as a sum of two float64 of 26 bits each."""
    scaled = a * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def _add(a, b):
    """Numbers of two parts, a high and a low one: Knuth, The Art of Computer Programming, volume 2, section 4.2.2."""
    total, lost = _sum(a[0], b[0])
    return total, lost + (a[1] + b[1])


def _sum(a, b):
    """a + b, and what its rounding lost."""
    total = a + b
    b_of_total = total - a
    return total, (a - (total - b_of_total)) + (b - b_of_total)


def _series(x2, first, terms):
    """Sum over k < terms of (-1) ** (k + 1) * x2 ** k / (first + 2 k)!."""
    total = torch.zeros_like(x2)
    for k in reversed(range(terms)):
        coefficient = (1 if k % 2 else -1) / math.factorial(first + 2 * k)
        total = fused(x2, total, torch.full_like(x2, coefficient))
    return total


def _split(t, interleaved):
    return (t[..., 0::2], t[..., 1::2]) if interleaved else t.chunk(2, dim=-1)


def _join(first, second, interleaved):
    return torch.stack((first, second), dim=-1).flatten(-2) if interleaved else torch.cat((first, second), dim=-1)


def _bshd(x, layout):
    return x.unsqueeze(0) if len(layout) == 3 else x.permute(*(layout.index(axis) for axis in "bshd"))


def _from_bshd(x, layout):
    return x.squeeze(0) if len(layout) == 3 else x.permute(*("bshd".index(axis) for axis in layout))


def _tables_bshd(table, layout):
    """Per-token tables as (batch or 1, seqlen, heads or 1, width)."""
    return table.unsqueeze(2) if table.dim() == 3 else table if len(layout) == 3 else _bshd(table, layout)


def _apply(
    x,
    cos,
    sin,
    layout,
    interleaved,
    rotary_dim,
    rotary_offset,
    positions,
    offset,
    cu_seqlens,
    inverse,
    rounding,
    out_interleaved,
    transposed,
):
    x4 = _bshd(x, layout)
    batch, seqlen, _, head_dim = x4.shape
    end = head_dim if rotary_dim is None else rotary_offset + rotary_dim
    arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
    products = x.dtype if rounding == "eager" and (cos.dtype == x.dtype or transposed) else arithmetic
    cos, sin = cos.to(arithmetic), sin.to(arithmetic)
    if cos.dim() == 2:
        rows = table_rows(batch, seqlen, positions, offset, cu_seqlens, cos.device)
        index = rows.clamp(min=0).flatten()
        cos, sin = (t.index_select(0, index).reshape(*rows.shape, 1, t.shape[-1]) for t in (cos, sin))
    else:
        cos, sin = _tables_bshd(cos, layout), _tables_bshd(sin, layout)
    middle = rotate(
        x4[..., rotary_offset:end].to(arithmetic),
        cos,
        -sin if inverse else sin,
        interleaved=interleaved,
        out_interleaved=out_interleaved,
        transposed=transposed,
        products=products,
    )
    y4 = torch.cat((x4[..., :rotary_offset], middle.to(x.dtype), x4[..., end:]), dim=-1)
    if cu_seqlens is not None:
        y4 = torch.where((rows >= 0)[:, :, None, None], y4, x4)
    return _from_bshd(y4, layout)
