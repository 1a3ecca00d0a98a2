"""Numbers at the ends of int64 and beyond give the usual errors or the exact result: no intermediate value wraps."""

import pytest
import torch

import rope_ext
from tests.conftest import random

pytestmark = pytest.mark.devices("cpu")
LOWEST, HIGHEST = -(2**63), 2**63 - 1
X = random((1, 2, 2, 8), torch.float32)
COS, SIN = rope_ext.RotaryEmbedding(8).tables(4)


def every_form(**options):
    """Calls of apply, apply_, out=, and apply with x or cos recorded."""
    yield lambda: rope_ext.apply(X, COS, SIN, **options)
    yield lambda: rope_ext.apply_(X.clone(), COS, SIN, **options)
    yield lambda: rope_ext.apply(X, COS, SIN, out=torch.empty_like(X), **options)
    yield lambda: rope_ext.apply(X.clone().requires_grad_(), COS, SIN, **options)
    yield lambda: rope_ext.apply(X, COS.clone().requires_grad_(), SIN, **options)


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**63) - 1, 10**30])
@pytest.mark.parametrize("argument", ["offset", "rotary_dim", "rotary_offset"])
def test_integers_beyond_int64_are_refused(argument, value):
    message = f"^rope_ext: {argument} must be at least -2.63 and below 2.63, got {value}$"
    for call in every_form(**{argument: value}):
        with pytest.raises(ValueError, match=message):
            call()
    if argument != "rotary_dim":
        for precision in ("exact", "hf"):
            rope = rope_ext.RotaryEmbedding(8, precision=precision)
            with pytest.raises(ValueError, match=message):
                rope.apply(X, **{argument: value})


@pytest.mark.parametrize("value", [LOWEST, LOWEST + 1, HIGHEST - 1, HIGHEST])
@pytest.mark.parametrize("argument", ["offset", "rotary_dim", "rotary_offset"])
def test_integers_at_the_ends_of_int64_are_refused(argument, value):
    for call in every_form(**{argument: value}):
        with pytest.raises(ValueError, match=rf"^rope_ext: {argument} must .*, got (row )?-?\d+"):
            call()


def test_attention_scaling_beyond_float64_is_refused():
    with pytest.raises(ValueError, match=r"^rope_ext: attention_scaling must be finite, got 1000"):
        rope_ext.apply(X, inv_freq=torch.ones(4), attention_scaling=10**400)


@pytest.mark.parametrize(
    ("positions", "offset"),
    [
        (LOWEST, LOWEST),  # row 0 modulo 2^64
        (LOWEST + 1, LOWEST),
        (HIGHEST, torch.tensor([HIGHEST])),
        (HIGHEST, 2),
        (LOWEST, -1),
        (LOWEST, torch.tensor([LOWEST])),
    ],
    ids=str,
)
def test_rows_beyond_int64_are_refused(positions, offset):
    with pytest.raises(ValueError, match=r"^rope_ext: positions must index rows 0 to 3 of the table, got "):
        rope_ext.apply(X, COS, SIN, positions=torch.full((2,), positions), offset=offset)


def test_large_offsets_that_cancel_large_positions_are_rows():
    expected = rope_ext.apply(X, COS, SIN, offset=1)
    for far in (LOWEST + 1, -(2**62), 2**62, HIGHEST - 2):
        positions = torch.tensor([far + 1, far + 2])
        assert torch.equal(rope_ext.apply(X, COS, SIN, positions=positions, offset=-far), expected)


def test_offsets_beyond_int64_are_refused_without_a_table():
    with pytest.raises(ValueError, match=f"^rope_ext: offset must keep the positions of 2 tokens .*, got {HIGHEST}$"):
        rope_ext.apply(X, inv_freq=torch.ones(4), offset=HIGHEST)
    rope_ext.apply(X, inv_freq=torch.ones(4), offset=HIGHEST - 1)


