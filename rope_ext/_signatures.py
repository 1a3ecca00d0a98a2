"""Functions with keyword arguments: their signatures, and the error of a call with too many positional arguments."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from .errors import ArgumentTypeError

_F = TypeVar("_F", bound=Callable[..., Any])
REQUIRED: Any = object()  # default of a required argument, whose error may recognize another name


def by_name(function: _F) -> _F:
    """Decorate a function that collects `*too_many` only to refuse them: omit that parameter from its signature."""
    signature = inspect.signature(function)
    shown = [
        parameter.replace(default=parameter.empty) if parameter.default is REQUIRED else parameter
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    vars(function)["__signature__"] = signature.replace(parameters=shown)
    return function


def takes_keywords_of(other: Callable[..., Any], names: Collection[str]) -> Callable[[_F], _F]:
    """Decorate a function that accepts `**options`: its signature shows the keywords of `other` with these names."""

    def decorate(function: _F) -> _F:
        own = inspect.signature(by_name(function))
        kept = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        keywords = [parameter for name, parameter in inspect.signature(other).parameters.items() if name in names]
        vars(function)["__signature__"] = own.replace(parameters=[*kept, *keywords])
        return function

    return decorate


def check_names(function: str, options: Collection[str], names: Collection[str]) -> None:
    """Raise Python's own TypeError for a keyword in a call of function, one of options, that is not in names."""
    for name in options:
        if name not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def given_by_position(function: str, names: Sequence[str], too_many: Sequence[object], cure: str) -> ArgumentTypeError:
    """The TypeError of a call with more positional arguments than names."""
    *others, last = names
    rule = f"one argument by position, {last}"
    if others:
        rule = f"1 to {len(names)} arguments by position, {', '.join(others)} and {last}"
    return ArgumentTypeError(function, f"get {rule}", len(names) + len(too_many), cure)
