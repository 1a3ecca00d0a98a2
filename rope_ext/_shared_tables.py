"""Tables of cos and sin that a whole process shares: built once, grown, never changed.

What may not be shared is not put here: values of a trace (fake, meta, functorch), of inference mode, of a graph's pool.
"""

from collections import OrderedDict

import torch

from ._kept import lock
from ._torch.private import is_wrapped, version_of

MOST = 32  # tables that are kept, the last used ones

_lock = lock()
_tables = OrderedDict()
_read_by_graphs = []  # a captured CUDA graph reads its addresses for as long as the process lives


class _Table:
    def __init__(self, cos, sin):
        self.cos, self.sin, self.stream = cos, sin, None
        self.versions = version_of(cos), version_of(sin)
        if cos.is_cuda:  # another stream may read it next
            self.stream = torch.cuda.current_stream(cos.device)
            self.stream.synchronize()

    def is_untouched(self):
        """False after somebody wrote into what `rows` returned, in place."""
        return (version_of(self.cos), version_of(self.sin)) == self.versions

    def rows(self, count):
        if self.stream is not None and (stream := torch.cuda.current_stream(self.cos.device)) != self.stream:
            self.cos.record_stream(stream)  # should the table be dropped before that stream has read it
            self.sin.record_stream(stream)
        return self.cos[:count], self.sin[:count]


def may_share(device):
    """Whether a tensor made now is an ordinary one, that can outlive the call."""
    if torch.compiler.is_compiling() or device.type == "meta":
        return False
    made = torch.empty(0, device=device)
    return type(made) is torch.Tensor and not is_wrapped(made)


def rows(key, count, device, build):
    """Rows 0 to count - 1 of the table of key: (cos, sin), slices that must not be written into.

    build(start, stop): (cos, sin) of these rows on device. A table that is too short is grown at least twofold; the
    rows it had are copied, so that they keep their bits.
    """
    with _lock, torch.inference_mode(False):
        table = _tables.pop(key, None)
        if table is not None and not table.is_untouched():
            table = None
        length = 0 if table is None else len(table.cos)
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if table is None or length < count:
            if capturing:
                raise RuntimeError(
                    "rope_ext: tables must be built before a CUDA graph is captured, by a call with the same "
                    f"arguments, got {length} of {count} positions"
                )
            new = build(length, max(count, 2 * length))
            table = _Table(*(new if table is None else map(torch.cat, zip((table.cos, table.sin), new))))
        if capturing and table not in _read_by_graphs:
            _read_by_graphs.append(table)
        _tables[key] = table
        while len(_tables) > MOST:
            _tables.popitem(last=False)
        return table.rows(count)
