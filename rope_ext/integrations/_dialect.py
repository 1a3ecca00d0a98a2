"""A dialect: one meaning of rotary functions. transformers.py, diffusers.py and timm.py hold lists of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference import Rounding
from ._rotation import Reader, Rotation, Rotations, run

Call = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs
Examples = Callable[[int, torch.dtype], list[Call]]
Draw = Callable[..., Tensor]  # (*shape) -> a random tensor
Calls = Callable[[Draw, Draw], list[Call]]
Bound = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]


@dataclass(frozen=True)
class Dialect:
    """One meaning of a rotary function, however many libraries and names it has.

    name: "<module of dialects>.<meaning>", as in _known.json.
    read: the arguments of a call -> what it computes, or None: the original does it. Its parameters are those of the
        functions: names, order and defaults; of a method also self.
    examples: (seed, dtype of the states) -> calls, on the CPU: every branch of the functions, tables that are no
        rotation (the halves differ), shapes that broadcast, tables of another dtype.
    bound: None where the functions and rope_ext are equal bit for bit; else (args, kwargs, result of the original) ->
        largest difference, a Tensor for each Tensor of the result or one for all. Such a dialect serves
        rounding="once" only.
    """

    name: str
    read: Reader
    examples: Examples
    bound: Bound | None = None

    def call(self, original: Callable[..., Any], rounding: Rounding, *args: Any, **kwargs: Any) -> Any:
        """What original(*args, **kwargs) returns, by rope_ext; by original where the dialect does not read the call."""
        y = run(self.read(*args, **kwargs), rounding)
        return original(*args, **kwargs) if y is None else y


def examples(calls: Calls) -> Examples:
    """`Dialect.examples` of calls(x, table) -> [(args, kwargs), ...].

    x(*shape) and table(*shape) draw tensors of the dtype of the states, or of float32. cos and sin are drawn like any
    others, so that no two entries of a table agree by chance.
    """

    def draw(seed: int, dtype: torch.dtype) -> list[Call]:
        generator = torch.Generator().manual_seed(seed)
        return [
            call
            for table_dtype in (torch.float32, dtype)
            for call in calls(_drawn(generator, dtype), _drawn(generator, table_dtype))
        ]

    return draw


def _drawn(generator: torch.Generator, dtype: torch.dtype) -> Draw:
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def fused(read: Reader) -> Bound:
    """`Dialect.bound` of functions that may fuse a product and the sum (complex products, addcmul), by their reader.

    Complex products do on a GPU, and on a CPU for the last ones, fewer than two vectors hold.
    Then one of three roundings is missing, each of at most half a unit in the last place of |x1 cos| + |x2 sin|; and
    where the result is rounded to a narrower dtype, that can go to the next number.
    """

    def bound(args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
        found = read(*args, **kwargs)
        if isinstance(found, Rotation) and not found.convention.per_pair:  # real tables, which fuse nothing
            return torch.zeros_like(y)
        rotations = found.parts if isinstance(found, Rotations) else [found]
        differences = [_largest_differences(part) for part in rotations if part is not None]
        largest = found.finish(*differences) if isinstance(found, Rotations) else differences[0]
        return tuple(map(_rounded, largest, y)) if isinstance(y, tuple) else _rounded(largest, y)

    return bound


def _largest_differences(rotation: Rotation) -> Any:
    """1.5 units in the last place of |x1 cos| + |x2 sin|, in the form of rotation.x and the dtype of the arithmetic."""
    x, cos, sin, convention, axis = rotation[:5]
    if axis is not None:
        cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
    work = torch.promote_types(convention.min_dtype or cos.dtype, cos.dtype)
    size = torch.maximum(cos.abs(), sin.abs()).to(work)
    size = size.repeat_interleave(2, -1) if convention.interleaved else torch.cat((size, size), -1)

    def largest(t: Tensor) -> Tensor:
        t = t.abs().to(work)
        if convention.interleaved:
            pairs = torch.unflatten(t, -1, (-1, 2)).sum(-1).repeat_interleave(2, -1)
        else:
            pairs = torch.unflatten(t, -1, (2, -1)).sum(-2).repeat(*[1] * (t.dim() - 1), 2)
        return pairs * size * (1.5 * torch.finfo(work).eps)

    return tuple(map(largest, x)) if isinstance(x, tuple) else largest(x)


def _rounded(largest: Tensor, y: Tensor) -> Tensor:
    """The largest difference after rounding to the dtype of y, which can go to the next number."""
    if y.dtype == largest.dtype:
        return largest
    return largest + torch.finfo(y.dtype).eps * y.abs().to(largest.dtype)
