"""`rope_ext.apply` for originals that allocate contiguous results or accept heads without channels."""

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._torch.private import functorch_is_active
from .._torch.recording import needs_derivative
from ..ops import apply
from ..reference import Rounding

X = TypeVar("X", bound=Tensor | tuple[Tensor, ...])


def rotated(
    x: X, cos: Tensor, sin: Tensor, *, contiguous: tuple[int, int] | tuple[()] | None = None, **options: Any
) -> X:
    """`rope_ext.apply` to a Tensor or tuple x. Heads without channels, which `apply` refuses, give empty results.

    Args:
        contiguous: None for results with the strides of torch.empty_like(x), () for contiguous results, two axes for
            results that are contiguous after these axes are swapped. Only a call that records a derivative copies.
    """
    given: Any = x
    tensors = given if isinstance(given, tuple) else (given,)
    y: Any
    result: X
    if not cos.shape[-1] and not any(t.shape[-1] for t in tensors):
        zero = cos.sum() + sin.sum()  # sums of no elements, which keep the tables in the autograd graph
        y = tuple(t + zero for t in tensors)
    elif contiguous is None or (not is_compiling() and _in_order(tensors, contiguous)):
        result = apply(given, cos, sin, **options)
        return result
    elif is_compiling() or functorch_is_active() or needs_derivative(tensors, cos, sin):
        y = apply(tensors, cos, sin, **options)
        y = tuple(_swapped(_swapped(t, contiguous).contiguous(), contiguous) for t in y)
    else:
        y = tuple(_swapped(_empty(_swapped(t, contiguous)), contiguous) for t in tensors)
        apply(tensors, cos, sin, out=y, **options)
    result = y if isinstance(given, tuple) else y[0]
    return result


def rounded_tables(cos: Tensor, sin: Tensor, x: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """cos and sin, cast from float32 to a 16-bit dtype of x if rounding is "eager"."""
    if rounding == "eager" and x.dtype.itemsize == 2 and cos.dtype == sin.dtype == torch.float32:
        return cos.to(x.dtype), sin.to(x.dtype)
    return cos, sin


def _empty(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _swapped(t: Tensor, axes: tuple[int, int] | tuple[()]) -> Tensor:
    return t.transpose(*axes) if axes else t


def _in_order(tensors: tuple[Tensor, ...], swapped: tuple[int, int] | tuple[()]) -> bool:
    """Whether torch.empty_like of each tensor is contiguous after the swap, as for slices of packed heads."""
    for t in tensors:
        if not swapped and t.is_contiguous():
            continue
        strides = list(t.stride())
        if swapped:
            first, second = swapped
            strides[first], strides[second] = strides[second], strides[first]
        if strides != sorted(strides, reverse=True):
            return False
    return True
