"""Positions of packed sequences that `cu_seqlens` of `rope_ext.apply` does not express."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._sequences import check_boundaries, in_parts, sequence_of
from .._shown import name_of
from ._errors import refused, refused_type


def in_sequences(tokens: int, cu_seqlens: Tensor, start: Tensor | None = None, parts: int = 1, part: int = 0) -> Tensor:
    """(tokens,) int64: the position of each packed token in its sequence, plus start[its sequence].

    cu_seqlens: (nseq + 1,), boundaries of the whole sequences. start: (nseq,) or None. parts, part: each sequence was
    cut in 2 * parts pieces, and the tokens are its piece `part` followed by piece 2 * parts - 1 - part.
    Boundaries on the CPU are checked. Those of another device are not waited for: there tokens outside every sequence,
    and those of a sequence that cannot be cut, get -1, which is no row of a table.
    Errors name the arguments cu_seqlens and offset.
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
        uncut = whole % (2 * parts) != 0
        inside &= ~(uncut[sequence] | uncut[sequence + 1])
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
    """True where the boundaries could be read, and are right."""
    if not cu_seqlens.is_cpu or is_compiling():
        return False
    try:
        boundaries = cu_seqlens.tolist()
    except RuntimeError:  # under vmap, or of a FakeTensor
        return False
    check_boundaries(boundaries, 1 if parts == 1 else 2 * parts, "2 * cp_size")
    if boundaries[-1] != tokens * parts:
        raise refused("cu_seqlens", f"end at {tokens * parts}, the tokens of all parts", boundaries[-1])
    return True
