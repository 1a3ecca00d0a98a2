"""The type of an error that a kernel of _ops.so raised.

How torch hands C++ exceptions to Python changes: up to 2.14 std::invalid_argument became ValueError and all others
RuntimeError, in 2.15 all became RuntimeError. So the library itself remembers the type (csrc/bindings/errors.h), and
what arrives is only searched for the text.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..errors import ArgumentError, ArgumentTypeError, is_of_rope_ext
from .dtensor import register_rules
from .library import native

_R = TypeVar("_R")
_TYPES = {1: ArgumentError, 2: ArgumentTypeError}  # enum class ErrorType in csrc/bindings/errors.h
_OUT_OF_MEMORY = 3

_OF_KERNELS = (RuntimeError, ValueError)  # what torch makes of C++ exceptions

# Name of an op -> a Python function of the same arguments that allocates what the op allocates (fake.py).
allocators: dict[str, Callable[..., object]] = {}


def typed(error: Exception, allocate: Callable[[], object] = lambda: None) -> Exception:
    """The error of a kernel with its type; any other error as it is. allocate: allocates what the kernel did."""
    if not is_of_rope_ext(error):
        return error
    kind = native.rope_ext_take_error_type()
    if type(error) not in _OF_KERNELS:  # raised in Python: the remembered type belongs to an older error
        return error
    if kind == _OUT_OF_MEMORY:
        return _out_of_memory(error, allocate)
    return _TYPES[kind](str(error)) if kind in _TYPES else error


def _out_of_memory(error: Exception, allocate: Callable[[], object]) -> Exception:
    """torch's own error, raised by allocating again: code that retries with less memory knows its type and words."""
    try:
        allocate()
    except Exception as of_torch:
        return of_torch
    # Memory was freed in the meantime, or something other than a tensor ran out of it.
    return torch.OutOfMemoryError(str(error)) if "CUDA out of memory" in str(error) else error


def raises_typed(op: str, function: Callable[..., _R]) -> Callable[..., _R]:
    """Wraps a function of the arguments of the op of this name: errors of kernels get their types."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> _R:
        try:
            return function(*arguments)
        except _OF_KERNELS as error:
            if register_rules():  # it may be the first call with a DTensor
                return wrapper(*arguments)
            found = typed(error, functools.partial(allocators[op], *arguments))
            if found is error:
                raise
            raise found from None

    return wrapper
