"""Positions of packed sequences for which `cu_seqlens` of `rope_ext.apply` is not enough."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._sequences import check_boundaries, in_parts, sequence_of
from .._shown import name_of
from ._errors import refused, refused_type


def in_sequences(tokens: int, cu_seqlens: Tensor, start: Tensor | None = None, parts: int = 1, part: int = 0) -> Tensor:
    """(tokens,) int64: the position of each packed token in its sequence, plus the start of that sequence.

    Boundaries on the CPU are validated. Validating those of another device would require a synchronization: tokens
    outside every sequence, and tokens of a sequence that cannot be split, get position -1, which is no row of a table.

    Args:
        cu_seqlens: (nseq + 1,), boundaries of the whole sequences.
        start: (nseq,) or None.
        parts, part: each sequence is split into 2 * parts pieces; the tokens are those of piece `part` followed by
            those of piece 2 * parts - 1 - part.

    Raises:
        ArgumentError, ArgumentTypeError: about cu_seqlens or offset.
    """
    _check_forms(cu_seqlens, start)
    checked = _check_boundaries(tokens, cu_seqlens, parts)
    index = torch.arange(tokens, device=cu_seqlens.device)
    if cu_seqlens.numel() == 1:
        return torch.full_like(index, -1)
    whole = cu_seqlens.to(torch.int64)
    boundaries = whole if parts == 1 else whole // parts
    sequence = sequence_of(index, boundaries)
    begin, end = boundaries[sequence], boundaries[sequence + 1]
    positions = in_parts(index - begin, end - begin, parts, part)
    if start is not None:
        positions = positions + start[sequence]
    if checked:
        return positions
    inside = (index >= begin) & (index < end)
    if parts > 1:
        unsplittable = whole % (2 * parts) != 0
        inside &= ~(unsplittable[sequence] | unsplittable[sequence + 1])
    return torch.where(inside, positions, -1)


def _check_forms(cu_seqlens: Tensor, start: Tensor | None) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise refused("cu_seqlens", "have shape (nseq + 1,)", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise refused_type("cu_seqlens", "be int32 or int64", name_of(cu_seqlens.dtype))
    if start is None:
        return
    nseq = cu_seqlens.numel() - 1
    if start.shape != (nseq,):
        raise refused("offset", f"be an int or have shape ({nseq},)", start)
    if start.dtype not in (torch.int32, torch.int64):
        raise refused_type("offset", "be int32 or int64", name_of(start.dtype))


def _check_boundaries(tokens: int, cu_seqlens: Tensor, parts: int) -> bool:
    """Whether the boundaries could be read; raises if they are wrong."""
    if not cu_seqlens.is_cpu or is_compiling():
        return False
    try:
        boundaries = cu_seqlens.tolist()
    except RuntimeError:  # under vmap, or of a FakeTensor
        return False
    check_boundaries(boundaries, 1 if parts == 1 else 2 * parts, "2 * cp_size")
    if boundaries[-1] != tokens * parts:
        raise refused("cu_seqlens", f"end at {tokens * parts}, the number of tokens in all parts", boundaries[-1])
    return True
