"""Derivatives of the ops, of every order and mode.

Let F = <g, rotate(x; cos, sin)>. It is linear in g, in x and in (cos, sin), so its three partial derivatives are
    dF/dg          = rotate(x; cos, sin)
    dF/dx          = rotate(g; cos, sin, transposed)
    dF/d(cos, sin) = table_grad(x, g)
and every derivative of these is one of the three again. (Channels that are copied do not depend on the tables: where
cos and sin stand for a direction or a gradient, they give zeros, `_rotated_only`.)

Where tables are differentiated the ops get one row of cos/sin per token: looking rows up, and adding the gradients of
tokens that read the same row, is PyTorch's index_select.

The rules are kernels at the Autograd dispatch key, around autograd.Functions: torch.library.register_autograd knows
neither forward mode nor torch.func.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_compiling

from ..errors import ArgumentError
from ..reference import LAYOUTS
from ..reference import TWO_PI as _TWO_PI
from .errors import raises_typed
from .flags import FREQUENCIES, INTERLEAVED, LAYOUT_MASK, OTHER_PAIRING, ROUND_PRODUCTS, TRANSPOSED
from .library import torch_ops as _ops
from .private import (
    DEFAULT_VIEW,
    SingleLevelFunction,
    below_autograd,  # context manager: ops skip the kernels of this file
    below_in_place,
    compiled_autograd_key,
    count_write,
    creation_meta,
    forward_ad,
    forward_mode_enabled,
    function_of,
    functorch_is_active,
    is_tracing,
    level_of,  # -1: no transform wraps the tensor
    one_level,
    unpack_dual,  # (value, tangent or None)
)

_library = torch.library.Library("rope_ext", "IMPL")

# Arguments that all ops share (csrc/bindings/schema.cpp): x, cos, sin, the scalars (offset, flags, rotary_dim,
# rotary_offset, attention_scaling), and the lookup (positions, offsets, cu_seqlens). Defaults at the end do not reach
# kernels in Python.
_DEFAULTS = (0, 0, None, 0, 1.0, None, None, None)
_NOT_ROTATED, _OUTSIDE = -1, -2  # rows of table_rows (csrc/core/positions.h)


def layout_of(flags):
    return LAYOUTS[flags & LAYOUT_MASK]


def needs_derivative(x, cos, sin):
    """Whether anything is to be recorded for the result of an op on these tensors."""
    if forward_ad._current_level >= 0:
        return True
    if not is_grad_enabled():
        return False
    if cos.requires_grad or sin.requires_grad:
        return True
    for t in x:  # noqa: SIM110 (a generator in any() takes as long as all the rest)
        if t.requires_grad:
            return True
    return False


def _may_be_forward_mode():
    """In a compiled graph torch.func.jvp enters a level of forward mode that Python does not count."""
    return forward_ad._current_level >= 0 or functorch_is_active()


def _forward_mode(tensors):
    """Whether there may be tangents."""
    if forward_ad._current_level >= 0:
        return True
    return functorch_is_active() and any(unpack_dual(t, level=0)[1] is not None for t in tensors)


def _positions_need_derivative(rest):
    """Float positions without a table; whatever needs_derivative says of the tensors."""
    positions = rest[5] if len(rest) > 5 else None
    return positions is not None and positions.requires_grad and is_grad_enabled()


class Op(NamedTuple):
    """What apply calls. An op that writes does so to its first argument."""

    recorded: Callable
    unrecorded: Callable  # past the Python kernels of this file, which cost 5 to 10 us
    at_x: int  # where x is among the arguments
    writes: bool


def _op_of(packet, at_x, writes):
    return Op(packet.default, function_of(packet.unrecorded), at_x, writes)


ROTATE = _op_of(_ops.rotate, 0, False)
ROTATE_IN_PLACE = _op_of(_ops.rotate_, 0, True)
ROTATE_OUT = _op_of(_ops.rotate_out, 1, True)


def call(op, arguments):
    recorded, unrecorded, at_x, writes = op
    if functorch_is_active():
        if writes:
            _check_captured(arguments[0], arguments[at_x + 1 :], at_x)
        return recorded(*arguments)
    if is_tracing():
        return _traced(op, arguments)
    x, cos, sin = arguments[at_x : at_x + 3]
    if needs_derivative((*x, *arguments[0]) if at_x else x, cos, sin) or (
        len(arguments) > at_x + 8 and _positions_need_derivative(arguments[at_x + 3 :])
    ):
        return recorded(*arguments)
    if not writes:
        return unrecorded(*arguments)
    _check_writable(arguments[0], False, at_x)
    unrecorded(*arguments)
    count_write(arguments[0])  # autograd refuses to use a saved tensor that was written since


def _traced(op, arguments):
    """In torch.jit.trace: always the recorded op, since the trace is compared with one made in no_grad mode; and none
    that writes into a list of tensors, which the optimiser of the graph takes for dead code."""
    if not op.writes:
        return op.recorded(*arguments)
    for t, y in zip(arguments[0], ROTATE.recorded(*arguments[op.at_x :])):
        t.copy_(y)


def check_in_place(arguments, recorded):
    """Raises what `call` of ROTATE_IN_PLACE would, and writes nothing. recorded: x requires grad by then."""
    x, cos, sin, *rest = arguments
    if not is_compiling():
        if functorch_is_active():
            _check_captured(x, arguments[1:])
        else:
            _check_writable(x)
            if is_grad_enabled() and not is_inference_mode_enabled() and not _tables_need_derivative(cos, sin, rest):
                saved = [t for t in arguments[1:] if isinstance(t, torch.Tensor)]
                if (recorded or any(t.requires_grad for t in x)) and any(t.is_inference() for t in saved):
                    raise RuntimeError("an inference tensor cannot be saved for a derivative")  # see _call_errors
    _ops.check_in_place(*arguments)


def _check_captured(written, others, at_x=0):
    """A transform records nothing in a tensor from outside it: derivatives would be zero without a word."""
    level = max(level_of(t) for t in others if isinstance(t, torch.Tensor))
    for t in written:
        if level_of(t) < level or _is_view_of_captured(t):
            rule = "be inside every transform that cos, sin or the positions are inside"
            raise _not_written(rule, t, at_x, " from outside")


def _is_view_of_captured(t):
    """Asks torch.func, which refuses to write tensors from outside and their views, by an op that writes nothing."""
    try:
        with torch.no_grad():
            t[..., :0].zero_()
    except RuntimeError as error:
        return "captured Tensor" in str(error)
    return False


# How a view was made, by the names of torch, where autograd refuses to write it: what x must not be, and what helps.
_RESTRICTED_VIEWS = {
    "MULTI_OUTPUT_NODE": "one of several views that an op returned (split, unbind, chunk; slices are taken)",
    "IN_CUSTOM_FUNCTION": "a view that a custom autograd.Function returned (its clone() is taken)",
    "NO_GRAD_MODE": "a view made under torch.no_grad (make and write it both inside, or both outside)",
    "INFERENCE_MODE": "a view made in inference mode (make and write it both inside, or both outside)",
}


def _restriction(t):
    if not t._is_view() or (made := creation_meta(t)) == DEFAULT_VIEW:
        return None
    return f"not be {_RESTRICTED_VIEWS.get(made.name, f'a view that autograd does not write ({made.name})')}"


def _check_writable(tensors, recorded=False, at_x=0):
    """What autograd would refuse, asked before the first of the tensors is written."""
    inference, grad = is_inference_mode_enabled(), is_grad_enabled()
    for t in tensors:
        rule = None
        if not inference and t.is_inference():
            rule = "not be an inference tensor outside inference mode"
        elif not grad:
            continue
        elif (recorded or t.requires_grad) and (restriction := _restriction(t)):
            rule = restriction
        elif (base := t._base if t._is_view() else t).requires_grad and base.is_leaf:
            rule = "not be a leaf that requires grad, or a view of one,"
        if rule is not None:
            raise _not_written(rule, t, at_x)


def _not_written(rule, t, at_x, place=""):
    """The error of a tensor of x or, where x comes after it, of out."""
    name = "out" if at_x else "x"
    return ArgumentError(name, f"{rule} when it is written", f"one of shape {tuple(t.shape)}{place}")


# ---- the two Functions ----


class _Function(SingleLevelFunction):
    """The base of the Functions that torch.func itself makes: `apply` records one node, at the level of one transform.

    torch.autograd.Function.apply would hand the call back to torch.func, which has dispatched it to the kernels of this
    file already and has none for its own operator here (in Python up to torch 2.13, in C++ since).
    """

    _compiled_autograd_key = staticmethod(compiled_autograd_key)


class _Rotate(_Function):
    """inputs: *x, cos, sin, scalars, *lookup."""

    @staticmethod
    def forward(*inputs):
        *x, cos, sin, scalars, positions, offsets, cu_seqlens = inputs
        with _in_forward():
            return tuple(_ops.rotate(x, cos, sin, *scalars, positions, offsets, cu_seqlens))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, tables, ctx.scalars = inputs[:-6], inputs[-6:-4] + inputs[-3:], inputs[-4]
        ctx.set_materialize_grads(False)
        tables_need = any(ctx.needs_input_grad[-6:-4])
        ctx.save_for_backward(*tables, *(x if tables_need else ()))
        if _may_be_forward_mode():
            ctx.save_for_forward(*tables, *x)
        elif not tables_need:
            ctx.mark_non_differentiable(*(y for y, need in zip(output, ctx.needs_input_grad) if not need))

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them
        tables, x = saved[:5], saved[5:]
        given = [g is not None for g in grads]
        wanted = [g and need for g, need in zip(given, ctx.needs_input_grad)]
        lookup, scalars = tables[2:], _transposed(ctx.scalars)
        grad_x = _on_subset(lambda g: _ops.rotate(g, *tables[:2], *scalars, *lookup), wanted, grads)
        grad_tables = (None, None)
        if any(ctx.needs_input_grad[-6:-4]) and any(given):
            grad_tables = _table_grad(_pick(x, given), *tables[:2], ctx.scalars, _pick(grads, given))
        return *grad_x, *grad_tables, None, None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        saved = ctx.saved_tensors
        tables, lookup, x = saved[:2], saved[2:5], saved[5:]
        x_t, tables_t = tangents[:-6], tangents[-6:-4]
        out = _on_subset(lambda t: _ops.rotate(t, *tables, *ctx.scalars, *lookup), [t is not None for t in x_t], x_t)
        if any(t is not None for t in tables_t):
            tables_t = [torch.zeros_like(table) if t is None else t for t, table in zip(tables_t, tables)]
            out = [_add(a, b) for a, b in zip(out, _rotated_only(x, *tables_t, ctx.scalars))]
        return tuple(torch.zeros_like(t) if o is None else o for t, o in zip(x, out))


class _TableGrad(_Function):
    """inputs: cos and sin (only for shape and dtype), scalars, *x, *grad."""

    @staticmethod
    def forward(cos, sin, scalars, *x_and_grad):
        n = len(x_and_grad) // 2
        with _in_forward():
            return tuple(_ops.table_grad(x_and_grad[n:], x_and_grad[:n], cos, sin, *scalars))

    @staticmethod
    def setup_context(ctx, inputs, output):
        cos, _, ctx.scalars, *x_and_grad = inputs
        ctx.n = len(x_and_grad) // 2
        ctx.save_for_backward(cos, *x_and_grad)
        if _may_be_forward_mode():
            ctx.save_for_forward(cos, *x_and_grad)

    @staticmethod
    def backward(ctx, cos_g, sin_g):
        _, *x_and_grad = ctx.saved_tensors
        x, grad = x_and_grad[: ctx.n], x_and_grad[ctx.n :]
        needs_x, needs_grad = ctx.needs_input_grad[3 : 3 + ctx.n], ctx.needs_input_grad[3 + ctx.n :]
        to_x = _on_subset(lambda t: _rotated_only(t, cos_g, sin_g, _transposed(ctx.scalars)), needs_x, grad)
        to_grad = _on_subset(lambda t: _rotated_only(t, cos_g, sin_g, ctx.scalars), needs_grad, x)
        return None, None, None, *to_x, *to_grad

    @staticmethod
    def jvp(ctx, _cos_t, _sin_t, _scalars_t, *tangents):
        cos, *x_and_grad = ctx.saved_tensors

        def term(x, grad):
            given = [a is not None and b is not None for a, b in zip(x, grad)]
            if not any(given):
                return torch.zeros_like(cos), torch.zeros_like(cos)
            return _table_grad(_pick(x, given), cos, cos, ctx.scalars, _pick(grad, given))

        x, grad, x_t, grad_t = x_and_grad[: ctx.n], x_and_grad[ctx.n :], tangents[: ctx.n], tangents[ctx.n :]
        return tuple(a + b for a, b in zip(term(x_t, grad), term(x, grad_t)))


@contextmanager
def _in_forward():
    """Ops inside belong to the level below this derivative: the device's kernel, or the next torch.func transform."""
    if functorch_is_active():  # the outer transform would not record anything in the no_grad mode of a forward
        with torch.enable_grad(), forward_mode_enabled(True), below_autograd():
            yield
    else:
        with below_autograd():
            yield


