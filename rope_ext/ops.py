"""The public functions apply and apply_: they translate keywords into the arguments of the ops."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling
from typing_extensions import Unpack  # torch requires this package

from . import _numbers
from ._call_errors import explained, not_tensors
from ._debug_modes import in_wanted_modes
from ._norm_arguments import with_norm
from ._numbers import Int, as_int
from ._options import InPlaceOptions, Norm
from ._shown import shown
from ._signatures import by_name, check_names, given_by_position, takes_keywords_of
from ._torch import call
from ._torch.call import ROTATE, ROTATE_IN_PLACE, ROTATE_OUT, Op, dispatch
from ._torch.dtensor import register_rules
from ._torch.flags import (
    FREQUENCIES,
    INTERLEAVED,
    INVERSE,
    OTHER_PAIRING,
    PER_CHANNEL,
    ROUND_PRODUCTS,
    SAYS_WIDTH,
)
from ._torch.norm import dispatch as dispatch_norm
from ._torch.packed import Packed
from ._torch.revolutions import by_op
from .angles import Revolutions, check_scaling, revolutions
from .errors import ArgumentError, ArgumentTypeError
from .reference import LAYOUTS, Layout, Rounding, Tensors

_FLAGS = {
    (layout, interleaved, inverse): index | INTERLEAVED * interleaved | INVERSE * inverse
    for index, layout in enumerate(LAYOUTS)
    for interleaved in (False, True)
    for inverse in (False, True)
}
_ZERO, _ONE = 0, 1  # defaults, like _ONCE, that are compared by identity, which is fastest
_ONCE: Rounding = "once"
_IN_PLACE: Any = object()  # the `out` that apply_ passes to `apply`, which then writes x
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
    norm: Norm = None,
    eps: float | None = None,
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
        (1, seqlen); (tokens,) with "thd". rope_ext.distributed makes the positions of a context parallel rank.
    offset: added to the row: int, or int32 or int64 Tensor of one number, () or (1,), or of one per sequence, (batch,).
    cu_seqlens: (nseq + 1,) int32 or int64, ascending from 0, with "thd": rows restart at 0 at each boundary; tokens
        past the last boundary are copied, and not normalised.
    inverse: rotate by the negative angle.
    inv_freq: instead of cos and sin: the kernel makes them from the positions, exactly, without a table, so positions
        can be any integers, or float32 (float64 for float64 x). Radians per position: (pairs,), (heads, pairs), or
        (axes, heads or 1, pairs), and then positions may be (axes, batch or 1, seqlen) and the angle is the sum over
        axes (see frequencies.per_axis). Or what `angles.revolutions` made of it, which saves that work at each call.
    attention_scaling: factor on the cos and sin of inv_freq (tables hold it already).
    rounding: "once", or "eager": where x and cos share a 16-bit dtype each product is rounded to it before the sum, in
        the gradient of x also if cos is float32: the bits of (x * cos + rotate_half(x) * sin).to(x.dtype) in PyTorch.
        norm rounds where transformers does: before the weight, if that has the dtype of x (Qwen3RMSNorm; Gemma's is
        float32), and before the rotation. PyTorch's sum has another order: a few elements differ by a rounding.
    out_interleaved: pairing of the result where it is not that of x. DeepSeek-V3 reads (2i, 2i + 1) and writes
        (i, i + rotary_dim / 2): interleaved=True, out_interleaved=False. An entry of cos per channel is in the order of
        the result.
    norm: weight of an RMSNorm over head_dim of each head, before the rotation and in the same pass: (head_dim,), any
        float dtype and stride; one for all tensors, or a tuple or list with one, or None, for each. The whole head is
        normalised, also where part of it is rotated. A norm without weight is torch.ones(head_dim), Gemma 3's (1 + w)
        is norm=1 + w.float(). The norm across all heads of OLMo 2 and 3, MiniMax-M2 and Wan is not this one.
    eps: what norm adds to the mean of squares. No default, since models differ: 1e-6 and 1e-5 are common.
    out: write there, and return it: like x in structure, shapes and dtype, any strides, memory apart from all
        arguments or x itself. Not while a derivative is recorded.

    Returns rotated tensors in the structure of x, of its dtype, with the strides of torch.empty_like. Arithmetic is
    float32 (float64 for float64 x), each product and sum rounded, the result rounded once to the dtype of x (but see
    rounding). The sums of norm are added in one order on every device (rope_ext/_reference_norm.py).
    Differentiable in x, cos, sin, inv_freq, norm and float positions, to every order, in reverse and forward mode,
    under torch.func and torch.compile. The gradients of x and norm, where no others are wanted, are made in one pass.

    Raises ArgumentError (a ValueError) or ArgumentTypeError (a TypeError), "rope_ext: <argument> must <rule>, got
    <value>", with nothing written. A position outside the table is such an error, negative ones too. Values on a
    GPU are not validated, since that would force a synchronisation: a token whose positions, offset or cu_seqlens lead
    outside the table gets NaN in its rotated channels; with ROPE_EXT_CHECK_POSITIONS=1 in the environment it stops the
    program with a message that names the token, and calls without positions in torch's context_parallel are refused, on
    a CPU too. NotImplementedError for tensors that this build has no kernel for (another device, sparse, quantized,
    nested). If memory runs out: torch's own error.

    DTensors: where x is one, the result is one, with the bits of one process. docs/distributed.md says which placements
    of x communicate.

    Equivalent to, for layout "bshd" and the default pairing (all of it: rope_ext.reference):
        x1, x2 = x.float().chunk(2, dim=-1)
        c, s = cos[offset:][:x.shape[1], None], sin[offset:][:x.shape[1], None]
        torch.cat((x1 * c - x2 * s, x2 * c + x1 * s), dim=-1).to(x.dtype)

    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, equation 34.
    """
    if too_many:
        raise _given_by_position("apply", too_many)
    # type() first: isinstance() with two classes takes longer.
    tensors: Any = x if type(x) is tuple or isinstance(x, (tuple, list)) else [x]
    flags = flags_of(layout, interleaved, inverse, per_channel, rounding, out_interleaved)
    if inv_freq is not None or attention_scaling is not _ONE:
        cos, sin, from_positions = _frequencies(x, tensors, cos, sin, inv_freq, attention_scaling)
        flags |= from_positions
    tables = tensors, cos, sin
    arguments = arguments_of(tables, offset, flags, rotary_dim, rotary_offset, attention_scaling, positions, cu_seqlens)
    rotated: Tensors
    if norm is not None or eps is not None:
        rotated = call_op(with_norm(arguments, norm, eps), x, out, dispatch_norm)
    else:
        rotated = call_op(arguments, x, out)
    return rotated


