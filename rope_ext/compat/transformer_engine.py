"""apply_rotary_pos_emb of Transformer Engine for PyTorch (NVIDIA/TransformerEngine 2.20), on every device."""

from typing import Any

import torch
from torch import Tensor

from .._sequences import in_parts
from ..reference import Rounding
from ._angles import rotate_by
from ._arguments import argument, flag, integer, tensor
from ._called import called
from ._errors import refused
from ._sequences import in_sequences

_FORMATS = "sbhd", "bshd", "thd"


@called(
    t=tensor("x", ranks=range(3, 5)),
    freqs=tensor("cos", "sin", "positions", "rotary_dim"),
    tensor_format=argument(str),
    start_positions=tensor("offset", optional=True),
    interleaved=flag(),
    fused=flag(),
    cu_seqlens=tensor("cu_seqlens", optional=True),
    cp_size=integer(),
    cp_rank=integer(),
)
def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    tensor_format: str = "sbhd",
    start_positions: Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> Tensor:
    """Rotate the first freqs.shape[-1] channels of each head by the angles freqs.

    A sequence that cannot be split into 2 * cp_size equal pieces is an error; Transformer Engine gives its tokens wrong
    positions. A CUDA cu_seqlens is not validated, which would require a synchronization: the tokens of such a sequence
    become NaN.

    Args:
        t: (seqlen, batch, heads, head_dim) for "sbhd", (batch, seqlen, heads, head_dim) for "bshd", (tokens, heads,
            head_dim) for "thd"; any strides.
        freqs: (rows, 1, 1, rotary_dim), one angle in radians per channel; also (rows, batch, 1, rotary_dim) with
            neither start_positions nor "thd".
        tensor_format: "sbhd", "bshd" or "thd".
        start_positions: (batch,) integers, the position of the first token of each sequence.
        interleaved: whether pairs are (2i, 2i + 1); otherwise they are (i, i + rotary_dim / 2).
        fused: which values are rounded; one kernel computes both. False rounds cos, sin and each product to the dtype
            of t, bit-identical to fused=False of Transformer Engine, gradients of t included. True computes in float32
            and rounds the result and the gradient of t once; the CUDA kernel of Transformer Engine differs from that in
            the last bit of cos, sin and the sum, and computes no gradient of freqs.
        cu_seqlens: (nseq + 1,) int32, boundaries of the packed sequences of all ranks together; required with "thd".
        cp_size, cp_rank: number of context parallel ranks, and this rank. Each sequence is split into 2 * cp_size equal
            pieces, and t holds its pieces cp_rank and 2 * cp_size - 1 - cp_rank.

    Returns:
        A new contiguous tensor with the shape and dtype of t.

    Raises:
        ArgumentError: when a shape or value does not fit, or freqs has too few rows.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for "sbhd" with freqs (rows, 1, 1, rotary_dim) and start_positions::

        angles, dtype = freqs[:, 0, 0], torch.float32 if fused else t.dtype
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        options = {"rotary_dim": angles.shape[-1], "rounding": "once" if fused else "eager"}
        options |= {"interleaved": interleaved, "offset": start_positions}
        rope_ext.apply(t, cos, sin, layout="sbhd", **options)

    Source: Transformer Engine 2.20, transformer_engine/pytorch/attention/rope.py, apply_rotary_pos_emb.
    """
    if tensor_format not in _FORMATS:
        raise refused("tensor_format", f"be one of {', '.join(_FORMATS)}", repr(tensor_format))
    packed = tensor_format == "thd"
    if packed and cu_seqlens is None:
        raise refused("cu_seqlens", "be given with tensor_format 'thd'", None)
    if cp_size < 1:
        raise refused("cp_size", "be at least 1", cp_size)
    if not (0 <= cp_rank < cp_size):
        raise refused("cp_rank", f"be at least 0 and less than cp_size {cp_size}", cp_rank)
    shared = freqs.dim() == 4 and freqs.shape[1:3] == (1, 1)
    per_sequence = freqs.dim() == 4 and freqs.shape[2] == 1 and not packed and start_positions is None
    if not (shared or per_sequence):
        rule = "have shape (rows, 1, 1, rotary_dim), or (rows, batch, 1, rotary_dim) without start_positions"
        raise refused("freqs", rule, freqs)

    rows: dict[str, Any] = {}
    if packed and cu_seqlens is not None:
        rows = _rows_of_sequences(t.shape[0], cu_seqlens, start_positions, cp_size, cp_rank)
    else:
        seqlen = t.shape[tensor_format.index("s")]
        if cp_size > 1 and seqlen % 2:
            raise refused("t", "have an even seqlen when cp_size > 1", seqlen)
        if freqs.shape[0] < cp_size * seqlen:
            raise refused("freqs", f"have a row for each of the {cp_size * seqlen} tokens of t", freqs)
        if cp_size > 1:
            rows["positions"] = in_parts(torch.arange(seqlen, device=t.device), seqlen, cp_size, cp_rank)
        elif start_positions is None:
            freqs = freqs[:seqlen]
        if start_positions is not None:
            rows["offset"] = start_positions
    if shared:
        freqs = freqs[:, 0, 0]
    elif "positions" in rows:
        freqs = freqs[rows.pop("positions")]
    if tensor_format == "bshd" and not shared:
        freqs = freqs.transpose(0, 1)
    rounding: Rounding = "once" if fused else "eager"
    return rotate_by(freqs, t, tensor_format, rounding=rounding, interleaved=interleaved, **rows)


def _rows_of_sequences(
    tokens: int, cu_seqlens: Tensor, start: Tensor | None, parts: int, part: int
) -> dict[str, Tensor]:
    if start is None and parts == 1:
        return {"cu_seqlens": cu_seqlens}
    return {"positions": in_sequences(tokens, cu_seqlens, start, parts, part)}
