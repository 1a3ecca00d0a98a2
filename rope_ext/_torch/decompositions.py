"""Decompositions of the ops into PyTorch's own, for engines without kernels of rope_ext (rope_ext/export.py).

Sizes may be symbolic. A graph cannot raise for the value of a position: the rotated channels of a token whose position
is outside the table become NaN, as on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _reference_angles, _reference_norm, reference
from ..reference import as_bshd, from_bshd
from . import composed_norm, per_token
from .arguments import Scalars, eps_of, flags_of, layout_of, norm_of, split, weights_of
from .flags import FREQUENCIES, INTERLEAVED, INVERSE, OTHER_PAIRING, ROUND_PRODUCTS, TRANSPOSED
from .library import torch_ops as _ops
from .per_token import NOT_ROTATED, OUTSIDE
from .traced_sizes import check_sizes


def _rotate(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> list[Tensor]:
    check_sizes(x, cos, sin, *rest)
    if weights_of(rest):
        return [_in_memory_as(y, t) for y, t in zip(composed_norm.rotate(x, cos, sin, rest), x)]
    (_, flags, rotary_dim, rotary_offset, _), lookup = scalars, _ = split(rest)
    rotated = None
    if flags & FREQUENCIES:
        cos, sin, rotated = per_token.of_frequencies(x, cos, sin, scalars, lookup)
    elif cos.dim() == 2:
        cos, sin, rotated = per_token.looked_up(x, cos, sin, scalars, lookup, nan_outside=True)
    y = reference.apply(
        x,
        cos,
        sin,
        layout=layout_of(flags),
        interleaved=bool(flags & INTERLEAVED),
        rotary_dim=rotary_dim,
        rotary_offset=rotary_offset,
        inverse=bool(flags & INVERSE),
        rounding="eager" if flags & ROUND_PRODUCTS else "once",
        out_interleaved=_out_interleaved(flags),
        transposed=bool(flags & TRANSPOSED),
    )
    if rotated is not None:
        y = [torch.where(rotated, a, b) for a, b in zip(y, x)]
    return [_in_memory_as(a, b) for a, b in zip(y, x)]


def _out_interleaved(flags: int) -> bool:
    return bool(flags & INTERLEAVED) is not bool(flags & OTHER_PAIRING)


def _in_memory_as(y: Tensor, x: Tensor) -> Tensor:
    """y with the strides of torch.empty_like(x), which a view later in the graph may depend on."""
    strides = torch.empty_like(x).stride()
    order = sorted(range(x.dim()), key=lambda axis: strides[axis], reverse=True)
    if order == [*range(x.dim())]:
        return y.contiguous()
    return y.permute(order).contiguous().permute([order.index(axis) for axis in range(x.dim())])


def _rotate_out(out: list[Tensor], x: list[Tensor], *others: Any) -> None:
    for t, y in zip(out, _ops.rotate(x, *others)):
        t.copy_(y)


def _norm_rotate(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> tuple[list[Tensor], list[Tensor]]:
    layout, eps = layout_of(flags_of(rest)), eps_of(rest)
    scalars, (_, _, cu_seqlens) = split(rest)
    inv_rms = []
    for t, weight in zip(x, norm_of(rest)):
        wide = as_bshd(t.to(_arithmetic(t)), layout)
        r = t.new_empty(0, dtype=wide.dtype) if weight is None else _reference_norm.inverse_rms(wide, eps).squeeze(-1)
        if weight is not None and cu_seqlens is not None:
            r = torch.where(_in_sequences(x, scalars, cu_seqlens).unsqueeze(-1), r, 0)
        inv_rms.append(r)
    return _ops.rotate(x, cos, sin, *rest), inv_rms


def _arithmetic(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _norm_grad(
    input: list[Tensor], _inv_rms: list[Tensor], wanted: int, grad: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any
) -> tuple[list[Tensor], list[Tensor]]:
    # Plain sums: the kernel's order of additions can only be unrolled for a static number of tokens.
    return composed_norm.gradients(input, wanted, grad, cos, sin, rest, lambda of_heads: of_heads.sum((0, 1, 2)))


def _norm_grad_of_one(input: Tensor, inv_rms: Tensor, wanted: int, grad: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    (grad_x,), (grad_weight,) = _ops.norm_grad([input], [inv_rms], wanted, [grad], *others)
    return grad_x, grad_weight


def _norm_grad_out(out: list[Tensor], input: list[Tensor], inv_rms: list[Tensor], wanted: int, *rest: Any) -> Any:
    grad_input, grad_norm = _ops.norm_grad(input, inv_rms, wanted | (1 << len(input)) - 1, *rest)
    for t, grad in zip(out, grad_input):
        t.copy_(grad)
    return grad_norm


def _table_grad(grad: list[Tensor], x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The gradients of (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2), summed over the axes along which tables broadcast."""
    (_, flags, rotary_dim, rotary_offset, _), _ = split(rest)
    layout, interleaved, moved = layout_of(flags), bool(flags & INTERLEAVED), _out_interleaved(flags)
    table = reference.tables_bshd(cos, layout)
    sums: list[Tensor] = []
    for g, t in zip(grad, x):
        size = t.shape[-1] - rotary_offset if rotary_dim is None else rotary_dim
        t4, g4 = (as_bshd(a.to(_arithmetic(a)), layout).narrow(-1, rotary_offset, size) for a in (t, g))
        (x1, x2), (g1, g2) = reference.split(t4, interleaved), reference.split(g4, moved)
        for pair in ((g1 * x1, g2 * x2), (-g1 * x2, g2 * x1)):
            whole = reference.join(*pair, moved) if table.shape[-1] == size else pair[0] + pair[1]
            axes = [axis for axis in (0, 2) if table.shape[axis] == 1]
            sums.append(whole.sum(axes, keepdim=True) if axes else whole)
    of_cos, of_sin = sum(sums[2::2], sums[0]), sum(sums[3::2], sums[1])
    return _like_table(of_cos, cos, layout), _like_table(-of_sin if flags & INVERSE else of_sin, cos, layout)


