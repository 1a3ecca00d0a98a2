"""The cos and sin of each token, in ONNX: from table rows, from tables with a row per token, and from inv_freq."""

from typing import Any, NamedTuple

from ._onnx_graph import Graph, Size, Value
from ._reference_angles import product_error_of_float64, reduced_angle
from ._torch.arguments import Lookup, Scalars, layout_of
from ._torch.flags import FREQUENCIES, INTERLEAVED, OTHER_PAIRING, TRANSPOSED
from .reference import ONE_REVOLUTION_PER_RADIAN, Layout

_NAN = float("nan")
_BY_ELEMENT = frozenset(("Cos", "Sin", "Cast", "Identity", "Mul"))  # operators on one tensor and constants


class Tables(NamedTuple):
    """cos and sin in the dtype of the arithmetic, of width `width`.

    * rows: (batch or 1, seqlen) int64; cos and sin are then (rows, width). A row outside the table is its last, which
      is NaN. None: cos and sin have one row per token, (batch or 1, seqlen, width).
    * per_head: whether they have an axis of heads, in the order of `axes_of(layout)`; rows is then None.
    * batch: the size of the first axis of rows, or of cos and sin if rows is None.
    """

    cos: Value
    sin: Value
    rows: Value | None
    per_head: bool
    batch: Size
    width: int


def axes_of(layout: Layout) -> str:
    """The order of axes in which heads of this layout are rotated."""
    return "bhsd" if layout == "bhsd" else "bshd"