def _table_grad(x, cos, sin, scalars, grad):
    if scalars[1] & TRANSPOSED:  # <grad, transposed(x)> = <x, rotate(grad)>
        x, grad, scalars = grad, x, _transposed(scalars)
    return _ops.table_grad(grad, x, cos, sin, *scalars)


def _rotated_only(x, cos, sin, scalars):
    """rotate with zeros instead of copies in the channels outside rotary_dim."""
    offset, flags, rotary_dim, rotary_offset, _ = scalars

    def one(t):
        size = t.shape[-1] - rotary_offset if rotary_dim is None else rotary_dim
        channels = t.narrow(-1, rotary_offset, size)
        (y,) = _ops.rotate([channels], cos, sin, offset, flags)
        return torch.nn.functional.pad(y, (rotary_offset, t.shape[-1] - rotary_offset - size))

    return [one(t) for t in x]


def _transposed(scalars):
    flags = scalars[1] ^ TRANSPOSED
    if flags & OTHER_PAIRING:  # from the pairing of the result to that of x
        flags ^= INTERLEAVED
    return (scalars[0], flags, *scalars[2:])


def _pick(tensors, wanted):
    return [t for t, take in zip(tensors, wanted) if take]


def _on_subset(function, wanted, tensors):
    """function(list of the wanted tensors), spread back over the places of all; None elsewhere."""
    results = iter(function(_pick(tensors, wanted)) if any(wanted) else ())
    return [next(results) if take else None for take in wanted]


