"""The rotation in plain PyTorch: what every kernel must equal, bit for bit.

Read it to know what `rope_ext.apply` computes. It checks nothing, is slow, and PyTorch differentiates it.
"""

import torch

LAYOUTS = ("bshd", "bhsd", "sbhd", "thd", "shd")


def apply(
    x,
    cos,
    sin,
    *,
    layout="bshd",
    interleaved=False,
    rotary_dim=None,
    rotary_offset=0,
    positions=None,
    offset=0,
    cu_seqlens=None,
    inverse=False,
    transposed=False,
):
    """`rope_ext.apply` in plain PyTorch: its arguments and result, without `out`.

    `transposed` applies the transposed 2x2 blocks, which gives the gradient with respect to x.
    """
    options = (layout, interleaved, rotary_dim, rotary_offset, positions, offset, cu_seqlens, inverse, transposed)
    if isinstance(x, torch.Tensor):
        return _apply(x, cos, sin, *options)
    return type(x)(_apply(t, cos, sin, *options) for t in x)


def rotate(x, cos, sin, *, interleaved=False, transposed=False):
    """The formula. x: (..., rotary_dim); cos, sin: broadcastable to it, or half as wide (one entry per pair).

    A pair (x1, x2) of channels becomes (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2): Su et al. 2021, RoFormer, equation 34.
    """
    per_channel = cos.shape[-1] == x.shape[-1]
    x1, x2 = _split(x, interleaved)
    cos1, cos2 = _split(cos, interleaved) if per_channel else (cos, cos)
    sin1, sin2 = _split(sin, interleaved) if per_channel else (sin, sin)
    if transposed:
        sin1, sin2 = -sin2, -sin1
    return _join(x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2, interleaved)


def table_rows(batch, seqlen, positions=None, offset=0, cu_seqlens=None, device=None):
    """(batch or 1, seqlen) int64: row of the table for each token, -1 past the last boundary of cu_seqlens."""
    tokens = torch.arange(seqlen, device=device)
    rows = torch.atleast_2d(tokens if positions is None else positions.to(torch.int64))
    rows = rows + (offset.to(torch.int64).reshape(batch, 1) if isinstance(offset, torch.Tensor) else offset)
    if cu_seqlens is not None:
        boundaries = cu_seqlens.to(torch.int64)
        sequence = torch.searchsorted(boundaries, tokens, right=True) - 1
        rows = torch.where(tokens < boundaries[-1], rows - boundaries[sequence], -1)
    return rows


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
    x, cos, sin, layout, interleaved, rotary_dim, rotary_offset, positions, offset, cu_seqlens, inverse, transposed
):
    x4 = _bshd(x, layout)
    batch, seqlen, _, head_dim = x4.shape
    end = head_dim if rotary_dim is None else rotary_offset + rotary_dim
    arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
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
        transposed=transposed,
    )
    y4 = torch.cat((x4[..., :rotary_offset], middle.to(x.dtype), x4[..., end:]), dim=-1)
    if cu_seqlens is not None:
        y4 = torch.where((rows >= 0)[:, :, None, None], y4, x4)
    return _from_bshd(y4, layout)
