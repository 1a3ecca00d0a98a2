"""Tables from the overloads of ops to functions, which PyTorch calls with the arguments of the overload."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .library import torch_ops
from .private import schema_of

ByOverload: TypeAlias = dict[Callable[..., Any], Callable[..., Any]]  # the keys are torch._ops.OpOverload


def for_all_overloads(functions: Mapping[str, Callable[..., Any]]) -> ByOverload:
    """{overload: function} for every overload of the ops.

    functions: {name of the op: function of all its arguments, by position}. Defaults are filled in before the call.
    """
    found: ByOverload = {}
    for op, function in functions.items():
        packet = getattr(torch_ops, op)
        for name in packet.overloads():
            overload = getattr(packet, name)
            found[overload] = _with_all_arguments(overload, function)
    return found


def _with_all_arguments(overload: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    arguments = schema_of(overload).arguments

    def with_all_arguments(*given: Any, **by_name: Any) -> Any:
        return function(*given, *(by_name.get(a.name, a.default_value) for a in arguments[len(given) :]))

    functools.update_wrapper(with_all_arguments, function)
    return with_all_arguments
