"""What the process keeps: the memory of large results, and tables of cos and sin.

Most of the time of an op on a CPU is not the op: new memory costs a fault per 4 KiB. `apply(..., out=...)` and `apply_`
need neither `set_output_pool` nor `tune_malloc`: they write where you say.
"""

import ctypes

from . import _kept, _shared_tables
from ._numbers import shown
from ._torch.library import native
from .errors import ArgumentError, ArgumentTypeError


def set_output_pool(max_bytes):
    """Keep the memory of results for the next results: `apply` then writes where pages exist already.

    max_bytes: int, the most that is kept of what has been freed; 0 (the state at the start) ends it and frees all. For
        results on the CPU of at least 1 MiB each, in this process, of all threads. A result's memory comes back when
        the last tensor that shares it is gone. Results from the pool cannot be enlarged by resize_.

    Raises TypeError or ValueError if max_bytes is not an int >= 0.
    """
    _check_bytes(max_bytes)
    native.rope_ext_set_output_pool(ctypes.c_int64(max_bytes))


def set_table_limit(max_bytes):
    """Bound the tables that `RotaryEmbedding.tables` keeps for the process, on all devices together.

    max_bytes: int, 256 MiB at the start. Beyond it the tables that were not used for longest are dropped; the last used
        one is kept, however large. Tables in use elsewhere stay valid: dropping one frees its memory when the last
        tensor that shares it is gone. Tables that are constants of compiled graphs are not counted; `clear_tables`
        drops them too.

    Raises TypeError or ValueError if max_bytes is not an int >= 0.
    """
    _check_bytes(max_bytes)
    _shared_tables.set_limit(max_bytes)


def clear_tables():
    """Drop all tables and frequencies that the process keeps; the next calls make them again, with the same bits.

    Tables that a captured CUDA graph or a graph of torch.compile reads stay.
    """
    _kept.clear()


def _check_bytes(max_bytes):
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise ArgumentTypeError("max_bytes", "be an int", shown(max_bytes))
    if not 0 <= max_bytes < 2**63:
        raise ArgumentError("max_bytes", "be at least 0 and below 2**63", shown(max_bytes))


def tune_malloc():
    """Make the C library keep freed memory, for all tensors of this process: PyTorch's, yours and ours.

    glibc hands tensors above 32 MiB, and often smaller ones, back to the system when they are freed, and gets new pages
    for the next ones. This is what turns that off, for good:
        mallopt(M_MMAP_THRESHOLD, 1 << 30); mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    The process then stays as large as it has ever been, and may grow by a few of its largest tensors until freed pieces
    fit. Call it before the first large tensor is made.

    Returns whether the C library did it (glibc; others have no mallopt, or ignore it: False).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_mmap_threshold, m_trim_threshold = -3, -1  # <malloc.h>
    return mallopt is not None and all(
        [mallopt(m_mmap_threshold, 1 << 30) == 1, mallopt(m_trim_threshold, 2**31 - 1) == 1]
    )
