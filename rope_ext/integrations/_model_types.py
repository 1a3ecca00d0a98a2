"""The Python modules of a model type of transformers: its modeling file, and those of its parts."""

import difflib
import importlib
import importlib.util
import types
from collections.abc import Iterator
from typing import Any

from ..errors import ArgumentError


def modules_of(model_type: str) -> list[types.ModuleType]:
    """The modeling module of a model type, then those of the parts of its default configuration, imported.

    Raises:
        ImportError: when transformers is not installed, or one of the modules cannot be imported.
        ArgumentError: (a ValueError) when transformers has no such type.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        words = "rope_ext: transformers must be installed (pip install transformers) to patch a model type"
        raise ImportError(f"{words}, got {error}") from error
    configurations = transformers.CONFIG_MAPPING
    if model_type not in configurations:
        close = difflib.get_close_matches(model_type, list(configurations), n=3)
        cure = f"similar types are {' and '.join(map(repr, close))}" if len(close) > 1 else ""
        cure = f"a similar type is {close[0]!r}" if len(close) == 1 else cure
        if "/" in model_type:  # the name of a repository, or a path
            cure = f"pass transformers.AutoConfig.from_pretrained({model_type!r}).model_type"
        raise ArgumentError(
            "model", f"be a model type of transformers {transformers.__version__}", repr(model_type), cure
        )
    modules: dict[str, types.ModuleType] = {}
    for kind in _configurations(_default(transformers, configurations[model_type])):
        modules |= {module.__name__: module for module in _modeling(kind)}
    if not modules:
        raise ArgumentError("model", "be a model type that has a modeling module", repr(model_type))
    return list(modules.values())


def _default(transformers: Any, kind: type) -> Any:
    """The default configuration of a class, or the class if it has no default."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # warnings about the default sizes do not matter here
    try:
        return kind()
    except Exception:  # the checks of a configuration may raise anything
        return kind
    finally:
        transformers.logging.set_verbosity(verbosity)


def _configurations(config: Any) -> Iterator[type]:
    """The class of a configuration, and those of its parts. config: an object, or a class."""
    is_class = isinstance(config, type)
    yield config if is_class else type(config)
    for name, kind in getattr(config, "sub_configs", {}).items():
        part = kind if is_class else getattr(config, name, None)
        if getattr(part, "model_type", ""):  # AutoConfig has none
            yield from _configurations(part)


def _modeling(kind: type) -> Iterator[types.ModuleType]:
    """The modules that define the models of a configuration class."""
    name = kind.__module__.replace(".configuration_", ".modeling_")
    if name != kind.__module__ and importlib.util.find_spec(name) is not None:
        yield importlib.import_module(name)
        return
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    mappings = [
        mapping for name, mapping in vars(auto).items() if name.startswith("MODEL_") and name.endswith("MAPPING")
    ]
    for mapping in mappings:
        if kind in mapping:
            found = mapping[kind]
            for model in found if isinstance(found, tuple) else (found,):
                yield importlib.import_module(model.__module__)
