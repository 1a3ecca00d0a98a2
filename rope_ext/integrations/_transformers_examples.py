"""Calls of the rotary functions of transformers for the numeric probe. They cover every branch of each function."""

import types
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._dialect import Call, Examples


class _Draw:
    """Random states of one dtype and tables of another.

    cos and sin are independent, and so are the entries of a pair. This is no rotation: it detects a function that reads
    another entry.
    """

    def __init__(self, seed: int, dtype: torch.dtype, table_dtype: torch.dtype) -> None:
        self.generator, self.dtype, self.table_dtype = torch.Generator().manual_seed(seed), dtype, table_dtype

    def x(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def table(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.table_dtype)

    def tables(self, *shape: int) -> tuple[Tensor, Tensor]:
        return self.table(*shape), self.table(*shape)

    def q_k(self, seqlen: int = 5, head_dim: int = 8) -> tuple[Tensor, Tensor]:
        """As in models: (batch, heads, seqlen, head_dim), heads after tokens in memory, fewer key heads."""
        return self.x(2, seqlen, 4, head_dim).transpose(1, 2), self.x(2, seqlen, 2, head_dim).transpose(1, 2)


def _examples(calls: Callable[[_Draw], Iterator[Call]]) -> Examples:
    """`Dialect.examples` from calls(draw) -> [(args, kwargs), ...], with tables of each dtype."""

    def examples(seed: int, dtype: torch.dtype) -> list[Call]:
        dtypes = dict.fromkeys((dtype, torch.float32, torch.bfloat16))
        return [call for table_dtype in dtypes for call in calls(_Draw(seed, dtype, table_dtype))]

    return examples


def q_k_calls(*widths: int, position_ids: bool = False) -> Examples:
    """Calls f(q, k, cos, sin) with head_dim 8, tables of these widths, and all values of unsqueeze_dim."""

    def calls(draw: _Draw) -> Iterator[Call]:
        for width in widths:
            yield (*draw.q_k(), *draw.tables(2, 5, width)), {}
            yield (*draw.q_k(), *draw.tables(1, 5, width)), {"unsqueeze_dim": 1}
            yield (draw.x(2, 3, 4, 8), draw.x(2, 3, 1, 8), *draw.tables(2, 3, width)), {"unsqueeze_dim": 2}
            yield (*draw.q_k(), *draw.tables(5, width)), {"unsqueeze_dim": 0}
            strided = draw.x(2, 4, 8, 5).transpose(2, 3), draw.x(2, 2, 8, 5).transpose(2, 3)
            yield (*strided, *draw.tables(2, 5, width)), {}
            if position_ids:
                yield (*draw.q_k(), *draw.tables(2, 5, width), torch.arange(5)[None], 1), {}

    return _examples(calls)


def without_k(width: int, by_name: bool) -> Examples:
    def calls(draw: _Draw) -> Iterator[Call]:
        q, k = draw.q_k()
        cos, sin = draw.tables(2, 5, width)
        yield (q, None, cos, sin), {}
        yield (q, k, cos, sin), {}
        yield (q.transpose(1, 2), k.transpose(1, 2), cos, sin, 2), {}
        if by_name:
            yield (q,), {"cos": cos, "sin": sin}

    return _examples(calls)


def x_calls(*widths: int) -> Examples:
    def calls(draw: _Draw) -> Iterator[Call]:
        for width in widths:
            yield (draw.q_k()[0], *draw.tables(2, 5, width)), {}
            yield (draw.x(2, 3, 4, 8), *draw.tables(1, 3, width)), {"unsqueeze_dim": 2}
            yield (draw.x(2, 3, 4, 8), *draw.tables(2, 3, width), 2), {}

    return _examples(calls)


def vision_calls(*widths: int, batched: bool = True) -> Examples:
    def calls(draw: _Draw) -> Iterator[Call]:
        for width in widths:
            yield (draw.x(6, 4, 8), draw.x(6, 4, 8), *draw.tables(6, width)), {}
            if batched:
                yield (draw.x(2, 3, 4, 8), draw.x(2, 3, 4, 8), *draw.tables(1, 3, width)), {}

    return _examples(calls)


@_examples
def sam3_calls(draw: _Draw) -> Iterator[Call]:
    yield (*draw.q_k(), *draw.tables(5, 8)), {}
    yield (*draw.q_k(), *draw.tables(1, 1, 5, 8)), {}


@_examples
def last_rows_calls(draw: _Draw) -> Iterator[Call]:
    q, k = draw.q_k()
    cos, sin = draw.tables(2, 5, 8)
    yield (q[:, :, -2:], k, cos, sin), {}
    yield (q, k, cos, sin, 1), {}


@_examples
def after_prefix_calls(draw: _Draw) -> Iterator[Call]:
    for prefix in (0, 2):
        yield (*draw.q_k(), *draw.tables(5 - prefix, 8)), {}
        yield (*draw.q_k(), *draw.tables(2, 1, 5 - prefix, 8)), {"position_ids": None}


@_examples
def q_k_v_calls(draw: _Draw) -> Iterator[Call]:
    q, k = draw.q_k()
    yield (q, k, draw.q_k()[1], *draw.tables(7, 8), torch.tensor([[0, 1, 2, 3, 4], [2, 3, 6, 5, 1]])), {}


@_examples
def conformer_calls(draw: _Draw) -> Iterator[Call]:
    module = types.SimpleNamespace(num_heads=2, head_size=4)
    yield (module, draw.x(2, 3, 8), draw.table(2, 5, 1, 1, 4)), {}


@_examples
def sin_first_calls(draw: _Draw) -> Iterator[Call]:
    yield (draw.x(2, 3, 4, 8), *draw.tables(2, 3, 4)), {}
    yield (draw.x(2, 3, 4, 8), *draw.tables(1, 3, 4)), {}


@_examples
def roformer_calls(draw: _Draw) -> Iterator[Call]:
    q, k = draw.q_k()
    yield (draw.table(1, 1, 5, 8), q, k), {}
    yield (draw.table(1, 1, 5, 8), q, k, draw.q_k()[0]), {}


@_examples
def musicflamingo_calls(draw: _Draw) -> Iterator[Call]:
    yield (draw.x(2, 3, 8), *draw.tables(2, 3, 4)), {}
    yield (draw.x(2, 3, 8), *draw.tables(2, 3, 8)), {}


@_examples
def multidimensional_calls(draw: _Draw) -> Iterator[Call]:
    for axes in (1, 2):
        yield (draw.x(2, 3, 4, 8), *draw.tables(2, 3, 8), torch.zeros(2, 3, axes, dtype=torch.int64)), {}
        yield (draw.x(1, 3, 4, 8), *draw.tables(1, 3, 8), torch.zeros(1, 3, axes), 2), {}


@_examples
def vjepa2_calls(draw: _Draw) -> Iterator[Call]:
    yield (draw.x(2, 3, 5, 8), torch.arange(5)), {}
    yield (draw.x(2, 3, 5, 8), torch.tensor([4, 0, 1, 9, 3]).expand(2, 3, 5)), {}


@_examples
def sam2_calls(draw: _Draw) -> Iterator[Call]:
    q = draw.x(2, 2, 4, 8)
    for table in ((4, 8), (1, 1, 4, 8)):
        cos, sin = draw.tables(*table)
        yield (q, draw.x(2, 2, 4, 8), cos, sin), {}
        yield (q, draw.x(2, 2, 7, 8), cos, sin), {"num_k_exclude_rope": 3}
        yield (q, draw.x(2, 2, 11, 8), cos, sin, 3, True), {}
        yield (q, draw.x(2, 2, 3, 8), cos, sin, 3), {"repeat_freqs_k": True}


@_examples
def edgetam_calls(draw: _Draw) -> Iterator[Call]:
    tables = *draw.tables(4, 8), *draw.tables(3, 8)
    yield (draw.x(2, 1, 4, 8), draw.x(2, 1, 3, 8), *tables), {}
    yield (draw.x(2, 1, 4, 8), draw.x(2, 1, 12, 8), *tables), {"num_k_exclude_rope": 2, "repeat_freqs_k": 2}
    yield (draw.x(2, 1, 4, 8), draw.x(2, 1, 2, 8), *tables, 2), {}


def complex_calls(*shape: int, heads: int) -> Examples:
    """Calls f(q, k, freqs_cis) with freqs_cis of this shape. heads: the axis of heads of q and k."""

    def examples(seed: int, dtype: torch.dtype) -> list[Call]:
        draw = _Draw(seed, dtype, torch.float32)
        q, k = draw.q_k(3, 16)
        if heads == 2:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        return [((q, k, torch.complex(*draw.tables(*shape))), {})]

    return examples
