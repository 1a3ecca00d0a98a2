"""The positions of tokens in packed sequences, and in sequences that are divided for context parallelism."""

from itertools import pairwise

import torch
from torch import Tensor

from ._shown import shown
from .errors import ArgumentError


def sequence_of(index: Tensor, boundaries: Tensor) -> Tensor:
    """The sequence of each packed token; the first or the last one for tokens outside all of them.

    index: (tokens,). boundaries: (nseq + 1,), ascending, nseq at least 1.
    """
    return (torch.searchsorted(boundaries, index, right=True) - 1).clamp(0, boundaries.numel() - 2)


def in_parts(index: Tensor, length: Tensor | int, parts: int, part: Tensor | int) -> Tensor:
    """The position within its sequence of token `index` of a part that has `length` tokens of the sequence.

    The sequence is divided into 2 * parts equal pieces, of which the part holds piece `part`, then piece 2 * parts - 1
    - part.
    """
    if parts == 1:
        return index
    piece = length // 2
    last = 2 * parts - 2 - part  # not 2 * parts - 1 - part: index already includes one piece
    return index + torch.where(index < piece, part, last) * piece


def check_boundaries(boundaries: list[int], multiple: int, of: str, cure: str = "") -> None:
    """Refuse cu_seqlens that do not ascend from 0, or whose lengths are not all multiples of `multiple`.

    of: what `multiple` is, such as "2 * cp_size". cure: for a length that is not a multiple.
    """
    if boundaries[0] != 0:
        raise ArgumentError("cu_seqlens", "start at 0", shown(boundaries[0]))
    for i, (begin, end) in enumerate(pairwise(boundaries)):
        if end < begin:
            raise ArgumentError("cu_seqlens", "ascend", f"{end} after {begin} at [{i + 1}]")
        if (end - begin) % multiple:
            rule = f"hold lengths that are multiples of {of} = {multiple}"
            raise ArgumentError("cu_seqlens", rule, f"{end - begin} for sequence {i}", cure)
