"""The call of `apply_qkv` that autograd records as one node, whose gradient is one packed tensor, written once.

It serves where the packed tensor alone is differentiated, in plain reverse mode. Elsewhere `apply_qkv` is `apply` to
views, which PyTorch differentiates.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from .._packing import Packing, Views
from .arguments import ORDINARY_TYPES, PLAIN, POSITIONS, transposed_flags
from .call import ROTATE, ROTATE_OUT
from .derivatives import Function, on_subset
from .errors import raises_typed
from .private import dispatch_modes, forward_ad, function_modes, functorch_is_active, is_batched, is_tracing
from .recording import tables_need_derivative

_MAX_TENSORS = 8  # kMaxTensors of csrc/core/params.h
_rotate = raises_typed("rotate", ROTATE.recorded)
_rotate_out = raises_typed("rotate_out", ROTATE_OUT.unrecorded)


def is_ordinary_call(*tensors: Tensor) -> bool:
    """Whether no transform, trace, mode, subclass or forward mode looks on."""
    return (
        not is_compiling()
        and not functorch_is_active()
        and not is_tracing()
        and forward_ad._current_level < 0
        and not function_modes()
        and not dispatch_modes()
        and all(type(t) in ORDINARY_TYPES for t in tensors)
    )


class Packed(NamedTuple):
    """The `out` that makes a call of `apply` one of `apply_qkv`, where `is_ordinary_call`."""

    packing: Packing
    qkv: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The x of the call: the parts of q, then k."""
        q, k, _ = self.packing.split(self.qkv.detach())
        return *self.packing.parts(q), k

    def rotate(self, arguments: Sequence[Any]) -> Views | None:
        """q, k and v for the arguments of the op; None where a derivative of the tables is to be recorded."""
        if tables_need_derivative(arguments[1], arguments[2], arguments[3:]):
            return None
        if self.qkv.requires_grad and is_grad_enabled():
            return _rotate_packed(self, arguments, self.qkv)
        _, _, v = self.packing.split(self.qkv)
        q, k = self.rotated(arguments)
        return q, k, v

    def rotated(self, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """q and k, each in memory of its own. Records nothing."""
        if self.packing.is_one_view:
            kernel = ROTATE.plain if len(arguments) <= PLAIN else ROTATE.unrecorded
            q, k = kernel(*arguments)
            return q, k
        x, *others = arguments
        k = x[-1]
        sizes = list(k.shape)
        sizes[self.packing.axis] = self.packing.num_heads
        q, k = _empty(k, sizes), _empty(k, k.shape)
        _write([*self.packing.parts(q), k], x, others)
        return q, k


class RotatePacked(Function):
    """Inputs: a Packed, the arguments of the op, qkv. Outputs: q, k, and v as a view of qkv.

    v is an output so that one node gets all three gradients: else PyTorch would add up two packed ones.
    """

    @staticmethod
    def forward(ctx: Any, packed: Packed, arguments: Sequence[Any], qkv: Tensor) -> Views:
        ctx.set_materialize_grads(False)
        ctx.packing, ctx.shape, ctx.scalars = packed.packing, qkv.shape, arguments[3:POSITIONS]
        ctx.save_for_backward(*arguments[1:3], *arguments[POSITIONS:])  # the tables and the lookup
        _, _, v = packed.packing.split(qkv)
        return *packed.rotated(arguments), v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cos, sin, *lookup = ctx.saved_tensors  # read once: checkpointing recomputes them
        given = [g for g in grads if g is not None]
        if not given:
            return None, None, None
        # Kernels in Python get no defaults at the end, so the offset may come without the flags.
        offset, flags, *scalars = ctx.scalars if len(ctx.scalars) > 1 else (*ctx.scalars, 0, 0)[:2]
        others = cos, sin, offset, transposed_flags(flags), *scalars, *lookup
        is_ordinary = not is_grad_enabled() and is_ordinary_call(*given)
        is_readable = is_ordinary and not any(g.is_neg() or is_batched(g) for g in given)
        make = _written_once if is_readable else _composed
        return None, None, make(ctx.packing, ctx.shape, grads, others)


_rotate_packed: Callable[..., Views] = RotatePacked.apply


def _written_once(
    packing: Packing, shape: Sequence[int], grads: Sequence[Tensor | None], others: Sequence[Any]
) -> Tensor:
    packed = _empty(next(g for g in grads if g is not None), shape)
    *rotated, v = packing.split(packed)
    written: list[Tensor] = []
    read: list[Tensor] = []
    for target, grad, parts in zip(rotated, grads, (packing.parts, _alone)):
        if grad is None:
            target.zero_()
        else:
            written += parts(target)
            read += parts(grad)
    _write(written, read, others)
    grad_v = grads[2]
    v.zero_() if grad_v is None else v.copy_(grad_v)
    return packed


def _composed(packing: Packing, shape: Sequence[int], grads: Sequence[Tensor | None], others: Sequence[Any]) -> Tensor:
    """The same by ops that know their derivatives."""
    grad_v = grads[2]
    rotated = on_subset(lambda g: _rotate(g, *others), [g is not None for g in grads[:2]], grads[:2])
    given = next(g for g in grads if g is not None)

    def present(grad: Tensor | None, heads: int) -> Tensor:
        axis = packing.axis
        return given.new_zeros((*given.shape[:axis], heads, given.shape[-1])) if grad is None else grad

    q, k = present(rotated[0], packing.num_heads), present(rotated[1], packing.num_kv_heads)
    return packing.join(q, k, present(grad_v, packing.num_kv_heads), shape)


def _write(out: Sequence[Tensor], x: Sequence[Tensor], others: Sequence[Any]) -> None:
    for i in range(0, len(out), _MAX_TENSORS):
        _rotate_out(out[i : i + _MAX_TENSORS], x[i : i + _MAX_TENSORS], *others)


def _alone(t: Tensor) -> list[Tensor]:
    return [t]


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a contiguous result of this shape."""
    return like.new_empty(shape)
