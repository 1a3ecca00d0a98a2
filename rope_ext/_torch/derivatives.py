"""Derivatives of the ops, of every order, in reverse and forward mode.

Let F = <g, rotate(x; cos, sin)>. F is linear in g, in x and in (cos, sin), so its three partial derivatives are::

    dF/dg          = rotate(x; cos, sin)
    dF/dx          = rotate(g; cos, sin, transposed)
    dF/d(cos, sin) = table_grad(x, g)

and every derivative of these three is again one of the three. (Copied channels do not depend on the tables. Where cos
and sin hold a tangent or a gradient of the tables, these channels are zero: `_rotated_only`.)

The autograd Functions take tensors as separate inputs, because autograd ignores tensors inside a list. Everything that
autograd passes or expects per input (needs_input_grad, tangents, gradients) is in the order of the inputs. In the same
order autograd accumulates the gradients of a tensor that is passed as x and as a table.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from .arguments import Scalars
from .flags import TRANSPOSED
from .library import torch_ops as _ops
from .private import (
    SingleLevelFunction,
    below_autograd,
    compiled_autograd_key,
    forward_mode_enabled,
    functorch_is_active,
    one_level,
)
from .recording import may_be_forward_mode

_T = TypeVar("_T")


def record(apply: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> tuple[Tensor, ...]:
    """Calls `apply` of a Function at the level of the innermost torch.func transform."""
    with one_level() if functorch_is_active() else nullcontext():
        return apply(*inputs)


class Function(SingleLevelFunction):
    """A Function whose `apply` records one node at one level of torch.func, whose own Functions have the same base.

    Under a transform torch.autograd.Function.apply would hand the call back to torch.func, which has dispatched it to
    kernels.py already and has no kernel for its custom-Function operator at this point (the operator is written in
    Python up to torch 2.13, in C++ since).
    """

    _compiled_autograd_key = staticmethod(compiled_autograd_key)


class Rotate(Function):
    """Inputs: *x, cos, sin, scalars, positions, offsets, cu_seqlens."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *x, cos, sin, scalars, positions, offsets, cu_seqlens = inputs
        with _in_forward():
            return tuple(_ops.rotate(x, cos, sin, *scalars, positions, offsets, cu_seqlens))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *x, cos, sin, ctx.scalars, positions, offsets, cu_seqlens = inputs
        *needs_x, needs_cos, needs_sin, _, _, _, _ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        tables = cos, sin, positions, offsets, cu_seqlens
        ctx.save_for_backward(*tables, *(x if needs_cos or needs_sin else ()))
        if may_be_forward_mode():
            ctx.save_for_forward(*tables, *x)
        elif not (needs_cos or needs_sin):
            ctx.mark_non_differentiable(*(y for y, need in zip(output, needs_x) if not need))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Read once: checkpointing recomputes the saved tensors on each read.
        cos, sin, positions, offsets, cu_seqlens, *x = ctx.saved_tensors
        lookup = positions, offsets, cu_seqlens
        *needs_x, needs_cos, needs_sin, _, _, _, _ = ctx.needs_input_grad
        transposed = ctx.scalars.transposed()
        given = [g is not None for g in grads]
        wanted = [g and need for g, need in zip(given, needs_x)]
        grad_x = on_subset(lambda g: _ops.rotate(g, cos, sin, *transposed, *lookup), wanted, grads)
        grad_cos = grad_sin = None
        if (needs_cos or needs_sin) and any(given):
            grad_cos, grad_sin = _table_grad(_pick(x, given), cos, sin, ctx.scalars, _pick(grads, given))
        return *grad_x, grad_cos, grad_sin, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        cos, sin, positions, offsets, cu_seqlens, *x = ctx.saved_tensors
        lookup = positions, offsets, cu_seqlens
        *x_t, cos_t, sin_t, _, _, _, _ = tangents
        have = [t is not None for t in x_t]
        out = on_subset(lambda t: _ops.rotate(t, cos, sin, *ctx.scalars, *lookup), have, x_t)
        if cos_t is not None or sin_t is not None:
            cos_t = torch.zeros_like(cos) if cos_t is None else cos_t
            sin_t = torch.zeros_like(sin) if sin_t is None else sin_t
            of_tables = _rotated_only(x, cos_t, sin_t, ctx.scalars)
            out = [b if a is None else a + b for a, b in zip(out, of_tables)]
        return tuple(torch.zeros_like(t) if o is None else o for t, o in zip(x, out))


