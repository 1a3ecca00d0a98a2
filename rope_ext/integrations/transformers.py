"""Dialects of the rotary functions of Hugging Face transformers (5.23), and of remote code that copied them.

Most are one function with options: see `_turn`. Source of all: transformers/models/*/modeling_*.py.
"""

import torch

from ..compat._broadcast import rotate
from ..ops import apply
from ._dialect import Dialect

_LAYOUTS = {1: "bhsd", 2: "bshd"}  # of states whose tables get an axis of size 1 there


def _turn(
    states,
    cos,
    sin,
    rounding,
    axis=None,
    *,
    result="promoted",
    partial=None,
    by_pair=False,
    first_half=False,
    **pairing,
):
    """The states, a tuple of tensors, turned by cos and sin, which broadcast to them after unsqueeze(axis).

    result: "promoted": the dtype of x * cos. "kept": that, cast to the dtype of x. "float32": arithmetic in float32,
        cast to the dtype of x.
    partial: "leading" or "trailing": the table may have fewer channels than x.
    by_pair: a table has an entry per pair. first_half: it has one per channel, of which only the first half is read.
    pairing: interleaved, out_interleaved and inverse of `rope_ext.apply`.

    Raises ValueError for what eager code would refuse or do in another way: the caller then asks that.
    """
    if first_half:
        cos, sin, by_pair = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2], True
    x, dtype = states[0], states[0].dtype
    rotary_dim = cos.shape[-1] * (2 if by_pair else 1)
    head_dim = x.shape[-1]
    if rotary_dim > head_dim or (partial is None and rotary_dim != head_dim):
        raise ValueError(f"rope_ext: cos must be as wide as x, got {rotary_dim} and {head_dim} channels")
    if result == "float32":
        if torch.float64 in (dtype, cos.dtype):
            raise ValueError("rope_ext: x and cos must not be float64 where arithmetic is float32")
        cos, sin = cos.float(), sin.float()
    if any(t.dtype != dtype for t in states):
        raise ValueError("rope_ext: states must have one dtype")
    options = {"rounding": rounding, **pairing}
    if rotary_dim != head_dim:
        options["rotary_dim"] = rotary_dim
        options["rotary_offset"] = head_dim - rotary_dim if partial == "trailing" else 0
    keep = result != "promoted"
    direct = cos.dtype == dtype or (keep and cos.dtype == torch.float32 and dtype != torch.float64)
    if direct and cos.dim() == 3 and axis in _LAYOUTS and all(t.dim() == 4 for t in states):  # a third of the time
        if cos.shape[1] == x.shape[3 - axis]:
            return apply(states, cos, sin, layout=_LAYOUTS[axis], **options)
    if axis is not None:
        cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
    return rotate(states, cos, sin, keep_dtype=keep, **options)


# ---- adapters, by the arguments of the functions that they replace ----


def _q_k(**how):
    def adapter(original, rounding, q, k, cos, sin, unsqueeze_dim=1):
        return _turn((q, k), cos, sin, rounding, unsqueeze_dim, **how)

    return adapter


# ---- examples ----


def _tensors(seed, dtype, table_dtype):
    """Two functions that make random tensors of a shape: states and tables."""
    generator = torch.Generator().manual_seed(seed)

    def states(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    def tables(*shape):  # no rotation: cos and sin are unrelated, and so are the entries of a pair
        return torch.randn(shape, generator=generator).to(table_dtype), torch.randn(shape, generator=generator).to(
            table_dtype
        )

    return states, tables


def _table_dtypes(dtype):
    return dict.fromkeys((dtype, torch.float32, torch.bfloat16))


def _q_k_examples(widths=(8,), head_dim=8):
    """Calls f(q, k, cos, sin) and f(q, k, cos, sin, unsqueeze_dim=2) with tables of these widths."""

    def examples(seed, dtype):
        calls = []
        for table_dtype in _table_dtypes(dtype):
            states, tables = _tensors(seed, dtype, table_dtype)
            for width in widths:
                q, k = states(2, 5, 4, head_dim).transpose(1, 2), states(2, 5, 2, head_dim).transpose(1, 2)
                calls.append(((q, k, *tables(2, 5, width)), {}))
                calls.append(((q, k, *tables(1, 5, width)), {"unsqueeze_dim": 1}))
                calls.append(((states(2, 3, 4, head_dim), states(2, 3, 1, head_dim), *tables(2, 3, width), 2), {}))
        return calls

    return examples


DIALECTS = [
    Dialect("transformers.llama", _q_k(), _q_k_examples()),
]
