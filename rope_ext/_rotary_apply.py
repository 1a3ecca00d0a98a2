"""What `rope.apply` passes to `rope_ext.apply`: at precision "exact" frequencies in revolutions per position, made once
and kept; at "hf" tables of the positions of the call.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch.compiler import is_compiling

from . import _kept
from ._positions import with_offset
from ._rotary_frequencies import Recipe, Seqlen, frequencies_of_recipe, read
from ._rotary_tables import Tables, tables_at
from ._torch.private import dispatch_modes, has_static_value
from .angles import Revolutions, revolutions
from .errors import ArgumentError
from .ops import apply
from .reference import LAYOUTS

Scaled: TypeAlias = tuple[Revolutions, float]  # (revolutions per position, attention_scaling)


def kept_revolutions(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    """(revolutions per position on device, attention_scaling): kept, if the caller can use ordinary tensors."""
    if is_compiling():
        if not has_static_value(seqlen):
            return _make(recipe, seqlen, dtype, device)
        name = _revolutions_of_graphs(recipe, seqlen, dtype, device)
        high, low, per_axis, attention_scaling = getattr(_kept.in_graphs, name)
        return Revolutions(high, low, per_axis), read(attention_scaling)
    if device == _kept.CPU and not dispatch_modes():  # both checks below in one, since every call comes here
        return _made(recipe, seqlen, dtype, device)
    if not _kept.takes_ordinary(device):
        return _make(recipe, seqlen, dtype, device)
    made = _made(recipe, seqlen, dtype, device)
    if _kept.is_capturing(device):
        _kept.keep_for_graph(made)
    return made


def _make(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    inv_freq, attention_scaling = frequencies_of_recipe(recipe, seqlen)
    high, low, per_axis = revolutions(inv_freq, dtype)
    return Revolutions(high.to(device), low.to(device), per_axis), attention_scaling


@_kept.kept
def _made(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    made = _make(recipe, seqlen, dtype, device)
    if device.type == "cuda":  # another stream may read it next
        torch.cuda.current_stream(device).synchronize()
    return made


@_kept.named
def _revolutions_of_graphs(
    recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, bool, str]:
    (high, low, per_axis), scaling = _made(recipe, seqlen, dtype, device)
    return high, low, per_axis, repr(scaling)


def tables_for(
    recipe: Recipe,
    seqlen: Seqlen,
    x: Any,
    first: torch.Tensor,
    positions: torch.Tensor | None,
    offset: int | torch.Tensor,
    options: Mapping[str, Any],
) -> Tables:
    """(cos, sin) with a row per token, each (batch or 1, seqlen, rotary_dim / 2). first: the first tensor of x."""
    if options.get("cu_seqlens") is not None:
        raise ArgumentError("cu_seqlens", "be None with precision 'hf'", "a Tensor")
    found = frequencies_of_recipe(recipe, seqlen)
    layout = options.get("layout", "bshd")
    if not isinstance(layout, str) or layout not in LAYOUTS or first.dim() != len(layout):
        apply(x, inv_freq=found.inv_freq, **options)  # raises
    axes = len(found.inv_freq) if found.inv_freq.dim() == 3 else None
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    cos, sin = tables_at(with_offset(first, layout, axes, positions, offset), found, dtype)
    return (cos, sin) if cos.dim() == 3 else (cos[None], sin[None])
