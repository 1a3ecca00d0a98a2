"""The ops on fake and meta tensors: shapes, strides and devices only, for torch.compile and torch.export.

On real tensors these functions allocate what the op allocates, with the errors of torch (errors.py).
"""

import torch

from ..errors import ArgumentError
from . import errors
from .autograd import layout_of
from .flags import FREQUENCIES

# The arguments after x; of those that are no tensors the name does not matter.
_NAMES = ("cos", "sin", "offset", "flags", *["number"] * 3, "positions", "offset", "cu_seqlens")
_NAMES_WITH_FREQUENCIES = ("inv_freq", "inv_freq", *_NAMES[2:])


def _same_device(x, *rest, out=(), **named):
    if not x:
        raise ArgumentError("x", "hold 1 to 8 tensors", "0")
    names = _NAMES_WITH_FREQUENCIES if len(rest) > 3 and rest[3] & FREQUENCIES else _NAMES
    given = [*(("every tensor of x", t) for t in x), *(("out", t) for t in out), *zip(names, rest), *named.items()]
    for name, t in given:
        if isinstance(t, torch.Tensor) and t.device != x[0].device:
            raise ArgumentError(name, f"be on the device of x, {x[0].device}", t.device)


def _fake_rotate(x, *rest):
    _same_device(x, *rest)
    return [torch.empty_like(t) for t in x]


def _batch_and_seqlen(
    x,
    offset=0,
    flags=0,
    rotary_dim=None,
    rotary_offset=0,
    attention_scaling=1.0,
    positions=None,
    offsets=None,
    cu_seqlens=None,
):
    """Of a row or a position per token: batch is 1 where all sequences have the same."""
    axes = layout_of(flags)
    seqlen = x[0].shape[axes.index("t" if "t" in axes else "s")]
    if "b" in axes and positions is not None and positions.dim() > 1 and positions.shape[-2] != 1:
        return x[0].shape[axes.index("b")], seqlen
    return (offsets.shape[0] if offsets is not None and offsets.dim() else 1), seqlen


def _fake_rows(x, cos, sin, *rest, **named):
    _same_device(x, cos, sin, *rest, **named)
    return cos.new_empty(_batch_and_seqlen(x, *rest, **named), dtype=torch.int64)


def _fake_cos_sin(x, high, low, *rest, **named):
    _same_device(x, high, low, *rest, **named)
    sizes = _batch_and_seqlen(x, *rest, **named)
    cos, sin = (high.new_empty((*sizes, *high.shape[1:])) for _ in range(2))
    return cos, sin, high.new_empty((high.shape[0], *sizes))


_FAKES = {
    "rotate": _fake_rotate,
    "rotate_": _same_device,
    "check_in_place": _same_device,
    "rotate_out": lambda out, x, *rest: _same_device(x, *rest, out=out),
    "table_grad": lambda grad, x, cos, *rest: (torch.empty_like(cos), torch.empty_like(cos)),
    "table_rows": _fake_rows,
    "cos_sin": _fake_cos_sin,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"rope_ext::{_name}", _fake)

# A recorded rotate_ makes its result in a temporary.
errors.allocators.update(_FAKES, rotate_=_fake_rotate)
