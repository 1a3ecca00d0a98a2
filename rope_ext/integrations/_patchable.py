"""What `patch` accepts: a model, a Python module, or a model type of transformers."""

import functools
import sys
import types
import weakref
from collections.abc import Callable

from torch import nn

from ..errors import ArgumentTypeError

Patchable = nn.Module | types.ModuleType | str


def check(model: object) -> None:
    """Raise ArgumentTypeError (a TypeError) unless `patch` accepts the model."""
    if not isinstance(model, Patchable):
        modules = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        cure = f"pass its {' or its '.join(modules[:4])}" if modules else ""
        if isinstance(model, type):
            is_of_torch = model.__module__.partition(".")[0] == "torch"
            cure = "" if is_of_torch else f"pass sys.modules[{model.__module__!r}]"
        raise ArgumentTypeError("model", "be a torch.nn.Module, a Python module or a model type", got, cure)


def reference(model: Patchable) -> Callable[[], object]:
    """A function that returns the patched object while it exists. Model types are interned, so that `is` works."""
    if isinstance(model, str):
        return functools.partial(sys.intern, str.__str__(model))  # intern refuses subclasses, such as enum members
    return weakref.ref(model)


def described(model: object) -> str:
    """The argument of `patch` in words."""
    return f"a {type(model).__name__}" if isinstance(model, nn.Module) else repr(getattr(model, "__name__", model))