@takes_keywords_of(apply, InPlaceOptions.__optional_keys__)
def apply_(
    x: Tensors,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *too_many: NoReturn,
    **options: Unpack[InPlaceOptions],
) -> Tensors:
    """`apply` in place: overwrites the tensors of x with what `apply` would return, and returns x.

    Arguments and errors: those of `apply`. Channels that are not rotated are not touched. The tensors of x must not
    overlap one another, themselves or the other arguments. Differentiable: then x must be something that autograd can
    write to (not a leaf that requires grad, not one part of a split). It is written once where x alone is
    differentiated; for derivatives of the tables, transforms of torch.func, forward mode, subclasses and tensors with
    hooks the result is made in a temporary and copied.

    Equivalent to: x.copy_(rope_ext.apply(x, cos, sin, ...))
    """
    if too_many:
        raise _given_by_position("apply_", too_many)
    rotated: Tensors
    if not options:  # the arguments of the op are ready
        tensors: Any = x if type(x) is tuple or isinstance(x, (tuple, list)) else [x]
        rotated = call_op((tensors, cos, sin), x, _IN_PLACE)
        return rotated
    check_names("apply_", options, InPlaceOptions.__optional_keys__)
    rotated = apply(x, cos, sin, out=_IN_PLACE, **options)
    return rotated


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
    tensors = x if isinstance(x, (tuple, list)) else [x]
    flags = flags_of("bshd", interleaved, False, per_channel, _ONCE, None)
    arguments = arguments_of((tensors, cos, sin), offset, flags, rotary_dim, _ZERO, _ONE, None, None)
    try:
        call.check_in_place(arguments, recorded)
    except _FAILURES as error:
        raise explained(error, ROTATE_IN_PLACE, arguments, x, None) from None


