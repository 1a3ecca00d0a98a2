"""The public functions `apply` and `apply_`, which translate keywords into the arguments of the ops."""

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
_ZERO, _ONE = 0, 1  # defaults, like _ONCE, compared by identity, which is fastest
_ONCE: Rounding = "once"
_IN_PLACE: Any = object()  # the `out` that apply_ passes to `apply`, which then writes x
_FAILURES = (RuntimeError, AttributeError, TypeError, ValueError)  # what torch and the ops raise


@by_name
def apply(
    x: Tensors,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *too_many: NoReturn,  # collected for the error at run time; type checkers reject any
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
    attention_scaling: float = 1,  # an int: torch.compile(dynamic=True) would make a float a graph input
    rounding: Rounding = "once",
    out_interleaved: bool | None = None,
    norm: Norm = None,
    eps: float | None = None,
    out: Tensors | None = None,
) -> Tensors:
    """Apply rotary position embedding: rotate pairs of channels of x by angles given as cosines and sines.

    Args:
        x: Tensor, or tuple or list of up to 8 Tensors that share their angles, such as (q, k): float64, float32,
            bfloat16 or float16, any strides. Batch and seqlen must agree. The number of heads may differ, and with an
            explicit rotary_dim also head_dim.
        cos, sin: tables of equal shape and dtype, float32 or the dtype of x, any strides; for float64 x they are
            float64, as from rope.tables(n, dtype=torch.float64). The last axis has rotary_dim / 2 entries (one per
            pair) or rotary_dim (one per channel, in channel order).

            * (rows, width): looked up by position.
            * (batch or 1, seqlen, width): one row per token.
            * Four axes: one row per token and head, with the axes of `layout`, after a leading batch axis if the
              layout has none. Axes of size 1 broadcast.
        layout: the axes of x: "bshd" (batch, seqlen, heads, head_dim), the default; "bhsd", "sbhd" or "shd"; or "thd"
            (tokens, heads, head_dim), for packed sequences.
        interleaved: whether pairs are channels (2i, 2i + 1), as in GPT-J and Meta's Llama, rather than
            (i, i + rotary_dim / 2), as in GPT-NeoX and Hugging Face's Llama. Default: False.
        rotary_dim, rotary_offset: rotate channels [rotary_offset, rotary_offset + rotary_dim) and copy the others bit
            for bit. rotary_dim is even. Default: all channels from rotary_offset on, and rotary_offset 0.
        per_channel: whether cos and sin hold one entry per channel (True) or per pair (False); their width must agree.
            Default: inferred from the width. Pass it if rotary_dim could be wrong: a table of width 32 fits rotary_dim
            64 with one entry per pair, but also rotary_dim 32 with one per channel.
        positions: table row of each token, by default 0, 1, 2, ...; int32 or int64, of shape (seqlen,),
            (batch, seqlen) or (1, seqlen), with "thd" (tokens,). Refused together with cu_seqlens.
            `rope_ext.distributed` computes the positions of a context-parallel rank.
        offset: added to the position of every token: an int, or an int32 or int64 Tensor with a single number, of
            shape () or (1,), or with one number per sequence, of shape (batch,). Packed sequences share a single
            number: for one per sequence pass positions instead of cu_seqlens. Default: 0.
        cu_seqlens: boundaries of packed sequences, int32 or int64 of shape (nseq + 1,), ascending from 0; requires
            "thd". Positions restart at 0 at each boundary. Tokens after the last boundary are copied and not
            normalized.
        inverse: rotate by the negative angles. Default: False.
        inv_freq: frequencies that replace cos and sin: the kernel computes the angles from the positions, without a
            table, so positions may be any integers, or float32 (float64 for float64 x). Radians per position, of shape
            (pairs,), (heads, pairs) or (axes, heads or 1, pairs). With several axes, positions may be
            (axes, batch or 1, seqlen), and the angle is the sum over the axes (see `frequencies.per_axis`). The result
            of `angles.revolutions` is accepted too, and saves the conversion in each call.
        attention_scaling: factor on the cos and sin of inv_freq; tables already include it. Default: 1.
        rounding: "once" (default) or "eager". "eager" also rounds each product to the dtype of x before the sum, where
            x and cos share a 16-bit dtype (in the gradient of x, also where cos is float32). The result is then
            bit-identical to (x * cos + rotate_half(x) * sin).to(x.dtype) in PyTorch. norm rounds where transformers
            does: before the multiplication by the weight if the weight has the dtype of x (as in Qwen3RMSNorm;
            Gemma's is float32), and before the rotation. PyTorch sums the squares in another order, so that a few
            elements differ by one rounding.
        out_interleaved: the pairing of the result, if it differs from that of x. DeepSeek-V3 reads pairs (2i, 2i + 1)
            and writes (i, i + rotary_dim / 2): interleaved=True, out_interleaved=False. Tables with one entry per
            channel follow the order of the result.
        norm: weight of an RMSNorm over the head_dim of each head, applied before the rotation in the same pass:
            (head_dim,), float64, float32, bfloat16 or float16, any stride; one Tensor for all tensors of x, or a tuple
            or list with a Tensor or None for each. The whole head is normalized, even if only a part of it is rotated.
            For a norm without a weight pass torch.ones(head_dim), for Gemma 3's (1 + w) pass 1 + w.float(). A norm
            across all heads, as in OLMo 2 and 3, MiniMax-M2 and Wan, is a different operation.
        eps: added to the mean of squares of norm, which requires it. It has no default because models differ: 1e-6 and
            1e-5 are common.
        out: where to write the result, which is then also returned: structure, shapes and dtype of x, any strides. Its
            memory must not overlap that of any argument, but out may be x itself. Not accepted while a derivative is
            recorded.

    Returns:
        The rotated tensors, in the structure of x, with its dtype and the strides of torch.empty_like. Arithmetic is
        float32 (float64 for float64 x): each product and each sum is rounded, and the result is rounded once to the
        dtype of x (but see rounding). The sums of norm are added in the same order on every device
        (rope_ext/_reference_norm.py). For a DTensor x the result is a DTensor, bit-identical to that of a single
        process; docs/distributed.md says which placements of x communicate.

        Differentiable in x, cos, sin, inv_freq, norm and floating-point positions, to any order, in reverse and forward
        mode, under torch.func and torch.compile. Where only x and norm are differentiated, one pass computes both
        gradients.

    Raises:
        ArgumentError: a size or a value is wrong, for instance a position outside the table (negative ones are); a
            ValueError. It reads "rope_ext: <argument> must <rule>, got <value>", and nothing has been written.
        ArgumentTypeError: a type or a dtype is wrong; a TypeError that reads the same, with nothing written.
        NotImplementedError: this build has no kernel for the tensors (another device, sparse, quantized, nested).
        RuntimeError: memory ran out; the error is PyTorch's own (torch.OutOfMemoryError on a GPU).

    Values on a GPU are not validated, since that would force a synchronization: if positions, offset or cu_seqlens
    lead outside the table, the rotated channels of that token are NaN. With ROPE_EXT_CHECK_POSITIONS=1 in the
    environment, such a token stops the program with a message that names it, and calls without positions inside
    torch's context_parallel are refused, on a CPU too.

    Equivalent to, for layout "bshd" and the default pairing (`rope_ext.reference` covers all cases)::

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
    """Rotate in place: overwrite the tensors of x with what `apply` would return, and return x.

    Channels that are not rotated are not touched.

    Args:
        x: Tensor, or tuple or list of Tensors, as in `apply`. The tensors must not overlap one another, themselves or
            the other arguments. If x is differentiated, autograd must be able to write to it: x must not be a leaf
            that requires grad, nor one part of a split.
        cos, sin: as in `apply`.
        **options: the keywords of `apply` except out and out_interleaved; documented there.

    Returns:
        x itself. Differentiable like `apply`. If only x is differentiated, without norm, it is written once; for
        derivatives with norm or of the tables, transforms of torch.func, forward mode, subclasses of Tensor and tensors
        with hooks, the result is computed into a temporary and copied.

    Raises:
        ArgumentError: as in `apply`, and for tensors that overlap or that autograd cannot write to.
        ArgumentTypeError: as in `apply`.
        NotImplementedError: as in `apply`.

    Equivalent to::

        x.copy_(rope_ext.apply(x, cos, sin, ...))
    """
    if too_many:
        raise _given_by_position("apply_", too_many)
    rotated: Tensors
    if not options:  # x, cos and sin are already the arguments of the op
        tensors: Any = x if type(x) is tuple or isinstance(x, (tuple, list)) else [x]
        rotated = call_op((tensors, cos, sin), x, _IN_PLACE)
        return rotated
    check_names("apply_", options, InPlaceOptions.__optional_keys__)
    rotated = apply(x, cos, sin, out=_IN_PLACE, **options)
    return rotated


def _given_by_position(function: str, too_many: Sequence[object]) -> ArgumentTypeError:
    cure = f"pass several tensors as a tuple, {function}((q, k), cos, sin), and all others by name, positions=positions"
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
    """Raise what `apply_` would raise for these arguments, without writing. recorded: x will require grad by then."""
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
    """The op's `flags` argument, without FREQUENCIES."""
    if not (interleaved is True or interleaved is False) or not (inverse is True or inverse is False):
        raise _not_a_bool(interleaved, inverse)  # as keys of _FLAGS, 1 and 1.0 equal True
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
    """The arguments of the op. tensors: x, cos and sin. Trailing defaults are omitted: each argument costs time."""
    offsets = None
    if type(offset) is not int:
        if isinstance(offset, Tensor):
            offset, offsets = 0, offset
        else:
            offset = as_int("offset", offset, "an int or a Tensor")
    # `is`, not ==: 0.0 and False equal 0 but must be refused below. Another object equal to 0 takes the slower path.
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
    """The op's cos and sin arguments, and the flag FREQUENCIES if they hold frequencies (else 0)."""
    if attention_scaling is not _ONE:
        check_scaling(attention_scaling)
    if inv_freq is None:
        if attention_scaling != 1:
            got = f"{shown(attention_scaling)} with tables, which already include it"
            raise ArgumentError("attention_scaling", "be given only with inv_freq", got)
        return cos, sin, 0
    if cos is not None or sin is not None:
        raise ArgumentError("inv_freq", "be None when cos and sin are given", "both")
    if not tensors or not isinstance(tensors[0], Tensor):
        raise not_tensors("x", x)
    dtype = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    if type(inv_freq) is not Revolutions and (made := by_op(inv_freq, dtype is torch.float64)):
        return *made, FREQUENCIES  # equals the last line, without constructing a Revolutions
    if type(inv_freq) is not Revolutions or inv_freq.high.dtype is not dtype:
        inv_freq = revolutions(inv_freq, dtype)
    return inv_freq.high, inv_freq.low, FREQUENCIES


