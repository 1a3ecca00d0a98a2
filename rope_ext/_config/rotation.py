"""Selects the rotation of one layer type from a configuration: its rope_type and its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._numbers import text
from .._shown import shown
from ..errors import ArgumentError
from . import names, values
from .source import Source, first, missing, null, refuse_nulls

_OLDER_NAMES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}
_KNOWN_TYPES = ("axial", "default", "dynamic", "linear", "llama3", "longrope", "proportional", "yarn")
_BASE_OF_LAYER_TYPE = (
    ("rope_local_base_freq", "sliding_attention"),
    ("local_rope_theta", "sliding_attention"),
    ("global_rope_theta", "full_attention"),
    ("compress_rope_theta", "compress"),
)


@dataclass(frozen=True)
class Rotation:
    """rope_parameters, or rope_scaling, for the requested layer type."""

    kind: str  # the rope_type: one of _KNOWN_TYPES, or "ntk"
    parameters: Mapping[Any, Any]  # checked values
    beside: Mapping[Any, Any] | None  # the keys beside the layer types; None: all layers have one rotation


def rotation_of(source: Source, layer_type: str | None) -> Rotation:
    """The rotation of the layers of this type, or of all layers."""
    parameters, beside = _parameters_of(source, layer_type)
    values.check_inner(parameters)
    return Rotation(_kind(source, parameters), parameters, beside)


def _parameters_of(source: Source, layer_type: str | None) -> tuple[Mapping[Any, Any], Mapping[Any, Any] | None]:
    """(parameters, beside) of a Rotation."""
    rope = _by_layer_type(source, _given(source), layer_type)
    unknown = {name: value for name, value in rope.items() if name not in values.INNER}
    if not any(isinstance(value, Mapping) for value in unknown.values()):
        if layer_type is not None and layer_type not in (source.get("layer_types") or ()):
            raise ArgumentError("layer_type", "be None for a config with one rotation", shown(layer_type))
        return rope, None
    nested = {name: value for name, value in unknown.items() if isinstance(value, Mapping) or value is None}
    if layer_type not in nested:
        raise ArgumentError("layer_type", f"be one of {', '.join(map(str, nested))}", shown(layer_type))
    if (parameters := nested[layer_type]) is None:
        raise ArgumentError("layer_type", "have a rotation", f"{shown(layer_type)}, which has none")
    return dict(parameters), {name: value for name, value in rope.items() if name not in nested}


def _given(source: Source) -> Mapping[Any, Any]:
    """The value of rope_parameters or rope_scaling; empty for an unscaled rotation whose base is elsewhere."""
    new, old = source.get("rope_parameters"), source.get("rope_scaling")
    if new and old and not _agree(new, old):
        raise ArgumentError("rope_scaling", f"agree with rope_parameters {shown(new)}", shown(old))
    rope = dict(new or old or {})
    if not rope and (base := source.get("memory_attention_rope_theta")) is not None:  # SAM 2 in transformers 4
        rope = {"rope_type": "axial", "rope_theta": base}
    if not rope and source.facts.scaled:
        raise missing("rope_parameters or rope_scaling", source)
    bases = (*values.BASES, "global_rope_theta")
    if not rope and source.get(*bases) is None and source.facts.base is None:
        refuse_nulls(source, bases)
        if source.parts():
            got = f"one with {', '.join(source.parts())}"
            raise ArgumentError("config", "be the part with the attention layers", got)
        raise missing("rope_parameters, rope_scaling or rope_theta", source)
    refuse_nulls(source, ("global_rope_theta", "local_rope_theta", "rope_local_base_freq", "compress_rope_theta"))
    return rope


def _agree(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # arrays, which are wrong here anyway
        return False


def _by_layer_type(source: Source, rope: Mapping[Any, Any], layer_type: str | None) -> Mapping[Any, Any]:
    """rope_parameters by layer type. Configurations of transformers 4 have two bases and one rope_scaling instead."""
    if any(isinstance(value, Mapping) for name, value in rope.items() if name not in values.INNER):
        for key, name in _BASE_OF_LAYER_TYPE:
            inside = rope[name].get("rope_theta") if isinstance(rope.get(name), Mapping) else None
            if inside is not None and source.get(key) not in (None, inside):
                raise ArgumentError(key, f"agree with rope_parameters' {inside}", source.get(key))
        return rope

    def with_base(base: Any) -> Mapping[Any, Any]:
        return rope if base is None else {"rope_theta": base, **rope}

    default = source.facts.local_base if layer_type == "sliding_attention" else None
    if (local := first(source.get("rope_local_base_freq"), default)) is not None:  # Gemma 3: local layers are unscaled
        return {"full_attention": with_base(source.get("rope_theta")), "sliding_attention": {"rope_theta": local}}
    if (local := source.get("local_rope_theta")) is not None:  # ModernBERT: all layers are scaled
        full = with_base(source.get("global_rope_theta"))
        return {"full_attention": full, "sliding_attention": {**rope, "rope_theta": local}}
    if (base := source.get("compress_rope_theta")) is not None:  # DeepSeek-V4: compressing layers are scaled
        main = {"rope_theta": source.required("rope_theta")}
        compress = {**rope, "rope_theta": base}
        if "yarn" in (rope.get("rope_type"), rope.get("type")):
            compress.setdefault("attention_factor", 1.0)
        return {"main": main, "compress": compress}
    if source.facts.plain_local and rope:
        return {"full_attention": rope, "sliding_attention": {}}
    return rope


def _kind(source: Source, rope: Mapping[Any, Any]) -> str:
    """The rope_type by its name in transformers 5, but "ntk" for HunYuan's "dynamic" with an alpha."""
    for key in ("rope_type", "type"):
        if key in rope and (key == "rope_type" or "rope_type" not in rope or rope[key] is not None):
            if rope[key] is None:
                raise null(key, "a str")
            text(**{key: rope[key]})
    kind: Any = rope.get("rope_type")
    old: Any = rope.get("type")
    if "mrope" in (kind, old) and rope.get("mrope_section") is None and source.facts.mrope is None:
        raise ArgumentError("mrope_section", "be in the config when rope_type is 'mrope'", "None")
    kind, old = _OLDER_NAMES.get(kind, kind), _OLDER_NAMES.get(old, old)
    if kind is not None and old is not None and kind != old:
        raise ArgumentError("type", f"agree with rope_type {kind!r}", shown(old))
    kind = first(kind, old, "default")
    if kind not in _KNOWN_TYPES:
        hint = names.did_you_mean(kind, _KNOWN_TYPES)
        raise ArgumentError("rope_type", f"be one of {', '.join(_KNOWN_TYPES)}{hint}", shown(kind))
    if kind == "yarn" and rope.get("short_factor"):  # Phi-3's older name of longrope
        return "longrope"
    if kind == "dynamic" and rope.get("alpha"):  # HunYuan
        return "ntk"
    if kind == "default":
        if source.get("default_rope_type") == "axial" or source.facts.axial is not None:
            return "axial"
        for key in ("factor", "short_factor", "long_factor", "low_freq_factor"):
            if rope.get(key) not in (None, 1, 1.0):
                names.refuse_misspelled(rope, "rope_type")
                raise ArgumentError(key, "be absent when rope_type is 'default'", shown(rope[key]))
    return str(kind)
