"""The functions of flash_attn.layers.rotary (Dao-AILab/flash-attention 2.8.3), on every device.

Results are equal to those of flash-attn up to one rounding: both compute in float32 and round once to the dtype of x,
but the Triton kernel of flash-attn may fuse a product and a sum. The functions differ in these cases:

* cos and sin receive gradients; flash-attn silently computes none.
* Rotating a leaf that requires grad in place raises PyTorch's error; flash-attn overwrites it.
* A row outside the table is an error; flash-attn does not rotate that token.
* Packed tokens outside every sequence are copied, or are an error when seqlen_offsets is a Tensor; flash-attn does not
  write them.
* max_seqlen must not be negative and is otherwise ignored; flash-attn sizes its launch by it.
* head_dim is not limited to 256.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from ..ops import apply, apply_, check_in_place
from ._arguments import argument, flag, integer, tensor
from ._called import called
from ._errors import refused
from ._sequences import in_sequences

_TABLES = {"cos": tensor("cos", "rotary_dim", ranks=2), "sin": tensor("sin"), "interleaved": flag()}
_OFFSETS = argument(int, Tensor, stands_for=("offset", "positions"), shown="seqlen_offsets")


@called(
    x=tensor("x", ranks=range(3, 5)),
    **_TABLES,
    inplace=flag(),
    seqlen_offsets=_OFFSETS,
    cu_seqlens=tensor("cu_seqlens", optional=True),
    max_seqlen=argument(int, Tensor, None),
)
def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | Tensor | None = None,
) -> Tensor:
    """Rotate the first rotary_dim = 2 * cos.shape[-1] channels of each head.

    Args:
        x: (batch, seqlen, heads, head_dim), or with cu_seqlens (tokens, heads, head_dim); any strides.
        cos, sin: (rows, rotary_dim / 2), float32 or the dtype of x, with at least seqlen plus offset rows.
        interleaved: whether pairs are (2i, 2i + 1); otherwise they are (i, i + rotary_dim / 2).
        inplace: whether to write to x.
        seqlen_offsets: int, or (batch,) integers: added to the positions, as for a KV cache.
        cu_seqlens: (batch + 1,) integers, boundaries of packed sequences.
        max_seqlen: required with cu_seqlens, as in flash-attn; otherwise ignored.

    Returns:
        x if inplace, else a new tensor with its shape and dtype and the strides of `torch.empty_like(x)`.

    Raises:
        ArgumentError: when a shape or value does not fit, or a position is outside the table.
        ArgumentTypeError: when an argument has a wrong type or dtype.
        RuntimeError: PyTorch's, when inplace would overwrite a leaf that requires grad.

    Equivalent to, without cu_seqlens::

        options = {"interleaved": interleaved, "offset": seqlen_offsets}
        rope_ext.apply(x, cos, sin, rotary_dim=2 * cos.shape[-1], **options)

    Source: flash-attn 2.8.3, flash_attn/layers/rotary.py, apply_rotary_emb.
    """
    if cos.dim() != 2:
        raise refused("cos", "have shape (rows, rotary_dim / 2)", cos)
    # Not checked in a graph, where it may be symbolic: cu_seqlens.diff().max().item().
    if not (max_seqlen is None or isinstance(max_seqlen, Tensor) or is_compiling()) and max_seqlen < 0:
        raise refused("max_seqlen", "not be negative", max_seqlen)
    rows: dict[str, Any] = {"layout": "bshd", "offset": seqlen_offsets}
    if cu_seqlens is not None:
        if max_seqlen is None:
            raise refused("max_seqlen", "be given with cu_seqlens", None)
        rows = {"layout": "thd", "offset": seqlen_offsets, "cu_seqlens": cu_seqlens}
        if isinstance(seqlen_offsets, Tensor):
            rows = {"layout": "thd", "positions": in_sequences(x.shape[0], cu_seqlens, seqlen_offsets)}
    rotate: Callable[..., Tensor] = apply_ if inplace else apply
    rotary_dim = 2 * cos.shape[-1]
    return rotate(x, cos, sin, interleaved=interleaved, rotary_dim=rotary_dim, per_channel=False, **rows)


@called(
    qkv=tensor("x"),
    **_TABLES,
    cos_k=tensor(optional=True),
    sin_k=tensor(optional=True),
    seqlen_offsets=_OFFSETS,
    num_heads_q=integer(optional=True),
)
def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """Rotate q and k of a packed qkv in place.

    Args:
        qkv: (batch, seqlen, 3, heads, head_dim), or with num_heads_q (batch, seqlen, num_heads_q + 2 * num_heads_k,
            head_dim); any strides.
        cos, sin: (rows, rotary_dim / 2), float32 or the dtype of qkv; the tables of q, and of k unless it has its own.
        cos_k, sin_k: tables of k where they differ, as for xPos.
        interleaved: whether pairs are (2i, 2i + 1); otherwise they are (i, i + rotary_dim / 2).
        seqlen_offsets: int, or (batch,) integers: added to the positions, as for a KV cache.
        num_heads_q: number of query heads, required for qkv of 4 dimensions.

    Returns:
        qkv.

    Raises:
        ArgumentError: when a shape or value does not fit, or a position is outside the table; nothing is written.
        ArgumentTypeError: when an argument has a wrong type or dtype; nothing is written.
        RuntimeError: PyTorch's, when qkv is a leaf that requires grad.

    Equivalent to, for qkv of 5 dimensions::

        options = {"interleaved": interleaved, "offset": seqlen_offsets}
        rope_ext.apply_((qkv[:, :, 0], qkv[:, :, 1]), cos, sin, rotary_dim=2 * cos.shape[-1], **options)

    Source: flash-attn 2.8.3, flash_attn/layers/rotary.py, `apply_rotary_emb_qkv_`.
    """
    if qkv.dim() == 5:
        if qkv.shape[2] != 3:
            raise refused("qkv", "have size 3 on axis 2", qkv)
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    else:
        if qkv.dim() != 4:
            raise refused("qkv", "have 4 or 5 dimensions", qkv)
        if num_heads_q is None:
            raise refused("num_heads_q", "be given when qkv has 4 dimensions", None)
        of_k_and_v = qkv.shape[2] - num_heads_q
        num_heads_k = of_k_and_v // 2  # no divmod, which torch.compile does not trace where sizes are dynamic
        if num_heads_q < 0 or num_heads_k < 1 or of_k_and_v % 2:
            rule = f"leave an even, positive number of the {qkv.shape[2]} heads for k and v"
            raise refused("num_heads_q", rule, num_heads_q)
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + num_heads_k]
    if cos_k is None and sin_k is None:
        _rotate_((q, k), cos, sin, interleaved, seqlen_offsets)
    else:
        cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
        recorded = cos.requires_grad or sin.requires_grad  # then qkv requires grad once q is rotated
        _check_tables_of_k(q, k, cos_k, sin_k, interleaved, seqlen_offsets, recorded)  # before q is written
        _rotate_(q, cos, sin, interleaved, seqlen_offsets)
        _rotate_(k, cos_k, sin_k, interleaved, seqlen_offsets)
    return qkv


@called(kv=tensor("x"), **_TABLES, seqlen_offsets=_OFFSETS)
def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: int | Tensor = 0
) -> Tensor:
    """Rotate k of a packed kv in place.

    Args:
        kv: (batch, seqlen, 2, heads, head_dim), any strides.
        cos, sin: (rows, rotary_dim / 2), float32 or the dtype of kv, with at least seqlen plus offset rows.
        interleaved: whether pairs are (2i, 2i + 1); otherwise they are (i, i + rotary_dim / 2).
        seqlen_offsets: int, or (batch,) integers: added to the positions, as for a KV cache.

    Returns:
        kv.

    Raises:
        ArgumentError: when a shape or value does not fit, or a position is outside the table; nothing is written.
        ArgumentTypeError: when an argument has a wrong type or dtype; nothing is written.
        RuntimeError: PyTorch's, when kv is a leaf that requires grad.

    Equivalent to::

        options = {"interleaved": interleaved, "offset": seqlen_offsets}
        rope_ext.apply_(kv[:, :, 0], cos, sin, rotary_dim=2 * cos.shape[-1], **options)

    Source: flash-attn 2.8.3, flash_attn/layers/rotary.py, `apply_rotary_emb_kv_`.
    """
    if kv.dim() != 5 or kv.shape[2] != 2:
        raise refused("kv", "have shape (batch, seqlen, 2, heads, head_dim)", kv)
    _rotate_(kv[:, :, 0], cos, sin, interleaved, seqlen_offsets)
    return kv


def _rotate_(
    x: Tensor | tuple[Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    offset: int | Tensor,
    rotate: Callable[..., Any] = apply_,
    **options: Any,
) -> None:
    if cos.dim() != 2:
        raise refused("cos", "have shape (rows, rotary_dim / 2)", cos)
    rotary_dim = 2 * cos.shape[-1]
    rotate(x, cos, sin, interleaved=interleaved, rotary_dim=rotary_dim, per_channel=False, offset=offset, **options)


@called(
    k=tensor("x", shown="qkv"),
    cos=tensor("cos", "rotary_dim", shown="cos_k"),
    sin=tensor("sin", shown="sin_k"),
    offset=_OFFSETS,
)
def _check_tables_of_k(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, offset: int | Tensor, recorded: bool
) -> None:
    _rotate_((q, k), cos, sin, interleaved, offset, check_in_place, recorded=recorded)
