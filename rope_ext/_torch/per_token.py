"""Tables with one row per token, for derivatives of looked-up tables and of frequencies and positions.

PyTorch differentiates how these tables come about. index_select looks rows up; its backward pass adds up the gradients
of tokens that read the same row.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import TWO_PI
from .arguments import Lookup, Scalars, layout_of, split
from .dtensor import beside, is_dtensor
from .flags import ROUND_PRODUCTS
from .library import torch_ops as _ops
from .private import below_autograd, dispatch_modes
from .recording import tables_need_derivative

NOT_ROTATED, OUTSIDE = -1, -2  # rows of table_rows (csrc/core/positions.h)


class PerToken(NamedTuple):
    cos: Tensor
    sin: Tensor
    rotated: Tensor | None  # which tokens rotate, (tokens, 1, 1); None: all


def looked_up(
    x: list[Tensor], cos: Tensor, sin: Tensor, scalars: Scalars, lookup: Lookup, *, nan_outside: bool = False
) -> PerToken:
    """The table rows that tokens look up by position.

    nan_outside: tokens outside the table read NaN on a CPU too, as in a graph that another engine runs.
    """
    rows = _ops.table_rows(x, cos, sin, *scalars, *lookup)
    dtype = cos.dtype
    if dtype in (torch.bfloat16, torch.float16):
        cos, sin = cos.float(), sin.float()  # gradients of tokens that share a row are added in float32
    if not cos.shape[0]:  # no token reads the table, and index_select refuses an empty one
        cos, sin = (torch.nn.functional.pad(t, (0, 0, 0, 1)) for t in (cos, sin))
    index = rows.clamp(min=0)
    cos, sin = _rows_of(cos, index), _rows_of(sin, index)
    if scalars.flags & ROUND_PRODUCTS:  # whether products are rounded depends on the dtype of the tables
        cos, sin = cos.to(dtype), sin.to(dtype)
    rows = rows.unsqueeze(-1)
    # On a CPU the op has refused positions outside the table, but a traced graph may run with other positions.
    if nan_outside or cos.device.type != "cpu" or dispatch_modes():
        cos, sin = (torch.where(rows == OUTSIDE, torch.nan, t) for t in (cos, sin))
    if lookup.cu_seqlens is None:
        return PerToken(cos, sin, None)
    rotated = rows != NOT_ROTATED
    cos, sin = torch.where(rotated, cos, 1), torch.where(rotated, sin, 0)
    return PerToken(cos, sin, rotated.reshape(-1, 1, 1))  # cu_seqlens implies the layout "thd"


def _rows_of(table: Tensor, index: Tensor) -> Tensor:
    if is_dtensor(index):  # rows stay sharded as index is; the gradient of the table is Partial
        return torch.nn.functional.embedding(index, beside(table, index, "cos"))
    return table.index_select(0, index.flatten()).reshape(*index.shape, table.shape[-1])


def of_frequencies(x: list[Tensor], high: Tensor, low: Tensor, scalars: Scalars, lookup: Lookup) -> PerToken:
    """cos and sin from frequencies, bit-identical to those in the kernel of `apply`."""
    cos, sin, _ = _ops.cos_sin(x, high, low, *scalars, *lookup)  # (batch or 1, seqlen, heads or 1, pairs)
    layout = layout_of(scalars.flags)
    if cos.shape[2] == 1:
        cos, sin = cos.squeeze(2), sin.squeeze(2)
    elif len(layout) == 4:
        cos, sin = (t.permute(*("bshd".index(axis) for axis in layout)) for t in (cos, sin))
    if lookup.cu_seqlens is None:
        return PerToken(cos, sin, None)
    return PerToken(cos, sin, in_sequences(cos[0], lookup.cu_seqlens))


def in_sequences(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Whether each token is before the last boundary of cu_seqlens, (tokens, 1, 1). The first axis of x is tokens."""
    cu_seqlens = beside(cu_seqlens, x, "cu_seqlens")
    return (beside(torch.arange(x.shape[0], device=x.device), x, "x") < cu_seqlens[-1]).reshape(-1, 1, 1)


def cos_sin(x: list[Tensor], high: Tensor, low: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of the op at the Autograd key.

    Returns cos(angle + change) and sin(angle + change), where change is zero and has the derivatives of the angle:
    values are bit-identical to the op's, and PyTorch computes the derivatives.
    """
    if not tables_need_derivative(high, low, rest):
        with below_autograd():
            cos, sin, at = _ops.cos_sin(x, high, low, *rest)
            return cos, sin, at
    scalars, lookup = split(rest)
    positions = lookup.positions
    if positions is not None:
        lookup = Lookup(positions.detach(), lookup.offsets, lookup.cu_seqlens)
    with below_autograd():
        cos, sin, at = _ops.cos_sin([t.detach() for t in x], high.detach(), low.detach(), *scalars, *lookup)
    per_axis = at
    if positions is not None and positions.is_floating_point():
        moved = positions - positions.detach()
        per_axis = at + (moved if is_dtensor(moved) else beside(moved, at, "positions"))
    high = beside(high, at, "inv_freq")
    angle = sum(p[..., None, None] * (rate * TWO_PI[0]) for p, rate in zip(per_axis.unbind(0), high.unbind(0)))
    change = angle - angle.detach()
    c, s = change.cos(), change.sin()
    return cos * c - sin * s, sin * c + cos * s, at
