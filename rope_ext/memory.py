"""What the process keeps: memory for large results, and tables of cos and sin.

On a CPU, allocating new memory for a large result takes longer than the rotation: each 4 KiB page costs a page fault.
`rope_ext.apply` with out=... and `rope_ext.apply_` need neither `set_output_pool` nor `tune_malloc`, since they write
to given memory. docs/memory.md says what each costs, and why the pool is off by default.
"""

import ctypes

from . import _kept, _shared_tables
from ._shown import shown
from ._torch.library import native
from .errors import ArgumentError, ArgumentTypeError

__all__ = ["clear_tables", "set_output_pool", "set_table_limit", "tune_malloc"]


def set_output_pool(max_bytes: int) -> None:
    """Keep the memory of freed results for later ones: `rope_ext.apply` then writes to pages that are already mapped.

    The pool serves results on the CPU of at least 1 MiB each, for all threads of the process. The memory of a result
    returns to the pool when the last tensor that shares it is freed. Results from the pool cannot be enlarged by
    `resize_`, their storage cannot be emptied, and torch.profiler does not count their memory.

    Args:
        max_bytes: upper bound of the freed memory that is kept. 0, the initial value, ends the pool and frees all of
            it.

    Raises:
        ArgumentError: max_bytes is negative or beyond 64 bits.
        ArgumentTypeError: max_bytes is not an int.
    """
    _check_bytes(max_bytes)
    native.rope_ext_set_output_pool(ctypes.c_int64(max_bytes))


def set_table_limit(max_bytes: int) -> None:
    """Limit the memory of the tables that `RotaryEmbedding.tables` keeps, on all devices together.

    Above the limit the least recently used tables are dropped, but never the most recently used one, however large.
    Dropped tables that are still in use stay valid: the memory is freed when the last tensor that shares it is gone.
    Tables that are constants of compiled graphs do not count.

    Args:
        max_bytes: the limit, initially 256 MiB.

    Raises:
        ArgumentError: max_bytes is negative or beyond 64 bits.
        ArgumentTypeError: max_bytes is not an int.
    """
    _check_bytes(max_bytes)
    _shared_tables.set_limit(max_bytes)


def clear_tables() -> None:
    """Drop all tables and frequencies that the process keeps; later calls rebuild them, bit-identical.

    Tables that are read by a captured CUDA graph or by a graph of torch.compile are kept.
    """
    _kept.clear()


def _check_bytes(max_bytes: object) -> None:
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise ArgumentTypeError("max_bytes", "be an int", shown(max_bytes))
    if not 0 <= max_bytes < 2**63:
        raise ArgumentError("max_bytes", "be at least 0 and below 2**63", shown(max_bytes))


def tune_malloc() -> bool:
    """Make the C library keep freed memory, for all tensors of the process, those of PyTorch included.

    glibc returns tensors above 32 MiB, and often smaller ones, to the system when they are freed, and gets new pages
    for the next tensors. `tune_malloc` disables that for the lifetime of the process. Call it before the first large
    tensor is created. The process then never shrinks, and may grow by a few of its largest tensors until freed blocks
    fit.

    Returns:
        Whether the C library accepted it; False if it is not glibc and has no mallopt or ignores it.

    Equivalent to, in C::

        mallopt(M_MMAP_THRESHOLD, 1 << 30);
        mallopt(M_TRIM_THRESHOLD, 2147483647);    // 2^31 - 1
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    m_mmap_threshold, m_trim_threshold = -3, -1  # <malloc.h>
    return mallopt is not None and all(
        [mallopt(m_mmap_threshold, 1 << 30) == 1, mallopt(m_trim_threshold, 2**31 - 1) == 1]
    )
