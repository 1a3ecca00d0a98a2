"""The debug mode ROPE_EXT_CHECK_POSITIONS in torch's context_parallel: refuses calls that read rows of other tokens.

Inside `torch.distributed.tensor.experimental.context_parallel`, the buffers hold the tokens of this rank: by default,
two separate chunks. A call without positions treats them as tokens 0, 1, 2, ... A table of the whole sequence has those
rows, so there is no error and the result is wrong.

Two kinds of correct calls are refused: calls on a tensor that is not a buffer (attention would treat it as a shard
anyway), and calls with the right `offset` on the last rank, whose two chunks are adjacent (no `offset` is right on the
other ranks). The mode does not detect mistakes in:

* positions, and tables with a row per token computed from them, as in `rope.apply` with precision "hf";
* packed sequences with cu_seqlens;
* code that uses torch's _ContextParallel or _context_parallel_shard, which leave no state that shows they are active;
* graphs of torch.compile, calls on subclasses of Tensor, and torch releases that keep this state elsewhere.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from ._torch.arguments import ORDINARY_TYPES, Scalars, layout_of, split
from ._torch.flags import FREQUENCIES
from ._torch.private import context_parallel_mesh
from .errors import ArgumentError


def check(tensors: Sequence[Any], cos: Any, _sin: Any, *rest: Any) -> None:
    """Raise if the arguments of an op do not say which tokens this rank holds."""
    if is_compiling():
        return
    found = context_parallel_mesh()
    if found is None:
        return
    mesh, is_head_tail = found
    rank, world_size = mesh.get_local_rank(), mesh.size()
    scalars, lookup = split(rest)
    if lookup.positions is not None or lookup.cu_seqlens is not None or world_size == 1:
        return
    if not is_head_tail and (rank == 0 or scalars.offset != 0 or lookup.offsets is not None):
        return
    if not _reads_by_index(tensors, cos, scalars):
        return
    order = "head_tail" if is_head_tail else "contiguous"
    call = f'context_parallel_positions(seqlen, rank={rank}, world_size={world_size}, order="{order}")'
    rule = "be given in torch's context_parallel, where x holds the tokens of one rank"
    cure = f"pass a torch.arange(seqlen) that is among the buffers, or rope_ext.distributed.{call}"
    raise ArgumentError("positions", rule, "None", cure)


def _reads_by_index(tensors: Sequence[object], cos: object, scalars: Scalars) -> bool:
    """Whether the index of a token in x is its position, or its row in a table with more rows than x has tokens."""
    layout = layout_of(scalars.flags)
    if not tensors or not all(type(t) in ORDINARY_TYPES for t in (tensors[0], cos)):
        return False
    x, table = tensors[0], cos
    if not isinstance(x, Tensor) or not isinstance(table, Tensor) or x.is_nested or x.dim() != len(layout):
        return False
    seqlen = x.shape[layout.replace("t", "s").index("s")]
    return bool(scalars.flags & FREQUENCIES) or (table.dim() == 2 and table.shape[0] > seqlen)
