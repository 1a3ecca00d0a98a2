"""Checks of single arguments: numbers that must be finite, ints that must be ints. True and "1" are not numbers."""

import math
import numbers
import sys
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeGuard

import torch

from ._shown import converted, shape_of, shown
from ._torch.private import is_jit_tracing
from .errors import ArgumentError, ArgumentTypeError
from .reference import ROUNDINGS

Int: TypeAlias = int | torch.SymInt  # torch.compile traces with symbolic ints

MAX_CHANNELS = 2**20  # per head: no model has more, and more would take seconds and gigabytes
MAX_AXES = 64  # axes of positions
UNINITIALIZED = (torch.nn.parameter.UninitializedParameter, torch.nn.parameter.UninitializedBuffer)
_SHORT_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
_LARGEST = sys.float_info.max  # compare with it instead of converting: float(10**400) raises OverflowError


def as_int(name: str, value: object, wanted: str = "an int") -> Int:
    """Any kind of int as a Python int; a SymInt unchanged. (The dispatcher would truncate a numpy.float32.)"""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if is_jit_tracing() and isinstance(value, torch.Tensor) and value.dim() == 0:  # a tensor size
        value = value.item()
    if not _is_integral(value):
        is_one = getattr(value, "dtype", None) in (torch.int32, torch.int64) and shape_of(value) in ((), (1,))
        cure = f"use int({name})" if is_one else ""
        raise ArgumentTypeError(name, f"be {wanted}", shown(value), cure)
    return int(value)


def as_int64(name: str, value: object, wanted: str = "an int") -> Int:
    """`as_int`, within 64 bits."""
    number = as_int(name, value, wanted)
    if not isinstance(number, torch.SymInt) and (error := beyond_int64(name, number)):
        raise error
    return number


def beyond_int64(name: str, value: int) -> ArgumentError | None:
    """The error of an int that does not fit into 64 bits, or None."""
    if -(2**63) <= value < 2**63:
        return None
    return ArgumentError(name, "be at least -2^63 and below 2^63", shown(value))


