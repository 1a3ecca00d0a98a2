"""The type of an error that a kernel of _ops.so raised.

How torch hands C++ exceptions to Python changes: up to 2.14 std::invalid_argument became ValueError and all others
RuntimeError, in 2.15 all became RuntimeError. So the library itself remembers the type (csrc/bindings/errors.h), and
what arrives is only searched for the text.
"""

import functools

import torch

from ..errors import ArgumentError, ArgumentTypeError, parts_of
from .library import native

_PREFIX = "rope_ext: "
_TYPES = {1: ArgumentError, 2: ArgumentTypeError}  # enum class ErrorType in csrc/bindings/errors.h
_OUT_OF_MEMORY = 3

_OF_KERNELS = (RuntimeError, ValueError)  # what torch makes of them

# Name of an op -> a function of its arguments that allocates what the op does, in Python (fake.py).
allocators = {}


def typed(error, allocate=lambda: None):
    """The error of a kernel with its type; any other error as it is. allocate: allocates what the kernel did."""
    message = str(error)
    if not message.startswith(_PREFIX):
        return error
    kind = native.rope_ext_take_error_type()
    if type(error) not in _OF_KERNELS:  # raised in Python, and the remembered type is that of an older error
        return error
    if kind == _OUT_OF_MEMORY:
        return _out_of_memory(error, allocate)
    return _TYPES[kind](*parts_of(message)) if kind in _TYPES else error


def _out_of_memory(error, allocate):
    """torch's own error, which code that retries with less knows by type and words: torch raises it a second time."""
    try:
        allocate()
    except Exception as of_torch:
        return of_torch
    # Memory was freed meanwhile, or no tensor lacked it.
    return torch.OutOfMemoryError(str(error)) if "CUDA out of memory" in str(error) else error


def raises_typed(op, function):
    """A function of the arguments of an op, given by name, whose errors of kernels have their types."""

    @functools.wraps(function)
    def wrapper(*arguments):
        try:
            return function(*arguments)
        except _OF_KERNELS as error:
            found = typed(error, functools.partial(allocators[op], *arguments))
            if found is error:
                raise
            raise found from None

    return wrapper
