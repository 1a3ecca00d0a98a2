"""Errors of the functions of other libraries, which name their arguments, and the checks that they share."""

from typing import Any

from torch import Tensor

from .._shown import name_of, shown
from ..errors import ArgumentError, ArgumentTypeError
from ..reference import DTYPE_NAMES, DTYPES


def refused(argument: str, rule: str, got: Any) -> ArgumentError:
    """The ArgumentError "rope_ext: <argument> must <rule>, got <got>". got: a value, or a Tensor for its shape."""
    return ArgumentError(argument, rule, _text(got))


def refused_type(argument: str, rule: str, got: Any) -> ArgumentTypeError:
    """The ArgumentTypeError "rope_ext: <argument> must <rule>, got <got>". got: a value, or a Tensor for its shape."""
    return ArgumentTypeError(argument, rule, _text(got))


def last_size(head_dim: int, of: str) -> str:
    """The rule for a tensor whose last dimension must be the head_dim of another argument."""
    return f"have a last dimension of {head_dim}, the head_dim of {of}"


def check_dtype(argument: str, t: Tensor) -> None:
    """Raise ArgumentTypeError unless the kernels support the dtype of t."""
    if t.dtype not in DTYPES:
        raise refused_type(argument, f"be {DTYPE_NAMES}", name_of(t.dtype))


def check_axis(argument: str, axis: int, rank: int) -> None:
    """Raise ArgumentError unless -rank <= axis < rank."""
    if not -rank <= axis < rank:
        raise refused(argument, f"be an axis from {-rank} to {rank - 1}", axis)


def _text(got: Any) -> Any:
    if isinstance(got, Tensor):
        return f"shape {tuple(got.shape)}"
    return shown(got) if isinstance(got, int) else got
