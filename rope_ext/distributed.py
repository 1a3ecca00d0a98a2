"""Which tokens each rank of context parallelism holds, where every rank has a part of every sequence::

    positions = rope_ext.distributed.context_parallel_positions(seqlen, rank=rank, world_size=2, order="head_tail")
    q, k = rope_ext.apply((q, k), cos, sin, positions=positions)    # q, k: the tokens of this rank

The tables cover the whole sequence. The functions do not communicate: any process can compute the tokens of any rank.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _numbers
from ._sequences import check_boundaries, in_parts, sequence_of
from ._shown import name_of, shown
from .errors import ArgumentError, ArgumentTypeError

Order: TypeAlias = Literal["contiguous", "head_tail"]
ORDERS: tuple[Order, ...] = get_args(Order)

__all__ = ["ORDERS", "ContextParallelOrder", "Order", "context_parallel_order", "context_parallel_positions"]


class ContextParallelOrder(NamedTuple):
    """The order of the tokens of all ranks, concatenated from rank 0 on.

    Attributes:
        permutation: int64 (seqlen,), the index of the token at each place. x.index_select(axis,
            permutation).chunk(world_size, axis) yields the tokens of each rank (fewer chunks if the last ranks hold no
            tokens).
        inverse: int64 (seqlen,), the place of each token. index_select(axis, inverse) on the concatenated tokens of all
            ranks restores x.
    """

    permutation: Tensor
    inverse: Tensor


def context_parallel_positions(
    seqlen: int,
    *,
    rank: int,
    world_size: int,
    order: Order = "contiguous",
    cu_seqlens: Tensor | None = None,
    device: torch.device | str | int | None = None,
) -> Tensor:
    """Compute the positions of the tokens that a rank holds, to pass to `rope_ext.apply`.

    Args:
        seqlen: number of tokens on all ranks together; with cu_seqlens, of all packed tokens.
        rank, world_size: those of the process group that divides the sequences.
        order: which tokens a rank holds.

            * "contiguous" (default): its chunk of torch.chunk, as with DTensor's Shard: ceil(seqlen / world_size)
              tokens, fewer or none on the last ranks. Without cu_seqlens, the argument `offset` of `rope_ext.apply`
              does the same without a tensor.
            * "head_tail": of 2 * world_size equal chunks, chunk `rank` and then chunk 2 * world_size - 1 - rank, so
              that causal attention costs all ranks the same (the zigzag of ring attention).
        cu_seqlens: boundaries of the packed sequences on all ranks together, int32 or int64 of shape (nseq + 1,),
            ascending from 0 to seqlen. Positions restart at 0 in each sequence, so `rope_ext.apply` needs no cu_seqlens
            with them. "contiguous" divides the packed tokens like one sequence. "head_tail" divides each sequence: the
            rank holds its two chunks of the first sequence, then its two chunks of the second, and so on. Padding after
            the last sequence counts as a sequence and needs a boundary too.
        device: of the result. Default: the device of cu_seqlens, otherwise PyTorch's default device.

    Returns:
        int64 Tensor (tokens of the rank,).

    Raises:
        ArgumentError: rank is not in 0 to world_size - 1; order is unknown; with "head_tail", the length of a sequence
            is not a multiple of 2 * world_size; cu_seqlens has another shape, does not ascend or does not end at
            seqlen.
        ArgumentTypeError: a type or a dtype is wrong.

    The values of cu_seqlens are validated, which synchronizes with a GPU. In a graph of torch.compile they are not, and
    wrong values yield wrong positions.

    Equivalent to, without cu_seqlens::

        torch.arange(seqlen).chunk(world_size)[rank]                                                    # "contiguous"
        torch.cat([torch.arange(seqlen).chunk(2 * world_size)[i] for i in (rank, 2 * world_size - 1 - rank)])

    Source: "head_tail" is that of torch.distributed.tensor.experimental.context_parallel; with cu_seqlens, that of
    thd_get_partitioned_indices in Transformer Engine and, since PyTorch 2.14, of _PerDocumentHeadTailLoadBalancer (in
    earlier releases its ranks hold other tokens).
    """
    seqlen, world_size, boundaries, device = _checked(seqlen, world_size, order, cu_seqlens, device)
    rank = _int("rank", rank)
    if not 0 <= rank < world_size:
        cure = "torch.distributed.get_rank(group) is the rank in the group"
        raise ArgumentError("rank", f"be in 0 to world_size - 1 = {world_size - 1}", shown(rank), cure)
    if order == "head_tail":
        positions, _ = _head_tail(seqlen, rank, world_size, boundaries, device)
        return positions
    size = -(-seqlen // world_size)
    index = torch.arange(min(rank * size, seqlen), min((rank + 1) * size, seqlen), device=device)
    return index if boundaries is None else index - boundaries[sequence_of(index, boundaries)]


def context_parallel_order(
    seqlen: int,
    *,
    world_size: int,
    order: Order = "contiguous",
    cu_seqlens: Tensor | None = None,
    device: torch.device | str | int | None = None,
) -> ContextParallelOrder:
    """Compute the permutation that sorts tokens by rank, and its inverse.

    Args:
        seqlen, world_size, cu_seqlens, device: as in `context_parallel_positions`.
        order: as in `context_parallel_positions`. For "contiguous", both permutations are 0, 1, 2, ...

    Returns:
        ContextParallelOrder(permutation, inverse).

    Raises:
        ArgumentError: as in `context_parallel_positions`.
        ArgumentTypeError: as in `context_parallel_positions`.

    Equivalent to, without cu_seqlens::

        permutation = torch.cat([context_parallel_positions(seqlen, rank=rank, ...) for rank in range(world_size)])
        inverse = permutation.argsort()
    """
    seqlen, world_size, boundaries, device = _checked(seqlen, world_size, order, cu_seqlens, device)
    if order == "head_tail":
        ranks = torch.arange(world_size, device=device)[:, None]
        positions, begin = _head_tail(seqlen, ranks, world_size, boundaries, device)
        permutation = (positions + begin).flatten()
    else:
        permutation = torch.arange(seqlen, device=device)
    return ContextParallelOrder(permutation, permutation.argsort())


def _head_tail(
    seqlen: int, rank: int | Tensor, world_size: int, boundaries: Tensor | None, device: Any
) -> tuple[Tensor, Tensor | int]:
    """The position of each token of a rank, and the first token of its sequence. rank: an int, or (ranks, 1)."""
    tokens = seqlen // world_size
    index = torch.arange(tokens, device=device)
    if boundaries is None:
        return in_parts(index, tokens, world_size, rank), 0
    of_rank = boundaries // world_size
    sequence = sequence_of(index, of_rank)
    begin = of_rank[sequence]
    return in_parts(index - begin, of_rank[sequence + 1] - begin, world_size, rank), boundaries[sequence]


def _checked(
    seqlen: Any, world_size: Any, order: object, cu_seqlens: Tensor | None, device: Any
) -> tuple[Any, Any, Tensor | None, Any]:
    """seqlen and world_size as ints, the boundaries as int64 on the device of the result, and that device."""
    seqlen, world_size = _int("seqlen", seqlen), _int("world_size", world_size)
    if seqlen < 0:
        raise ArgumentError("seqlen", "be at least 0", shown(seqlen))
    if world_size < 1:
        raise ArgumentError("world_size", "be at least 1", shown(world_size))
    if not isinstance(order, str) or order not in ORDERS:
        raise ArgumentError("order", f"be {' or '.join(map(repr, ORDERS))}", shown(order))
    pieces = 2 * world_size if order == "head_tail" else 1
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, seqlen, pieces)
        boundaries = cu_seqlens.to(device=device, dtype=torch.int64)
        return seqlen, world_size, boundaries, boundaries.device
    if seqlen % pieces:
        rule = f"be a multiple of 2 * world_size = {pieces} with order 'head_tail'"
        cure = f"pad to {seqlen + -seqlen % pieces} tokens"
        raise ArgumentError("seqlen", rule, shown(seqlen), cure)
    return seqlen, world_size, None, device


def _int(name: str, value: object) -> Any:
    """value as an int; symbolic ints of torch.compile are accepted."""
    return _numbers.as_int64(name, value)


def _check_cu_seqlens(cu_seqlens: Tensor, seqlen: int, pieces: int) -> None:
    _numbers.tensor(cu_seqlens=cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ArgumentTypeError("cu_seqlens", "be int32 or int64", name_of(cu_seqlens.dtype))
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise ArgumentError("cu_seqlens", "have shape (nseq + 1,)", tuple(cu_seqlens.shape))
    if is_compiling():
        return
    boundaries = cu_seqlens.tolist()
    cure = f"pad each sequence to a multiple of {pieces}"
    check_boundaries(boundaries, pieces, "2 * world_size", cure)
    if boundaries[-1] != seqlen:
        cure = f"add a last boundary of {seqlen}, which makes the padding a sequence" if boundaries[-1] < seqlen else ""
        raise ArgumentError("cu_seqlens", f"end at seqlen, {seqlen}", boundaries[-1], cure)