def _not_a_bool(interleaved: object, inverse: object) -> ArgumentTypeError:
    name, value = ("inverse", inverse) if isinstance(interleaved, bool) else ("interleaved", interleaved)
    return ArgumentTypeError(name, "be True or False", shown(value))


def _listed(x: object, out: object) -> Sequence[object]:
    """The tensors of out, as a list or tuple: the op would read a single Tensor as a list of its rows."""
    if isinstance(x, Tensor):
        return [out]
    if not isinstance(out, (tuple, list)):
        raise not_tensors("out", out)
    return out


@in_wanted_modes
def call_op(arguments: tuple[Any, ...], x: Any, out: Any, by: Callable[[Op, Sequence[Any]], Any] | None = None) -> Any:
    """Call the op with the arguments from `arguments_of`, and return what `apply` returns.

    out: _IN_PLACE for `apply_`. by: the function that dispatches the call; dispatch_norm for arguments of `with_norm`.
    """
    op = ROTATE if out is None else ROTATE_IN_PLACE if out is _IN_PLACE else ROTATE_OUT
    if op is ROTATE_OUT:
        if type(out) is Packed:
            return _call_packed(arguments, x, out)
        arguments = (out if type(out) is tuple and type(x) is tuple else _listed(x, out), *arguments)
    try:
        # Graphs of torch.compile and torch.export need the overloads that are registered with autograd.
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
    register_rules()  # in inference mode, no kernel of kernels.py runs that would register them
    return call.in_graph(op, arguments)


def _call_packed(arguments: tuple[Any, ...], x: Any, out: Packed) -> Any:
    """The result of `apply_qkv` (qkv.py), or None."""
    try:
        return out.rotate(arguments)
    except _FAILURES as error:
        raise explained(error, ROTATE, arguments, x, None) from None
