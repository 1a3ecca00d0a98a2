"""Norm, rotation and their gradients, composed of the op `rotate` and PyTorch's ops, which have every derivative.

Serves derivatives of tables, frequencies and positions beside a norm, higher derivatives, forward mode and transforms.
Results are bit-identical to the fused ops.
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
    """The results of the op `rotate` with a norm."""
    norm = norm_of(rest)
    # The arguments of the user are checked here: the ops below get them converted to the arithmetic dtype.
    _ops.check(x, cos, sin, *rest[:LOOKUP_END])
    check_norm(x, norm, eps_of(rest), layout_of(flags_of(rest)))
    x = [with_whole_heads(t) for t in x]
    weights = [weight if weight is None else beside(weight, t, "norm") for t, weight in zip(x, norm)]
    normalized = [_normalized(t, weight, rest) for t, weight in zip(x, weights) if weight is not None]
    rotated = iter(_rotated(normalized, cos, sin, rest, x[0].dtype))
    unchanged = iter(_rotated([t for t, weight in zip(x, norm) if weight is None], cos, sin, rest, x[0].dtype))
    return [
        next(unchanged) if weight is None else placed_as(_where_in_sequences(next(rotated), t, rest), t)
        for t, weight in zip(x, norm)
    ]


def _sum(of_heads: Tensor) -> Tensor:
    """The gradient of a weight: the sum of the contributions of all heads, (batch, seqlen, heads, head_dim)."""
    if is_dtensor(of_heads):  # sum() leaves Partial sums; sum_of_rows would gather the heads of all ranks
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
    """The results of the op `norm_grad`. 1 / rms is computed again from input, so that its derivative is recorded.

    sum_of: sums the contributions of all heads to the gradient of a weight.
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
    """x, rotated and rounded to dtype."""
    if not x:
        return []
    if x[0].dtype in (torch.float32, torch.float64):
        cos, sin = cos.to(x[0].dtype), sin.to(x[0].dtype)
    return [t.to(dtype) for t in _ops.rotate(x, cos, sin, *rest[:LOOKUP_END])]


def _normalized(x: Tensor, weight: Tensor, rest: Rest) -> Tensor:
    """The norm of x in the arithmetic dtype.

    With rounding="eager" the result has the dtype of x. If the weight has that dtype too, the normalized x is also
    rounded before the weight multiplies it.
    """
    wide = _where_in_sequences(_wide(x), 1, rest)
    if not _is_eager(rest, x.dtype):
        return _reference_norm.normalise(wide, weight, eps_of(rest))
    n = wide * _reference_norm.inverse_rms(wide, eps_of(rest))
    if weight.dtype == x.dtype:
        # A straight-through estimator: n is rounded, its gradient is not. Subtract the zero: adding it would lose -0.0.
        rounded = n.detach().to(x.dtype).to(n.dtype)
        n = torch.where(n.isfinite(), rounded - (n.detach() - n), rounded)
    return (n * weight.to(n.dtype)).to(x.dtype)


def _is_eager(rest: Rest, dtype: torch.dtype) -> bool:
    return bool(flags_of(rest) & ROUND_PRODUCTS) and dtype in (torch.bfloat16, torch.float16)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float64 if t.dtype == torch.float64 else torch.float32)


def _where_in_sequences(t: Tensor, other: Tensor | float, rest: Rest) -> Tensor:
    """t, with `other` in the tokens past the last boundary of cu_seqlens."""
    cu_seqlens = lookup_of(rest).cu_seqlens
    return t if cu_seqlens is None else torch.where(in_sequences(t, cu_seqlens), t, other)
