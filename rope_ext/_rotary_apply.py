"""`rope.apply`: precision "exact" uses cached frequencies in revolutions per position, "hf" tables for each call."""

from typing import Any, TypeAlias

import torch
from torch.compiler import is_compiling

from . import _kept
from ._call_errors import not_tensors
from ._norm_arguments import with_norm
from ._options import RopeOptions
from ._positions import with_offset
from ._rotary_checks import check_heads
from ._rotary_frequencies import Recipe, Seqlen, frequencies_of_recipe, read
from ._rotary_tables import tables_at
from ._torch.flags import FREQUENCIES
from ._torch.norm import dispatch as dispatch_norm
from ._torch.private import dispatch_modes, has_static_value
from .angles import Revolutions, revolutions
from .errors import ArgumentError
from .ops import apply, arguments_of, call_op, flags_of
from .reference import LAYOUTS

Rope: TypeAlias = tuple[Recipe, Seqlen, int, int]  # recipe, seqlen of the frequencies, head_dim, rotary_dim
Scaled: TypeAlias = tuple[Revolutions, float]  # (revolutions per position, attention_scaling)
_ZERO = 0  # the default of rotary_offset, compared by identity, which is fastest


def rotate_exactly(rope: Rope, x: Any, positions: Any, offset: Any, rotary_offset: Any, options: RopeOptions) -> Any:
    """`rope.apply` with precision "exact"; bypasses `rope_ext.apply`, whose keywords would take a sixth of the time."""
    recipe, seqlen, head_dim, rotary_dim = rope
    tensors = x if type(x) is tuple or isinstance(x, (tuple, list)) else [x]
    first = tensors[0] if tensors else None
    if not isinstance(first, torch.Tensor):
        raise not_tensors("x", x)
    dtype = torch.float64 if first.dtype is torch.float64 else torch.float32
    in_graph = is_compiling()
    if in_graph:
        made = revolutions_in_graph(recipe, seqlen, dtype, first.device)
    elif first.is_cpu and not dispatch_modes():  # equals `kept_revolutions`, without its checks
        made = _made(recipe, seqlen, dtype, _kept.CPU)
    else:
        made = kept_revolutions(recipe, seqlen, dtype, first.device)
    (high, low, _per_axis), scaling = made
    flags = FREQUENCIES
    cu_seqlens = out = norm = eps = None
    is_part = rotary_offset is not _ZERO and rotary_offset != 0  # then heads of any size are accepted
    if options:
        given: dict[str, Any] = {**options}
        cu_seqlens, out = given.pop("cu_seqlens", None), given.pop("out", None)
        norm, eps = given.pop("norm", None), given.pop("eps", None)
        is_part = given.pop("rotary_dim", None) is not None or is_part
        flags |= flags_of(**given)
    is_whole = rotary_dim == head_dim and not is_part and not in_graph
    if not is_whole and not is_part:
        check_heads(tensors, head_dim, rotary_dim)
    passed_dim = None if is_whole else rotary_dim
    tables = tensors, high, low
    arguments = arguments_of(tables, offset, flags, passed_dim, rotary_offset, scaling, positions, cu_seqlens)
    try:
        if norm is not None or eps is not None:
            return call_op(with_norm(arguments, norm, eps), x, out, dispatch_norm)
        return call_op(arguments, x, out)
    except Exception:
        if is_whole:  # the op's error would be about its own arguments
            check_heads(tensors, head_dim, rotary_dim)
        raise


def kept_revolutions(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    """(revolutions per position on device, attention_scaling), cached if the caller can use ordinary tensors."""
    if not _kept.takes_ordinary(device):
        return _make(recipe, seqlen, dtype, device)
    made = _made(recipe, seqlen, dtype, device)
    if _kept.is_capturing(device):
        _kept.keep_for_graph(made)
    return made


def revolutions_in_graph(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    """`kept_revolutions`, in torch.compile and torch.export."""
    if not has_static_value(seqlen):
        return _make(recipe, seqlen, dtype, device)
    name = _revolutions_of_graphs(recipe, seqlen, dtype, device)
    high, low, per_axis, attention_scaling = getattr(_kept.in_graphs, name)
    return Revolutions(high, low, per_axis), read(attention_scaling)


def _make(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    inv_freq, attention_scaling = frequencies_of_recipe(recipe, seqlen)
    high, low, per_axis = revolutions(inv_freq, dtype)
    scaling = 1 if attention_scaling == 1 else attention_scaling  # the int 1, the default of `apply`, costs nothing
    return Revolutions(high.to(device), low.to(device), per_axis), scaling


@_kept.kept
def _made(recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device) -> Scaled:
    made = _make(recipe, seqlen, dtype, device)
    if device.type == "cuda":  # another stream may be the next to read it
        torch.cuda.current_stream(device).synchronize()
    return made


@_kept.named
def _revolutions_of_graphs(
    recipe: Recipe, seqlen: Seqlen, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, bool, str]:
    (high, low, per_axis), scaling = _made(recipe, seqlen, dtype, device)
    return high, low, per_axis, repr(scaling)


def rotate_as_hf(rope: Rope, x: Any, positions: Any, offset: Any, rotary_offset: Any, options: RopeOptions) -> Any:
    """`rope.apply` with precision "hf": cos and sin have a row per token, (batch or 1, seqlen, rotary_dim / 2)."""
    recipe, seqlen, head_dim, rotary_dim = rope
    tensors = x if isinstance(x, (tuple, list)) else [x]
    if rotary_offset == 0 and options.get("rotary_dim") is None:
        check_heads(tensors, head_dim, rotary_dim)
    passed: dict[str, Any] = {"per_channel": False, **options, "rotary_offset": rotary_offset, "rotary_dim": rotary_dim}
    found = frequencies_of_recipe(recipe, seqlen)
    first = tensors[0] if tensors else None
    if not isinstance(first, torch.Tensor):
        return apply(x, inv_freq=found.inv_freq, **passed)  # raises
    if options.get("cu_seqlens") is not None:
        raise ArgumentError("cu_seqlens", "be None with precision 'hf'", "a Tensor")
    layout = options.get("layout", "bshd")
    if not isinstance(layout, str) or layout not in LAYOUTS or first.dim() != len(layout):
        return apply(x, inv_freq=found.inv_freq, **passed)  # raises
    axes = len(found.inv_freq) if found.inv_freq.dim() == 3 else None
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    cos, sin = tables_at(with_offset(first, layout, axes, positions, offset), found, dtype)
    if cos.dim() < 3:
        cos, sin = cos[None], sin[None]
    return apply(x, cos, sin, **passed)
