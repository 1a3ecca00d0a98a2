"""The call of an op: recorded by autograd or not; if it writes, with the checks before and the count after."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_compiling

from .arguments import POSITIONS
from .library import torch_ops as _ops
from .private import count_write, function_of, functorch_is_active, is_tracing
from .recording import needs_derivative, positions_need_derivative, tables_need_derivative
from .writes import check_captured, check_writable


class Op(NamedTuple):
    """An op and its two overloads. Ops that write do so to their first argument."""

    recorded: Callable[..., Any]
    unrecorded: Callable[..., Any]  # skips the kernels of kernels.py, which cost 5 to 10 us
    at_x: int  # where x is among the arguments
    writes: bool
    name: str


def _op_of(name: str, at_x: int, writes: bool) -> Op:
    packet = getattr(_ops, name)
    return Op(packet.default, function_of(packet.unrecorded), at_x, writes, name)


ROTATE = _op_of("rotate", 0, False)
ROTATE_IN_PLACE = _op_of("rotate_", 0, True)
ROTATE_OUT = _op_of("rotate_out", 1, True)


def dispatch(op: Op, arguments: Sequence[Any]) -> Any:
    """Calls the op, its unrecorded overload if no derivative is to be recorded."""
    recorded, unrecorded, at_x, writes, _name = op
    if functorch_is_active():
        if writes:
            check_captured(arguments[0], arguments[at_x + 1 :], at_x)
        return recorded(*arguments)
    if is_tracing():
        return _traced(op, arguments)
    x, cos, sin = arguments[at_x : at_x + 3]
    if needs_derivative((*x, *arguments[0]) if at_x else x, cos, sin) or (
        len(arguments) > at_x + POSITIONS and positions_need_derivative(arguments[at_x + POSITIONS])
    ):
        return recorded(*arguments)
    if not writes:
        return unrecorded(*arguments)
    check_writable(arguments[0], False, at_x)
    unrecorded(*arguments)
    count_write(arguments[0])  # so that autograd refuses to use a tensor that it saved before
    return None


def _traced(op: Op, arguments: Sequence[Any]) -> Any:
    """The call in torch.jit.trace.

    Always the recorded op, since torch compares the trace with one made in no_grad mode. Never an op that writes into a
    list of tensors: the graph optimiser takes it for dead code.
    """
    if not op.writes:
        return op.recorded(*arguments)
    for t, y in zip(arguments[0], ROTATE.recorded(*arguments[op.at_x :])):
        t.copy_(y)
    return None


def check_in_place(arguments: Sequence[Any], recorded: bool) -> None:
    """Raises what `dispatch` of ROTATE_IN_PLACE would, and writes nothing. recorded: x will require grad by then."""
    x, cos, sin, *rest = arguments
    if not is_compiling():
        if functorch_is_active():
            check_captured(x, arguments[1:])
        else:
            check_writable(x)
            if is_grad_enabled() and not is_inference_mode_enabled() and not tables_need_derivative(cos, sin, rest):
                saved = [t for t in arguments[1:] if isinstance(t, Tensor)]
                if (recorded or any(t.requires_grad for t in x)) and any(t.is_inference() for t in saved):
                    raise RuntimeError("an inference tensor cannot be saved for a derivative")  # for _call_errors
    _ops.check_in_place(*arguments)
