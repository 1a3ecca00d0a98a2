"""Reads a configuration, a dict or any object with attributes, and checks the values of known keys."""

import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .._shown import shown
from ..errors import ArgumentError, ArgumentTypeError
from . import values
from .facts import MODELS, PLAIN, ModelFacts

_NO_PARTS = {"quantization_config", "compression_config", "per_layer_config", "mtp_per_layer_config"}
_NO_CONFIGS = (str, bytes, numbers.Number, list, tuple, set, frozenset, type)


class Source:
    """One interface to dicts and objects. None means an absent key or a null; `is_null` tells the two apart.

    config: the user's object. overrides: values for one layer, which win. facts: the facts of its model_type.
    """

    config: Any
    overrides: Mapping[str, Any]
    facts: ModelFacts

    def __init__(self, config: object, overrides: Mapping[str, Any] | None = None) -> None:
        _check_config(config)
        self.config, self.overrides = config, overrides or {}
        self.facts = MODELS.get(self.get("model_type"), PLAIN)

    def raw(self, name: str) -> Any:
        """The unchecked value; None if there is none, as in objects of transformers whose layers differ in it."""
        if name in self.overrides:
            return self.overrides[name]
        if isinstance(self.config, Mapping):
            return self.config.get(name)
        value = getattr(self.config, name, None)
        is_method = callable(value) and callable(getattr(type(self.config), name, None))
        return None if is_method else value

    def get(self, *names: str) -> Any:
        """The checked value of the first of these keys that is neither absent nor null."""
        for name in names:
            if (value := self.raw(name)) is not None:
                return values.checked(name, value)
        return None

    def one_of(self, *names: str) -> Any:
        """The value of keys with one meaning; an ArgumentError if two of them disagree."""
        found = {name: value for name in names if (value := self.get(name)) is not None}
        first_name, value = next(iter(found.items()), (None, None))
        for name, other in found.items():
            if other != value:
                raise ArgumentError(name, f"agree with {first_name} {value}", other)
        return value

    def required(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise missing(name, self)
        return value

    def is_null(self, name: str) -> bool:
        has = name in self.config if isinstance(self.config, Mapping) else hasattr(self.config, name)
        return has and self.raw(name) is None

    def names(self) -> list[str]:
        """All keys of a dict, or all public attributes of an object that are not properties."""
        if isinstance(self.config, Mapping):
            return [name for name in self.config if isinstance(name, str)]
        kind = type(self.config)  # a property repeats an attribute
        return [n for n in dir(self.config) if n[0] != "_" and not isinstance(getattr(kind, n, None), property)]

    def parts(self) -> list[str]:
        """Keys of inner configurations, such as "text_config"."""
        names = sorted(name for name in self.names() if name.endswith("_config") and name not in _NO_PARTS)
        return [name for name in names if not isinstance(self.raw(name), (*_NO_CONFIGS, type(None)))]

    def of_layer(self, layer_type: str) -> "Source":
        """The configuration of layers of this type: per_layer_config of transformers 5, global_head_dim of Gemma 4."""
        per_layer, types = self.raw("per_layer_config"), self.get("layer_types") or ()
        if isinstance(per_layer, _NO_CONFIGS):
            raise ArgumentTypeError("per_layer_config", "be a dict", shown(per_layer))
        if isinstance(per_layer, Mapping) and layer_type in types:
            index = list(types).index(layer_type)
            found = [values for key, values in per_layer.items() if str(key).isdigit() and int(key) == index]
            if found and not isinstance(found[0], Mapping):
                raise ArgumentTypeError("per_layer_config", "hold dicts", shown(found[0]))
            return Source(self.config, dict(found[0]) if found else None)
        if per_layer is not None and not isinstance(per_layer, Mapping) and layer_type in types:
            try:
                return Source(per_layer[layer_type])
            except ValueError:  # layers of this type differ in something other than the rotation
                return self
        if layer_type == "full_attention" and (width := self.get("global_head_dim")) is not None:
            return Source(self.config, {"head_dim": width})
        return self


def _check_config(config: object) -> None:
    is_file, is_model = isinstance(config, (str, bytes, os.PathLike)), isinstance(config, torch.nn.Module)
    if not (is_file or is_model or isinstance(config, _NO_CONFIGS) or config is None or hasattr(config, "__array__")):
        return
    cure = "json.load reads a config.json, AutoConfig.from_pretrained of transformers accepts a name" if is_file else ""
    cure = "model.config is one" if is_model and hasattr(config, "config") else cure
    raise ArgumentTypeError("config", "be a configuration object or a dict", shown(config), cure)


def refuse_nulls(source: Source, names: Iterable[str]) -> None:
    """Raises an ArgumentError for the first of these keys that is null."""
    for name in names:
        if source.is_null(name):
            raise null(name, "a number")


def first(*candidates: Any) -> Any:
    """The first candidate that is not None."""
    return next((value for value in candidates if value is not None), None)


def null(name: str, wanted: str) -> ArgumentError:
    """The error for a null, which counts as a missing value like an absent key: not an ArgumentTypeError."""
    return ArgumentError(name, f"be {wanted}", "None")


def missing(key: str, source: Source) -> ArgumentError:
    """The error for a configuration without a required key. The message identifies the configuration."""
    if (model_type := source.get("model_type")) is not None:
        got = f"a config of {model_type!r} without it"
    else:
        names = sorted(name for name in source.names() if source.raw(name) is not None)
        got = f"one with {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else shown(source.config)
    return ArgumentError("config", f"have {key}", got)