def _add(a, b):
    return b if a is None else a + b


# ---- kernels at the Autograd key ----


def _apply(function, *inputs):
    with one_level() if functorch_is_active() else nullcontext():
        return function.apply(*inputs)


def _per_token(x, cos, sin, lookup, scalars):
    """Tables with one row per token, from tables looked up by position; and which tokens are rotated, None: all."""
    rows = _ops.table_rows(x, cos, sin, *scalars, *lookup)
    dtype = cos.dtype
    if dtype in (torch.bfloat16, torch.float16):
        cos, sin = cos.float(), sin.float()  # so that gradients of tokens that share a row add up in fp32
    if not cos.shape[0]:  # no token reads it, and index_select takes none without rows
        cos, sin = (torch.nn.functional.pad(t, (0, 0, 0, 1)) for t in (cos, sin))
    index = rows.clamp(min=0).flatten()
    cos, sin = (t.index_select(0, index).reshape(*rows.shape, t.shape[-1]) for t in (cos, sin))
    if scalars[1] & ROUND_PRODUCTS:  # which depends on the dtype of the tables
        cos, sin = cos.to(dtype), sin.to(dtype)
    rows = rows.unsqueeze(-1)
    if cos.device.type != "cpu":
        cos, sin = (torch.where(rows == _OUTSIDE, torch.nan, t) for t in (cos, sin))
    if lookup[2] is None:
        return cos, sin, None
    rotated = rows != _NOT_ROTATED
    return torch.where(rotated, cos, 1), torch.where(rotated, sin, 0), rotated.reshape(-1, 1, 1)  # layout is "thd"


