"""pair_axis: the axis of the positions that each pair of a multimodal model follows."""

from collections.abc import Mapping
from typing import Any

from .. import frequencies
from .._shown import shown
from ..errors import ArgumentError
from .facts import ModelFacts


def pair_axis_of(facts: ModelFacts, rope: Mapping[Any, Any], pairs: int) -> tuple[int, ...] | None:
    """pair_axis of RotaryEmbedding, from mrope_section; None if positions have one axis."""
    convention = facts.mrope and facts.mrope.convention
    if rope.get("xdrope_section") is not None or (convention == "channels" and rope.get("mrope_section")):
        raise ArgumentError(
            "mrope_section",
            "give both channels of a pair one axis",
            "HunYuan-VL's, which does not (build tables of width rotary_dim)",
        )
    default = facts.mrope and facts.mrope.sections
    sections = rope.get("mrope_section", default)
    if sections is None and default is None:
        return None
    frequencies.mrope_pair_axis(sections)  # raises, also for a null in a model with a default
    interleaved = rope.get("mrope_interleaved")
    if interleaved is not None and convention is not None and interleaved != (convention == "interleaved"):
        raise ArgumentError("mrope_interleaved", "agree with model_type", interleaved)
    if sum(sections) != pairs:
        raise ArgumentError("mrope_section", f"sum to rotary_dim / 2 = {pairs}", shown(list(sections)))
    if convention == "spatial first":
        if len(sections) != 3 or sections[0] != sections[1]:
            raise ArgumentError("mrope_section", "be [n, n, m] for this model_type", shown(list(sections)))
        followed: tuple[int, ...] = (1, 2) * sections[0] + (0,) * sections[2]
        return followed
    return frequencies.mrope_pair_axis(sections, bool(interleaved) or convention == "interleaved")
