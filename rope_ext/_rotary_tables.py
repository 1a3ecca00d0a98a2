"""cos and sin of a RotaryEmbedding: for any positions, and as tables shared by the process."""

import warnings
from typing import TypeAlias

import torch

from . import _kept, _shared_tables
from ._float64 import may_lack_float64, widest
from ._numbers import floating_point
from ._rotary_frequencies import Recipe, Seqlen, frequencies_of_recipe
from ._torch.private import constant_in_graphs, has_static_value, is_exporting
from .angles import cos_sin
from .errors import ArgumentError
from .frequencies import Frequencies

Tables: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # (cos, sin)
_FEWEST_ROWS = 4096  # minimum rows of a table in a compiled graph with a symbolic number of rows


def tables_at(positions: torch.Tensor, found: Frequencies, dtype: torch.dtype) -> Tables:
    """cos and sin of any positions, on their device.

    float64 frequencies: exact angles, rounded once. float32 frequencies: operation by operation as in transformers.
    """
    floating_point(dtype)
    inv_freq, attention_scaling = found
    per_axis = inv_freq.dim() == 3 and positions.dim() >= 3
    if per_axis and (len(positions) != len(inv_freq) or positions.dim() > 3):
        shape = tuple(positions.shape)
        raise ArgumentError("positions", f"be (axes = {len(inv_freq)}, batch, seqlen)", shape)
    if inv_freq.dim() == 3 and not per_axis:  # equal positions on all axes, of which a pair follows one
        inv_freq = inv_freq.sum(0)[0]
    if inv_freq.dtype == torch.float64:
        device = positions.device
        if may_lack_float64(device):
            cos, sin = tables_at(positions.cpu(), found, dtype)
            return cos.to(device), sin.to(device)
        positions = positions.to(widest(device)) if positions.is_floating_point() else positions
        inv_freq = inv_freq.to(device, widest(device))
        cos, sin = cos_sin(positions, inv_freq, attention_scaling, dtype=widest(device))
        return cos.to(dtype), sin.to(dtype)
    # Elementwise, never a matmul: TF32 and autocast would round the positions.
    inv_freq, positions = inv_freq.to(positions.device), positions.to(torch.float32).unsqueeze(-1)
    if per_axis:
        angles = sum((p * f[0] for p, f in zip(positions, inv_freq)), positions.new_zeros(()))
    else:
        angles = positions * inv_freq
    return (angles.cos() * attention_scaling).to(dtype), (angles.sin() * attention_scaling).to(dtype)


def kept_frequencies(recipe: Recipe) -> Frequencies:
    """The frequencies up to the training length, shared. Do not pass them to users, who could write to them."""
    return _frequencies_with_key(recipe, None)[0]


def rows(found: Frequencies, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """Rows start to stop - 1 of the table of these frequencies."""
    where = "cpu" if found.inv_freq.dtype == torch.float64 and device.type != "meta" else device
    cos, sin = tables_at(torch.arange(start, stop, device=where), found, dtype)
    return cos.to(device), sin.to(device)


def shared(recipe: Recipe, seqlen: Seqlen, max_position: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables shared by the process; recipes with equal frequencies share one."""
    found, key = _frequencies_with_key(recipe, seqlen)
    return _shared_tables.rows(
        (key, dtype, device),
        max_position,
        device,
        lambda start, stop: rows(found, start, stop, dtype, device),
    )


@_kept.kept
def _frequencies_with_key(recipe: Recipe, seqlen: Seqlen) -> tuple[Frequencies, tuple[object, ...]]:
    """(frequencies, a key that is equal for bit-identical frequencies)."""
    found = frequencies_of_recipe(recipe, seqlen)
    inv_freq = found.inv_freq
    in_bytes = bytes(inv_freq.contiguous().view(torch.uint8).flatten().tolist())  # without numpy
    return found, (in_bytes, tuple(inv_freq.shape), inv_freq.dtype, found.attention_scaling)


def in_graph(recipe: Recipe, seqlen: Seqlen, max_position: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables in torch.compile and torch.export: constants of the graph if possible, otherwise computed."""
    count = max_position
    if not has_static_value(max_position) and not is_exporting():
        count = _FEWEST_ROWS
        while count < max_position:  # each comparison adds a guard: a longer sequence recompiles
            count *= 8
    if not has_static_value(count):
        _warn_of_export()
    if not (has_static_value(count) and has_static_value(seqlen)):
        return rows(frequencies_of_recipe(recipe, seqlen), 0, max_position, dtype, device)
    cos, sin = getattr(_kept.in_graphs, _tables_of_graphs(recipe, seqlen, count, dtype, device))
    return (cos, sin) if count is max_position else (cos[:max_position], sin[:max_position])


@_kept.named
def _tables_of_graphs(recipe: Recipe, seqlen: Seqlen, count: int, dtype: torch.dtype, device: torch.device) -> Tables:
    cos, sin = shared(recipe, seqlen, count, dtype, device)
    return cos.clone(), sin.clone()  # a graph would not detect writes to the shared tables


@constant_in_graphs
def _warn_of_export() -> None:
    rule = "be an int in torch.export for tables that are a constant of the program"
    got = "a symbolic length, so that every call of the program computes the tables"
    cure = "pass an int that no length exceeds, or call rope.apply, which needs no table"
    message = f"rope_ext: max_position must {rule}, got {got}: {cure}"
    warnings.warn(message, UserWarning, stacklevel=4)  # the line that called `tables`