def flags_of(
    layout: Layout = "bshd",
    interleaved: bool = False,
    inverse: bool = False,
    per_channel: bool | None = None,
    rounding: Rounding = _ONCE,
    out_interleaved: bool | None = None,
) -> int:
    """The argument `flags` of the op, all but FREQUENCIES."""
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
    return flags


def arguments_of(
    tensors: tuple[Any, Any, Any],
    offset: Int | Tensor,
    flags: int,
    rotary_dim: Int | None,
    rotary_offset: Int,
    attention_scaling: float,
    positions: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Any, ...]:
    """The arguments of the op. tensors: x, cos and sin. Defaults at the end are left out: each argument has a price."""
    offsets = None
    if type(offset) is not int:
        if isinstance(offset, Tensor):
            offset, offsets = 0, offset
        else:
            offset = as_int("offset", offset, "an int or a Tensor")
    # `is`, not ==: 0.0 and False equal 0 but must be refused below. A 0 that is another object only takes longer.
    if rotary_dim is None and rotary_offset is _ZERO and attention_scaling is _ONE:
        if positions is None and cu_seqlens is None and offsets is None:
            return (*tensors, offset, flags) if flags or offset is not _ZERO else tensors
        scalars: tuple[Any, ...] = None, 0, 1.0
    else:
        if rotary_dim is not None:
            rotary_dim = as_int("rotary_dim", rotary_dim)
        scalars = rotary_dim, as_int("rotary_offset", rotary_offset), float(attention_scaling)
    if cu_seqlens is None and offsets is None:
        lookup: tuple[Any, ...] = () if positions is None else (positions,)
    else:
        lookup = positions, offsets, cu_seqlens
    return *tensors, offset, flags, *scalars, *lookup


def _frequencies(
    x: object,
    tensors: Sequence[Any],
    cos: Tensor | None,
    sin: Tensor | None,
    inv_freq: Tensor | Revolutions | None,
    attention_scaling: float,
) -> tuple[Tensor | None, Tensor | None, int]:
    """What the op takes for cos and sin, and the flag that says whether these are frequencies."""
    if attention_scaling is not _ONE:
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
    dtype = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    if type(inv_freq) is not Revolutions and (made := by_op(inv_freq, dtype is torch.float64)):
        return *made, FREQUENCIES  # what the last line returns, without a Revolutions
    if type(inv_freq) is not Revolutions or inv_freq.high.dtype is not dtype:
        inv_freq = revolutions(inv_freq, dtype)
    return inv_freq.high, inv_freq.low, FREQUENCIES


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


@in_wanted_modes
def call_op(arguments: tuple[Any, ...], x: Any, out: Any, by: Callable[[Op, Sequence[Any]], Any] | None = None) -> Any:
    """Calls the op with what `arguments_of` made; returns what `apply` does.

    out: _IN_PLACE for `apply_`. by: what dispatches the call, dispatch_norm for what `with_norm` made.
    """
    op = ROTATE if out is None else ROTATE_IN_PLACE if out is _IN_PLACE else ROTATE_OUT
    if op is ROTATE_OUT:
        if type(out) is Packed:
            return _call_packed(arguments, x, out)
        arguments = (out if type(out) is tuple and type(x) is tuple else _listed(x, out), *arguments)
    try:
        # In graphs of torch.compile and torch.export are the ops that know their derivatives.
        y = _in_graph(op, arguments) if is_compiling() else (by or dispatch)(op, arguments)
    except _FAILURES as error:
        found = explained(error, op, arguments, x, out)
        if found is error:
            raise
        raise found from None
    if op is not ROTATE:
        return x if op is ROTATE_IN_PLACE else out
    return tuple(y) if isinstance(x, tuple) else y[0] if arguments[0] is not x else list(y)


def _in_graph(op: Op, arguments: tuple[Any, ...]) -> Any:
    register_rules()  # in inference mode no kernel of kernels.py would
    return call.in_graph(op, arguments)


def _call_packed(arguments: tuple[Any, ...], x: Any, out: Packed) -> Any:
    """What `apply_qkv` returns (qkv.py), or None."""
    try:
        return out.rotate(arguments)
    except _FAILURES as error:
        raise explained(error, ROTATE, arguments, x, None) from None
