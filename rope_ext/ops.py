"""The public functions apply and apply_: they translate keywords into the arguments of the ops."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _numbers, _table_widths
from ._call_errors import explained, not_tensors
from ._numbers import Int, as_int
from ._shown import shown
from ._signatures import by_name, given_by_position
from ._torch import call
from ._torch.call import ROTATE, ROTATE_IN_PLACE, ROTATE_OUT, Op, dispatch
from ._torch.flags import (
    FREQUENCIES,
    INTERLEAVED,
    INVERSE,
    OTHER_PAIRING,
    PER_CHANNEL,
    ROUND_PRODUCTS,
    SAYS_WIDTH,
)
from .angles import Revolutions, check_scaling, revolutions
from .errors import ArgumentError, ArgumentTypeError
from .reference import LAYOUTS, Layout, Rounding, Tensors

_FLAGS = {
    (layout, interleaved, inverse): index | INTERLEAVED * interleaved | INVERSE * inverse
    for index, layout in enumerate(LAYOUTS)
    for interleaved in (False, True)
    for inverse in (False, True)
}
_ZERO, _ONE, _ONCE = 0, 1, "once"  # defaults that are compared by identity, which is fastest
_FAILURES = (RuntimeError, AttributeError, TypeError, ValueError)  # what torch and the ops raise


@by_name
def apply(
    x: Tensors,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *too_many: NoReturn,  # for the error at run time; type checkers refuse any
    layout: Layout = "bshd",
    interleaved: bool = False,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    per_channel: bool | None = None,
    positions: Tensor | None = None,
    offset: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    inv_freq: Tensor | Revolutions | None = None,
    attention_scaling: float = 1,  # an int: torch.compile(dynamic=True) would make a graph input of a float
    rounding: Rounding = "once",
    out_interleaved: bool | None = None,
    out: Tensors | None = None,
) -> Tensors:
    """Rotate pairs of channels of x by the angles whose cosines and sines are given (rotary position embedding).

    x: Tensor, or tuple or list of up to 8 Tensors that share angles, such as (q, k). float64, float32, bfloat16 or
        float16; any strides. Batch and seqlen agree; heads may differ, and with an explicit rotary_dim head_dim too.
    cos, sin: tables of one shape and dtype, float32 (float64 for float64 x) or the dtype of x; any strides. The last
        axis is rotary_dim / 2 wide (one entry per pair) or rotary_dim (one per channel, in the order of the channels).
        (rows, width): looked up by position. (batch or 1, seqlen, width): one row per token. Four axes: one row per
        token and head, axes in the order of `layout` with batch first where the layout has none, 1 broadcasts.
    layout: axes of x. "bshd" (batch, seqlen, heads, head_dim), "bhsd", "sbhd", "shd", or "thd" (tokens, heads,
        head_dim) for packed sequences.
    interleaved: pairs are channels (2i, 2i + 1) (GPT-J, Llama in Meta's code) and not (i, i + rotary_dim / 2)
        (GPT-NeoX, Llama in Hugging Face).
    rotary_dim, rotary_offset: channels [rotary_offset, rotary_offset + rotary_dim) are rotated, the others copied bit
        for bit. Even. Default: all from rotary_offset on.
    per_channel: whether cos and sin have one entry per channel (True) or per pair (False); their width must agree.
        Default: the width decides. Give it if rotary_dim could be wrong: a table of width 32 fits rotary_dim 64 with
        one entry per pair and rotary_dim 32 with one per channel.
    positions: row of the table for each token, instead of 0, 1, 2, ...; int32 or int64, (seqlen,), (batch, seqlen) or
        (1, seqlen); (tokens,) with "thd".
    offset: added to the row: int, or int32 or int64 Tensor of one number, () or (1,), or of one per sequence, (batch,).
    cu_seqlens: (nseq + 1,) int32 or int64, ascending from 0, with "thd": rows restart at 0 at each boundary; tokens
        past the last boundary are copied.
    inverse: rotate by the negative angle.
    inv_freq: instead of cos and sin: the kernel makes them from the positions, exactly, without a table, so positions
        can be any integers, or float32 (float64 for float64 x). Radians per position: (pairs,), (heads, pairs), or
        (axes, heads or 1, pairs), and then positions may be (axes, batch or 1, seqlen) and the angle is the sum over
        axes (see frequencies.per_axis). Or what `angles.revolutions` made of it, which saves that work at each call.
    attention_scaling: factor on the cos and sin of inv_freq (tables hold it already).
    rounding: "once", or "eager": where x and cos share a 16-bit dtype each product is rounded to it before the sum, in
        the gradient of x also if cos is float32: the bits of (x * cos + rotate_half(x) * sin).to(x.dtype) in PyTorch.
    out_interleaved: pairing of the result where it is not that of x. DeepSeek-V3 reads (2i, 2i + 1) and writes
        (i, i + rotary_dim / 2): interleaved=True, out_interleaved=False. An entry of cos per channel is in the order of
        the result.
    out: write there, and return it: like x in structure, shapes and dtype, any strides, memory apart from all
        arguments or x itself. Not while a derivative is recorded.

    Returns rotated tensors in the structure of x, of its dtype, with the strides of torch.empty_like. Arithmetic is
    float32 (float64 for float64 x), each product and sum rounded, the result rounded once to the dtype of x (but see
    rounding).
    Differentiable in x, cos, sin, inv_freq and float positions, to every order, in reverse and forward mode, under
    torch.func and torch.compile.

    Raises ArgumentError (a ValueError) or ArgumentTypeError (a TypeError), "rope_ext: <argument> must <rule>, got
    <value>", with nothing written. A position outside the table is such an error, negative ones too. Values on a
    GPU are not validated, since that would force a synchronisation: a token whose positions, offset or cu_seqlens lead
    outside the table gets NaN in its rotated channels; with ROPE_EXT_CHECK_POSITIONS=1 in the environment it stops the
    program with a message that names the token. NotImplementedError for tensors that this build has no kernel for
    (another device, sparse, quantized, nested, DTensor). If memory runs out: torch's own error.

    Equivalent to, for layout "bshd" and the default pairing (all of it: rope_ext.reference):
        x1, x2 = x.float().chunk(2, dim=-1)
        c, s = cos[offset:][:x.shape[1], None], sin[offset:][:x.shape[1], None]
        torch.cat((x1 * c - x2 * s, x2 * c + x1 * s), dim=-1).to(x.dtype)

    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, equation 34.
    """
    if too_many:
        raise _given_by_position("apply", too_many)
    arguments: tuple[Any, ...] = _arguments(
        x,
        cos,
        sin,
        layout,
        interleaved,
        rotary_dim,
        rotary_offset,
        per_channel,
        positions,
        offset,
        cu_seqlens,
        inverse,
        inv_freq,
        attention_scaling,
        rounding,
        out_interleaved,
    )
    if out is not None:
        _call(ROTATE_OUT, (_listed(x, out), *arguments), x, out)
        return out
    y = _call(ROTATE, arguments, x)
    if arguments[0] is not x:  # x is one tensor
        y = y[0]
    elif isinstance(x, tuple):
        y = tuple(y)
    rotated: Tensors = y
    return rotated


@by_name
def apply_(
    x: Tensors,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *too_many: NoReturn,
    layout: Layout = "bshd",
    interleaved: bool = False,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    per_channel: bool | None = None,
    positions: Tensor | None = None,
    offset: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    inv_freq: Tensor | Revolutions | None = None,
    attention_scaling: float = 1,
    rounding: Rounding = "once",
) -> Tensors:
    """`apply` in place: overwrites the tensors of x with what `apply` would return, and returns x.

    Arguments and errors: those of `apply`. Channels that are not rotated are not touched. The tensors of x must not
    overlap one another, themselves or the other arguments. Differentiable: then x must be something that autograd can
    write to (not a leaf that requires grad, not one part of a split), and the result is made in a temporary and copied.

    Equivalent to: x.copy_(rope_ext.apply(x, cos, sin, ...))
    """
    if too_many:
        raise _given_by_position("apply_", too_many)
    arguments = _arguments(
        x,
        cos,
        sin,
        layout,
        interleaved,
        rotary_dim,
        rotary_offset,
        per_channel,
        positions,
        offset,
        cu_seqlens,
        inverse,
        inv_freq,
        attention_scaling,
        rounding,
    )
    _call(ROTATE_IN_PLACE, arguments, x)
    return x


def _given_by_position(function: str, too_many: Sequence[object]) -> ArgumentTypeError:
    cure = f"several tensors go in a tuple, {function}((q, k), cos, sin), and all others by name, positions=positions"
    return given_by_position(function, ("x", "cos", "sin"), too_many, cure)


def check_in_place(
    x: Tensor | tuple[Tensor, ...] | list[Tensor],
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
    rotary_dim: int | None,
    per_channel: bool | None,
    offset: int | Tensor,
    recorded: bool = False,
) -> None:
    """Raises what `apply_` would for these arguments, and writes nothing. recorded: x will require grad by then."""
    arguments = _arguments(x, cos, sin, "bshd", interleaved, rotary_dim, 0, per_channel, None, offset, None, False)
    try:
        call.check_in_place(arguments, recorded)
    except _FAILURES as error:
        raise explained(error, ROTATE_IN_PLACE, arguments, x, None) from None


def _op_arguments(
    x: object,
    cos: Tensor | None,
    sin: Tensor | None,
    layout: Layout,
    interleaved: bool,
    rotary_dim: Int | None,
    rotary_offset: Int,
    per_channel: bool | None,
    positions: Tensor | None,
    offset: Int | Tensor,
    cu_seqlens: Tensor | None,
    inverse: bool,
    inv_freq: Tensor | Revolutions | None = None,
    attention_scaling: float = 1,
    rounding: Rounding = "once",
    out_interleaved: bool | None = None,
) -> tuple[Any, ...]:
    """The arguments that all ops share, in the order of csrc/bindings/schema.cpp; short where the rest are defaults."""
    if not (interleaved is True or interleaved is False) or not (inverse is True or inverse is False):
        raise _not_a_bool(interleaved, inverse)  # 1 and 1.0 would be found in the dictionary
    try:
        flags = _FLAGS[layout, interleaved, inverse]
    except (KeyError, TypeError):  # TypeError: the layout is unhashable
        raise ArgumentError("layout", f"be one of {', '.join(LAYOUTS)}", shown(layout)) from None
    if rounding is not _ONCE:
        _numbers.rounding(rounding)
        flags |= ROUND_PRODUCTS if rounding == "eager" else 0
    if out_interleaved is not None and out_interleaved is not interleaved:
        if out_interleaved is not (not interleaved):
            raise ArgumentTypeError("out_interleaved", "be True, False or None", shown(out_interleaved))
        flags |= OTHER_PAIRING
    if per_channel is not None:
        if not isinstance(per_channel, bool):
            raise ArgumentTypeError("per_channel", "be True, False or None", shown(per_channel))
        flags |= SAYS_WIDTH | PER_CHANNEL if per_channel else SAYS_WIDTH
    # type() first: isinstance() with two classes takes longer.
    tensors = x if type(x) is tuple or isinstance(x, (tuple, list)) else [x]
    if inv_freq is not None or attention_scaling is not _ONE:
        cos, sin, from_positions = _frequencies(x, tensors, cos, sin, inv_freq, attention_scaling)
        flags |= from_positions
    if type(offset) is int:
        # `is`, not ==: 0.0 and False equal 0 but must be refused below. A 0 that is another object only takes longer.
        if (
            positions is None
            and rotary_dim is None
            and rotary_offset is _ZERO
            and cu_seqlens is None
            and attention_scaling is _ONE
        ):
            return tensors, cos, sin, offset, flags
        offsets = None
    elif isinstance(offset, Tensor):
        offset, offsets = 0, offset
    else:
        offset, offsets = as_int("offset", offset, "an int or a Tensor"), None
    if rotary_dim is not None:
        rotary_dim = as_int("rotary_dim", rotary_dim)
    rotary_offset = as_int("rotary_offset", rotary_offset)
    attention_scaling = float(attention_scaling)
    return (
        tensors,
        cos,
        sin,
        offset,
        flags,
        rotary_dim,
        rotary_offset,
        attention_scaling,
        positions,
        offsets,
        cu_seqlens,
    )


_arguments: Callable[..., tuple[Any, ...]] = (
    _table_widths.checked(_op_arguments) if _table_widths.is_wanted() else _op_arguments
)


def _frequencies(
    x: object,
    tensors: Sequence[Any],
    cos: Tensor | None,
    sin: Tensor | None,
    inv_freq: Tensor | Revolutions | None,
    attention_scaling: float,
) -> tuple[Tensor | None, Tensor | None, int]:
    """What the op takes for cos and sin, and the flag that says whether these are frequencies."""
    check_scaling(attention_scaling)
    if inv_freq is None:
        if attention_scaling != 1:
            got = f"{shown(attention_scaling)} with tables, which hold it already"
            raise ArgumentError("attention_scaling", "come with inv_freq", got)
        return cos, sin, 0
    if cos is not None or sin is not None:
        raise ArgumentError("inv_freq", "be None when cos and sin are given", "both")
    if not tensors or not isinstance(tensors[0], Tensor):
        raise not_tensors("x", x)
    high, low, _ = revolutions(inv_freq, torch.float64 if tensors[0].dtype == torch.float64 else torch.float32)
    return high, low, FREQUENCIES


def _not_a_bool(interleaved: object, inverse: object) -> ArgumentTypeError:
    name, value = ("inverse", inverse) if isinstance(interleaved, bool) else ("interleaved", interleaved)
    return ArgumentTypeError(name, "be True or False", shown(value))


def _listed(x: object, out: object) -> Sequence[object]:
    """The tensors of out, as a list or tuple; the op would take a Tensor for a list of its rows."""
    if isinstance(x, Tensor):
        return [out]
    if not isinstance(out, (tuple, list)):
        raise not_tensors("out", out)
    return out


def _call(op: Op, arguments: tuple[Any, ...], x: object, out: object = None) -> Any:
    if is_compiling():  # or exporting: graphs hold the ops that know their derivatives
        return op.recorded(*arguments)
    try:
        return dispatch(op, arguments)
    except _FAILURES as error:
        found = explained(error, op, arguments, x, out)
        if found is error:
            raise
        raise found from None
