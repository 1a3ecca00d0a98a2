"""What `patch` takes: a model, a Python module, or a model type of transformers."""

import functools
import sys
import types
import weakref
from collections.abc import Callable

from torch import nn

from ..errors import ArgumentTypeError

Patchable = nn.Module | types.ModuleType | str


def check(model: object) -> None:
    """Raises ArgumentTypeError (a TypeError) where `patch` does not take the model."""
    if not isinstance(model, Patchable):
        modules = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        cure = f"its {' and its '.join(modules[:4])} can be given" if modules else ""
        if isinstance(model, type):
            is_of_torch = model.__module__.partition(".")[0] == "torch"
            cure = "" if is_of_torch else f"sys.modules[{model.__module__!r}] can be given"
        raise ArgumentTypeError("model", "be a torch.nn.Module, a Python module or a model type", got, cure)


def reference(model: Patchable) -> Callable[[], object]:
    """Returns what a patch was made of while it exists; a model type always does, and `is` compares interned ones."""
    if isinstance(model, str):
        return functools.partial(sys.intern, str.__str__(model))  # intern takes no subclass, such as members of an enum
    return weakref.ref(model)


def described(model: object) -> str:
    """What was given, in words."""
    return f"a {type(model).__name__}" if isinstance(model, nn.Module) else repr(getattr(model, "__name__", model))
