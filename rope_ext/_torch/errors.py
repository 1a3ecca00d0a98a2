"""The type of an error that a kernel of _ops.so raised.

How torch hands C++ exceptions to Python changes: up to 2.14 std::invalid_argument became ValueError and all others
RuntimeError, in 2.15 all became RuntimeError. So the library itself remembers the type (csrc/bindings/errors.h), and
what arrives is only searched for the text.
"""

import functools

from .library import native

_PREFIX = "rope_ext: "
_TYPES = {1: ValueError, 2: TypeError}  # enum class ErrorType in csrc/bindings/errors.h


def typed(error):
    """The error of a kernel as ValueError or TypeError; any other error as it is."""
    message = str(error)
    if not message.startswith(_PREFIX):
        return error
    kind = _TYPES.get(native.rope_ext_take_error_type())
    # Other types are those of errors that Python raised, and the remembered one is then of an older error.
    return error if kind is None or type(error) is not RuntimeError else kind(message)


def raises_typed(function):
    """Decorator: errors of the kernels that a function calls leave it with their type."""

    @functools.wraps(function)
    def wrapper(*arguments):
        try:
            return function(*arguments)
        except RuntimeError as error:
            found = typed(error)
            if found is error:
                raise
            raise found from None

    return wrapper