def _made_per_token(x, high, low, lookup, scalars):
    """As _per_token, of frequencies."""
    cos, sin, _ = _ops.cos_sin(x, high, low, *scalars, *lookup)  # (batch or 1, seqlen, heads or 1, pairs)
    layout = layout_of(scalars[1])
    if cos.shape[2] == 1:
        cos, sin = cos.squeeze(2), sin.squeeze(2)
    elif len(layout) == 4:
        cos, sin = (t.permute(*("bshd".index(axis) for axis in layout)) for t in (cos, sin))
    if lookup[2] is None:
        return cos, sin, None
    tokens = torch.arange(cos.shape[1], device=cos.device)
    return cos, sin, (tokens < lookup[2][-1]).reshape(-1, 1, 1)


def _cos_sin(x, high, low, *rest):
    """cos(angle + change), sin(angle + change) of a change that is 0 and has the derivatives of the angle.

    So the values are those of the op, bit for bit, and the derivatives those of PyTorch's own functions.
    """
    if not _tables_need_derivative(high, low, rest):
        with below_autograd():
            return _ops.cos_sin(x, high, low, *rest)
    positions = rest[5] if len(rest) > 5 else None
    constant = (*rest[:5], positions.detach(), *rest[6:]) if positions is not None else rest
    with below_autograd():
        cos, sin, at = _ops.cos_sin([t.detach() for t in x], high.detach(), low.detach(), *constant)
    per_axis = at
    if positions is not None and positions.is_floating_point():
        per_axis = at + (positions - positions.detach())
    angle = sum(p[..., None, None] * (rate * _TWO_PI[0]) for p, rate in zip(per_axis.unbind(0), high.unbind(0)))
    change = angle - angle.detach()
    c, s = change.cos(), change.sin()
    return cos * c - sin * s, sin * c + cos * s, at


def _scalars_and_lookup(rest):
    rest = (*rest, *_DEFAULTS[len(rest) :])
    return rest[:5], rest[5:]


