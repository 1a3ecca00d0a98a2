"""Tables of cos and sin that a whole process shares: built once, grown, never changed."""

from collections import OrderedDict

import torch
from torch.utils.dlpack import to_dlpack

from . import _kept
from ._torch.private import dispatch_modes, functorch_is_active, version_of

_lock = _kept.lock()
_tables = OrderedDict()  # the last used one last
_limit = 256 << 20  # bytes


class _Table:
    def __init__(self, cos, sin):
        self.cos, self.sin, self.stream = cos, sin, None
        self.versions = [version_of(cos), version_of(sin)]
        # Numbers now: a jit trace would record the question.
        self.length, self.nbytes = len(cos), cos.nbytes + sin.nbytes
        if cos.is_cuda:  # another stream may read it next
            self.stream = torch.cuda.current_stream(cos.device)
            self.stream.synchronize()

    def is_untouched(self):
        """False after somebody wrote into what `rows` returned, in place."""
        return [version_of(self.cos), version_of(self.sin)] == self.versions

    def rows(self, count):
        if self.stream is not None and (stream := torch.cuda.current_stream(self.cos.device)) != self.stream:
            self.cos.record_stream(stream)  # should the table be dropped before that stream has read it
            self.sin.record_stream(stream)
        rows = self.cos[:count], self.sin[:count]
        if count < self.length and _may_set_storage(self.cos.device):
            for t in rows:
                _end_storage(t)
        return rows


def _may_set_storage(device):
    """Whether `_end_storage` does no more than it says: nobody records or transforms it."""
    recorded = dispatch_modes() or functorch_is_active() or torch.jit.is_tracing()
    return not recorded and device.type in ("cpu", "cuda")


def _end_storage(rows):
    """Gives rows, the first ones of a table, a storage that ends with them, in the memory that they have.

    torch.save and copy.deepcopy write the whole storage of a tensor. The storage of a tensor from DLPack ends with it,
    and keeps the tensor that went there: a detached one, since rows would then keep themselves. `to_dlpack`, unlike
    `__dlpack__`, takes tensors of a GPU that is not the current one. Assigned to `data` the storage leaves rows the
    version counter of the table (see `is_untouched`), and is no write, as `set_` would be, after which autograd
    refuses what it has saved of the table.
    """
    rows.data = torch.from_dlpack(to_dlpack(rows.detach()))


def rows(key, count, device, build):
    """Rows 0 to count - 1 of the table of key: (cos, sin), slices that must not be written into.

    build(start, stop): (cos, sin) of these rows on device. A table that is too short is grown at least twofold; the
    rows it had are copied, so that they keep their bits.
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
                    "rope_ext: tables must be built before a CUDA graph is captured, by a call with the same "
                    f"arguments, got {length} of {count} positions"
                )
            table = _kept.made_apart(_grown, table, build, max(count, 2 * length))
            _put_last(key, table)
            _drop_beyond_limit()
        else:
            _put_last(key, table)
        if capturing:
            _kept.keep_for_graph(table)
        return table.rows(count)


def _grown(table, build, count):
    if table is None:
        return _Table(*build(0, count))
    return _Table(*map(torch.cat, zip((table.cos, table.sin), build(table.length, count))))


def _put_last(key, table):
    """Also where a signal handler, which no lock keeps out, has cleared the tables since table was found."""
    _tables.pop(key, None)
    _tables[key] = table


def _drop_beyond_limit():
    """Drops the tables that were not used for longest. The last used one stays, however large."""
    total = sum(table.nbytes for table in list(_tables.values()))
    while total > _limit and len(_tables) > 1:
        total -= _tables.popitem(last=False)[1].nbytes


def set_limit(nbytes):
    global _limit
    with _lock:
        _limit = nbytes
        _drop_beyond_limit()


@_kept.clears
def clear():
    with _lock:
        _tables.clear()
