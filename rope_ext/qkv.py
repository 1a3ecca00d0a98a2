"""The public functions `apply_qkv` and `apply_qkv_`, which rotate q and k of one packed projection."""

import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from torch import Tensor
from typing_extensions import Unpack  # torch requires this package

from ._options import InPlaceOptions, PackedOptions
from ._packing import Packing, Views, slices
from ._packing_checks import packing_of
from ._shown import shown
from ._signatures import check_names, given_by_position, takes_keywords_of
from ._torch.dtensor import check_views, is_dtensor
from ._torch.packed import packed_call
from ._torch.packed_parts import MAX_TENSORS, is_ordinary_call
from ._torch.writes import check_writable
from .errors import ArgumentError, ArgumentTypeError
from .ops import apply, apply_

__all__ = ["apply_qkv", "apply_qkv_"]

_Weights: TypeAlias = tuple[Tensor | None, Tensor | None]  # of q and of k

_REFUSALS = (ArgumentError, ArgumentTypeError, NotImplementedError)


@takes_keywords_of(apply, PackedOptions.__optional_keys__)
def apply_qkv(
    qkv: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *too_many: NoReturn,
    num_heads: int,
    num_kv_heads: int | None = None,
    grouped: bool = False,
    **options: Unpack[PackedOptions],
) -> Views:
    """Apply the rotation to q and k of one packed tensor, the output of a fused projection; its gradient is packed too.

    Args:
        qkv: Tensor, any strides. The axes of the tokens come first, (batch, seqlen) with layout "bshd"; then the heads
            of q, those of k and those of v, in one of three forms, which the number of axes tells apart:

            * (..., (num_heads + 2 * num_kv_heads) * head_dim)
            * (..., num_heads + 2 * num_kv_heads, head_dim)
            * (..., 3, num_heads, head_dim), with num_kv_heads equal to num_heads
        cos, sin: as in `apply`, but with the same row for all heads unless num_kv_heads is num_heads.
        num_heads: heads of q.
        num_kv_heads: heads of k, and of v; a divisor of num_heads. Default: num_heads. In the first form head_dim is
            inferred: the size of the last axis / (num_heads + 2 * num_kv_heads). If num_kv_heads is forgotten, another
            head_dim is inferred, and no error is raised if the table fits that one too. To make it an error, pass
            per_channel=False or True, as the table is, or rotary_dim, which is head_dim if all channels rotate.
        grouped: whether the heads are stored in num_kv_heads groups, each with the q heads that share a k head, that k
            head and its v head, as in Megatron, and with one q head per group in GPT-NeoX. The third form is
            then (..., num_kv_heads, num_heads / num_kv_heads + 2, head_dim). Default: False.
        **options: the keywords of `apply` except out; documented there. layout is "bshd" (default), "sbhd", "thd" or
            "shd": the axes of q, k and v, of which qkv begins with those before h. norm is one weight for q and k, or a
            tuple (q_weight, k_weight) with None for the one that is not normalized.

    Returns:
        (q, k, v), each (..., heads, head_dim). q and k are what `apply` returns. v is a view of qkv and costs nothing.
        With grouped=True the q heads come one group after another.

        Differentiable like `apply`. In reverse mode, if only qkv and norm are differentiated, the gradient of qkv is
        one tensor that is written once: nothing is filled, accumulated or concatenated. (PyTorch concatenates it in
        graphs of torch.compile, and if tables are differentiated too.) Autograd does not allow writing to v in place,
        because v is one of several views returned by a function: use v = v * scale, or v.clone().

    Raises:
        ArgumentError: as in `apply`, and if the shape of qkv does not match the other arguments.
        ArgumentTypeError: as in `apply`.
        NotImplementedError: as in `apply`.

    Equivalent to, for heads that are not grouped::

        q, k, v = qkv.unflatten(-1, (-1, head_dim)).split((num_heads, num_kv_heads, num_kv_heads), dim=-2)
        q, k = rope_ext.apply((q, k), cos, sin)
    """
    if too_many:
        raise _given_by_position("apply_qkv", too_many)
    check_names("apply_qkv", options, PackedOptions.__optional_keys__)
    packing = packing_of(qkv, num_heads, num_kv_heads, grouped, options.get("layout", "bshd"))
    weights = _checked(packing, cos, options)
    try:
        if is_ordinary_call(qkv):
            x, packed = packed_call(packing, qkv)
            out: Any = packed
            rotated: Views | None = apply(x, cos, sin, **_with_norm(options, weights, len(x)), out=out)
            if rotated is not None:
                return rotated
        q, k, v = packing.split(qkv)
        q, k = apply((packing.merged(q), k), cos, sin, **_with_norm(options, weights, 2))
        return q, k, v
    except _REFUSALS as error:
        raise _about_qkv(error, packing, qkv) from None


