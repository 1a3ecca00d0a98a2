"""Errors of the functions of other libraries, in the words of their arguments, and checks that several of them make."""

from typing import Any

from torch import Tensor

from .._shown import name_of, shown
from ..errors import ArgumentError, ArgumentTypeError
from ..reference import DTYPE_NAMES, DTYPES


def refused(argument: str, rule: str, got: Any) -> ArgumentError:
    """The ValueError "rope_ext: <argument> must <rule>, got <got>"; for a Tensor its shape is named."""
    return ArgumentError(argument, rule, _text(got))


def refused_type(argument: str, rule: str, got: Any) -> ArgumentTypeError:
    """The TypeError "rope_ext: <argument> must <rule>, got <got>"; for a Tensor its shape is named."""
    return ArgumentTypeError(argument, rule, _text(got))


def check_dtype(argument: str, t: Tensor) -> None:
    """TypeError unless the kernels know the dtype of t."""
    if t.dtype not in DTYPES:
        raise refused_type(argument, f"be {DTYPE_NAMES}", name_of(t.dtype))


def check_axis(argument: str, axis: int, rank: int) -> None:
    """ValueError unless -rank <= axis < rank."""
    if not -rank <= axis < rank:
        raise refused(argument, f"be an axis, {-rank} to {rank - 1}", axis)


def _text(got: Any) -> Any:
    if isinstance(got, Tensor):
        return f"shape {tuple(got.shape)}"
    return shown(got) if isinstance(got, int) else got
