"""The Python kernels of the ops, at dispatch keys above the backends: Autograd, ADInplaceOrView and fallbacks.

They are registered with Library.impl, because torch.library.register_autograd supports neither forward mode nor
torch.func.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from ..errors import ArgumentError
from . import norm, per_token
from .arguments import Lookup, Scalars, norm_of, split, weights_of
from .call import ROTATE, ROTATE_IN_PLACE, ROTATE_OUT, Op, rotate_x
from .derivatives import Rotate, TableGrad, record
from .dtensor import placed_as, refuse_plain_gradients, register_rules, with_whole_heads
from .errors import raises_typed
from .flags import FREQUENCIES
from .library import NAMESPACE
from .library import torch_ops as _ops
from .private import below_autograd, below_in_place, count_write
from .recording import (
    have_tangents,
    is_ordinary,
    kernel_needs_derivative,
    may_be_forward_mode,
    needs_derivative,
    tables_need_derivative,
)
from .writes import check_saved, check_writable

_library = torch.library.Library(NAMESPACE, "IMPL")


# ---- Autograd ----


def _rotate(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> list[Tensor]:
    y: list[Tensor]
    # Inductor's generated code calls this op with grad mode off: go straight to the device's kernel.
    if not is_grad_enabled() and not may_be_forward_mode():
        y = ROTATE.unrecorded(x, cos, sin, *rest)
        return y
    if not kernel_needs_derivative((*x, *weights_of(rest)), cos, sin, rest):
        with below_autograd():
            y = _ops.rotate(x, cos, sin, *rest)
            return y
    refuse_plain_gradients(x, cos, sin, rest)
    if norm_of(rest):
        return norm.rotate(x, cos, sin, rest)
    scalars, lookup = split(rest)
    rotated = None
    has_frequencies = scalars.flags & FREQUENCIES
    if (has_frequencies or cos.dim() == 2) and tables_need_derivative(cos, sin, rest):
        make = per_token.of_frequencies if has_frequencies else per_token.looked_up
        cos, sin, rotated = make(x, cos, sin, scalars, lookup)
        scalars = Scalars(0, scalars.flags & ~FREQUENCIES, scalars.rotary_dim, scalars.rotary_offset)
        lookup = Lookup()
    recorded = record(Rotate.apply, *x, cos, sin, scalars, *lookup)
    if rotated is None:
        return list(recorded)
    return [placed_as(torch.where(rotated, a, with_whole_heads(b)), a) for a, b in zip(recorded, x)]


def _rotate_in_place(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    if not kernel_needs_derivative((*x, *weights_of(rest)), cos, sin, rest):
        with below_autograd():
            _ops.rotate_(x, cos, sin, *rest)
        return
    # Refuse here, before the first write, whatever autograd would refuse below.
    _ops.check_in_place(x, cos, sin, *rest)
    tables_need = tables_need_derivative(cos, sin, rest)
    reads_x = tables_need or norm_of(rest)  # the backward pass needs x before the write
    is_lean = not reads_x and not may_be_forward_mode() and is_ordinary((x, cos, sin, *rest))
    if is_lean and not any(t.retains_grad or t._backward_hooks or t.is_neg() for t in x):
        check_saved((cos, sin, *rest))
        # A Function may mark several base tensors dirty, or a single view: each view gets its own node.
        views = [[t] for t in x if t._base is not None]
        for written in [[t for t in x if t._base is None], *views]:
            if written:
                rotate_x(ROTATE_IN_PLACE, (written, cos, sin, *rest), *written)
        return
    # copy_ handles tangents, transforms, subclasses, hooks, retained gradients and lazy negations.
    y = _rotate([t.clone() for t in x] if reads_x else x, cos, sin, *rest)
    for t, rotated in zip(x, y):
        # Reading grad_fn regenerates it: an earlier copy_ may have written the base of this view through another view.
        _renewed = t.grad_fn
        t.copy_(placed_as(rotated, t))


def _rotate_out(out: list[Tensor], x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    weights = weights_of(rest)
    if kernel_needs_derivative((*x, *out, *weights), cos, sin, rest):
        got = f"tensors while x, cos, sin{', norm' if weights else ''} or out requires grad"
        raise ArgumentError("out", "be None when a derivative is recorded", got)
    with below_autograd():
        _ops.rotate_out(out, x, cos, sin, *rest)


def _table_grad(grad: list[Tensor], x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if needs_derivative((*x, *grad), x[0], grad[0]) or have_tangents((*x, *grad)):
        grad_cos, grad_sin = record(TableGrad.apply, cos, sin, split(rest)[0], *x, *grad)
        return grad_cos, grad_sin
    with below_autograd():
        grad_cos, grad_sin = _ops.table_grad(grad, x, cos, sin, *rest)
        return grad_cos, grad_sin


def _table_rows(*arguments: Any) -> Tensor:
    with below_autograd():
        rows: Tensor = _ops.table_rows(*arguments)
        return rows


def _check(*arguments: Any) -> None:
    with below_autograd():
        _ops.check(*arguments)


def _check_in_place(x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    check_writable(x, recorded=kernel_needs_derivative(weights_of(rest), cos, sin, rest))
    with below_autograd():
        _ops.check_in_place(x, cos, sin, *rest)


_KERNELS: dict[str, Callable[..., Any]] = {
    "rotate": _rotate,
    "rotate_": _rotate_in_place,
    "rotate_out": _rotate_out,
    "norm_rotate": norm.norm_rotate,
    "norm_grad": norm.norm_grad,
    "norm_grad_out": norm.norm_grad_out,
    "table_grad": _table_grad,
    "table_rows": _table_rows,
    "cos_sin": per_token.cos_sin,
    "check": _check,
    "check_in_place": _check_in_place,
}
for _name, _kernel in _KERNELS.items():
    _library.impl(_name, raises_typed(_name, _kernel), "Autograd")
_library.impl("nothing", torch.library.fallthrough_kernel, "Autograd")


# ---- other keys ----


def _write(packet: Callable[..., Any], at_x: int) -> Callable[..., Any]:
    def kernel(written: list[Tensor], *rest: Any) -> Any:
        check_writable(written, False, at_x)
        with below_in_place():
            result = packet(written, *rest)
        count_write(written)
        return result

    return kernel


def _below(op: Op) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        register_rules()
        with below_in_place():  # call.dispatch counts the writes
            return op.recorded(*arguments)

    return kernel


def _register(op: Op) -> None:
    if op.writes:
        _library.impl(op.name, _write(getattr(_ops, op.name), op.at_x), "ADInplaceOrView")
    for overload in (".unrecorded", ".plain"):
        _library.impl(op.name + overload, torch.library.fallthrough_kernel, "Autograd")
        # For backends without a kernel, and for Python modes and subclasses, which handle only the recorded op.
        for key in ("CompositeExplicitAutograd", "Python", "Batched"):
            _library.impl(op.name + overload, _below(op), key)


for _op in (ROTATE, ROTATE_IN_PLACE, ROTATE_OUT):
    _register(_op)
_library.impl("norm_grad_out", _write(_ops.norm_grad_out, 1), "ADInplaceOrView")
