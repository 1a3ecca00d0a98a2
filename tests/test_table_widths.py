"""A table whose width fits two readings: `per_channel` says which one is meant, a debug mode looks at the values."""

import os
import subprocess
import sys

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import assert_same_bits, random

X = random((2, 5, 3, 64), torch.float32)
PER_PAIR = rope_ext.RotaryEmbedding(64).tables(8)  # width 32: fits rotary_dim 64, and 32 with an entry per channel
HALVES = tuple(torch.cat((t, t), -1) for t in rope_ext.RotaryEmbedding(32).tables(8))  # width 32: also 64 per pair
NEIGHBOURS = tuple(t.repeat_interleave(2, -1) for t in rope_ext.RotaryEmbedding(32).tables(8))
LTX = random((8, 32), torch.float32, seed=1), random((8, 32), torch.float32, seed=2)  # the two entries of a pair differ
PER_CHANNEL_IS_WRONG = "cos must have width 16, half of rotary_dim 32, when per_channel is False, got width 32"
PER_PAIR_IS_WRONG = "cos must have width 64, rotary_dim, when per_channel is True, got width 32"


@pytest.mark.parametrize(
    "cos_sin, per_channel, options",
    [(PER_PAIR, False, {}), (HALVES, True, {"rotary_dim": 32}), (LTX, True, {"rotary_dim": 32, "interleaved": True})],
)
@pytest.mark.parametrize("call", [rope_ext.apply, rope_ext.apply_], ids=["apply", "apply_"])
def test_a_true_claim_changes_nothing(cos_sin, per_channel, options, call):
    expected = reference.apply(X, *cos_sin, **options)
    assert_same_bits(call(X.clone(), *cos_sin, per_channel=per_channel, **options), expected)
    x = X.clone().requires_grad_()
    y = rope_ext.apply(x, *cos_sin, per_channel=per_channel, **options)
    y.backward(X)
    assert_same_bits(y.detach(), expected)
    assert_same_bits(x.grad, reference.apply(X, *cos_sin, transposed=True, **options))
    assert_same_bits(reference.apply(X, *cos_sin, per_channel=per_channel, **options), expected)


@pytest.mark.parametrize(
    "cos_sin, options, message",
    [
        (PER_PAIR, {"rotary_dim": 32, "per_channel": False}, PER_CHANNEL_IS_WRONG),
        (HALVES, {"per_channel": True}, PER_PAIR_IS_WRONG),
    ],
)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_wrong_claim_is_an_error(cos_sin, options, message, needs_grad):
    x = X.clone().requires_grad_(needs_grad)
    with pytest.raises(ValueError) as caught:
        rope_ext.apply(x, *cos_sin, **options)
    assert str(caught.value) == "rope_ext: " + message
    with pytest.raises(ValueError) as caught:
        rope_ext.apply_(X.clone(), *cos_sin, **options)
    assert str(caught.value) == "rope_ext: " + message


@pytest.mark.parametrize("wrong", [1, 0, "yes", torch.tensor(True)])
def test_a_claim_is_a_bool(wrong):
    with pytest.raises(TypeError, match=r"^rope_ext: per_channel must be True, False or None, got "):
        rope_ext.apply(X, *PER_PAIR, per_channel=wrong)


@pytest.mark.parametrize("precision", ["exact", "hf"])
def test_rotary_embedding_says_per_pair(precision):
    rope = rope_ext.RotaryEmbedding(64, precision=precision)
    assert_same_bits(rope.apply(X, per_channel=False), rope.apply(X))
    with pytest.raises(ValueError, match=r"^rope_ext: (per_channel|cos) must "):
        rope.apply(X, per_channel=True)


# ---- ROPE_EXT_CHECK_TABLES ----


MISREAD = [
    (PER_PAIR, {"rotary_dim": 32}, "rotary_dim=64"),
    (PER_PAIR, {"rotary_dim": 32, "interleaved": True}, "rotary_dim=64"),
    (tuple(t[None, :5] for t in PER_PAIR), {"rotary_dim": 32}, "rotary_dim=64"),
    (HALVES, {}, "rotary_dim=32"),
    (NEIGHBOURS, {"interleaved": True}, "rotary_dim=32"),
    (HALVES, {"rotary_dim": 32, "interleaved": True}, "rotary_dim=64"),  # halves, read as neighbours
]


@pytest.mark.parametrize("cos_sin, options, cure", MISREAD)
def test_debug_mode_refuses_a_table_that_looks_misread(cos_sin, options, cure, looks):
    per_channel = cos_sin[0].shape[-1] == options.get("rotary_dim", 64)
    with pytest.raises(
        ValueError, match=r"^rope_ext: per_channel must be given for a table that looks misread"
    ) as caught:
        rope_ext.apply(X, *cos_sin, **options)
    assert cure in str(caught.value) and f"per_channel={per_channel}" in str(caught.value)
    rope_ext.apply(X, *cos_sin, per_channel=per_channel, **options)


@pytest.mark.parametrize(
    "cos_sin, options",
    [
        (PER_PAIR, {}),
        (tuple(t[:5] for t in PER_PAIR), {"positions": torch.zeros(5, dtype=torch.int64)}),
        (tuple(t[:1].expand(5, -1) for t in PER_PAIR), {}),  # position 0: all ones and zeros
        (HALVES, {"rotary_dim": 32}),
        (NEIGHBOURS, {"rotary_dim": 32, "interleaved": True}),
        (NEIGHBOURS, {"rotary_dim": 32, "out_interleaved": True}),  # in the order of the result
        ((None, None), {"inv_freq": rope_ext.RotaryEmbedding(64).inv_freq}),
    ],
)
def test_debug_mode_accepts_what_is_meant(cos_sin, options, looks):
    rope_ext.apply(X, *cos_sin, **options)


@pytest.mark.parametrize("wrong", [{"x": None}, {"cos": None}, {"cos": torch.ones(())}, {"sin": torch.ones(8, 4)}])
def test_debug_mode_leaves_other_errors_alone(wrong, looks):
    arguments = {"x": X, "cos": PER_PAIR[0], "sin": PER_PAIR[1]} | wrong
    with pytest.raises((TypeError, ValueError), match=r"^rope_ext: (x|cos|sin) must "):
        rope_ext.apply(**arguments)


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("value, refused", [("1", True), ("0", False), ("", False)])
def test_the_environment_switches_the_debug_mode_on(value, refused):
    program = "import torch, rope_ext; rope_ext.apply(torch.ones(1, 4, 1, 64), *rope_ext.RotaryEmbedding(64).tables(4), rotary_dim=32)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ROPE_EXT_CHECK_TABLES": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("per_channel must be given" in run.stderr) == refused == bool(run.returncode)
