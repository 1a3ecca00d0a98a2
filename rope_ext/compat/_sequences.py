"""Positions of packed sequences that `cu_seqlens` of `rope_ext.apply` does not express."""

import torch


def in_sequences(tokens, cu_seqlens, start=None, parts=1, part=0):
    """(tokens,) int64: the position of each packed token in its sequence, plus start[its sequence].

    cu_seqlens: (nseq + 1,), boundaries. start: (nseq,) or None. parts, part: each sequence is one part of a longer one,
    cut in 2 * parts pieces, and this is piece `part` followed by piece 2 * parts - 1 - part. Tokens past the last
    boundary get -1, which is no row of a table. Stays on the device of cu_seqlens, and does not wait for it.
    """
    cu_seqlens = cu_seqlens.to(torch.int64)
    index = torch.arange(tokens, device=cu_seqlens.device)
    sequence = (torch.searchsorted(cu_seqlens, index, right=True) - 1).clamp(max=cu_seqlens.numel() - 2)
    begin, end = cu_seqlens[sequence], cu_seqlens[sequence + 1]
    positions = in_parts(index - begin, end - begin, parts, part)
    if start is not None:
        positions = positions + start[sequence]
    return torch.where(index < cu_seqlens[-1], positions, -1)


def in_parts(index, length, parts, part):
    """Position in the whole sequence of token `index` of part `part`, which has `length` tokens: see in_sequences."""
    if parts == 1:
        return index
    piece = length // 2
    return index + torch.where(index < piece, part, 2 * parts - 2 - part) * piece