def _is_integral(value: object) -> TypeGuard[int]:
    """Whether value is any int but a bool. numpy.int64 counts too, although mypy does not see it as an int."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def positive(**arguments: object) -> None:
    """Each must be a finite number above 0."""
    for name, value in arguments.items():
        number = _as_real(name, value)
        if not number > 0:
            raise ArgumentError(name, "be positive", shown(value))
        if number > _LARGEST:
            raise ArgumentError(name, "be finite", shown(value))


def not_negative(**arguments: object) -> None:
    """Each must be a finite number, 0 or more."""
    for name, value in arguments.items():
        if not 0 <= _as_real(name, value) <= _LARGEST:
            raise ArgumentError(name, "be finite and not negative", shown(value))


def real(**arguments: object) -> None:
    """Each must be a finite number."""
    for name, value in arguments.items():
        if not -_LARGEST <= _as_real(name, value) <= _LARGEST:
            raise ArgumentError(name, "be finite", shown(value))


def fraction(**arguments: object) -> None:
    """Each must be a number from 0 to 1."""
    for name, value in arguments.items():
        if not 0 <= _as_real(name, value) <= 1:
            raise ArgumentError(name, "be in 0 to 1", shown(value))


def all_positive(**arguments: object) -> None:
    """Each must be a list or tuple of finite numbers above 0."""
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)):
            raise ArgumentTypeError(name, "be a list of numbers", shown(values))
        are_plain = all(type(value) in (int, float) for value in values)
        if are_plain and min(values, default=1) > 0 and sum(values) < math.inf:  # fast path; a NaN fails the sum
            continue
        for value in values:
            positive(**{name: value})


def integer(**arguments: object) -> None:
    """Each must be an int."""
    for name, value in arguments.items():
        _integer(name, value)


def _integer(name: str, value: object) -> int:
    if not _is_integral(value):
        raise ArgumentTypeError(name, "be an int", shown(value))
    return value


def count(**arguments: object) -> None:
    """Each must be an int from 1 to 2 ** 40: products of two of them stay far below the largest float."""
    for name, value in arguments.items():
        if not 1 <= _integer(name, value) <= 2**40:
            raise ArgumentError(name, "be in 1 to 2 ** 40", shown(value))


def integers(name: str, values: Iterable[object]) -> None:
    """Each of values must be an int."""
    for value in values:
        if type(value) is not int and not _is_integral(value):
            raise ArgumentTypeError(name, "be a list of ints", f"an entry {shown(value)}")


def not_negative_integer(**arguments: object) -> None:
    """Each must be 0 or a count."""
    for name, value in arguments.items():
        if type(value) is not int or value != 0:
            count(**{name: value})


def boolean(**arguments: object) -> None:
    """Each must be True or False."""
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise ArgumentTypeError(name, "be True or False", shown(value))


def rounding(value: object) -> None:
    """value must be one of the options of `Rounding`."""
    if not isinstance(value, str) or value not in ROUNDINGS:
        raise ArgumentError("rounding", f"be {' or '.join(map(repr, ROUNDINGS))}", shown(value))


def text(**arguments: object) -> None:
    """Each must be a str."""
    for name, value in arguments.items():
        if not isinstance(value, str):
            raise ArgumentTypeError(name, "be a str", shown(value))


def seqlen(value: object) -> Int | None:
    """seqlen as an int; None and symbolic ints of torch.compile are returned unchanged."""
    if value is None or isinstance(value, torch.SymInt):
        return value
    length = as_int("seqlen", value)
    if not 0 <= length < 2**63:
        raise ArgumentError("seqlen", "be in 0 to 2 ** 63 - 1", shown(length))
    return length


def tensor(**arguments: object) -> None:
    """Each must be a Tensor. The error suggests torch.tensor for values that it can convert."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            is_number = isinstance(value, numbers.Number)
            cure = f"use torch.tensor({name})" if is_number else converted(name, value)
            raise ArgumentTypeError(name, "be a Tensor", shown(value), cure)


def floating_point(dtype: object) -> None:
    """dtype must be a floating-point torch.dtype. The error names the one that a str or a numpy type stands for."""
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return
    name: object = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", ""))
    meant = getattr(torch, _SHORT_NAMES.get(name, name), None) if isinstance(name, str) else None
    cure = f"use {meant}" if isinstance(meant, torch.dtype) and meant.is_floating_point else ""
    raise ArgumentTypeError("dtype", "be a floating-point dtype", shown(dtype), cure)


def channels(rotary_dim: int, at_least: int = 2) -> None:
    """rotary_dim must be an even int."""
    integer(rotary_dim=rotary_dim)
    if rotary_dim % 2 or rotary_dim < at_least:
        raise ArgumentError("rotary_dim", f"be even and at least {at_least}", shown(rotary_dim))
    if rotary_dim > MAX_CHANNELS:
        raise ArgumentError("rotary_dim", f"be at most {MAX_CHANNELS}", shown(rotary_dim))


def as_tuple(name: str, values: Any, of: str = "numbers") -> tuple[Any, ...]:
    """A list, tuple, tensor, array or other iterable as a tuple; a str is refused."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ArgumentTypeError(name, f"be a list of {of}", shown(values))
    return tuple(values)


def axes_of(name: str, axes: object) -> tuple[int, ...]:
    """Axes of positions as a tuple of ints, each below MAX_AXES."""
    listed = as_tuple(name, axes, of="ints")
    integers(name, listed)
    if max(listed, default=0) >= MAX_AXES:
        raise ArgumentError(name, f"be in 0 to {MAX_AXES - 1}", max(listed))
    return tuple(int(axis) for axis in listed)


def _as_real(name: str, value: object) -> float:
    """value as a Python number: comparing a numpy.float32 with `_LARGEST` would emit a warning."""
    if not _is_real(value):
        raise ArgumentTypeError(name, "be a number", shown(value))
    number: float = value.item() if hasattr(value, "item") else value
    return number


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
