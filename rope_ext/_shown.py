"""How errors show a value, in one short line (tensors and arrays by their shape), and how it can become a Tensor."""

import numbers
import reprlib

import torch


class _Short(reprlib.Repr):
    """The repr of a value in one short line, also within lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 8
        self.maxstring = self.maxother = 100

    def repr1(self, value: object, level: int) -> str:
        if isinstance(value, int) and value.bit_length() > 4096:  # Python refuses to print more than 4300 digits
            return f"an int of {value.bit_length()} bits"
        shape = shape_of(value)
        if isinstance(value, torch.Tensor) or shape:  # arrays and data frames too
            of_shape = "" if shape is None else f" of shape {tuple(shape)}"
            dtype = name_of(getattr(value, "dtype", ""))
            return f"{type(value).__name__}{of_shape}" + (f", {dtype}" if dtype else "")
        return super().repr1(value, level)

    def repr_instance(self, value: object, level: int) -> str:
        return " ".join(super().repr_instance(value, level).split())


_short = _Short()


def shown(value: object) -> str:
    """A value as errors show it: its repr, cut to one line; for a tensor or an array, its type, shape and dtype."""
    line = _short.repr(value)
    return line if len(line) <= 200 else f"{line[:160]} ... {line[-32:]}"


def name_of(dtype: object) -> str:
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


def shape_of(value: object) -> tuple[int, ...] | None:
    try:
        shape = getattr(value, "shape", None)
    except RuntimeError:  # nested tensors and uninitialized parameters have none
        return None
    return shape if isinstance(shape, tuple) else None


def converted(name: str, value: object) -> str:
    """How to convert a list of numbers or an array to a Tensor; "" for other values."""
    is_listed = isinstance(value, (list, tuple, range)) and all(
        isinstance(item, (numbers.Number, list, tuple)) for item in value[:8]
    )
    return f"use torch.tensor({name})" if is_listed or hasattr(value, "__array__") else ""
