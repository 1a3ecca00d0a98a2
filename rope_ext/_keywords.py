"""Keywords of RotaryEmbedding: which ones a schedule accepts, and what other libraries call them."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import torch

from . import frequencies, ops
from ._shown import shown
from .errors import ArgumentError, ArgumentTypeError
from .frequencies import SCHEDULES


class Parameters(TypedDict, total=False):
    """Keywords of the schedules, as RotaryEmbedding accepts them. Each schedule documents its own."""

    factor: float | None
    alpha: float
    max_position: float | None
    original_max_position: float
    attention_factor: float | list[float] | tuple[float, ...] | None
    beta_fast: float
    beta_slow: float
    truncate: bool
    mscale: float | None
    mscale_all_dim: float | None
    short_factor: Iterable[float] | torch.Tensor
    long_factor: Iterable[float] | torch.Tensor
    low_freq_factor: float
    high_freq_factor: float
    partial_rotary_factor: float
    axes: int
    alternate: bool
    divide: bool
    axis_order: Iterable[int] | torch.Tensor | None


_OWN = ("head_dim", "base", "rotary_dim", "schedule", "pair_axis", "precision")

# keyword -> its names in transformers, flash-attn, vLLM, torchtune, Megatron and llama.cpp
_SYNONYMS = {
    "head_dim": "dim dims dim_head d_head head_size head_dimension",
    "base": "theta rope_theta rope_base rotary_base rotary_emb_base freq_base rope_freq_base rope_freq_constant",
    "rotary_dim": "rot_dim rope_dim rotary_ndims rotary_channels n_rot",
    "schedule": "rope_type type scaling scaling_type rope_scaling_type",
    "factor": "scaling_factor scale_factor rope_factor interpolation_factor interpolate_factor rotary_scaling_factor",
    "max_position": "max_position_embeddings max_positions max_pos max_seq_len max_seq_length max_seqlen max_length "
    "seq_len seq_length context_length n_ctx n_positions",
    "original_max_position": "original_max_position_embeddings original_max_positions original_max_seq_len "
    "old_context_len ori_max_pe_len yarn_orig_ctx",
    "attention_factor": "attn_factor attention_scaling",
    "alpha": "ntk_alpha scaling_alpha",
    "axes": "n_axes num_axes",
}
_MEANT = {name: meant for meant, names in _SYNONYMS.items() for name in names.split()}
# keyword -> where to pass it instead
_ELSEWHERE = {
    "dtype": "to rope(positions, dtype=...) or rope.tables(max_position, dtype=...)",
    "device": "to rope.tables(max_position, device=...)",
    "seqlen": "to rope(positions, seqlen=...), rope.tables or rope.apply",
    "max_position": "to rope.tables(max_position)",
    "mrope_section": "as pair_axis=rope_ext.frequencies.mrope_pair_axis(mrope_section)",
    "scale_base": "to rope_ext.frequencies.xpos_scale(positions, rotary_dim, scale_base=...)",
    **dict.fromkeys(("config", "rope_scaling", "rope_parameters"), "to RotaryEmbedding.from_config(config)"),
    **dict.fromkeys(
        ("interleave", "rotary_interleaved", "is_neox", "is_neox_style"), "to rope.apply(x, interleaved=...)"
    ),
}
_ELSEWHERE |= {
    name: f"to rope.apply(x, {name}=...)"
    for name, parameter in inspect.signature(ops.apply).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("inv_freq", "attention_scaling")
}
_PARTS_OF_HEAD = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_percent", "rotary_emb_fraction")


def check_schedule(schedule: object) -> None:
    """Refuse a schedule that is not in SCHEDULES; the error translates the names of other libraries."""
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        meant = {"dynamic": ["dynamic_ntk"], "su": ["longrope"], "none": ["default"]}.get(str(schedule).lower())
        meant = meant or difflib.get_close_matches(str(schedule).lower(), SCHEDULES, 1)
        raise ArgumentError("schedule", f"be one of {', '.join(SCHEDULES)}", shown(schedule), _is_it(meant))


def check_keywords(schedule: str, parameters: Mapping[str, object]) -> None:
    """Raise an ArgumentTypeError for a keyword that the schedule does not accept, and for one that it lacks."""
    known = _keywords_of(schedule)
    for name in parameters:
        if name not in known:
            raise _unknown(name, parameters[name], schedule)
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in parameters:
            raise ArgumentTypeError(name, f"be given for schedule {schedule!r}", "None")


def no_head_dim(parameters: Mapping[str, object]) -> ArgumentTypeError:
    """The error of a call without head_dim, which may have been passed under the name of another library."""
    for name, value in parameters.items():
        if _MEANT.get(name) == "head_dim":
            return ArgumentTypeError(name, "be given as head_dim", shown(value))
    return ArgumentTypeError("head_dim", "be given", "none", "call RotaryEmbedding(head_dim)")


def _keywords_of(schedule: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(getattr(frequencies, schedule)).parameters
    return {name: p for name, p in parameters.items() if name not in ("rotary_dim", "base", "dtype", "seqlen")}


def _unknown(name: str, value: object, schedule: str) -> ArgumentTypeError:
    """The error of a keyword that the schedule does not accept."""
    own = _keywords_of(schedule)
    meant = _MEANT.get(name, name)
    others = [repr(other) for other in SCHEDULES if meant in _keywords_of(other)]
    got, cure, takes = shown(value), "", f"schedule {schedule!r}, which accepts {', '.join(own) or 'none'}"
    if name in _PARTS_OF_HEAD and schedule != "proportional":
        rule = "be given as rotary_dim, a number of channels"
    elif meant != name and (meant in own or meant in _OWN):
        rule = f"be given as {meant}"
    elif meant in _ELSEWHERE:
        rule = f"be given {_ELSEWHERE[meant]}"
    elif others:
        rule = "be used with schedule " if meant == name else f"be given as {meant}, with schedule "
        rule, got = rule + " or ".join(filter(None, (", ".join(others[:-1]), others[-1]))), f"{got} with {takes}"
    else:
        cure = _is_it(difflib.get_close_matches(name, (*_OWN, *own, *_MEANT), 1, 0.75))
        rule = f"be a keyword of RotaryEmbedding or of {takes}"
    return ArgumentTypeError(name, rule, got, cure)


def _is_it(names: Sequence[str]) -> str:
    return f"is it {_MEANT.get(names[0], names[0])}?" if names else ""
