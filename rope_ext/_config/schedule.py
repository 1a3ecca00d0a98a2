"""Translates a Rotation to a schedule, a function of rope_ext.frequencies, and its keyword arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError
from . import names
from .rotation import Rotation
from .source import Source, first, missing

Keywords = dict[str, Any]


@dataclass(frozen=True)
class _Reader:
    """Reads the keyword arguments of a schedule. The error for a missing key names the key."""

    source: Source
    rotation: Rotation
    partial: float | None  # partial_rotary_factor
    precision: str
    length: float | None  # max_position_embeddings

    def needed(self, *keys: str) -> Keywords:
        """The values of required keys of rope_parameters."""
        for key in keys:
            if self.rotation.parameters.get(key) is None:
                raise self.absent(key)
        return {key: self.rotation.parameters[key] for key in keys}

    def given(self, *keys: str) -> Keywords:
        """The values of optional keys of rope_parameters, without absent keys and nulls."""
        return {key: value for key in keys if (value := self.rotation.parameters.get(key)) is not None}

    def original(self) -> Keywords:
        """original_max_position. A value outside rope_parameters (Phi-3) wins if all layers have one rotation."""
        name, rope, beside = "original_max_position_embeddings", self.rotation.parameters, self.rotation.beside
        outside = self.source.get(name) if beside is None else None
        hides_inside = beside is None and self.source.is_null(name)
        is_null = name in rope and rope[name] is None and (outside is None or self.rotation.kind != "longrope")
        if hides_inside or is_null:
            raise self.absent(name)
        if (found := first(outside, rope.get(name), self.length)) is None:
            raise missing(name, self.source)
        return {"original_max_position": found}

    def factor_or_length(self) -> Keywords:
        """factor, or the max_position from which the schedule computes the factor."""
        if keywords := self.given("factor"):
            return keywords
        if self.length is None:
            raise missing("factor, or max_position_embeddings", self.source)
        return {"max_position": self.length}

    def absent(self, key: str) -> ArgumentError:
        names.refuse_misspelled(self.rotation.parameters, key)
        return ArgumentError(key, f"be in the config when rope_type is {self.rotation.kind!r}", "None")


def _dynamic(reader: _Reader) -> Keywords:
    if reader.length is None:
        raise missing("max_position_embeddings", reader.source)
    return {**reader.needed("factor"), "max_position": reader.length}


def _proportional(reader: _Reader) -> Keywords:
    factor = reader.needed("factor") if "factor" in reader.rotation.parameters else {}
    return {"partial_rotary_factor": first(reader.partial, 1.0), **factor}


def _yarn(reader: _Reader) -> Keywords:
    rope, beside = reader.rotation.parameters, reader.rotation.beside
    if "factor" not in rope:  # with a null the factor is derived
        raise reader.absent("factor")
    keywords = reader.given("attention_factor", "mscale", "mscale_all_dim")
    keywords |= {name: rope[name] for name in ("beta_fast", "beta_slow") if rope.get(name)}
    if reader.precision == "hf" and beside is not None:  # transformers reads it only beside the layer types
        keywords["truncate"] = bool(beside.get("truncate", True))
    elif "truncate" in rope:
        keywords["truncate"] = bool(rope["truncate"])
    return keywords | reader.original() | reader.factor_or_length()


def _longrope(reader: _Reader) -> Keywords:
    keywords = reader.needed("short_factor", "long_factor") | reader.given("attention_factor")
    keywords |= reader.original() | reader.factor_or_length()
    if reader.given("short_mscale"):  # Phi-3.5-MoE; its code in transformers never uses long_factor
        keywords["attention_factor"] = tuple(reader.needed("short_mscale", "long_mscale").values())
        if reader.precision == "hf":
            keywords["long_factor"] = keywords["short_factor"]
    return keywords


# {rope_type: (name of a function of rope_ext.frequencies, reader of its keyword arguments)}
_SCHEDULES: dict[str, tuple[str, Callable[[_Reader], Keywords]]] = {
    "default": ("default", lambda reader: {}),
    "linear": ("linear", lambda reader: reader.needed("factor")),
    "ntk": ("ntk", lambda reader: reader.needed("alpha")),
    "dynamic": ("dynamic_ntk", _dynamic),
    "yarn": ("yarn", _yarn),
    "longrope": ("longrope", _longrope),
    "llama3": (
        "llama3",
        lambda reader: reader.needed("factor", "low_freq_factor", "high_freq_factor") | reader.original(),
    ),
    "proportional": ("proportional", _proportional),
}


def schedule_of(source: Source, rotation: Rotation, partial: float | None, precision: str) -> tuple[str, Keywords]:
    """(name of a function of rope_ext.frequencies, its keyword arguments)."""
    length = source.one_of("max_position_embeddings", "n_positions")
    name, read = _SCHEDULES[rotation.kind]
    return name, read(_Reader(source, rotation, partial, precision, length))
