"""Errors show what the user gave in one short line, whatever it is."""

import fractions

import numpy as np
import pytest
import torch

from rope_ext._shown import shown


class SeveralLines:
    def __repr__(self):
        return "a\nb"


class WithoutRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63, "9223372036854775808"),
        (10**400, "100000000000000000...0000000000000000000"),
        (10**5000, "an int of 16610 bits"),
        (np.float32(0.5), "np.float32(0.5)"),
        ("bshd", "'bshd'"),
        ([1.0], "[1.0]"),
        (range(5), "range(0, 5)"),
        (torch.zeros(2, 3), "Tensor of shape (2, 3), float32"),
        (torch.tensor(1), "Tensor of shape (), int64"),
        (torch.nn.parameter.UninitializedParameter(), "UninitializedParameter, float32"),
        (np.zeros((2, 3)), "ndarray of shape (2, 3), float64"),
        ([np.zeros(3), torch.zeros(3)], "[ndarray of shape (3,), float64, Tensor of shape (3,), float32]"),
        ({"inv_freq": np.zeros(3)}, "{'inv_freq': ndarray of shape (3,), float64}"),
        ([1] * 1000, "[1, 1, 1, 1, 1, 1, 1, 1, ...]"),
        (SeveralLines(), "a b"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_shown(value, text):
    if isinstance(value, np.generic):
        text = repr(value)  # which numpy 2 has changed
    assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    ["a" * 10**4, [["a" * 90] * 9] * 9, WithoutRepr(), fractions.Fraction(10**5000), np.zeros(3, dtype="i4,f8,i4")],
    ids=lambda value: type(value).__name__,
)
def test_what_is_shown_is_short(value):
    assert len(shown(value)) <= 200 and "\n" not in shown(value)