@takes_keywords_of(apply, InPlaceOptions.__optional_keys__)
def apply_qkv_(
    qkv: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *too_many: NoReturn,
    num_heads: int,
    num_kv_heads: int | None = None,
    grouped: bool = False,
    **options: Unpack[InPlaceOptions],
) -> Views:
    """Rotate q and k of a packed tensor in place, and return (q, k, v) as views of it.

    Args:
        qkv: Tensor, as in `apply_qkv`; autograd must be able to write to it, as in `apply_`.
        cos, sin: as in `apply_qkv`.
        num_heads, num_kv_heads, grouped: as in `apply_qkv`.
        **options: the keywords of `apply` except out and out_interleaved; documented there and in `apply_qkv`.

    Returns:
        (q, k, v), views of qkv, each (..., heads, head_dim). With grouped=True q is (..., num_kv_heads, num_heads /
        num_kv_heads, head_dim), since no view of it has fewer axes.

        Differentiable, as writes to views are: the backward pass copies the gradient of qkv once for each tensor
        written, that is for k and for q, or with grouped heads for each q head of a group. `apply_qkv` avoids these
        copies: prefer it for training.

    Raises:
        ArgumentError: as in `apply_qkv` and `apply_`.
        ArgumentTypeError: as in `apply_qkv` and `apply_`.
        NotImplementedError: as in `apply_qkv` and `apply_`.

    Equivalent to::

        q, k, v = rope_ext.apply_qkv(qkv, cos, sin, ...)    # q and k written into qkv
    """
    if too_many:
        raise _given_by_position("apply_qkv_", too_many)
    check_names("apply_qkv_", options, InPlaceOptions.__optional_keys__)
    packing = packing_of(qkv, num_heads, num_kv_heads, grouped, options.get("layout", "bshd"))
    weights = _checked(packing, cos, options)
    try:
        q, k, _ = packing.split(qkv, slices)
        if is_ordinary_call(qkv):
            check_writable((qkv,))
        elif is_dtensor(qkv):
            check_views(qkv, q, k)
        first, *others = packing.parts(q)
        written = [first, k, *others]  # the first call checks both weights, before anything is written
        keywords = _with_norm(options, weights, len(written))
        norm = keywords.pop("norm", ())
        norm = (*norm[:1], *norm[-1:], *norm[1:-1])
        for begin in range(0, len(written), MAX_TENSORS):
            some = slice(begin, begin + MAX_TENSORS)
            if norm:
                keywords["norm"] = norm[some]
            apply_(written[some], cos, sin, **keywords)
        return packing.split(qkv, slices)
    except _REFUSALS as error:
        raise _about_qkv(error, packing, qkv) from None


def _given_by_position(function: str, too_many: tuple[object, ...]) -> ArgumentTypeError:
    cure = f"pass all others by name, {function}(qkv, cos, sin, num_heads=num_heads)"
    return given_by_position(function, ("qkv", "cos", "sin"), too_many, cure)


def _checked(packing: Packing, cos: object, options: Mapping[str, Any]) -> _Weights | None:
    """The weights of q and k. Refuses what `apply` would miss, since it gets other tensors than the user passed."""
    inv_freq = options.get("inv_freq")
    name, table, rank = ("cos", cos, 4) if inv_freq is None else ("inv_freq", getattr(inv_freq, "high", inv_freq), 2)
    if packing.num_kv_heads != packing.num_heads and isinstance(table, Tensor) and table.dim() >= rank:
        heads = table.shape[-2]
        if heads != 1:
            raise ArgumentError(name, "have 1 head when num_kv_heads is not num_heads", f"{heads} heads")
    norm = options.get("norm")
    if norm is None or isinstance(norm, Tensor):
        return None if norm is None else (norm, norm)
    if not isinstance(norm, (tuple, list)) or not all(w is None or isinstance(w, Tensor) for w in norm):
        rule = "be a Tensor, or a tuple or list (q_weight, k_weight) of Tensors or None"
        raise ArgumentTypeError("norm", rule, shown(norm))
    if len(norm) != 2:
        raise ArgumentError("norm", "hold two weights, one for q and one for k", len(norm))
    q_weight, k_weight = norm
    return q_weight, k_weight


def _with_norm(options: Mapping[str, Any], weights: _Weights | None, tensors: int) -> dict[str, Any]:
    """The keywords for a call of `apply` with this number of tensors, of which all but the last are parts of q."""
    if weights is None:
        return {**options}
    q_weight, k_weight = weights
    return {**options, "norm": (*[q_weight] * (tensors - 1), k_weight)}


def _about_qkv(error: Exception, packing: Packing, qkv: Tensor) -> Exception:
    """An error of `apply`, reworded in terms of qkv."""

    def renamed(text: str) -> str:
        return re.sub(r"\b(every tensor of )?x\b", "qkv", text)

    if not isinstance(error, (ArgumentError, ArgumentTypeError)):
        return type(error)(renamed(str(error)))
    got = error.got
    if error.argument == "x":
        for t in packing.split(qkv):
            got = got.replace(f"shape {tuple(t.shape)}", f"shape {tuple(qkv.shape)}")
    return type(error)(renamed(error.argument), renamed(error.rule), got, renamed(error.cure))
