"""Restores the type of an error that a kernel of _ops.so raised.

torch's translation of C++ exceptions to Python depends on the release: up to 2.14 std::invalid_argument becomes
ValueError and every other exception RuntimeError, in 2.15 all become RuntimeError. Therefore the library records the
type of its last error (csrc/bindings/errors.h), and the Python exception only has to contain the text.
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

_OF_KERNELS = (RuntimeError, ValueError)  # the types to which torch translates C++ exceptions

# Name of an op -> a Python function with the same arguments that allocates what the op allocates (fake.py).
allocators: dict[str, Callable[..., object]] = {}


def typed(error: Exception, allocate: Callable[[], object] = lambda: None) -> Exception:
    """The error of a kernel with its type restored, any other error unchanged. allocate: allocates as the op does."""
    if not is_of_rope_ext(error):
        return error
    kind = native.rope_ext_take_error_type()
    if type(error) not in _OF_KERNELS:  # raised in Python: the recorded type is an older error's
        return error
    if kind == _OUT_OF_MEMORY:
        return _out_of_memory(error, allocate)
    return _TYPES[kind](str(error)) if kind in _TYPES else error


def _out_of_memory(error: Exception, allocate: Callable[[], object]) -> Exception:
    """torch's own error, raised by allocating again: code that retries with less memory matches its type and text."""
    try:
        allocate()
    except Exception as of_torch:
        return of_torch
    # Memory was freed in the meantime, or an allocation other than a tensor's had failed.
    return torch.OutOfMemoryError(str(error)) if "CUDA out of memory" in str(error) else error


def raises_typed(op: str, function: Callable[..., _R]) -> Callable[..., _R]:
    """Wraps a function that has the arguments of the op of this name: restores the types of the errors of kernels."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> _R:
        try:
            return function(*arguments)
        except _OF_KERNELS as error:
            if register_rules():  # the first call with a DTensor fails without the rules
                return wrapper(*arguments)
            found = typed(error, functools.partial(allocators[op], *arguments))
            if found is error:
                raise
            raise found from None

    return wrapper
