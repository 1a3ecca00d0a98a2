"""The ops on fake and meta tensors: shapes, strides and devices only, for torch.compile and torch.export."""

import torch
from torch.utils._pytree import tree_leaves

from .ops import layout_of


def _same_device(x, *others):
    for t in (*x[1:], *tree_leaves(others)):
        if isinstance(t, torch.Tensor) and t.device != x[0].device:
            raise ValueError(f"rope_ext: all tensors must be on the device of x, {x[0].device}, got {t.device}")


def _fake_rotate(x, *rest):
    _same_device(x, *rest)
    return [torch.empty_like(t) for t in x]


def _fake_rows(
    x,
    cos,
    sin,
    offset=0,
    flags=0,
    rotary_dim=None,
    rotary_offset=0,
    attention_scaling=1.0,
    positions=None,
    offsets=None,
    cu_seqlens=None,
):
    axes = layout_of(flags)
    seqlen = x[0].shape[axes.index("t" if "t" in axes else "s")]
    per_batch = offsets is not None or (positions is not None and positions.dim() == 2 and positions.shape[0] != 1)
    batch = x[0].shape[axes.index("b")] if per_batch and "b" in axes else 1
    return cos.new_empty((batch, seqlen), dtype=torch.int64)


torch.library.register_fake("rope_ext::rotate", _fake_rotate)
torch.library.register_fake("rope_ext::rotate_", _same_device)
torch.library.register_fake("rope_ext::check_in_place", _same_device)
torch.library.register_fake("rope_ext::rotate_out", lambda out, x, *rest: _same_device(x, out, *rest))
torch.library.register_fake(
    "rope_ext::table_grad", lambda grad, x, cos, *rest: (torch.empty_like(cos), torch.empty_like(cos))
)
torch.library.register_fake("rope_ext::table_rows", _fake_rows)


@torch.library.register_fake("rope_ext::cos_sin")
def _fake_cos_sin(positions, high, low, attention_scaling=1.0):
    return tuple(high.new_empty((positions.shape[1], *high.shape[1:])) for _ in range(2))