class TableGrad(Function):
    """Inputs: cos and sin (only their shapes and dtypes are read), scalars, *x, *grad."""

    @staticmethod
    def forward(cos: Tensor, sin: Tensor, scalars: Scalars, *x_and_grad: Tensor) -> tuple[Tensor, Tensor]:
        x, grad = _halves(x_and_grad)
        with _in_forward():
            grad_cos, grad_sin = _ops.table_grad(grad, x, cos, sin, *scalars)
        return grad_cos, grad_sin

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        cos, _sin, ctx.scalars, *x_and_grad = inputs
        ctx.save_for_backward(cos, *x_and_grad)
        if may_be_forward_mode():
            ctx.save_for_forward(cos, *x_and_grad)

    @staticmethod
    def backward(ctx: Any, cos_g: Tensor, sin_g: Tensor) -> tuple[Tensor | None, ...]:
        _cos, *x_and_grad = ctx.saved_tensors
        _, _, _, *needs = ctx.needs_input_grad
        (x, grad), (needs_x, needs_grad) = _halves(x_and_grad), _halves(needs)
        to_x = on_subset(lambda t: _rotated_only(t, cos_g, sin_g, ctx.scalars.transposed()), needs_x, grad)
        to_grad = on_subset(lambda t: _rotated_only(t, cos_g, sin_g, ctx.scalars), needs_grad, x)
        return None, None, None, *to_x, *to_grad

    @staticmethod
    def jvp(ctx: Any, _cos_t: None, _sin_t: None, _scalars_t: None, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        cos, *x_and_grad = ctx.saved_tensors

        def term(x: Sequence[Tensor | None], grad: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
            given = [a is not None and b is not None for a, b in zip(x, grad)]
            if not any(given):
                return torch.zeros_like(cos), torch.zeros_like(cos)
            return _table_grad(_pick(x, given), cos, cos, ctx.scalars, _pick(grad, given))

        (x, grad), (x_t, grad_t) = _halves(x_and_grad), _halves(tangents)
        (cos_a, sin_a), (cos_b, sin_b) = term(x_t, grad), term(x, grad_t)
        return cos_a + cos_b, sin_a + sin_b


@contextmanager
def _in_forward() -> Iterator[None]:
    """Ops inside run one level below this Function: in the device's kernel, or in the next torch.func transform."""
    if functorch_is_active():  # a Function's forward runs in no_grad mode, in which outer transforms record nothing
        with torch.enable_grad(), forward_mode_enabled(True), below_autograd():
            yield
    else:
        with below_autograd():
            yield


def _table_grad(
    x: list[Tensor], cos: Tensor, sin: Tensor, scalars: Scalars, grad: list[Tensor]
) -> tuple[Tensor, Tensor]:
    if scalars.flags & TRANSPOSED:  # <grad, transposed(x)> = <x, rotate(grad)>
        x, grad, scalars = grad, x, scalars.transposed()
    grad_cos, grad_sin = _ops.table_grad(grad, x, cos, sin, *scalars)
    return grad_cos, grad_sin


def _rotated_only(x: Sequence[Tensor], cos: Tensor, sin: Tensor, scalars: Scalars) -> list[Tensor]:
    """The op rotate, but with zeros in the channels that it would copy."""
    offset, flags, rotary_dim, rotary_offset, _ = scalars

    def one(t: Tensor) -> Tensor:
        size = t.shape[-1] - rotary_offset if rotary_dim is None else rotary_dim
        channels = t.narrow(-1, rotary_offset, size)
        (y,) = _ops.rotate([channels], cos, sin, offset, flags)
        widths = rotary_offset, t.shape[-1] - rotary_offset - size
        before, after = (y.new_zeros((*y.shape[:-1], width)) for width in widths)
        # Not F.pad(): torch 2.11 mixes up its widths for DTensors.
        padded: Tensor = y if widths == (0, 0) else torch.cat((before, y, after), dim=-1)
        return padded

    return [one(t) for t in x]


def _halves(values: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    n = len(values) // 2
    return values[:n], values[n:]


def _pick(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor]:
    return [t for t, take in zip(tensors, wanted) if take and t is not None]


def on_subset(
    function: Callable[[list[Tensor]], list[Tensor]], wanted: Sequence[bool], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Applies function to the list of the wanted tensors; returns its results at their indices, None at the others."""
    picked = _pick(tensors, wanted)
    if len(picked) == len(tensors):  # nearly every call
        return [*function(picked)]
    results = iter(function(picked) if picked else ())
    return [next(results) if take else None for take in wanted]
