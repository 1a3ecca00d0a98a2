"""`rope_ext.apply` where an original allocates contiguous results, or takes heads without channels."""

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
    """`rope_ext.apply` to a Tensor or tuple x. Heads without channels, which it refuses, give empty results.

    contiguous: None leaves results the strides of torch.empty_like(x), () makes them contiguous whatever those are, and
    two axes make them contiguous once these are swapped. A copy is made only where a derivative is recorded.
    """
    given: Any = x
    tensors = given if isinstance(given, tuple) else (given,)
    y: Any
    result: X
    if not cos.shape[-1] and not any(t.shape[-1] for t in tensors):
        nothing = cos.sum() + sin.sum()  # sums of no elements: only link the derivatives
        y = tuple(t + nothing for t in tensors)
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
    """cos and sin, rounded from float32 to the dtype of x where rounding is "eager" and x has 16 bits."""
    if rounding == "eager" and x.dtype.itemsize == 2 and cos.dtype == sin.dtype == torch.float32:
        return cos.to(x.dtype), sin.to(x.dtype)
    return cos, sin


def _empty(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _swapped(t: Tensor, axes: tuple[int, int] | tuple[()]) -> Tensor:
    return t.transpose(*axes) if axes else t


def _in_order(tensors: tuple[Tensor, ...], swapped: tuple[int, int] | tuple[()]) -> bool:
    """Whether torch.empty_like of each is contiguous once the axes are swapped, as for slices of packed heads."""
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
