"""A dialect: one meaning that rotary functions have. transformers.py, diffusers.py and timm.py list them."""

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
    """One meaning that rotary functions have, under any name and in any library.

    Attributes:
        name: "<library>.<meaning>", as in _known.json.
        read: the arguments of a call -> the rotation that it computes, or None to run the original. Its parameters have
            the names, order and defaults of those of the functions, and begin with self for a method.
        examples: (seed, dtype of the states) -> calls, on the CPU. They cover every branch of the functions, tables
            that are no rotation (the halves differ), shapes that broadcast, and tables of another dtype.
        bound: None if the functions and rope_ext are equal bit for bit; else (args, kwargs, result of the original) ->
            largest difference, one Tensor for each Tensor of the result or one for all. Such a dialect is used only
            with rounding="once".
    """

    name: str
    read: Reader
    examples: Examples
    bound: Bound | None = None

    def call(self, original: Callable[..., Any], rounding: Rounding, *args: Any, **kwargs: Any) -> Any:
        """The result of `original(*args, **kwargs)`, computed by rope_ext if the dialect can read the call."""
        y = run(self.read(*args, **kwargs), rounding)
        return original(*args, **kwargs) if y is None else y


def examples(calls: Calls) -> Examples:
    """`Dialect.examples` from calls(x, table) -> [(args, kwargs), ...].

    `x(*shape)` draws a tensor in the dtype of the states, `table(*shape)` one in that dtype or in float32. Entries of
    cos and sin are drawn independently, so that no two entries of a table agree by chance.
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
    """`Dialect.bound` of functions that may fuse a product and the sum (complex products, addcmul), from their reader.

    PyTorch's complex products fuse on a GPU, and on a CPU in the remainder of fewer than two vectors. Fusing omits one
    of three roundings, each of at most half a unit in the last place of `|x1 cos| + |x2 sin|`. A result that is then
    rounded to a narrower dtype can differ by one number of that dtype.
    """

    def bound(args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
        found = read(*args, **kwargs)
        if isinstance(found, Rotation) and not found.convention.per_pair:  # real tables: the function fuses nothing
            return torch.zeros_like(y)
        rotations = found.parts if isinstance(found, Rotations) else [found]
        differences = [_largest_differences(part) for part in rotations if part is not None]
        largest = found.finish(*differences) if isinstance(found, Rotations) else differences[0]
        return tuple(map(_rounded, largest, y)) if isinstance(y, tuple) else _rounded(largest, y)

    return bound


def _largest_differences(rotation: Rotation) -> Any:
    """1.5 units in the last place of `|x1 cos| + |x2 sin|`, structured like rotation.x, in the working dtype."""
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
    """The largest difference after rounding to the dtype of y, which can add one number of that dtype."""
    if y.dtype == largest.dtype:
        return largest
    return largest + torch.finfo(y.dtype).eps * y.abs().to(largest.dtype)
