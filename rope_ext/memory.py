"""What the process keeps: the memory of large results, and tables of cos and sin.

A CPU spends more time on the new memory of a large result than on the rotation: each page of 4 KiB costs a fault.
`apply(..., out=...)` and `apply_` need neither `set_output_pool` nor `tune_malloc`: they write where you say.
docs/memory.md says what each costs, and why the pool is off at the start.
"""

import ctypes

from . import _kept, _shared_tables
from ._shown import shown
from ._torch.library import native
from .errors import ArgumentError, ArgumentTypeError


def set_output_pool(max_bytes: int) -> None:
    """Keep the memory of results for the next results: `apply` then writes where pages exist already.

    max_bytes: upper bound of the freed memory that is kept; 0, as at the start, ends the pool and frees all of it.

    The pool serves results on the CPU of at least 1 MiB each, of all threads of this process. The memory of a result
    comes back when the last tensor that shares it is gone. Results from the pool cannot be enlarged by resize_, their
    storage cannot be emptied, and torch.profiler does not count their memory.

    Raises ArgumentTypeError or ArgumentError if max_bytes is not an int >= 0.
    """
    _check_bytes(max_bytes)
    native.rope_ext_set_output_pool(ctypes.c_int64(max_bytes))


def set_table_limit(max_bytes: int) -> None:
    """Bound the tables that `RotaryEmbedding.tables` keeps for the process, on all devices together.

    max_bytes: at the start 256 MiB. Beyond it the tables that were not used for longest are dropped; the table that was
        used last is kept, however large. Tables in use elsewhere stay valid: the memory of a dropped table is freed
        when the last tensor that shares it is gone. Tables that are constants of compiled graphs are not counted.

    Raises ArgumentTypeError or ArgumentError if max_bytes is not an int >= 0.
    """
    _check_bytes(max_bytes)
    _shared_tables.set_limit(max_bytes)


def clear_tables() -> None:
    """Drop all tables and frequencies that the process keeps; the next calls make them again, with the same bits.

    Tables that a captured CUDA graph or a graph of torch.compile reads stay.
    """
    _kept.clear()


def _check_bytes(max_bytes: object) -> None:
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise ArgumentTypeError("max_bytes", "be an int", shown(max_bytes))
    if not 0 <= max_bytes < 2**63:
        raise ArgumentError("max_bytes", "be at least 0 and below 2**63", shown(max_bytes))


def tune_malloc() -> bool:
    """Make the C library keep freed memory, for all tensors of this process: PyTorch's, yours and ours.

    glibc hands tensors above 32 MiB, and often smaller ones, back to the system when they are freed, and gets new pages
    for the next tensors. `tune_malloc` turns that off for the life of the process. Call it before the first large
    tensor is made. The process then stays as large as it has ever been, and may grow by a few of its largest tensors
    until freed pieces fit.

    Returns whether the C library did it: False where it is not glibc, and has no mallopt or ignores it.
    Equivalent to, in C: mallopt(M_MMAP_THRESHOLD, 1 << 30); mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_mmap_threshold, m_trim_threshold = -3, -1  # <malloc.h>
    return mallopt is not None and all(
        [mallopt(m_mmap_threshold, 1 << 30) == 1, mallopt(m_trim_threshold, 2**31 - 1) == 1]
    )