def tables_of(g: Graph, x: Value, cos: Value, sin: Value, scalars: Scalars, lookup: Lookup, rotary_dim: int) -> Tables:
    layout, dtype = layout_of(scalars.flags), g.arithmetic(x.dtype)
    if scalars.flags & FREQUENCIES:
        c, s, _ = cos_sin(g, x, cos, sin, scalars, lookup)
        per_head = cos.shape[1] != 1
        if not per_head:
            c, s = (g.op.Squeeze(t, g.ints(2)) for t in (c, s))
        elif layout == "bhsd":
            c, s = (g.op.Transpose(t, perm=[0, 2, 1, 3]) for t in (c, s))
        return Tables(c, s, None, per_head, _batch_of(g, lookup), rotary_dim // 2)
    rank, width = len(cos.shape), cos.shape[-1]
    if width == rotary_dim and not in_pairs(scalars.flags) and _repeats(cos) and _repeats(sin):
        width //= 2
        c, s = (g.cast(g.channels(t, 0, width), dtype, t.dtype) for t in (cos, sin))
    else:
        c, s = g.cast(cos, dtype), g.cast(sin, dtype)
    if rank == 2:
        rows, may_be_outside = _rows(g, x, cos, scalars, lookup)
        if may_be_outside:
            c, s = (_with_nan(g, t, width, dtype) for t in (c, s))
        return Tables(c, s, rows, False, _batch_of(g, lookup), width)
    if rank == 3:
        return Tables(c, s, None, False, g.size(cos, 0), width)
    axes = layout if "b" in layout else "bshd"
    if layout == "sbhd":
        c, s = (g.op.Transpose(t, perm=[1, 0, 2, 3]) for t in (c, s))
    per_head = cos.shape[axes.index("h")] != 1
    if not per_head:
        c, s = (g.op.Squeeze(t, g.ints(axes_of(layout).index("h"))) for t in (c, s))
    return Tables(c, s, None, per_head, g.size(cos, axes.index("b")), width)


def in_pairs(flags: int) -> bool:
    """Whether a table with an entry per channel has the entries of a pair side by side, not in its two halves."""
    moved = bool(flags & INTERLEAVED) is not bool(flags & OTHER_PAIRING)
    return bool(flags & INTERLEAVED) if flags & TRANSPOSED else moved


def _repeats(table: Value) -> bool:
    """Whether the graph shows that the two halves of a table are equal, as from transformers' cat((t, t), dim=-1)."""
    node = table.producer()
    while node is not None and node.op_type in _BY_ELEMENT:
        whole = [value for value in node.inputs if value is not None and not _is_number(value)]
        if len(whole) != 1:
            return False
        node = whole[0].producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or node.inputs[0] is not node.inputs[1]:
        return False
    axis, rank = node.attributes["axis"].value, len(node.inputs[0].shape or ())
    return bool(axis == -1 or axis == rank - 1)


def _is_number(value: Value) -> bool:
    node = value.producer()
    constant = node.attributes.get("value") if node is not None and node.op_type == "Constant" else None
    return constant is not None and constant.value.size == 1


def _batch_of(g: Graph, lookup: Lookup) -> Size:
    positions, offsets, _ = lookup
    if positions is not None and len(positions.shape) > 1 and positions.shape[-2] != 1:
        return g.size(positions, len(positions.shape) - 2)
    return g.size(offsets, 0) if offsets is not None and len(offsets.shape) else 1


def _with_nan(g: Graph, table: Value, width: int, dtype: int) -> Value:
    return g.op.Concat(table, g.expand(g.number(_NAN, dtype), 1, width), axis=0)


# ---- rows and positions ----


def _rows(g: Graph, x: Value, cos: Value, scalars: Scalars, lookup: Lookup) -> tuple[Value, bool]:
    """(rows, whether a row may be outside the table). rows: (batch or 1, seqlen), the row after the last if outside."""
    rows, count, seqlen = positions_of(g, x, scalars, lookup), g.size(cos, 0), _seqlen(g, x, scalars)
    sizes = seqlen, count, scalars.offset
    if lookup == Lookup() and all(isinstance(size, int) for size in sizes) and 0 <= sizes[2] <= count - seqlen:
        return rows, False
    last = g.ints(count) if isinstance(count, int) else count
    is_row = g.op.And(g.op.GreaterOrEqual(rows, g.ints(0)), g.op.Less(rows, last))
    return g.op.Where(is_row, rows, last), True


def positions_of(g: Graph, x: Value, scalars: Scalars, lookup: Lookup) -> Value:
    """The position of each token with its offsets, (batch or 1, seqlen), or with axes first. Integers are int64."""
    positions, offsets, cu_seqlens = lookup
    int64, dtype = g.types.INT64, g.types.INT64
    if positions is None:
        at = _tokens(g, x, scalars)
        if cu_seqlens is not None:
            at = g.op.Sub(at, _starts(g, at, cu_seqlens))
    elif positions.dtype in (g.types.FLOAT, g.types.DOUBLE):
        at, dtype = positions, positions.dtype
    else:
        at = g.cast(positions, int64)
    if positions is not None and len(positions.shape) == 1:
        at = g.op.Unsqueeze(at, g.ints(0))
    offset = None if offsets is None else g.op.Reshape(g.cast(offsets, int64), g.ints(-1, 1))
    if scalars.offset or not isinstance(scalars.offset, int):
        one = g.number(scalars.offset, int64) if isinstance(scalars.offset, int) else scalars.offset
        offset = one if offset is None else offset + one
    return at if offset is None else at + g.cast(offset, dtype, int64)


def _seqlen(g: Graph, x: Value, scalars: Scalars) -> Size:
    layout = layout_of(scalars.flags)
    return g.size(x, layout.index("t" if "t" in layout else "s"))


def _tokens(g: Graph, x: Value, scalars: Scalars) -> Value:
    """(1, seqlen): 0, 1, 2, ..."""
    seqlen = _seqlen(g, x, scalars)
    end = g.number(seqlen, g.types.INT64) if isinstance(seqlen, int) else g.op.Squeeze(seqlen)
    zero, one = (g.number(value, g.types.INT64) for value in (0, 1))
    return g.op.Unsqueeze(g.op.Range(zero, end, one), g.ints(0))


def _starts(g: Graph, tokens: Value, cu_seqlens: Value) -> Value:
    """(1, tokens): the boundary at or before each token, by counting, since ONNX has no searchsorted."""
    boundaries = g.cast(cu_seqlens, g.types.INT64)
    before = g.op.LessOrEqual(g.op.Unsqueeze(boundaries, g.ints(-1)), tokens)
    count = g.op.ReduceSum(g.cast(before, g.types.INT64), g.ints(0), keepdims=1)
    return g.op.Gather(boundaries, g.op.Max(g.op.Sub(count, g.ints(1)), g.ints(0)))


def in_sequences(g: Graph, x: Value, scalars: Scalars, cu_seqlens: Value) -> Value:
    """(1, tokens): whether a token is before the last boundary."""
    last = g.op.Gather(g.cast(cu_seqlens, g.types.INT64), g.ints(-1))
    return g.op.Less(_tokens(g, x, scalars), last)


# ---- angles ----


def cos_sin(g: Graph, x: Value, high: Value, low: Value, scalars: Scalars, lookup: Lookup) -> tuple[Any, Any, Any]:
    """The op cos_sin, as in _torch/decompositions.py, in float64 and rounded once."""
    double, dtype, op = g.types.DOUBLE, high.dtype, g.op
    at = positions_of(g, x, scalars, lookup)
    if lookup.positions is None or len(lookup.positions.shape) < 3:
        at = op.Unsqueeze(at, g.ints(0))
    if high.shape[0] != 1:
        at = op.Expand(at, g.ints(high.shape[0], 1, 1))
    position = op.Cast(op.Unsqueeze(at, g.ints(-1, -2)), to=double)
    rate, rest_of_rate = (op.Unsqueeze(g.cast(t, double), g.ints(1, 2)) for t in (high, low))
    is_64 = int(dtype) == double

    def sum_of_axes(revolutions: Value) -> Value:
        return op.ReduceSum(revolutions, g.ints(0), keepdims=0)

    angle = reduced_angle(position, rate, rest_of_rate, is_64, op.Round, sum_of_axes, g.double)
    made = [op.Cast(t, to=int(dtype)) for t in (op.Cos(angle), op.Sin(angle))]
    if scalars.attention_scaling != 1:
        made = [op.Mul(t, g.number(scalars.attention_scaling, dtype)) for t in made]
    if lookup.cu_seqlens is not None:
        rotated = op.Unsqueeze(in_sequences(g, x, scalars, lookup.cu_seqlens), g.ints(-1, -2))
        made = [op.Where(rotated, t, g.number(value, dtype)) for t, value in zip(made, (1, 0))]
    return *made, op.Cast(at, to=int(dtype))


def revolutions(inv_freq: Value, is_64: bool) -> tuple[Value, Value]:
    """The translation of the op: `revolutions` of _reference_angles.py."""
    g = Graph()
    double = g.types.DOUBLE
    radians = g.cast(inv_freq, double)
    for _ in range(3 - len(inv_freq.shape)):
        radians = g.op.Unsqueeze(radians, g.ints(0))
    per_radian, per_radian_low = (g.double(value) for value in ONE_REVOLUTION_PER_RADIAN)
    high = radians * per_radian
    low = product_error_of_float64(radians, per_radian, high, g.double) + radians * per_radian_low
    if is_64:
        return high, low
    rounded = g.op.Cast(high, to=g.types.FLOAT)
    lost = high - g.op.Cast(rounded, to=double)
    return rounded, g.op.Cast(lost + low, to=g.types.FLOAT)
