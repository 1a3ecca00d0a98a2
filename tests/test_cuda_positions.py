"""Rows outside the table on a GPU give NaN in their tokens, and only there: an error would have to wait for positions.

Such a row is not read: the tables here are slices of memory in which every row holds numbers.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DEVICES, DTYPES, assert_same_bits, random

if "cuda" not in DEVICES:
    pytest.skip("no GPU with kernels for it", allow_module_level=True)

pytestmark = pytest.mark.devices("cuda")
ROWS = 9
CHANNELS = {"rotary_dim": 8, "rotary_offset": 2}  # of 12
OUTSIDE = [[0, 9, 2, -1, 4], [8, 2**31 - 1, 1, -(2**31), 3]]
FAR_OUTSIDE = [[0, 2**32 + 1, 2, -(2**32) + 3, 4], [8, 2**63 - 1, 1, -(2**63), 3]]  # rows again in 32 bits


def tables(dtype=torch.float32):
    return [random((3 * ROWS, 4), dtype, seed)[ROWS : 2 * ROWS] for seed in (1, 2)]


def reference_with_nan(x, rows, **keywords):
    """(the rotated x with NaN in tokens whose row is outside, whether each token is inside); rows: (batch, seqlen)."""
    inside = (rows >= 0) & (rows < ROWS)
    y = reference.apply(x, *tables(keywords.pop("table", torch.float32)), positions=rows.clamp(0, ROWS - 1), **keywords)
    y[..., 2:10][~inside] = torch.nan
    return y, inside


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
def test_positions(dtype):
    """Functional, with out= and in place."""
    x, table = random((2, 5, 3, 12), dtype), torch.float64 if dtype == torch.float64 else torch.float32
    for values, index in ((OUTSIDE, torch.int32), (OUTSIDE, torch.int64), (FAR_OUTSIDE, torch.int64)):
        positions = torch.tensor(values, dtype=index)
        for interleaved in (False, True):
            keywords = {"interleaved": interleaved, **CHANNELS}
            expected, _ = reference_with_nan(x, positions.long(), table=table, **keywords)
            arguments, keywords["positions"] = tables(table), positions
            assert_same_bits(rope_ext.apply(x, *arguments, **keywords), expected)
            assert_same_bits(rope_ext.apply(x, *arguments, **keywords, out=torch.zeros_like(x)), expected)
            assert_same_bits(rope_ext.apply_(x.clone(), *arguments, **keywords), expected)


def test_sums_of_positions_and_offsets():
    """Left padding gives negative rows, and the end of a cache rows past the last."""
    x, positions = random((2, 5, 3, 12), torch.float32), torch.arange(5)
    for at, offset in ((None, torch.tensor([-2, 6])), (positions, torch.tensor([-2, 6])), (positions, 6)):
        shift = offset.reshape(2, 1) if isinstance(offset, torch.Tensor) else offset
        expected, inside = reference_with_nan(x, (positions + shift).expand(2, 5), **CHANNELS)
        assert inside.any() and not inside.all()
        assert_same_bits(rope_ext.apply(x, *tables(), positions=at, offset=offset, **CHANNELS), expected)


@pytest.mark.sanitizer
def test_a_sequence_longer_than_the_table():
    """cu_seqlens: 2 tokens, 11 of which the table has 9, and one past the last boundary, which is copied."""
    x, cu_seqlens = random((14, 3, 12), torch.float32), torch.tensor([0, 2, 13], dtype=torch.int32)
    rows = torch.tensor([[0, 1, *range(11)]])
    expected = torch.cat((reference_with_nan(x[None, :13], rows, **CHANNELS)[0][0], x[13:]))
    assert_same_bits(rope_ext.apply(x, *tables(), layout="thd", cu_seqlens=cu_seqlens, **CHANNELS), expected)


def test_a_sequence_that_begins_at_a_negative_boundary():
    """Its tokens are NaN from tables and from frequencies; the token past the last boundary is copied."""
    x, cu_seqlens = random((5, 3, 12), torch.float32), torch.tensor([0, -1, 4], dtype=torch.int32)
    cos, sin = tables()
    for source in ({"cos": cos, "sin": sin}, {"inv_freq": torch.linspace(0.1, 1, 4, dtype=torch.float64)}):
        y = rope_ext.apply(x, **source, layout="thd", cu_seqlens=cu_seqlens, **CHANNELS)
        assert y[:4, :, 2:10].isnan().all()
        assert_same_bits((y[:4, :, :2], y[:4, :, 10:], y[4]), (x[:4, :, :2], x[:4, :, 10:], x[4]))


def test_every_channel_of_every_head_is_nan():
    """At the size of a model, where a row is read by many threads."""
    x, positions = random((1, 64, 32, 128), torch.bfloat16), torch.arange(64)
    y = rope_ext.apply(x, *(random((32, 64), torch.float32, seed) for seed in (1, 2)), positions=positions)
    assert y[:, 32:].isnan().all() and not y[:, :32].isnan().any()


def test_int_offset_is_still_an_error():
    """It is known without waiting for the GPU."""
    for offset, row in ((5, 9), (-1, -1)):
        with pytest.raises(ValueError, match=f"^rope_ext: offset must index rows .* got row {row} for token"):
            rope_ext.apply(random((2, 5, 3, 8), torch.float32), *tables(), offset=offset)


# ---- gradients ----


@pytest.mark.sanitizer
@pytest.mark.parametrize("tables_need", [False, True])
def test_gradients(tables_need):
    """Those tokens give NaN to x and add nothing to the tables. Whole numbers make sums exact in any order."""
    positions = torch.tensor(OUTSIDE)
    x, g = (random((2, 5, 3, 12), torch.float32, seed).mul(4).round() for seed in (3, 4))
    cos, sin = (t.requires_grad_(tables_need) for t in tables())
    y = rope_ext.apply(x.requires_grad_(), cos, sin, positions=positions, **CHANNELS)
    expected, inside = reference_with_nan(x.detach(), positions, **CHANNELS)
    assert_same_bits(y.detach(), expected)
    grad_x, *grad_tables = torch.autograd.grad(y, (x, cos, sin) if tables_need else x, g)
    assert_same_bits(grad_x, reference_with_nan(g, positions, transposed=True, **CHANNELS)[0])
    if tables_need:
        leaves = [t.detach().clone().requires_grad_() for t in (cos, sin)]
        clamped = reference.apply(x.detach(), *leaves, positions=positions.clamp(0, ROWS - 1), **CHANNELS)
        of_inside = g * inside[:, :, None, None]
        assert all(map(torch.equal, grad_tables, torch.autograd.grad(clamped, leaves, of_inside)))


def test_gradients_of_tables_in_place():
    positions = torch.tensor(OUTSIDE)
    x, (cos, sin) = random((2, 5, 3, 12), torch.float32), tables()
    y = x.clone()
    rope_ext.apply_(y, cos.requires_grad_(), sin, positions=positions, **CHANNELS)
    expected, inside = reference_with_nan(x, positions, **CHANNELS)
    assert_same_bits(y.detach(), expected)
    (grad_cos,) = torch.autograd.grad(y, cos, torch.ones_like(y))
    assert not grad_cos.isnan().any()
    assert torch.equal(grad_cos.any(1), torch.bincount(positions[inside], minlength=ROWS) > 0)


# ---- ROPE_EXT_CHECK_POSITIONS ----

PROGRAM = """
import torch, rope_ext
x, table = torch.ones(1, 5, 2, 8, device="cuda"), torch.ones(9, 4, device="cuda")
rope_ext.apply(x, table, table, positions=torch.tensor([0, 1, {row}, 3, 4], device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.parametrize(("row", "check", "fails"), [(12, "1", True), (8, "1", False), (12, "0", False)])
def test_check_positions(row, check, fails):
    """It runs in a process of its own: after a device-side assert a process cannot use CUDA any more."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(row=row)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ROPE_EXT_CHECK_POSITIONS": check},
    )
    said = ended.stdout + ended.stderr
    assert (ended.returncode != 0) == fails, said
    if fails:
        assert all(re.search(rf"\b{name} {number}\b", said) for name, number in (("row", row), ("token", 2))), said
