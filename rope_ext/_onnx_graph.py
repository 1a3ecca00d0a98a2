"""Nodes of the graph that torch.onnx.export is building, and what is known about its values: sizes and dtypes.

A value is an ir.Value of onnx_ir. Its shape and dtype are known if PyTorch created it, but not after ONNX operators;
functions that need them therefore accept them as arguments. Sizes are ints, or values if they are dynamic.
"""

import importlib
import sys
from typing import Any, TypeAlias

import torch

from .errors import ArgumentError

Value: TypeAlias = Any
Size: TypeAlias = Any

_END = sys.maxsize  # the end of a Slice


class Graph:
    """The graph under construction. op: the ONNX operators at the opset of the export."""

    def __init__(self) -> None:
        self.types: Any = importlib.import_module("onnx").TensorProto
        recorder = importlib.import_module("onnxscript.evaluator").default()
        if not hasattr(recorder, "opset"):
            got = f"{type(recorder).__name__} of torch {torch.__version__}"
            raise ArgumentError("custom_translation_table", "be used by torch.onnx.export of torch 2.11 to 2.15", got)
        self.op: Any = recorder.opset

    @property
    def has_opset_23(self) -> bool:
        """Whether the export may use RotaryEmbedding and RMSNormalization, which opset 23 introduced."""
        return bool(self.op.version >= 23)

    # ---- constants ----

    def ints(self, *values: int) -> Value:
        return self.op.Constant(value_ints=[*values])

    def number(self, value: float, dtype: Any) -> Value:
        tensor = importlib.import_module("onnx.helper").make_tensor("number", int(dtype), [], [value])
        return self.op.Constant(value=tensor)

    def double(self, value: float) -> Value:
        """A number as an operand of float64 values, next to which a Python number would be float32."""
        return self.number(value, self.types.DOUBLE)

    # ---- dtypes ----

    def arithmetic(self, dtype: Any) -> int:
        """The dtype of the arithmetic on x of this dtype."""
        return int(self.types.DOUBLE if int(dtype) == self.types.DOUBLE else self.types.FLOAT)

    def cast(self, value: Value, dtype: Any, source: Any = None) -> Value:
        """value as dtype. source: its current dtype, if the value does not know it."""
        known = value.dtype if source is None else source
        return value if known is not None and int(known) == int(dtype) else self.op.Cast(value, to=int(dtype))

    # ---- sizes ----

    def size(self, value: Value, axis: int) -> Size:
        """The size of an axis of a value with a known shape: an int, or a value of shape (1,)."""
        known = value.shape[axis]
        return known if isinstance(known, int) else self.op.Shape(value, start=axis, end=axis + 1)

    def shape(self, *sizes: Size) -> Value:
        """A shape for Expand and Reshape."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*sizes)
        return self.op.Concat(*(self.ints(s) if isinstance(s, int) else s for s in sizes), axis=0)

    def expand(self, value: Value, *sizes: Size) -> Value:
        return self.op.Expand(value, self.shape(*sizes))

    # ---- channels, the last axis ----

    def channels(self, value: Value, start: int, end: int = _END, step: int = 1) -> Value:
        return self.op.Slice(value, self.ints(start), self.ints(end), self.ints(-1), self.ints(step))

    def split(self, value: Value, width: int, interleaved: bool) -> tuple[Value, Value]:
        """The first and the second channel of each pair."""
        if interleaved:
            return self.channels(value, 0, step=2), self.channels(value, 1, step=2)
        return self.channels(value, 0, width // 2), self.channels(value, width // 2, width)

    def join(self, first: Value, second: Value, width: int, interleaved: bool) -> Value:
        """Heads of this width, with four axes, whose pairs are first and second."""
        if not interleaved:
            return self.op.Concat(first, second, axis=-1)
        pairs = self.op.Concat(*(self.op.Unsqueeze(t, self.ints(-1)) for t in (first, second)), axis=-1)
        return self.op.Reshape(pairs, self.ints(0, 0, 0, width))


def known_size(value: object, name: str) -> int:
    """value, which must not be dynamic in the program."""
    if isinstance(value, int):
        return value
    cure = "leave the axis out of dynamic_shapes"
    raise ArgumentError(name, "have a fixed size in ONNX", "a dynamic one", cure)
