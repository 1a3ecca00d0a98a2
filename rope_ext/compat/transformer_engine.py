"""apply_rotary_pos_emb of Transformer Engine for PyTorch (NVIDIA/TransformerEngine 2.20), without its library."""

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
    """Rotates the first freqs.shape[-1] channels of each head by the angles freqs, one per channel.

    t: "sbhd" (seqlen, batch, heads, head_dim), "bshd" (batch, seqlen, ...) or "thd" (tokens, heads, head_dim) with
    cu_seqlens (nseq + 1,) int32 of all ranks together. freqs: (rows, 1, 1, rotary_dim), also (rows, batch, 1,
    rotary_dim) where neither start_positions nor "thd" is used. start_positions: (batch,) integers. cp_size, cp_rank: t
    is piece cp_rank and piece 2 * cp_size - 1 - cp_rank of each sequence, which was cut in 2 * cp_size equal ones. The
    result is contiguous, whatever the strides of t.

    fused: what is rounded; one kernel does both. False rounds cos, sin and each product to the dtype of t: bit-equal to
    fused=False there, gradients of t too. True keeps float32, and rounds the result and the gradient of t once; there
    it is a CUDA kernel whose cos, sin and sum differ in the last bit. freqs gets a gradient with fused=True too (there:
    none).

    A sequence that cannot be cut in 2 * cp_size equal pieces is an error (there: wrong positions). cu_seqlens on a GPU
    is not waited for: the tokens of such a sequence become NaN.

    Source: transformer_engine/pytorch/attention/rope.py, apply_rotary_pos_emb.
    """
    if tensor_format not in _FORMATS:
        raise refused("tensor_format", f"be one of {', '.join(_FORMATS)}", repr(tensor_format))
    packed = tensor_format == "thd"
    if packed and cu_seqlens is None:
        raise refused("cu_seqlens", "be given for tensor_format 'thd'", None)
    if cp_size < 1:
        raise refused("cp_size", "be at least 1", cp_size)
    if not (0 <= cp_rank < cp_size):
        raise refused("cp_rank", f"be in 0 to cp_size - 1 = {cp_size - 1}", cp_rank)
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
            raise refused("t", "have an even seqlen where cp_size > 1", seqlen)
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