def test_boundaries_at_the_ends_of_int32():
    x = random((3, 1, 8), torch.float32)
    for boundaries in ([0, 2**31 - 1], [0, -(2**31)], [-(2**31), 0], [2**31 - 1, -(2**31)]):
        cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
        for offset in (0, HIGHEST, LOWEST):
            with pytest.raises(ValueError, match=r"^rope_ext: cu_seqlens must"):
                rope_ext.apply(x, COS, SIN, layout="thd", cu_seqlens=cu_seqlens, offset=offset)
    rows = torch.ones(1, 1).expand(HIGHEST, 1)
    cu_seqlens = torch.tensor([0, 3], dtype=torch.int32)
    options = {"layout": "thd", "cu_seqlens": cu_seqlens, "rotary_dim": 2}
    rope_ext.apply(x, rows, rows, offset=HIGHEST - 3, **options)
    with pytest.raises(
        ValueError, match=r"^rope_ext: offset must index rows .*, got a row beyond int64 for sequence 0$"
    ):
        rope_ext.apply(x, rows, rows, offset=HIGHEST - 1, **options)


def test_strides_along_axes_of_one_element_do_not_matter():
    """Nor do those of a tensor without elements. Both may be any number, up to 2^62."""
    huge = 2**62
    cos, sin = rope_ext.RotaryEmbedding(8).tables(1)
    x = random((1, 1, 1, 8), torch.float32)
    odd = x.as_strided(x.shape, (huge, huge, huge, 1))
    odd_tables = [t.as_strided(t.shape, (huge, 1)) for t in (cos, sin)]
    expected = rope_ext.apply(x, cos, sin, offset=0)
    assert torch.equal(rope_ext.apply(odd, *odd_tables), expected)
    assert torch.equal(rope_ext.apply_(odd.clone().as_strided(odd.shape, odd.stride()), *odd_tables), expected)
    assert torch.equal(
        rope_ext.apply(odd, *odd_tables, out=torch.empty(8).as_strided(odd.shape, odd.stride())), expected
    )
    empty = torch.zeros(1).as_strided((2, 0, 3, 8), (huge, huge, huge, huge))
    no_rows = torch.zeros(1).as_strided((0, 8), (huge, huge))
    for out in (None, torch.zeros(1).as_strided(empty.shape, empty.stride())):
        assert rope_ext.apply(empty, no_rows, no_rows, out=out).shape == empty.shape
    assert rope_ext.apply_(empty, no_rows, no_rows).shape == empty.shape


def test_results_larger_than_memory_are_refused():
    """torch refuses the result, also with the output pool on; no size wraps around before."""
    x = torch.zeros(1, 1, 1, 2).expand(2**40, 2**20, 1, 2)
    rows = torch.ones(1, 1).expand(2**20, 1)
    rope_ext.set_output_pool(2**22)
    try:
        with pytest.raises(RuntimeError):
            rope_ext.apply(x, rows, rows)
    finally:
        rope_ext.set_output_pool(0)


@pytest.mark.parametrize(
    ("positions", "offset"),
    [(HIGHEST, 1), (LOWEST, -1), (HIGHEST, torch.tensor([HIGHEST])), (None, torch.tensor([HIGHEST]))],
    ids=str,
)
def test_positions_beyond_int64_are_refused_without_a_table(positions, offset):
    x = X.expand(1, 2, *X.shape[2:])
    options = {"offset": offset} | ({} if positions is None else {"positions": torch.tensor([3, positions])})
    with pytest.raises(
        ValueError, match=r"must not overflow int64 \(position \+ offset\), got an overflow for token [01] of batch 0$"
    ):
        rope_ext.apply(x, inv_freq=torch.ones(X.shape[-1] // 2), **options)


def test_attention_scaling_beyond_float32_is_refused():
    with pytest.raises(ValueError, match=r"^rope_ext: attention_scaling must be in the range of float32, got 1e\+39$"):
        rope_ext.apply(X, inv_freq=torch.ones(4), attention_scaling=1e39)
    assert rope_ext.apply(X.double(), inv_freq=torch.ones(4), attention_scaling=1e39).isfinite().all()
