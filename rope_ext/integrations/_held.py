"""The contents of values other than modules and functions: containers, closures, partials and plain objects."""

import collections
import contextlib
import functools
import itertools
import sys
import types
import weakref
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

ATOMS = (str, bytes, int, float, type(None))  # elements of vocabularies and sizes
_OWN = __name__.partition(".")[0]  # a hub kernel imports this package under another name
OUTSIDE = {"torch", _OWN, *sys.stdlib_module_names} - {"__main__"}  # packages whose code is not read
CONTAINERS = (list, tuple, set, frozenset, collections.deque, dict)
ITEMS = 1000  # limit on the items inspected in the containers of an attribute or a global
UNREAD = object()  # marks parts that were not inspected
_INERT = (*ATOMS, torch.Tensor)  # types that hold nothing callable


def package(kind: type) -> str:
    """The top-level package of a class."""
    return str(kind.__module__).partition(".")[0]  # __module__ may be None or another object


def readable(value: object) -> bool:
    """Whether isinstance works on a value: a `weakref.proxy` of a deleted object raises."""
    try:
        return value.__class__ is not None
    except Exception:
        return False


def is_module(value: object) -> bool:
    """Whether a readable value is a module or a `weakref.proxy` of one. A mock only claims to be."""
    return issubclass(type(value), (nn.Module, *weakref.ProxyTypes)) and isinstance(value, nn.Module)


def takes_part(value: object) -> bool:
    """Whether an object may take part in a forward without being a module, like diffusers' attention processors."""
    plain = (nn.Module, type, types.FunctionType)
    if not callable(value) or package(type(value)) in OUTSIDE:
        return False
    return not (readable(value) and isinstance(value, plain))


def has_attributes(value: object) -> bool:
    """Whether an object that is no class has a `__dict__`."""
    return type(value).__dictoffset__ != 0 and not issubclass(type(value), type)  # hasattr may run code


def attributes_of(value: object) -> dict[str, Any]:
    """{name: attribute} of an object; empty if reading them raises."""
    try:
        return dict(vars(value))
    except Exception:
        return {}


def bound_values(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """(name, value) of the closure variables and the defaults of a function."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # a variable not assigned yet
            yield name, cell.cell_contents
    code, defaults = function.__code__, function.__defaults__ or ()
    named = zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults)
    for name, value in (*named, *(function.__kwdefaults__ or {}).items()):
        if not issubclass(type(value), ATOMS):
            yield name, value


def parts(value: Any, names: Collection[str], limit: int) -> list[tuple[str, Any]]:
    """[(suffix of a path, part)] of the callable contents of a value; `UNREAD` stands for parts that were not read.

    names: the attributes of plain objects to read, those that the code names.
    limit: number of items of a container to inspect; of further items only the types are inspected.
    """
    try:
        return _parts(value, names, limit)
    except Exception:  # attributes of foreign objects may run code of their own
        return [("", UNREAD)]


def _parts(value: Any, names: Collection[str], limit: int) -> list[tuple[str, Any]]:
    if isinstance(value, CONTAINERS):
        return _items(value, limit)
    if isinstance(value, types.FunctionType):  # torch.compile's wrapper of a bound method
        return [(f".{name}", part) for name, part in bound_values(value)]
    if isinstance(value, types.MethodType):
        return [(".__func__", value.__func__), (".__self__", value.__self__)]
    if isinstance(value, (functools.partial, functools.partialmethod)):
        arguments = enumerate((*value.args, *value.keywords.values()))
        return [(".func", value.func), *((f".args[{i}]", part) for i, part in arguments)]
    if isinstance(value, functools._lru_cache_wrapper):
        return [(".__wrapped__", value.__wrapped__)]
    if isinstance(value, types.SimpleNamespace) or _is_plain_object(value):
        return [(f".{name}", part) for name, part in list(vars(value).items()) if name in names]
    return []


def _items(container: Any, limit: int) -> list[tuple[str, Any]]:
    is_dict = isinstance(container, dict)
    values = list(dict.values(container) if is_dict else container)  # as stored: a subclass may compute others
    if _all_inert(values):
        return []
    keys = map(repr, dict.keys(container)) if is_dict else itertools.count()
    looked_at = zip(keys, values[:limit])
    found = [(f"[{key}]", part) for key, part in looked_at if not issubclass(type(part), _INERT)]
    return found if _all_inert(values[limit:]) else [*found, (f"[{limit}:]", UNREAD)]


def _all_inert(values: list[Any]) -> bool:
    return all(issubclass(kind, _INERT) for kind in set(map(type, values)))


def _is_plain_object(value: object) -> bool:
    kind = type(value)
    return has_attributes(value) and not issubclass(kind, types.ModuleType) and package(kind) not in OUTSIDE
