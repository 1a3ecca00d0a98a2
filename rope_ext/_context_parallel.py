"""The debug mode ROPE_EXT_CHECK_POSITIONS in torch's context_parallel: refuses calls that read rows of other tokens.

Inside `torch.distributed.tensor.experimental.context_parallel` the buffers hold the tokens of this rank, by default two
chunks that lie apart. A call without positions takes them for tokens 0, 1, 2, ...: a table of the whole sequence has
those rows, so nothing but the result is wrong.

Two right calls are refused: of a tensor that was no buffer (attention in there takes it for part of one), and with the
right `offset` on the last rank, whose two chunks meet (the other ranks cannot be right). Not seen are:
* positions of the wrong tokens, and tables with a row per token that were made of them, as `rope.apply` of precision
  "hf" makes them;
* packed sequences with cu_seqlens;
* _ContextParallel and _context_parallel_shard of torch, which leave no state that says where they are in force;
* calls in graphs of torch.compile, subclasses of Tensor, and releases of torch that keep this state elsewhere.
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
    """Refuses arguments of an op that say nothing about where the tokens of this rank are."""
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
    cure = f"torch.arange(seqlen) among the buffers becomes them, or rope_ext.distributed.{call} makes them"
    raise ArgumentError("positions", rule, "None", cure)


def _reads_by_index(tensors: Sequence[object], cos: object, scalars: Scalars) -> bool:
    """Whether each token reads the row of its index, of more rows than x has tokens, or has its index as position."""
    layout = layout_of(scalars.flags)
    if not tensors or not all(type(t) in ORDINARY_TYPES for t in (tensors[0], cos)):
        return False
    x, table = tensors[0], cos
    if not isinstance(x, Tensor) or not isinstance(table, Tensor) or x.is_nested or x.dim() != len(layout):
        return False
    seqlen = x.shape[layout.replace("t", "s").index("s")]
    return bool(scalars.flags & FREQUENCIES) or (table.dim() == 2 and table.shape[0] > seqlen)
