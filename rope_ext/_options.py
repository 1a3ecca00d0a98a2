"""Keywords of `rope_ext.apply` that other functions accept too, for type checkers. `apply` has the defaults."""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

from torch import Tensor

from .angles import Revolutions
from .reference import Layout, Rounding

Norm: TypeAlias = Tensor | Sequence[Tensor | None] | None


class Options(TypedDict, total=False):
    """Keywords of every function that rotates."""

    layout: Layout
    interleaved: bool
    rotary_dim: int | None
    per_channel: bool | None
    cu_seqlens: Tensor | None
    inverse: bool
    rounding: Rounding


class InPlaceOptions(Options, total=False):
    """Keywords of `rope_ext.apply_`."""

    rotary_offset: int
    positions: Tensor | None
    offset: int | Tensor
    inv_freq: Tensor | Revolutions | None
    attention_scaling: float
    norm: Norm
    eps: float | None


class PackedOptions(InPlaceOptions, total=False):
    """Keywords of `rope_ext.apply_qkv` in addition to those in its signature."""

    out_interleaved: bool | None


class RopeOptions(Options, total=False):
    """Keywords of `RotaryEmbedding.apply` in addition to those in its signature."""

    out_interleaved: bool | None
    norm: Norm
    eps: float | None
    out: Tensor | Sequence[Tensor] | None
