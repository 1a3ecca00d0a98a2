"""What the modules of dialects (transformers, diffusers, timm) are lists of."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """One meaning of a rotary function, however many libraries and names it has.

    name: "<module of dialects>.<meaning>", as in _known.json.
    adapter: (original, rounding, *args, **kwargs) -> what original(*args, **kwargs) returns. After the first two its
        parameters are those of the functions it replaces: names, order and defaults; of a method also self. rounding is
        that of `rope_ext.apply`. What it cannot do it leaves to original.
    examples: (seed, dtype of the states) -> [(args, kwargs), ...], on the CPU: every branch of the functions, tables
        that are no rotation (the halves differ), shapes that broadcast, tables of another dtype.
    bound: None where adapter and original are equal bit for bit; else (args, kwargs, result of original) -> largest
        difference, a Tensor for each Tensor of the result or one for all. Such a dialect serves rounding="once" only.
    note: what a user should know about the difference.
    """

    name: str
    adapter: Callable
    examples: Callable
    bound: Callable | None = None
    note: str = ""
