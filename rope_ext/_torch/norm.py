"""Calls with a norm. NormRotate differentiates x and the weights; composed_norm.py serves all other derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from ..errors import ArgumentError, ArgumentTypeError
from . import call, composed_norm
from .arguments import LOOKUP_END, NORM, POSITIONS, Rest, eps_of, norm_of, transposed_flags, weights_of
from .call import ROTATE, ROTATE_OUT, Op
from .derivatives import Function, record
from .dtensor import is_dtensor
from .errors import raises_typed
from .library import torch_ops as _ops
from .onnx_export import check_dynamo
from .private import below_autograd, forward_ad, function_of, functorch_is_active, is_tracing, level_of
from .recording import (
    ORDINARY_OR_ABSENT,
    is_ordinary,
    kernel_needs_derivative,
    may_be_forward_mode,
    positions_require_grad,
    tables_need_derivative,
)
from .writes import check_captured

_norm_rotate: Callable[..., Any] = function_of(_ops.norm_rotate.default)
_norm_grad: Callable[..., Any] = function_of(_ops.norm_grad.default)


def dispatch(op: Op, arguments: Sequence[Any]) -> Any:
    """`call.dispatch` for calls with a norm: NormRotate if x and the weights alone are differentiated."""
    at_x = op.at_x
    norm = arguments[at_x + NORM]
    if functorch_is_active() or is_tracing() or not ORDINARY_OR_ABSENT.issuperset(map(type, norm)):
        return _under_transform(op, arguments)
    if forward_ad._current_level >= 0:
        return op.recorded(*arguments)
    if is_grad_enabled():
        if (
            arguments[at_x + 1].requires_grad
            or arguments[at_x + 2].requires_grad
            or positions_require_grad(arguments[at_x + POSITIONS])
        ):
            return op.recorded(*arguments)
        tensors = *arguments[at_x], *norm
        for t in tensors:
            if t is not None and t.requires_grad:
                is_lean = op is ROTATE and is_ordinary((tensors, *arguments[1:NORM]))
                return _record(False, arguments, *tensors) if is_lean else op.recorded(*arguments)
    return call.dispatch(op, arguments) if op.writes else op.unrecorded(*arguments)


def _under_transform(op: Op, arguments: Sequence[Any]) -> Any:
    """The call in a transform of torch.func, in torch.jit.trace, or with weights of a Tensor subclass.

    Composed of PyTorch's ops if the op would not do: the dispatcher overlooks wrapped weights and subclasses in a list
    of optional tensors, and torch.jit.trace does not accept that list.
    """
    check_dynamo()
    x, cos, sin, *rest = arguments[op.at_x :]
    weights = weights_of(rest)
    if not functorch_is_active() and any(map(is_dtensor, weights)):
        if not all(map(is_dtensor, x)):  # the dispatcher finds the DTensor rule through x alone
            raise ArgumentTypeError("x", "be a DTensor when norm is one", "a Tensor", "norm.full_tensor() is a Tensor")
        return op.recorded(*arguments) if is_grad_enabled() else op.unrecorded(*arguments)
    if functorch_is_active() and (op is ROTATE_OUT or all(level_of(weight) < 0 for weight in weights)):
        return call.dispatch(op, arguments)
    if not op.writes:
        return composed_norm.rotate(x, cos, sin, rest)
    if functorch_is_active():
        check_captured(x, (cos, sin, *rest, *weights))
    elif op is ROTATE_OUT and kernel_needs_derivative((*x, *weights), cos, sin, rest):
        return op.recorded(*arguments)  # raises
    y = composed_norm.rotate([t.clone() for t in x], cos, sin, rest)  # the backward pass reads x before the write
    if op is ROTATE_OUT and not is_tracing():  # copy_ would broadcast and convert; the op refuses
        op.recorded(arguments[0], x, cos, sin, *rest[:LOOKUP_END])
    for t, rotated in zip(arguments[0], y):
        t.copy_(rotated)
    return None


class NormRotate(Function):
    """The node of norm and rotation if x and weights alone are differentiated, outside of transforms and forward mode.

    Inputs: whether 1 / rms is returned too, the arguments of the op, *x, *weights. Saves 1 / rms of each head, and each
    tensor of x with a norm whose gradient, or whose weight's gradient, is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, returns_inv_rms: bool, arguments: Sequence[Any], *x_and_weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        x, norm = arguments[0], arguments[NORM]
        ctx.numbers = arguments[3:POSITIONS], eps_of(arguments[3:])
        with below_autograd():
            y, inv_rms = _norm_rotate(*arguments)
        saved: list[Tensor | None] = []
        constant = [*inv_rms] if returns_inv_rms else []
        for t, weight, rotated in zip(x, norm, y):  # one loop: each comprehension would cost 0.3 us
            is_wanted = t.requires_grad or (weight is not None and weight.requires_grad)
            saved.append(t if is_wanted and weight is not None else None)
            if not is_wanted:
                constant.append(rotated)
        ctx.save_for_backward(*arguments[1:3], *arguments[POSITIONS:NORM], *saved, *norm, *inv_rms)
        if constant:
            ctx.mark_non_differentiable(*constant)
        return (*y, *inv_rms) if returns_inv_rms else tuple(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Read once: checkpointing recomputes the saved tensors on each read.
        cos, sin, positions, offsets, cu_seqlens, *saved = ctx.saved_tensors
        count = len(saved) // 3
        _, _, *needs = ctx.needs_input_grad
        places: list[int] = []
        inputs, inv_rms, given, weights, wanted = [], [], [], [], 0
        for i in range(count):
            g, x, needs_x, needs_weight = grads[i], saved[i], needs[i], needs[count + i]
            if g is None or not (needs_x or needs_weight):
                continue
            wanted |= needs_x << len(places) | needs_weight << (8 + len(places))
            places.append(i)
            inputs.append(g if x is None else x)  # without a norm only the shape is read
            given.append(g)
            weights.append(saved[count + i])
            inv_rms.append(saved[2 * count + i])
        found: list[Tensor | None] = [None] * (2 * count)
        if places:
            (offset, flags, *scalars), eps = ctx.numbers
            rest = offset, transposed_flags(flags), *scalars, positions, offsets, cu_seqlens, weights, eps
            grad_x, grad_weight = _norm_grad_again(inputs, inv_rms, wanted, given, cos, sin, *rest)
            for i, to_x, to_weight, weight in zip(places, grad_x, grad_weight, weights):
                if needs[i]:
                    found[i] = to_x
                if needs[count + i]:
                    found[count + i] = to_weight if to_weight.dtype is weight.dtype else to_weight.to(weight.dtype)
        return None, None, *found


_record: Callable[..., tuple[Tensor, ...]] = NormRotate.apply


def _recorded_norm_grad(*arguments: Any) -> Any:
    # Compiled autograd; the legacy vmap, whose batched gradients hide that they require grad.
    if is_compiling() or is_grad_enabled() or may_be_forward_mode():
        return _ops.norm_grad(*arguments)
    with below_autograd():
        return _norm_grad(*arguments)


_norm_grad_again = raises_typed("norm_grad", _recorded_norm_grad)


# ---- kernels at the Autograd key ----


def rotate(x: list[Tensor], cos: Tensor, sin: Tensor, rest: Rest) -> list[Tensor]:
    """The kernel of `rotate` at the Autograd key for a call with a norm that records something."""
    if _is_composed(cos, sin, rest):
        return composed_norm.rotate(x, cos, sin, rest)
    return list(record(_record, False, (x, cos, sin, *rest), *x, *norm_of(rest)))


def norm_rotate(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> tuple[list[Tensor], list[Tensor]]:
    if not kernel_needs_derivative((*x, *weights_of(rest)), cos, sin, rest):
        with below_autograd():
            y, inv_rms = _ops.norm_rotate(x, cos, sin, *rest)
            return y, inv_rms
    if not _is_composed(cos, sin, rest):
        made = record(_record, True, (x, cos, sin, *rest), *x, *norm_of(rest))
        return list(made[: len(x)]), list(made[len(x) :])
    of_x, of_norm = ([None if t is None else t.detach() for t in tensors] for tensors in (x, norm_of(rest)))
    _, inv_rms = _ops.norm_rotate(of_x, cos.detach(), sin.detach(), *rest[:LOOKUP_END], of_norm, eps_of(rest))
    return composed_norm.rotate(x, cos, sin, rest), inv_rms


def norm_grad(
    input: list[Tensor], inv_rms: list[Tensor], wanted: int, grad: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any
) -> tuple[list[Tensor], list[Tensor]]:
    if kernel_needs_derivative((*input, *grad, *weights_of(rest)), cos, sin, rest):
        return composed_norm.gradients(input, wanted, grad, cos, sin, rest)
    with below_autograd():
        grad_x, grad_weight = _ops.norm_grad(input, inv_rms, wanted, grad, cos, sin, *rest)
        return grad_x, grad_weight


def norm_grad_out(
    out: list[Tensor],
    input: list[Tensor],
    inv_rms: list[Tensor],
    wanted: int,
    grad: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    *rest: Any,
) -> list[Tensor]:
    if kernel_needs_derivative((*out, *input, *grad, *weights_of(rest)), cos, sin, rest):
        raise ArgumentError("out", "be None when a derivative is recorded", "tensors")
    with below_autograd():
        grad_weight: list[Tensor] = _ops.norm_grad_out(out, input, inv_rms, wanted, grad, cos, sin, *rest)
        return grad_weight


def _is_composed(cos: Tensor, sin: Tensor, rest: Rest) -> bool:
    return may_be_forward_mode() or tables_need_derivative(cos, sin, rest)
