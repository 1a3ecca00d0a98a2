"""The op rotate in ONNX: the operator RotaryEmbedding if it can express the call, else products and sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ._onnx_graph import Graph, Value, known_size
from ._onnx_tables import Tables, axes_of, in_pairs, in_sequences, tables_of
from ._torch.arguments import Lookup, Scalars, eps_of, layout_of, norm_of, split
from ._torch.flags import INTERLEAVED, INVERSE, OTHER_PAIRING, ROUND_PRODUCTS, TRANSPOSED
from .reference import Layout, rotated_pairs


class _Call(NamedTuple):
    """What all tensors of a call share. rounded: the 16-bit dtype to which each product is rounded, or None."""

    g: Graph
    scalars: Scalars
    lookup: Lookup
    tables: Tables
    dtype: Any  # of x
    rotary_dim: int
    rotary_offset: int
    eps: float
    rounded: Any

    def has(self, flag: int) -> bool:
        return bool(self.scalars.flags & flag)

    @property
    def layout(self) -> Layout:
        return layout_of(self.scalars.flags)


def rotate(x: Sequence[Value], cos: Value, sin: Value, *rest: Any) -> list[Value]:
    """The translation of the op."""
    g = Graph()
    scalars, lookup = split(rest)
    rotary_offset = known_size(scalars.rotary_offset, "rotary_offset")
    size = known_size(x[0].shape[-1], "head_dim")
    rotary_dim = size - rotary_offset if scalars.rotary_dim is None else known_size(scalars.rotary_dim, "rotary_dim")
    tables = tables_of(g, x[0], cos, sin, scalars, lookup, rotary_dim)
    dtype = x[0].dtype
    is_eager = scalars.flags & ROUND_PRODUCTS and g.arithmetic(dtype) != int(dtype)
    rounds_products = is_eager and (int(cos.dtype) == int(dtype) or scalars.flags & TRANSPOSED)
    call = _Call(
        g, scalars, lookup, tables, dtype, rotary_dim, rotary_offset, eps_of(rest), dtype if rounds_products else None
    )
    return [_rotate_one(call, t, weight) for t, weight in zip(x, norm_of(rest) or [None] * len(x))]


def _rotate_one(call: _Call, t: Value, weight: Value | None) -> Value:
    g, layout, cu_seqlens = call.g, call.layout, call.lookup.cu_seqlens
    wide = g.cast(t, g.arithmetic(call.dtype))
    if len(layout) == 3:
        wide = g.op.Unsqueeze(wide, g.ints(0))
    elif layout == "sbhd":
        wide = g.op.Transpose(wide, perm=[1, 0, 2, 3])
    x = wide if weight is None else _normalised(call, wide, weight)
    y = _by_operator(call, x, t) if _operator_can_say(call, t) else _composed(call, x, t)
    if cu_seqlens is not None:
        rotated = g.op.Unsqueeze(in_sequences(g, t, call.scalars, cu_seqlens), g.ints(-1, -2))
        y = g.op.Where(rotated, y, wide)
    if len(layout) == 3:
        y = g.op.Squeeze(y, g.ints(0))
    elif layout == "sbhd":
        y = g.op.Transpose(y, perm=[1, 0, 2, 3])
    return g.cast(y, call.dtype, g.arithmetic(call.dtype))


def _normalised(call: _Call, x: Value, weight: Value) -> Value:
    g, dtype, eps = call.g, call.g.arithmetic(call.dtype), call.eps
    is_eager = call.has(ROUND_PRODUCTS) and dtype != int(call.dtype)
    wide = g.cast(weight, dtype)
    if g.has_opset_23 and dtype == g.types.FLOAT and not is_eager:
        return g.op.RMSNormalization(x, wide, axis=-1, epsilon=eps)
    mean = g.op.ReduceMean(g.op.Mul(x, x), g.ints(-1), keepdims=1)
    n = g.op.Div(x, g.op.Sqrt(g.op.Add(mean, g.number(eps, dtype))))
    if is_eager and int(weight.dtype) == int(call.dtype):
        n = _rounded(g, n, call.dtype, dtype)
    n = g.op.Mul(n, wide)
    return _rounded(g, n, call.dtype, dtype) if is_eager else n


def _rounded(g: Graph, value: Value, to: Any, dtype: int) -> Value:
    return g.cast(g.cast(value, to, dtype), dtype, to)


# ---- ONNX's RotaryEmbedding ----


def _operator_can_say(call: _Call, t: Value) -> bool:
    """Whether RotaryEmbedding can express the rotation of t.

    It cannot for float64, tables with an entry per channel or with heads, products rounded to 16 bits and older opsets.
    """
    g, tables = call.g, call.tables
    has_heads = call.layout == "bhsd" or isinstance(t.shape[call.layout.index("h")], int)
    is_float = g.arithmetic(call.dtype) == g.types.FLOAT
    per_pair = 2 * tables.width == call.rotary_dim
    return g.has_opset_23 and is_float and per_pair and not tables.per_head and not call.rounded and has_heads


def _by_operator(call: _Call, x: Value, t: Value) -> Value:
    """x: the value of t, with the axes of `axes_of(layout)`."""
    g, head_dim, rotary_dim = call.g, t.shape[-1], call.rotary_dim
    if call.has(OTHER_PAIRING) or call.rotary_offset:
        begin, end = call.rotary_offset, call.rotary_offset + rotary_dim
        part = g.channels(x, begin, end)
        if call.has(OTHER_PAIRING):
            part = g.join(*g.split(part, rotary_dim, call.has(INTERLEAVED)), rotary_dim, not call.has(INTERLEAVED))
        return _with_others(call, x, _operator(call, part, t, rotary_dim), head_dim)
    return _operator(call, x, t, head_dim)


def _operator(call: _Call, x: Value, t: Value, width: int) -> Value:
    g, layout = call.g, call.layout
    cos, sin, rows = _tables_of_operator(call, t)
    options = {
        "interleaved": int(call.has(INTERLEAVED) is not call.has(OTHER_PAIRING)),
        "rotary_embedding_dim": call.rotary_dim if call.rotary_dim < width else 0,
    }
    if layout == "bhsd":
        return g.op.RotaryEmbedding(x, cos, sin, rows, **options)
    heads = t.shape[layout.index("h")]
    x = g.op.Reshape(x, g.ints(0, 0, heads * width))
    y = g.op.RotaryEmbedding(x, cos, sin, rows, num_heads=heads, **options)
    return g.op.Reshape(y, g.ints(0, 0, heads, width))


def _tables_of_operator(call: _Call, t: Value) -> tuple[Value, Value, Value | None]:
    g, tables, layout = call.g, call.tables, call.layout
    batch = g.size(t, layout.index("b")) if "b" in layout else 1
    is_inverse = call.has(INVERSE) is not call.has(TRANSPOSED)
    cos, sin = tables.cos, g.op.Neg(tables.sin) if is_inverse else tables.sin
    is_whole = isinstance(batch, int) and batch == tables.batch
    if tables.rows is not None:
        return cos, sin, tables.rows if is_whole else g.expand(tables.rows, batch, 1)
    if not is_whole:  # the batch only: the operator refuses a seqlen other than that of x
        cos, sin = (g.expand(table, batch, 1, 1) for table in (cos, sin))
    return cos, sin, None


# ---- products and sums ----


def _composed(call: _Call, x: Value, t: Value) -> Value:
    """x: the value of t, with the axes of `axes_of(layout)`."""
    g, tables, rotary_dim = call.g, call.tables, call.rotary_dim
    head_dim = known_size(t.shape[-1], "head_dim")
    dtype = g.arithmetic(call.dtype)
    cos, sin = (_beside_heads(call, table) for table in (tables.cos, tables.sin))
    if call.has(INVERSE):
        sin = g.op.Neg(sin)
    interleaved = call.has(INTERLEAVED)
    moved = interleaved is not call.has(OTHER_PAIRING)
    part = g.channels(x, call.rotary_offset, call.rotary_offset + rotary_dim) if rotary_dim < head_dim else x
    x1, x2 = g.split(part, rotary_dim, interleaved)
    (cos1, cos2), (sin1, sin2) = (cos, cos), (sin, sin)
    if tables.width == rotary_dim:
        (cos1, cos2), (sin1, sin2) = (g.split(table, rotary_dim, in_pairs(call.scalars.flags)) for table in (cos, sin))

    def rounded(product: Value) -> Value:
        return product if call.rounded is None else _rounded(g, product, call.rounded, dtype)

    pairs = rotated_pairs(x1, x2, cos1, cos2, sin1, sin2, call.has(TRANSPOSED), rounded)
    return _with_others(call, x, g.join(*pairs, rotary_dim, moved), head_dim)


def _beside_heads(call: _Call, table: Value) -> Value:
    """The table rows of all tokens, with the axes of `axes_of(layout)`."""
    g, tables = call.g, call.tables
    if tables.rows is not None:
        table = g.op.Gather(table, tables.rows)
    if tables.per_head:
        return table
    return g.op.Unsqueeze(table, g.ints(axes_of(call.layout).index("h")))


def _with_others(call: _Call, x: Value, rotated: Value, head_dim: int) -> Value:
    """The rotated channels, between the channels that are copied."""
    g, begin, end = call.g, call.rotary_offset, call.rotary_offset + call.rotary_dim
    parts = [g.channels(x, 0, begin)] if begin else []
    parts.append(rotated)
    if end < head_dim:
        parts.append(g.channels(x, end, head_dim))
    return g.op.Concat(*parts, axis=-1) if len(parts) > 1 else rotated
