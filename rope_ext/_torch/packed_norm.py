"""`apply_qkv` with a norm as one node of autograd: as packed.py, with the weights of q and k as further inputs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._packing import Packing, Views
from .arguments import NORM, POSITIONS, transposed_flags
from .derivatives import Function
from .errors import raises_typed
from .library import torch_ops as _ops
from .packed_parts import begin, can_be_written, empty_q, in_calls, joined

_norm_rotate = raises_typed("norm_rotate", _ops.norm_rotate)
_norm_grad = raises_typed("norm_grad", _ops.norm_grad)
_norm_grad_out = raises_typed("norm_grad_out", _ops.norm_grad_out)


class NormRotatePacked(Function):
    """Inputs: a Packing, the arguments of the op, qkv, the weights of q and k. Outputs: those of RotatePacked."""

    @staticmethod
    def forward(ctx: Any, packing: Packing, arguments: Sequence[Any], qkv: Tensor, *weights: Tensor | None) -> Views:
        ctx.set_materialize_grads(False)
        x, *others = arguments
        y: list[Tensor] = []
        inv_rms: list[Tensor] = []
        for some, rest in in_calls(others, len(x)):
            made, factors = _norm_rotate(x[some], *rest)
            y += made
            inv_rms += factors
        *parts, k = y
        (q,) = parts if packing.is_one_view else (_merged(packing, parts),)
        ctx.packing, ctx.scalars, ctx.eps = packing, arguments[3:POSITIONS], arguments[NORM + 1]
        ctx.save_for_backward(*arguments[1:3], *arguments[POSITIONS:NORM], qkv, *weights, *inv_rms)
        _, _, v = packing.split(qkv)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Read once: checkpointing recomputes the saved tensors on each read.
        cos, sin, positions, offsets, cu_seqlens, qkv, *weights_and_inv_rms = ctx.saved_tensors
        if all(g is None for g in grads):
            return (None,) * 5
        offset, flags, *scalars = ctx.scalars
        saved = _Saved(
            ctx.packing,
            qkv,
            weights_and_inv_rms[:2],
            weights_and_inv_rms[2:],
            (cos, sin, offset, transposed_flags(flags), *scalars, positions, offsets, cu_seqlens),
            ctx.eps,
        )
        make = _written if can_be_written(grads) else _composed
        return None, None, *make(saved, grads, ctx.needs_input_grad[3:])


record_norm: Callable[..., Views] = NormRotatePacked.apply


class _Saved(NamedTuple):
    packing: Packing
    qkv: Tensor
    weights: Sequence[Tensor | None]  # of q and k
    inv_rms: Sequence[Tensor]  # of the parts of q, then of k
    others: tuple[Any, ...]  # the arguments of the transposed op between x and norm
    eps: float


def _merged(packing: Packing, parts: Sequence[Tensor]) -> Tensor:
    """The parts of q, copied into one tensor: norm_rotate allocates each part separately."""
    q = empty_q(packing, parts[0])
    for target, part in zip(packing.parts(q), parts):
        target.copy_(part)
    return q


def _written(saved: _Saved, grads: Sequence[Tensor | None], needs_weights: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of qkv and of the weights, by ops that write straight into the gradient of qkv."""
    packing, qkv, (q_weight, k_weight), inv_rms, others, eps = saved
    packed, places, targets, given = begin(packing, grads, qkv.shape)
    q, k, _ = packing.split(qkv)
    x = [*packing.parts(q), k]
    last = len(x) - 1
    norm = [k_weight if place == last else q_weight for place in places]
    of_weights: list[list[Tensor]] = [[], []]
    for some, rest in in_calls((*others, norm, eps), len(places)):
        chosen = places[some]
        wanted = sum(needs_weights[place == last] << (8 + i) for i, place in enumerate(chosen))
        found = _norm_grad_out(
            targets[some], [x[i] for i in chosen], [inv_rms[i] for i in chosen], wanted, given[some], *rest
        )
        for place, grad in zip(chosen, found):
            of_weights[place == last].append(grad)
    summed = [
        _like(sum(parts[1:], parts[0]), weight) if need and parts else None
        for parts, weight, need in zip(of_weights, saved.weights, needs_weights)
    ]
    return [packed, *summed]


def _composed(saved: _Saved, grads: Sequence[Tensor | None], needs_weights: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of qkv and of the weights, by differentiable ops."""
    packing, qkv, weights, (*of_q, of_k), others, eps = saved
    q, k, _ = packing.split(qkv)
    inv_rms = of_q[0] if packing.is_one_view else torch.stack(of_q, dim=-1).flatten(-2), of_k
    x, taken = (packing.merged(q), k), [i for i in (0, 1) if grads[i] is not None]
    to_x: list[Tensor | None] = [None, None]
    to_weights: list[Tensor | None] = [None, None]
    if taken:
        wanted = sum(1 << j | needs_weights[i] << (8 + j) for j, i in enumerate(taken))
        of_taken = [[tensors[i] for i in taken] for tensors in (x, inv_rms, grads, weights)]
        made_x, made_weights = _norm_grad(*of_taken[:2], wanted, of_taken[2], *others, of_taken[3], eps)
        for i, grad_x, grad_weight in zip(taken, made_x, made_weights):
            to_x[i] = grad_x
            to_weights[i] = _like(grad_weight, weights[i]) if needs_weights[i] else None
    return [joined(packing, (*to_x, grads[2]), qkv.shape), *to_weights]


def _like(grad: Tensor, weight: Tensor | None) -> Tensor:
    return grad if weight is None else grad.to(weight.dtype)
