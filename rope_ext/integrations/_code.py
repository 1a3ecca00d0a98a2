"""The functions, classes and objects that the code of a function names, which a call may use."""

import contextlib
import dis
import functools
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from ._held import ATOMS, OUTSIDE

_NOT_CALLED = (*ATOMS, types.ModuleType)
_IMPORT = dis.opmap["IMPORT_NAME"]
_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}  # the last since Python 3.12


def code_of(function: types.FunctionType) -> types.CodeType:
    """The code of a function before `patch` put stubs into it."""
    return getattr(function, "_rope_ext_code", function.__code__)


def codes_inside(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code objects of the functions defined inside a function, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from codes_inside(constant)


def globals_of(function: types.FunctionType) -> list[tuple[Any, tuple[dict[str, Any], str]]]:
    """[(value, place)] of the globals, attributes of modules and lazy imports that the code of a function names."""
    code, namespace, called = code_of(function), function.__globals__, []
    for inside in (code, *codes_inside(code)):
        own = [name for name in _names(inside)[0] if name in namespace]
        modules = [vars(namespace[name]) for name in own if issubclass(type(namespace[name]), types.ModuleType)]
        named = [(namespace, own), *((held, inside.co_names) for held in (*_imported(inside, namespace), *modules))]
        for held, names in named:
            if held.get("__name__", "").partition(".")[0] not in OUTSIDE:
                called += [(held[name], (held, name)) for name in names if name in held]
    return [(value, place) for value, place in called if not issubclass(type(value), _NOT_CALLED)]


def names_in(code: types.CodeType) -> set[str]:
    """The names of attributes and methods that the code of a function uses, and `super`."""
    names = [_names(inside) for inside in (code, *codes_inside(code))]
    return {name for loaded, others in names for name in (*others, *({"super"} & set(loaded)))}


def _imported(code: types.CodeType, namespace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The namespaces of the loaded modules from which a function imports when it is called."""
    for level, name in _imports(code):
        with contextlib.suppress(ImportError, TypeError):
            name = importlib.util.resolve_name("." * level + name, namespace.get("__package__"))
            if name in sys.modules:
                yield vars(sys.modules[name])


@functools.cache
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names loaded from the globals of a function, its other names: attributes, methods and imports)"""
    loaded: dict[str, None] = {}  # dicts as ordered sets
    others: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opcode in dis.hasname:
            (loaded if instruction.opname in _LOADS else others)[instruction.argval] = None
    return tuple(loaded), tuple(others)


@functools.cache
def _imports(code: types.CodeType) -> tuple[tuple[int, str], ...]:
    """(dots, name) of the import statements of a function."""
    if _IMPORT not in code.co_code[::2]:
        return ()
    instructions = [x for x in dis.get_instructions(code) if x.opname != "EXTENDED_ARG"]
    return tuple((instructions[i - 2].argval, x.argval) for i, x in enumerate(instructions) if x.opcode == _IMPORT)
