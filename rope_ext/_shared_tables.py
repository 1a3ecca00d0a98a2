"""Tables of cos and sin that the whole process shares: built once, grown, never modified."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

import torch

from . import _kept
from ._torch.private import dispatch_modes, from_dlpack, functorch_is_active, is_tracing, to_dlpack, version_of

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # (cos, sin)
Key: TypeAlias = tuple[object, ...]

_lock = _kept.lock()
_tables: OrderedDict[Key, "_Table"] = OrderedDict()  # the most recently used last
_limit = 256 << 20  # bytes


class _Table:
    """One table. stream: the CUDA stream on which it was computed; None on other devices."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.cos, self.sin = cos, sin
        self.stream: torch.cuda.Stream | None = None
        self.versions = [version_of(cos), version_of(sin)]
        # Read now, since a jit trace would record the operations later.
        self.length, self.nbytes = len(cos), cos.nbytes + sin.nbytes
        if cos.is_cuda:  # another stream may be the next to read it
            self.stream = torch.cuda.current_stream(cos.device)
            self.stream.synchronize()

    def is_untouched(self) -> bool:
        """False after an in-place write to a result of `rows`."""
        return self.versions == [version_of(self.cos), version_of(self.sin)]

    def rows(self, count: int) -> Pair:
        """The first count rows, as views."""
        if self.stream is not None and (stream := torch.cuda.current_stream(self.cos.device)) != self.stream:
            self.cos.record_stream(stream)  # the table may be dropped before this stream has read it
            self.sin.record_stream(stream)
        rows = self.cos[:count], self.sin[:count]
        if count < self.length and _may_set_storage(self.cos.device):
            for t in rows:
                _end_storage(t)
        return rows


def _may_set_storage(device: torch.device) -> bool:
    """Whether nothing records or transforms the operations of `_end_storage`."""
    recorded = dispatch_modes() or functorch_is_active() or is_tracing()
    return not recorded and device.type in ("cpu", "cuda")


def _end_storage(rows: torch.Tensor) -> None:
    """Give rows, the first rows of a table, a storage that ends with them, in the same memory.

    torch.save and copy.deepcopy write the whole storage of a tensor. The storage of a tensor from DLPack ends with the
    tensor and keeps the exported tensor alive: a detached one here, since rows would keep themselves alive. Unlike
    `__dlpack__`, `to_dlpack` accepts tensors of a GPU that is not the current one. An assignment to `data` keeps the
    version counter of the table (see `is_untouched`) and does not count as a write; `set_` would, and autograd would
    then refuse what it has saved of the table.
    """
    rows.data = from_dlpack(to_dlpack(rows.detach()))


def rows(key: Key, count: int, device: torch.device, build: Callable[[int, int], Pair]) -> Pair:
    """Rows 0 to count - 1 of the table of key: (cos, sin), views that must not be written to.

    build(start, stop): (cos, sin) of rows start to stop - 1, on device. A table that is too short grows at least
    twofold; its previous rows are copied, and so stay bit-identical.
    """
    with _lock, torch.inference_mode(False):
        table = _tables.get(key)
        if table is not None and not table.is_untouched():
            table = None
        length = 0 if table is None else table.length
        capturing = _kept.is_capturing(device)
        if table is None or length < count:
            if capturing:
                raise RuntimeError(
                    "rope_ext: tables must be built before a CUDA graph is captured, "
                    f"got {length} of {count} positions: make the same call before the capture"
                )
            table = _kept.made_apart(_grown, table, build, max(count, 2 * length))
            _put_last(key, table)
            _drop_beyond_limit()
        else:
            _put_last(key, table)
        if capturing:
            _kept.keep_for_graph(table)
        return table.rows(count)


def _grown(table: _Table | None, build: Callable[[int, int], Pair], count: int) -> _Table:
    if table is None:
        return _Table(*build(0, count))
    cos, sin = build(table.length, count)
    return _Table(torch.cat((table.cos, cos)), torch.cat((table.sin, sin)))


def _put_last(key: Key, table: _Table) -> None:
    """Make table the most recently used, even if a signal handler, which no lock excludes, has cleared the tables."""
    _tables.pop(key, None)
    _tables[key] = table


def _drop_beyond_limit() -> None:
    """Drop the least recently used tables. The most recently used table stays, however large."""
    total = sum(table.nbytes for table in list(_tables.values()))
    while total > _limit and len(_tables) > 1:
        total -= _tables.popitem(last=False)[1].nbytes


def set_limit(nbytes: int) -> None:
    """Limit the tables that are kept to nbytes, on all devices together."""
    global _limit
    with _lock:
        _limit = nbytes
        _drop_beyond_limit()


@_kept.clears
def clear() -> None:
    with _lock:
        _tables.clear()
