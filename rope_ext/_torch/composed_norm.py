"""The norm and the rotation, and their gradients, composed of `rotate` and PyTorch's ops, which know every derivative.

For derivatives of tables, frequencies and positions, for those of a higher order, for forward mode and transforms. The
results have the bits of the fused ops.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import _reference_norm
from ..reference import as_bshd, from_bshd
from .arguments import LOOKUP_END, Rest, eps_of, flags_of, layout_of, lookup_of, norm_of
from .check_norm import check_norm
from .dtensor import beside, is_dtensor, placed_as, with_whole_heads
from .flags import ROUND_PRODUCTS
from .library import torch_ops as _ops
from .per_token import in_sequences


def rotate(x: Sequence[Tensor], cos: Tensor, sin: Tensor, rest: Rest) -> list[Tensor]:
    """What the op `rotate` returns with a norm."""
    norm = norm_of(rest)
    # Checked here, since the calls below see other tensors and tables: those in the type of arithmetic.
    _ops.check(x, cos, sin, *rest[:LOOKUP_END])
    check_norm(x, norm, eps_of(rest), layout_of(flags_of(rest)))
    x = [with_whole_heads(t) for t in x]
    weights = [weight if weight is None else beside(weight, t, "norm") for t, weight in zip(x, norm)]
    normalised = [_normalised(t, weight, rest) for t, weight in zip(x, weights) if weight is not None]
    rotated = iter(_rotated(normalised, cos, sin, rest, x[0].dtype))
    unchanged = iter(_rotated([t for t, weight in zip(x, norm) if weight is None], cos, sin, rest, x[0].dtype))
    return [
        next(unchanged) if weight is None else placed_as(_where_in_sequences(next(rotated), t, rest), t)
        for t, weight in zip(x, norm)
    ]


def _sum(of_heads: Tensor) -> Tensor:
    """The gradient of a weight, of those that each head (batch, seqlen, heads, head_dim) has."""
    if is_dtensor(of_heads):  # Partial sums: the tree of sums would gather the heads of all ranks
        return of_heads.sum((0, 1, 2))
    return _reference_norm.sum_of_rows(of_heads.flatten(0, 1))


def gradients(
    input: Sequence[Tensor],
    wanted: int,
    grad: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rest: Rest,
    sum_of: Callable[[Tensor], Tensor] = _sum,
) -> tuple[list[Tensor], list[Tensor]]:
    """What the op `norm_grad` returns. 1 / rms is made of input again, on which it depends.

    sum_of: makes the gradient of a weight of those that each head has.
    """
    layout, eps = layout_of(flags_of(rest)), eps_of(rest)
    dtype = grad[0].dtype
    input, grad = ([with_whole_heads(t) for t in tensors] for tensors in (input, grad))
    wide = [t if _is_eager(rest, dtype) else _wide(t) for t in grad]
    rotated = _rotated(wide, cos, sin, rest, wide[0].dtype)
    grad_x, grad_weight = [], []
    for i, (x, g, weight) in enumerate(zip(input, rotated, norm_of(rest))):
        to_x, to_weight = g, _wide(g.new_empty(0))
        if weight is not None:
            weight = beside(weight, x, "norm")
            x4 = as_bshd(_where_in_sequences(_wide(x), 1, rest), layout)
            g4 = as_bshd(_where_in_sequences(_wide(g), 0, rest), layout)
            to_x, of_heads = _reference_norm.head_gradients(x4, weight, eps, g4)
            to_x = from_bshd(to_x, layout)
            to_weight = sum_of(of_heads)
        to_x = _where_in_sequences(to_x.to(dtype), grad[i], rest)
        grad_x.append(to_x if wanted >> i & 1 else to_x.new_empty(0))
        grad_weight.append(to_weight if wanted >> (8 + i) & 1 else to_weight.new_empty(0))
    return grad_x, grad_weight


def _rotated(x: Sequence[Tensor], cos: Tensor, sin: Tensor, rest: Rest, dtype: torch.dtype) -> list[Tensor]:
    """The rotated x, rounded to dtype."""
    if not x:
        return []
    if x[0].dtype in (torch.float32, torch.float64):
        cos, sin = cos.to(x[0].dtype), sin.to(x[0].dtype)
    return [t.to(dtype) for t in _ops.rotate(x, cos, sin, *rest[:LOOKUP_END])]


def _normalised(x: Tensor, weight: Tensor, rest: Rest) -> Tensor:
    """In the type of arithmetic; rounding="eager": rounded to the dtype of x, before its weight if that has it too."""
    wide = _where_in_sequences(_wide(x), 1, rest)
    if not _is_eager(rest, x.dtype):
        return _reference_norm.normalise(wide, weight, eps_of(rest))
    n = wide * _reference_norm.inverse_rms(wide, eps_of(rest))
    if weight.dtype == x.dtype:
        # The rounded n, without a rounding of its gradient. 0 is subtracted, since adding it would change -0.0.
        rounded = n.detach().to(x.dtype).to(n.dtype)
        n = torch.where(n.isfinite(), rounded - (n.detach() - n), rounded)
    return (n * weight.to(n.dtype)).to(x.dtype)


def _is_eager(rest: Rest, dtype: torch.dtype) -> bool:
    return bool(flags_of(rest) & ROUND_PRODUCTS) and dtype in (torch.bfloat16, torch.float16)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float64 if t.dtype == torch.float64 else torch.float32)


def _where_in_sequences(t: Tensor, other: Tensor | float, rest: Rest) -> Tensor:
    """t, but other in the tokens past the last boundary of cu_seqlens."""
    cu_seqlens = lookup_of(rest).cu_seqlens
    return t if cu_seqlens is None else torch.where(in_sequences(t, cu_seqlens), t, other)
