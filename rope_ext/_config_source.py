"""A configuration that can be asked: a dict, or any object with attributes."""

import numbers
import os
from collections.abc import Mapping

import torch

from . import _config_keys
from ._config_facts import MODELS
from ._numbers import shown
from .errors import ArgumentError, ArgumentTypeError

_NO_PARTS = {"quantization_config", "compression_config", "per_layer_config", "mtp_per_layer_config"}
_NO_CONFIGS = (str, bytes, numbers.Number, list, tuple, set, frozenset, type)


class Source:
    """One way to ask dicts and objects; None: not there, or null. Where a null is an error, that is asked for apart."""

    def __init__(self, config, overrides=None):
        _check_config(config)
        self.config, self.overrides = config, overrides or {}
        self.facts = MODELS.get(self.get("model_type"), {})

    def raw(self, name):
        """The value as it is. Of a model whose layers differ transformers gives no head_dim: that is None too."""
        if name in self.overrides:
            return self.overrides[name]
        if isinstance(self.config, Mapping):
            return self.config.get(name)
        value = getattr(self.config, name, None)
        is_method = callable(value) and callable(getattr(type(self.config), name, None))
        return None if is_method else value

    def get(self, *names):
        """The first that is there, checked."""
        for name in names:
            if (value := self.raw(name)) is not None:
                return _config_keys.checked(name, value)
        return None

    def one_of(self, *names):
        """The value of keys that are names of one thing; ValueError where two of them disagree."""
        found = {name: value for name in names if (value := self.get(name)) is not None}
        first_name, value = next(iter(found.items()), (None, None))
        for name, other in found.items():
            if other != value:
                raise ArgumentError(name, f"agree with {first_name} {value}", other)
        return value

    def required(self, name):
        if (value := self.get(name)) is None:
            raise missing(name, self)
        return value

    def is_null(self, name):
        has = name in self.config if isinstance(self.config, Mapping) else hasattr(self.config, name)
        return has and self.raw(name) is None

    def names(self):
        if isinstance(self.config, Mapping):
            return [name for name in self.config if isinstance(name, str)]
        kind = type(self.config)  # a property says again what an attribute says
        return [n for n in dir(self.config) if n[0] != "_" and not isinstance(getattr(kind, n, None), property)]

    def parts(self):
        names = sorted(name for name in self.names() if name.endswith("_config") and name not in _NO_PARTS)
        return [name for name in names if not isinstance(self.raw(name), (*_NO_CONFIGS, type(None)))]

    def of_layer(self, layer_type):
        """The configuration of a layer of this type: transformers 5's per_layer_config, Gemma 4's global_head_dim."""
        per_layer, types = self.raw("per_layer_config"), self.get("layer_types") or ()
        if isinstance(per_layer, _NO_CONFIGS):
            raise ArgumentTypeError("per_layer_config", "be a dict", shown(per_layer))
        if isinstance(per_layer, Mapping) and layer_type in types:
            index = list(types).index(layer_type)
            found = [values for key, values in per_layer.items() if str(key).isdigit() and int(key) == index]
            if found and not isinstance(found[0], Mapping):
                raise ArgumentTypeError("per_layer_config", "have dicts", shown(found[0]))
            return Source(self.config, dict(found[0]) if found else None)
        if per_layer is not None and not isinstance(per_layer, Mapping) and layer_type in types:
            try:
                return Source(per_layer[layer_type])
            except ValueError:  # layers of this type differ, in something else
                return self
        if layer_type == "full_attention" and (width := self.get("global_head_dim")) is not None:
            return Source(self.config, {"head_dim": width})
        return self


def _check_config(config):
    is_file, is_model = isinstance(config, (str, bytes, os.PathLike)), isinstance(config, torch.nn.Module)
    if not (is_file or is_model or isinstance(config, _NO_CONFIGS) or config is None or hasattr(config, "__array__")):
        return
    cure = "json.load reads a config.json, AutoConfig.from_pretrained of transformers takes a name" if is_file else ""
    cure = "model.config is one" if is_model and hasattr(config, "config") else cure
    raise ArgumentTypeError("config", "be a configuration object or a dict", shown(config), cure)


def refuse_nulls(source, names):
    for name in names:
        if source.is_null(name):
            raise null(name, "a number")


def first(*values):
    return next((value for value in values if value is not None), None)


def null(name, wanted):
    """The error of a null: a value that is missing, as an absent key is, and so no TypeError."""
    return ArgumentError(name, f"be {wanted}", "None")


def missing(key, source):
    if (model_type := source.get("model_type")) is not None:
        got = f"a config of {model_type!r} without"
    else:
        names = sorted(name for name in source.names() if source.raw(name) is not None)
        got = f"one with {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else shown(source.config)
    return ArgumentError("config", f"have {key}", got)
