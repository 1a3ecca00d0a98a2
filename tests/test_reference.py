"""The reference itself, against numbers worked by hand and against other forms of the rotation; and what makes it RoPE."""

import math
from fractions import Fraction

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import random


def test_numbers_worked_by_hand():
    """head_dim 4: pair 0 rotates by 90 degrees, pair 1 by 60 degrees."""
    cos, sin = torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, math.sqrt(3) / 2]])
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    half = [-3.0, 1 - 2 * math.sqrt(3), 1.0, 2 + math.sqrt(3)]  # pairs (1, 3) and (2, 4)
    interleaved = [-2.0, 1.0, 1.5 - 2 * math.sqrt(3), 2 + 1.5 * math.sqrt(3)]  # pairs (1, 2) and (3, 4)
    for function in (reference.apply, rope_ext.apply):
        torch.testing.assert_close(function(x, cos, sin).flatten(), torch.tensor(half))
        torch.testing.assert_close(function(x, cos, sin, interleaved=True).flatten(), torch.tensor(interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
def test_numbers_worked_by_hand_with_an_entry_per_channel(interleaved):
    """y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2, entries in the order of the channels; one pair, so both pairings."""
    cos, sin, x = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]]), torch.tensor([11.0, 13.0]).reshape(1, 1, 1, 2)
    expected = torch.tensor([11.0 * 2 - 13 * 5, 13 * 3 + 11 * 7])
    for function in (reference.apply, rope_ext.apply):
        assert torch.equal(function(x, cos, sin, interleaved=interleaved).flatten(), expected)
        backwards = torch.tensor([11.0 * 2 + 13 * 5, 13 * 3 - 11 * 7])
        assert torch.equal(function(x, cos, sin, interleaved=interleaved, inverse=True).flatten(), backwards)


def test_complex_form():
    """Meta's Llama: the interleaved pairs as complex numbers, times exp(i angle)."""
    x = random((2, 6, 3, 8), torch.float64)
    angles = torch.outer(torch.arange(6.0, dtype=torch.float64), rope_ext.RotaryEmbedding(8).inv_freq.to(x.device))
    rotated = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.view_as_real(rotated).flatten(-2)
    torch.testing.assert_close(
        reference.apply(x, angles.cos(), angles.sin(), interleaved=True), expected, rtol=0, atol=1e-15
    )


def test_rotate_half_form():
    """Hugging Face's Llama, bit for bit in float32."""
    x, (cos, sin) = random((2, 6, 3, 8), torch.float32), rope_ext.RotaryEmbedding(8).tables(6)
    wide_cos, wide_sin = (torch.cat((t, t), dim=-1)[:, None] for t in (cos, sin))
    rotated = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
    assert torch.equal(rope_ext.apply(x, cos, sin), x * wide_cos + rotated * wide_sin)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_only(interleaved):
    q, k = random((1, 1, 1, 16), torch.float64, 0), random((1, 1, 1, 16), torch.float64, 1)
    cos, sin = rope_ext.RotaryEmbedding(16).tables(2000, dtype=torch.float64)

    def score(m, n):
        at_m = rope_ext.apply(q, cos, sin, interleaved=interleaved, offset=m)
        return (at_m * rope_ext.apply(k, cos, sin, interleaved=interleaved, offset=n)).sum()

    # 16 products of size 1, each angle exact to 2000 * 2^-53: below 1e-11
    for distance in (0, 1, 37):
        for start in (1, 500, 1900):
            torch.testing.assert_close(score(start + distance, start), score(distance, 0), rtol=0, atol=1e-11)
    assert abs(score(5, 0) - score(6, 0)) > 1e-3


@pytest.mark.parametrize("interleaved", [False, True])
def test_inverse_undoes_and_lengths_stay(interleaved):
    x = random((2, 9, 3, 16), torch.float64)
    cos, sin = rope_ext.RotaryEmbedding(16).tables(1009, dtype=torch.float64)
    y = rope_ext.apply(x, cos, sin, interleaved=interleaved, offset=1000)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)
    back = rope_ext.apply(y, cos, sin, interleaved=interleaved, offset=1000, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-14)
    assert (y - x).abs().max() > 0.1


def test_pairings_are_a_permutation_of_each_other():
    """At position 0 every pairing looks right; this is position 1000."""
    x, (cos, sin) = random((1, 1, 2, 16), torch.float32), rope_ext.RotaryEmbedding(16).tables(1001)
    to_interleaved = torch.arange(16).reshape(2, 8).T.flatten()
    half = rope_ext.apply(x, cos, sin, offset=1000)
    interleaved = rope_ext.apply(x[..., to_interleaved], cos, sin, offset=1000, interleaved=True)
    assert torch.equal(half[..., to_interleaved], interleaved)
    assert not torch.equal(half, rope_ext.apply(x, cos, sin, offset=1000, interleaved=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fma_rounds_once(dtype):
    """Compared with exact fractions; at the first element, rounding twice meets a tie and goes wrong."""
    eps = torch.finfo(dtype).eps
    a, b, c = (random((1000,), dtype, seed) for seed in (1, 2, 3))
    a[0], b[0], c[0] = eps / 2 * (1 + eps), 1 - eps, 1 + eps
    c[1:500] = -(a * b)[1:500] * (1 + eps * random((499,), dtype, 4).round())  # nothing but the rounding is left
    got = reference.fma(a, b, c)
    assert got[0] == 1 + eps
    for values in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist()):
        x, y, z, rounded = map(Fraction, values)
        exact, near = x * y + z, torch.tensor(values[3], dtype=dtype)
        neighbours = [
            Fraction(torch.nextafter(near, torch.tensor(to, dtype=dtype)).item()) for to in (-torch.inf, torch.inf)
        ]
        assert all(abs(exact - rounded) <= abs(exact - other) for other in neighbours)
