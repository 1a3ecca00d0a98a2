"""The call of `apply_qkv` that autograd records as one node, whose gradient is one packed tensor, written once.

It serves where the packed tensor, and the weights of a norm, alone are differentiated, in plain reverse mode. Elsewhere
`apply_qkv` is `apply` to views, which PyTorch differentiates.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled

from .._packing import Packing, Views
from .arguments import NORM, PLAIN, POSITIONS, transposed_flags, weights_of
from .call import ROTATE
from .derivatives import Function, on_subset
from .errors import raises_typed
from .packed_norm import record_norm
from .packed_parts import begin, can_be_written, empty, empty_q, joined, write
from .recording import is_ordinary, tables_need_derivative

_rotate = raises_typed("rotate", ROTATE.recorded)


class Packed(NamedTuple):
    """The `out` that makes a call of `apply` one of `apply_qkv`, where `is_ordinary_call`."""

    packing: Packing
    qkv: Tensor
    v: Tensor  # a view of qkv; without a derivative where one is to be recorded, since RotatePacked makes its own

    def rotate(self, arguments: Sequence[Any]) -> Views | None:
        """q, k and v for the arguments of the op; None where PyTorch must differentiate views."""
        _, cos, sin, *rest = arguments
        packing, qkv, v = self
        if tables_need_derivative(cos, sin, rest):
            return None
        weights = weights_of(rest)
        if is_grad_enabled() and any(t.requires_grad for t in (qkv, *weights)):
            if not qkv.requires_grad or not is_ordinary(((qkv, *weights), *arguments[1:NORM])):
                return None
            return (record_norm if weights else _record)(packing, arguments, qkv, *_of_q_and_k(arguments))
        return *_rotated(packing, arguments), v


def packed_call(packing: Packing, qkv: Tensor) -> tuple[tuple[Tensor, ...], Packed]:
    """x and out of the call of `apply`. x: the parts of q, then k, without derivatives."""
    q, k, v = packing.split(qkv.detach() if qkv.requires_grad and is_grad_enabled() else qkv)
    return (*packing.parts(q), k), Packed(packing, qkv, v)


def _of_q_and_k(arguments: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The weights of q and k; those of all parts of q are one."""
    return (arguments[NORM][0], arguments[NORM][-1]) if len(arguments) > NORM else ()


def _rotated(packing: Packing, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """q and k, each in memory of its own. Records nothing."""
    x, *others = arguments
    if packing.is_one_view:
        q, k = (ROTATE.plain if len(arguments) <= PLAIN else ROTATE.unrecorded)(*arguments)
        return q, k
    q, k = empty_q(packing, x[-1]), empty(x[-1], x[-1].shape)
    write([*packing.parts(q), k], x, others)
    return q, k


class RotatePacked(Function):
    """Inputs: a Packing, the arguments of the op, qkv. Outputs: q, k, and v as a view of qkv.

    v is an output so that one node gets all three gradients: else PyTorch would add up two packed ones.
    """

    @staticmethod
    def forward(ctx: Any, packing: Packing, arguments: Sequence[Any], qkv: Tensor, *_no_weights: None) -> Views:
        ctx.set_materialize_grads(False)
        ctx.packing, ctx.shape, ctx.scalars = packing, qkv.shape, arguments[3:POSITIONS]
        ctx.save_for_backward(*arguments[1:3], *arguments[POSITIONS:NORM])  # the tables and the lookup
        _, _, v = packing.split(qkv)
        return *_rotated(packing, arguments), v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cos, sin, *lookup = ctx.saved_tensors  # read once: checkpointing recomputes them
        packing, shape, none = ctx.packing, ctx.shape, (None,) * (len(ctx.needs_input_grad) - 3)
        if all(g is None for g in grads):
            return None, None, None, *none
        # Kernels in Python get no defaults at the end, so the offset may come without the flags.
        offset, flags, *scalars = ctx.scalars if len(ctx.scalars) > 1 else (*ctx.scalars, 0, 0)[:2]
        others = cos, sin, offset, transposed_flags(flags), *scalars, *lookup
        if can_be_written(grads):
            packed, _, targets, given = begin(packing, grads, shape)
            write(targets, given, others)
            return None, None, packed, *none
        q, k = on_subset(lambda g: _rotate(g, *others), [g is not None for g in grads[:2]], grads[:2])
        return None, None, joined(packing, (q, k, grads[2]), shape), *none


_record: Callable[..., Views] = RotatePacked.apply
