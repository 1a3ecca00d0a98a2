"""Functions whose arguments go by name: the signature that shows it, and the error of a call that gives more."""

import inspect

from .errors import ArgumentTypeError

REQUIRED = object()  # default of what must be given, and may have been given by another name


def by_name(function):
    """A decorator for functions that take `*too_many` only to refuse it: their signature shows the rule itself."""
    shown_parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            is_required = parameter.default is REQUIRED
            shown_parameters.append(parameter.replace(default=inspect.Parameter.empty) if is_required else parameter)
    function.__signature__ = inspect.Signature(shown_parameters)
    return function


def given_by_position(function, names, too_many, cure):
    """The TypeError of a call with more arguments by position than there are names."""
    *others, last = names
    rule = f"one argument by position, {last}"
    if others:
        rule = f"1 to {len(names)} arguments by position, {', '.join(others)} and {last}"
    return ArgumentTypeError(function, f"get {rule}", len(names) + len(too_many), cure)
