"""Tables from the overloads of ops to functions that PyTorch calls for them: with all arguments, in their order."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from .library import torch_ops
from .private import schema_of

if TYPE_CHECKING:
    from torch._ops import OpOverload

ByOverload: TypeAlias = "dict[OpOverload[..., Any], Callable[..., Any]]"


def for_all_overloads(functions: Mapping[str, Callable[..., Any]]) -> ByOverload:
    """functions: by the name of the op, with its arguments by position, defaults too. They serve each overload."""
    packets = {name: getattr(torch_ops, name) for name in functions}
    overloads = [
        (getattr(packet, name), functions[op]) for op, packet in packets.items() for name in packet.overloads()
    ]
    return {overload: _with_all_arguments(overload, function) for overload, function in overloads}


def _with_all_arguments(overload: "OpOverload[..., Any]", function: Callable[..., Any]) -> Callable[..., Any]:
    arguments = schema_of(overload).arguments

    def with_all_arguments(*given: Any, **by_name: Any) -> Any:
        return function(*given, *(by_name.get(a.name, a.default_value) for a in arguments[len(given) :]))

    functools.update_wrapper(with_all_arguments, function)
    return with_all_arguments
