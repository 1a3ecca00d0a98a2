"""`apply_qkv` as one node of autograd, whose gradient of qkv is one packed tensor that is written once.

Serves plain reverse mode, if only qkv and the weights of a norm are differentiated. Otherwise `apply_qkv` calls `apply`
on views of qkv, which PyTorch differentiates.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled

from .._packing import Packing, Views
from .arguments import NORM, PLAIN, POSITIONS, norm_of, transposed_flags, weights_of
from .call import ROTATE
from .derivatives import Function, on_subset
from .errors import raises_typed
from .packed_norm import record_norm
from .packed_parts import begin, can_be_written, empty, empty_q, joined, write
from .recording import ORDINARY_OR_ABSENT, is_ordinary, tables_need_derivative

_rotate = raises_typed("rotate", ROTATE.recorded)


class Packed(NamedTuple):
    """Passed to `apply` as `out`, makes it a call of `apply_qkv`. Only if `is_ordinary_call`."""

    packing: Packing
    qkv: Tensor
    v: Tensor  # a view of qkv, detached if a derivative is recorded: RotatePacked returns a view of its own

    def rotate(self, arguments: Sequence[Any]) -> Views | None:
        """q, k and v for the arguments of the op; None if PyTorch must differentiate views."""
        _, cos, sin, *rest = arguments
        packing, qkv, v = self
        norm = norm_of(rest)
        if tables_need_derivative(cos, sin, rest) or not ORDINARY_OR_ABSENT.issuperset(map(type, norm)):
            return None
        weights = weights_of(rest)
        if is_grad_enabled() and any(t.requires_grad for t in (qkv, *weights)):
            if not qkv.requires_grad or not is_ordinary(((qkv, *weights), *arguments[1:NORM])):
                return None
            if weights:  # the parts of q share norm[0]
                return record_norm(packing, arguments, qkv, norm[0], norm[-1])
            return _record(packing, arguments[:NORM], qkv)
        return *_rotated(packing, arguments), v


def packed_call(packing: Packing, qkv: Tensor) -> tuple[tuple[Tensor, ...], Packed]:
    """`x` and `out` for `apply`. x: the parts of q, then k, detached if a derivative is recorded."""
    q, k, v = packing.split(qkv.detach() if qkv.requires_grad and is_grad_enabled() else qkv)
    return (*packing.parts(q), k), Packed(packing, qkv, v)


def _rotated(packing: Packing, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """q and k, newly allocated. Records nothing."""
    x, *others = arguments
    if packing.is_one_view:
        q, k = (ROTATE.plain if len(arguments) <= PLAIN else ROTATE.unrecorded)(*arguments)
        return q, k
    q, k = empty_q(packing, x[-1]), empty(x[-1], x[-1].shape)
    write([*packing.parts(q), k], x, others)
    return q, k


class RotatePacked(Function):
    """Inputs: a Packing, the arguments of the op, qkv. Outputs: q, k, and v as a view of qkv.

    v is an output so that one node receives all three gradients: otherwise autograd would add two packed gradients.
    """

    @staticmethod
    def forward(ctx: Any, packing: Packing, arguments: Sequence[Any], qkv: Tensor) -> Views:
        ctx.set_materialize_grads(False)
        ctx.packing, ctx.shape, ctx.scalars = packing, qkv.shape, arguments[3:POSITIONS]
        ctx.save_for_backward(*arguments[1:3], *arguments[POSITIONS:])  # the tables and the lookup
        _, _, v = packing.split(qkv)
        return *_rotated(packing, arguments), v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cos, sin, *lookup = ctx.saved_tensors  # read once: checkpointing recomputes them on each read
        packing, shape = ctx.packing, ctx.shape
        if all(g is None for g in grads):
            return None, None, None
        # The dispatcher drops trailing defaults, so flags, or offset and flags, may be missing.
        offset, flags, *scalars = ctx.scalars if len(ctx.scalars) > 1 else (*ctx.scalars, 0, 0)[:2]
        others = cos, sin, offset, transposed_flags(flags), *scalars, *lookup
        if can_be_written(grads):
            packed, _, targets, given = begin(packing, grads, shape)
            write(targets, given, others)
            return None, None, packed
        q, k = on_subset(lambda g: _rotate(g, *others), [g is not None for g in grads[:2]], grads[:2])
        return None, None, joined(packing, (q, k, grads[2]), shape)


_record: Callable[..., Views] = RotatePacked.apply