def _tables_need_derivative(cos, sin, rest):
    positions = [t for t in rest[5:6] if t is not None]
    recorded = is_grad_enabled() and any(t.requires_grad for t in (cos, sin, *positions))
    return recorded or _forward_mode((cos, sin, *positions))


def _needs_derivative(x, cos, sin, rest):
    """What the kernels of this file ask, whoever called the op."""
    return needs_derivative(x, cos, sin) or _tables_need_derivative(cos, sin, rest) or _forward_mode(x)


def _rotate(x, cos, sin, *rest):
    if not _needs_derivative(x, cos, sin, rest):
        with below_autograd():
            return _ops.rotate(x, cos, sin, *rest)
    scalars, lookup, rotated = *_scalars_and_lookup(rest), None
    from_positions = scalars[1] & FREQUENCIES
    if (from_positions or cos.dim() == 2) and _tables_need_derivative(cos, sin, rest):
        cos, sin, rotated = (_made_per_token if from_positions else _per_token)(x, cos, sin, lookup, scalars)
        lookup, scalars = _DEFAULTS[5:], (0, scalars[1] & ~FREQUENCIES, *scalars[2:4], 1.0)
    y = _apply(_Rotate, *x, cos, sin, scalars, *lookup)
    return list(y) if rotated is None else [torch.where(rotated, a, b) for a, b in zip(y, x)]


def _rotate_in_place(x, cos, sin, *rest):
    if not _needs_derivative(x, cos, sin, rest):
        with below_autograd():
            return _ops.rotate_(x, cos, sin, *rest)
    # copy_ and not a Function with mark_dirty: it knows views (a Function writes at most one) and tangents. What it
    # would refuse is refused before anything is written.
    _ops.check_in_place(x, cos, sin, *rest)
    tables_need = _tables_need_derivative(cos, sin, rest)
    y = _rotate([t.clone() for t in x] if tables_need else x, cos, sin, *rest)  # table_grad wants x as it was
    for t, rotated in zip(x, y):
        # Reading grad_fn renews it, for a view whose base the line below has written through another view.
        _renewed = t.grad_fn
        t.copy_(rotated)


def _rotate_out(out, x, cos, sin, *rest):
    if _needs_derivative((*x, *out), cos, sin, rest):
        got = "tensors while x, cos, sin or out requires grad"
        raise ArgumentError("out", "be None when a derivative is recorded", got)
    with below_autograd():
        _ops.rotate_out(out, x, cos, sin, *rest)


def _table_grad_kernel(grad, x, cos, sin, *rest):
    if needs_derivative((*x, *grad), x[0], grad[0]) or _forward_mode((*x, *grad)):
        return _apply(_TableGrad, cos, sin, _scalars_and_lookup(rest)[0], *x, *grad)
    with below_autograd():
        return _ops.table_grad(grad, x, cos, sin, *rest)


def _table_rows(*arguments):
    with below_autograd():
        return _ops.table_rows(*arguments)


def _check_in_place(x, cos, sin, *rest):
    _check_writable(x, recorded=_tables_need_derivative(cos, sin, rest))
    with below_autograd():
        _ops.check_in_place(x, cos, sin, *rest)


_KERNELS = {
    "rotate": _rotate,
    "rotate_": _rotate_in_place,
    "rotate_out": _rotate_out,
    "table_grad": _table_grad_kernel,
    "table_rows": _table_rows,
    "cos_sin": _cos_sin,
    "check_in_place": _check_in_place,
}
for _name, _kernel in _KERNELS.items():
    _library.impl(_name, raises_typed(_name, _kernel), "Autograd")


# ---- kernels at other keys ----


def _write(packet, at_x):
    def kernel(written, *rest):
        _check_writable(written, False, at_x)
        with below_in_place():
            packet(written, *rest)
        count_write(written)

    return kernel


def _below(op):
    def kernel(*arguments):
        with below_in_place():  # call() counts the writes
            return op(*arguments)

    return kernel


def _register(name, op):
    packet = getattr(_ops, name)
    if op.writes:
        _library.impl(name, _write(packet, op.at_x), "ADInplaceOrView")
    _library.impl(name + ".unrecorded", torch.library.fallthrough_kernel, "Autograd")
    # Tensors without a kernel of this package, modes and subclasses of Python: they know the op itself.
    for key in ("CompositeExplicitAutograd", "Python", "Batched"):
        _library.impl(name + ".unrecorded", _below(packet.default), key)


for _name, _op in (("rotate", ROTATE), ("rotate_", ROTATE_IN_PLACE), ("rotate_out", ROTATE_OUT)):
    _register(_name, _op)