def _like_table(t: Tensor, table: Tensor, layout: reference.Layout) -> Tensor:
    """t, (batch, seqlen, heads, width), with the shape and dtype of table, which has one row per token."""
    t = t.to(table.dtype)
    return t.squeeze(2) if table.dim() == 3 else t if len(layout) == 3 else from_bshd(t, layout)


# ---- rows and positions ----


def _table_rows(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> Tensor:
    scalars, (_, _, cu_seqlens) = split(rest)
    rows = _positions(x, rest)
    rows = torch.where((rows >= 0) & (rows < cos.shape[0]), rows, OUTSIDE)
    return rows if cu_seqlens is None else torch.where(_in_sequences(x, scalars, cu_seqlens), rows, NOT_ROTATED)


def _positions(x: list[Tensor], rest: Sequence[Any]) -> Tensor:
    """Positions of the tokens, offsets included: int64 or float, (batch or 1, seqlen) or (axes, batch or 1, seqlen)."""
    scalars, (positions, offsets, cu_seqlens) = split(rest)
    tokens = _tokens(x, scalars)
    at: Tensor = tokens
    if positions is None:
        if cu_seqlens is not None:
            boundaries = cu_seqlens.to(torch.int64)
            last = (torch.searchsorted(boundaries, tokens, right=True) - 1).clamp(min=0)
            at = tokens - boundaries.index_select(0, last)
    else:
        at = positions if positions.is_floating_point() else positions.to(torch.int64)
    at = torch.atleast_2d(at)
    if offsets is not None:
        at = at + (offsets.to(torch.int64).reshape(-1, 1) + scalars.offset).to(at.dtype)
    else:
        at = at + scalars.offset
    return at


def _tokens(x: list[Tensor], scalars: Scalars) -> Tensor:
    layout = layout_of(scalars.flags)
    return torch.arange(x[0].shape[layout.index("t" if "t" in layout else "s")], device=x[0].device)


def _in_sequences(x: list[Tensor], scalars: Scalars, cu_seqlens: Tensor) -> Tensor:
    """Whether each token is before the last boundary of cu_seqlens: bool, (1, tokens)."""
    return (_tokens(x, scalars) < cu_seqlens[-1])[None]


def _cos_sin(x: list[Tensor], high: Tensor, low: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin of positions times frequencies, computed in float64 and rounded once to the dtype of high.

    Avoids the bit operations of _reference_angles.py. Error before attention_scaling, in float32: 2^-25 from rounding
    the result, angle * 2^-49 from rounding the frequency and angle * 2^-53 from rounding the product. In float64: 4e-15
    up to position 2^53, the last that float64 represents exactly.
    """
    scalars, (_, _, cu_seqlens) = split(rest)
    at = _positions(x, rest)
    at = (at[None] if at.dim() == 2 else at).expand(high.shape[0], -1, -1)
    operands = at.double()[..., None, None], high.double()[:, None, None], low.double()[:, None, None]
    is_64 = high.dtype == torch.float64
    angle = _reference_angles.reduced_angle(*operands, is_64, torch.round, lambda t: t.sum(0))
    cos, sin = (t.to(high.dtype) * scalars.attention_scaling for t in (angle.cos(), angle.sin()))
    if cu_seqlens is not None:
        rotated = _in_sequences(x, scalars, cu_seqlens)[..., None, None]
        cos, sin = torch.where(rotated, cos, 1), torch.where(rotated, sin, 0)
    return cos, sin, at.to(high.dtype).contiguous()


def _revolutions(inv_freq: Tensor, is_64: bool) -> tuple[Tensor, Tensor]:
    return _reference_angles.revolutions(inv_freq, torch.float64 if is_64 else torch.float32)


def _nothing(*_arguments: Any) -> None:
    """An op that does nothing."""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rotate": _rotate,
    "rotate_": lambda x, *others: _rotate_out(x, x, *others),
    "rotate_out": _rotate_out,
    "check": check_sizes,
    "check_in_place": check_sizes,
    "nothing": _nothing,
    "norm_rotate": _norm_rotate,
    "norm_grad": _norm_grad,
    "norm_grad_out": _norm_grad_out,
    "empty_like": torch.empty_like,
    "table_grad": _table_grad,
    "table_rows": _table_rows,
    "cos_sin": _cos_sin,
    "revolutions": _revolutions,
    # The one-tensor twins of vmap.py.
    "rotate_of_one": lambda x, *others: _ops.rotate([x], *others)[0],
    "table_grad_of_one": lambda grad, x, *others: _ops.table_grad([grad], [x], *others),
    "norm_grad_of_one": _norm_grad_of_one,
}
