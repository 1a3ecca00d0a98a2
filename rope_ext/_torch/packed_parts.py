"""Shared by the two nodes of `apply_qkv`: calls of ops on the parts of q and on k, and the gradient of qkv."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from .._packing import Packing
from .arguments import NORM, ORDINARY_TYPES
from .call import ROTATE_OUT
from .errors import raises_typed
from .library import torch_ops as _ops
from .private import dispatch_modes, forward_ad, function_modes, functorch_is_active, is_batched, is_tracing

_POOLED_BYTES = 1 << 20  # kPooledBytes of csrc/bindings/output.cpp; for less the op is 4 us slower than new_empty
MAX_TENSORS = 8  # kMaxTensors of csrc/core/params.h
_rotate_out = raises_typed("rotate_out", ROTATE_OUT.unrecorded)


def is_ordinary_call(*tensors: Tensor) -> bool:
    """Whether no transform, trace, mode, Tensor subclass or forward mode has to see the call."""
    return (
        not is_compiling()
        and not functorch_is_active()
        and not is_tracing()
        and forward_ad._current_level < 0
        and not function_modes()
        and not dispatch_modes()
        and all(type(t) in ORDINARY_TYPES for t in tensors)
    )


# ---- calls of ops ----


def in_calls(others: Sequence[Any], tensors: int) -> Iterator[tuple[slice, Sequence[Any]]]:
    """(slice of the tensors, arguments after x) of each call of an op, which accepts at most MAX_TENSORS tensors.

    others: the arguments after x of one call for all tensors.
    """
    for begin in range(0, tensors, MAX_TENSORS):
        some = slice(begin, begin + MAX_TENSORS)
        yield some, others if len(others) < NORM else (*others[: NORM - 1], others[NORM - 1][some], *others[NORM:])


def write(out: Sequence[Tensor], x: Sequence[Tensor], others: Sequence[Any]) -> None:
    """Writes the rotated x to out. Records nothing."""
    for some, rest in in_calls(others, len(out)):
        _rotate_out(out[some], x[some], *rest)


# ---- memory ----


def empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialized contiguous tensor of this shape, from the output pool if that is on and the tensor large."""
    if math.prod(shape) * like.itemsize < _POOLED_BYTES:
        return like.new_empty(shape)
    made: Tensor = _ops.empty_like(like.new_empty(()).expand(shape))
    return made


def empty_q(packing: Packing, k: Tensor) -> Tensor:
    return empty(k, (*k.shape[: packing.axis], packing.num_heads, k.shape[-1]))


# ---- the gradient of qkv ----


class Begun(NamedTuple):
    """A gradient of qkv that is complete except for some rotated parts."""

    packed: Tensor
    places: list[int]  # indices of the missing parts among the parts of q, then k
    targets: list[Tensor]  # views of packed to write
    grads: list[Tensor]  # the gradients of the results


def can_be_written(grads: Sequence[Tensor | None]) -> bool:
    """Whether ops may write the gradient of qkv: nothing is recorded, and no gradient is lazily negated or batched."""
    given = [g for g in grads if g is not None]
    is_plain = not is_grad_enabled() and is_ordinary_call(*given)
    return is_plain and not any(g.is_neg() or is_batched(g) for g in given)


def begin(packing: Packing, grads: Sequence[Tensor | None], shape: Sequence[int]) -> Begun:
    """Allocates the gradient of qkv and writes its v. grads: of q, k and v, None if unused; not all None."""
    packed = empty(next(g for g in grads if g is not None), shape)
    *rotated, v = packing.split(packed)
    begun = Begun(packed, [], [], [])
    place = 0
    for target, grad, parts in zip(rotated, grads, (packing.parts, _alone)):
        targets = parts(target)
        if grad is None:
            target.zero_()
        else:
            begun.places.extend(range(place, place + len(targets)))
            begun.targets.extend(targets)
            begun.grads.extend(parts(grad))
        place += len(targets)
    grad_v = grads[2]
    v.zero_() if grad_v is None else v.copy_(grad_v)
    return begun


def _alone(t: Tensor) -> list[Tensor]:
    return [t]


def joined(packing: Packing, grads: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor:
    """The gradient of qkv, by differentiable ops. grads: of the q, k and v in qkv, None if unused; not all None."""
    like = next(g for g in grads if g is not None)
    heads = packing.num_heads, packing.num_kv_heads, packing.num_kv_heads
    lead, head_dim = like.shape[: packing.axis], like.shape[-1]
    q, k, v = (like.new_zeros((*lead, n, head_dim)) if g is None else g for g, n in zip(grads, heads))
    return packing.join(q, k, v, shape)
