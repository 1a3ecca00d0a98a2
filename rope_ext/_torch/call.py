"""Calls an op through the cheapest overload that keeps derivatives and transforms correct; checks and counts writes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_compiling

from .arguments import PLAIN, POSITIONS, norm_of, transposed_flags
from .derivatives import Function, on_subset
from .dtensor import is_dtensor
from .errors import raises_typed
from .library import torch_ops as _ops
from .onnx_export import check_dynamo, check_translated
from .private import count_write, forward_ad, function_of, functorch_is_active, is_exporting, is_tracing
from .recording import is_ordinary, positions_require_grad, tables_need_derivative
from .writes import check_captured, check_saved, check_writable


class Op(NamedTuple):
    """An op and its overloads. An op that writes, writes to its first argument."""

    recorded: Callable[..., Any]
    unrecorded: Callable[..., Any]  # skips the Python kernels of kernels.py, which cost 5 to 10 us
    plain: Callable[..., Any]  # unrecorded, and without the arguments after flags (costs: csrc/bindings/schema.cpp)
    at_x: int  # index of x among the arguments
    writes: bool
    name: str


def _op_of(name: str, at_x: int, writes: bool) -> Op:
    packet = getattr(_ops, name)
    return Op(packet.default, function_of(packet.unrecorded), function_of(packet.plain), at_x, writes, name)


ROTATE = _op_of("rotate", 0, False)
ROTATE_IN_PLACE = _op_of("rotate_", 0, True)
ROTATE_OUT = _op_of("rotate_out", 1, True)


def dispatch(op: Op, arguments: Sequence[Any]) -> Any:
    """Calls the overload without Python kernels if nothing is recorded, RotateX if x alone is differentiated, and the
    recorded op otherwise."""
    recorded, unrecorded, plain, at_x, writes, _name = op
    if functorch_is_active() or is_tracing():
        return _under_transform(op, arguments)
    if forward_ad._current_level >= 0:
        return recorded(*arguments)
    if is_grad_enabled():
        if (
            arguments[at_x + 1].requires_grad
            or arguments[at_x + 2].requires_grad
            or (len(arguments) > at_x + POSITIONS and positions_require_grad(arguments[at_x + POSITIONS]))
        ):
            return recorded(*arguments)
        if op is not ROTATE_IN_PLACE:  # its x is written, so the loop below checks it
            for t in arguments[at_x]:  # not any(): its generator would cost as much as the rest of this function
                if t.requires_grad:
                    is_lean = not writes and is_ordinary(arguments)
                    return rotate_x(ROTATE, arguments, *arguments[0]) if is_lean else recorded(*arguments)
    kernel = plain if len(arguments) <= at_x + PLAIN else unrecorded
    if not writes:
        return kernel(*arguments)
    written = arguments[0]
    for t in written:
        base = t._base  # None: t is not a view
        if t.requires_grad or t.is_inference() or (base is not None and base.requires_grad):  # else t may be written
            if is_grad_enabled() and any(t.requires_grad for t in written):
                return recorded(*arguments)
            check_writable(written, False, at_x)
            break
    kernel(*arguments)
    count_write(written)  # bumps the version counters: backward then refuses a tensor saved before this write
    return None


def _under_transform(op: Op, arguments: Sequence[Any]) -> Any:
    """The call in a transform of torch.func or in torch.jit.trace."""
    if functorch_is_active():
        if op.writes:
            others = arguments[op.at_x + 1 :]
            check_captured(arguments[0], (*others, *norm_of(others[2:])), op.at_x)
        return op.recorded(*arguments)
    return _traced(op, arguments)


def _traced(op: Op, arguments: Sequence[Any]) -> Any:
    """The call in torch.jit.trace.

    Always the recorded op, since torch.jit.trace checks a trace against a second one, made in no_grad mode. Never an op
    that writes to a list of tensors: TorchScript's dead code elimination removes it.
    """
    check_dynamo()
    return _rotated_and_copied(op, arguments) if op.writes else op.recorded(*arguments)


def _rotated_and_copied(op: Op, arguments: Sequence[Any]) -> None:
    for t, y in zip(arguments[0], ROTATE.recorded(*arguments[op.at_x :])):
        t.copy_(y)


def in_graph(op: Op, arguments: Sequence[Any]) -> Any:
    """The call in a graph that torch.compile or torch.export traces.

    Functionalization in torch.export wraps an op that writes in `auto_functionalized_v2`, which no decomposition table
    reaches. Programs of torch.export therefore get a rotation and a copy_, unless the op would refuse the tensors.
    """
    if is_exporting():
        check_translated()  # raises before the op enters the graph: a patched model then runs its own function
        if op.writes and _can_be_copied(arguments[0], arguments[op.at_x]):
            return _rotated_and_copied(op, arguments)
    return op.recorded(*arguments)


def _can_be_copied(written: Sequence[Tensor], x: Sequence[Tensor]) -> bool:
    for i, (t, y) in enumerate(zip(written, x)):
        if t.shape != y.shape or t.dtype != y.dtype or t.device != y.device or is_dtensor(t):
            return False
        if any(t is other for other in written[:i]):
            return False
    return len(written) == len(x)


class RotateX(Function):
    """The node of `rotate` or `rotate_` if x alone is differentiated, outside of transforms and forward mode.

    Inputs: the op, its arguments, *x. The backward pass calls the op as a user would, which records second and higher
    derivatives.
    """

    @staticmethod
    def forward(ctx: Any, op: Op, arguments: Sequence[Any], *x: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.scalars = arguments[3:POSITIONS]
        ctx.save_for_backward(*arguments[1:3], *arguments[POSITIONS:])  # the tables and the lookup
        kernel = op.plain if len(arguments) <= PLAIN else op.unrecorded
        if op.writes:
            kernel(*arguments)
            ctx.mark_dirty(*x)
            y = x
        else:
            y = tuple(kernel(*arguments))
        for t in x:
            if not t.requires_grad:
                ctx.mark_non_differentiable(*(a for a, b in zip(y, x) if not b.requires_grad))
                break
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cos, sin, *lookup = ctx.saved_tensors  # read once: checkpointing recomputes them on each read
        wanted = [g is not None and need for g, need in zip(grads, ctx.needs_input_grad[2:])]
        # The dispatcher drops trailing defaults, so flags, or offset and flags, may be missing.
        scalars: tuple[Any, ...] = ctx.scalars
        if len(scalars) < 2:
            scalars = (*scalars, 0, 0)[:2]
        offset, flags, *others = scalars
        rest = offset, transposed_flags(flags), *others, *lookup
        return None, None, *on_subset(lambda g: _rotate(g, cos, sin, *rest), wanted, grads)


rotate_x: Callable[..., tuple[Tensor, ...]] = RotateX.apply


def _rotate_again(*arguments: Any) -> Any:
    # Compiled autograd; the legacy vmap, whose batched gradients hide that they require grad.
    if is_compiling() or is_grad_enabled():
        return ROTATE.recorded(*arguments)
    return dispatch(ROTATE, arguments)


_rotate = raises_typed("rotate", _rotate_again)


def check_in_place(arguments: Sequence[Any], recorded: bool) -> None:
    """Raises what `dispatch` of ROTATE_IN_PLACE would, and writes nothing. recorded: x will require grad by then."""
    x, cos, sin, *rest = arguments
    if not is_compiling():
        if functorch_is_active():
            check_captured(x, arguments[1:])
        else:
            check_writable(x)
            needs_x = is_grad_enabled() and (recorded or any(t.requires_grad for t in x))
            if needs_x and not is_inference_mode_enabled() and not tables_need_derivative(cos, sin, rest):
                check_saved(arguments[1:])
    _ops.check_in_place(*arguments)
