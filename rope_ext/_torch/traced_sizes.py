"""The checks of the ops for graphs that replace the ops: PyTorch's and ONNX's operations would broadcast instead."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import LOOKUP_END, Lookup, flags_of, split
from .errors import raises_typed
from .flags import FREQUENCIES
from .library import torch_ops as _ops
from .private import outside_modes, size_in_example, tree

_check = raises_typed("check", _ops.check)


class _OpenError(Exception):
    """A size is an unbacked SymInt: it depends on the values of tensors."""


def check_sizes(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    """Raises what the op would for the shapes and dtypes of a traced call, with the sizes of its example inputs.

    Values of tensors are not validated, nor is offset beside such a tensor.
    """
    (offset, *numbers), lookup = split(rest)
    scalars = offset if lookup == Lookup() else 0, *numbers
    with outside_modes(), contextlib.suppress(_OpenError):
        tables = [_stand_in(t) for t in (cos, sin)]
        if flags_of(rest) & FREQUENCIES:  # must be contiguous; tables may have any strides
            tables = [t.contiguous() for t in tables]
        _check([_stand_in(t) for t in x], *tables, *tree.tree_map(_stand_in, [*scalars, *lookup, *rest[LOOKUP_END:]]))


def _stand_in(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype, device="cpu").expand([*map(_number, value.shape)])
    return _number(value) if isinstance(value, torch.SymInt) else value


def _number(size: int | torch.SymInt) -> int:
    value = size_in_example(size) if isinstance(size, torch.SymInt) else size
    if value is None:
        raise _OpenError
    return value
