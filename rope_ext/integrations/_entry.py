"""The entry point of a module: the code that a call runs first, of its class or a replacement."""

import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import nn

from .._torch.private import CALL, COMPILED_CALL
from ._find import ENTRIES
from ._fingerprint import callable_of, package_of
from ._held import OUTSIDE, bound_values, package, readable, takes_part

COMPILED = (torch.jit.ScriptModule, torch.fx.GraphModule)  # modules that run no Python code of their class
_DEPTH = 8


@dataclass(frozen=True)
class EntryPoint:
    """A replacement of the code of a module's class. holder: the module or the class whose attribute it is."""

    name: str
    value: Any
    holder: Any

    @property
    def on_class(self) -> bool:
        return isinstance(self.holder, type)

    def __str__(self) -> str:
        where = f" of {self.holder.__qualname__}" if self.on_class else ""
        return f"{self.name}{where} is {_described(self.value)}"


def entry_of(module: nn.Module) -> EntryPoint | None:
    """The `EntryPoint` of a module, or None if the code of its class runs."""
    if isinstance(module, COMPILED):
        return None
    for name in ENTRIES:
        base, method = method_of(type(module), CALL if name == COMPILED_CALL else name)
        value = vars(module).get(name) if name != "__call__" else None  # Python reads __call__ from the class only
        if value is not None:
            if _bare(value) is not _bare(method):
                return EntryPoint(name, value, module)
        elif name != COMPILED_CALL and base is not None and not _is_of_class(method, base):
            return EntryPoint(name, method, base)
    return None


def method_of(kind: type, name: str) -> tuple[type, Any] | tuple[None, None]:
    """(class that defines it, value) of an attribute of a class, or (None, None)."""
    return next(((base, vars(base)[name]) for base in kind.__mro__ if name in vars(base)), (None, None))


def functions_behind(value: Any, depth: int = _DEPTH) -> Iterator[types.FunctionType]:
    """The functions that a call of a value runs, found through decorators, partials and bound methods."""
    value = _inner(value)
    if isinstance(value, types.FunctionType):
        yield value
        parts = [content for _, content in bound_values(value) if callable(content)]
    elif isinstance(value, types.MethodType):
        parts = [value.__func__]
    elif isinstance(value, (functools.partial, functools.partialmethod)):
        parts = [value.func]
    else:
        parts = [type(value).__call__] if takes_part(value) else []
    for part in parts if depth else ():
        yield from functions_behind(part, depth - 1)


def _is_of_class(method: Any, base: type) -> bool:
    """Whether the method was defined in the body of the class: its function, behind decorators, is from there."""
    functions = list(functions_behind(method))
    if package(base) in OUTSIDE:  # torch, for one, also defines methods with descriptors and outside class bodies
        return not functions or any(package_of(f) == package(base) for f in functions)
    bodies = tuple((package(c), c.__qualname__ + ".") for c in base.__mro__)
    return any(package_of(f) == name and _qualname(f).startswith(body) for f in functions for name, body in bodies)


def _bare(value: Any) -> Any:
    """A function without the wrappers that bind, cache or compile it."""
    while True:
        value = _inner(value)
        if isinstance(value, types.MethodType):
            value = value.__func__
        elif isinstance(value, types.FunctionType) and package_of(value) == "torch" and hasattr(value, "__wrapped__"):
            value = value.__wrapped__  # torch.compile, torch.no_grad
        else:
            return value


def _inner(value: Any) -> Any:
    """The callable behind an attribute of a class or an instance."""
    if not readable(value):
        return None
    value = callable_of(value.fget if isinstance(value, property) else value)
    return value.__wrapped__ if isinstance(value, functools._lru_cache_wrapper) else value


def _described(value: Any) -> str:
    """The name under which a callable was defined; functools.wraps gives wrappers the name of what they wrap."""
    value = _bare(value)
    if isinstance(value, (functools.partial, functools.partialmethod)):
        return f"a partial of {_described(value.func)}"
    if isinstance(value, types.FunctionType):
        return f"{value.__globals__.get('__name__')}.{_qualname(value)}"
    if inspect.isroutine(value):
        return f"the builtin {value.__qualname__}"
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__}"
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"


def _qualname(function: types.FunctionType) -> str:
    return getattr(function.__code__, "co_qualname", function.__qualname__)  # co_qualname: Python 3.11 and later
