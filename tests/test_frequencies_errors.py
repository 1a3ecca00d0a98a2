"""Errors of rope_ext.frequencies, and of RotaryEmbedding about frequencies: argument, rule and value."""

import math
import re

import pytest
import torch

import rope_ext
from rope_ext import frequencies
from tests.test_frequencies import EXACT

pytestmark = pytest.mark.devices("cpu")


def error_of(kind, rule, schedule, *arguments, **keywords):
    with pytest.raises(kind, match=f"^rope_ext: {re.escape(rule)}"):
        getattr(frequencies, schedule)(*arguments, **keywords)


def test_errors():
    for schedule, (keywords, _) in EXACT.items():
        error_of(
            TypeError,
            "dtype must be torch.float64 or torch.float32, got torch.float16",
            schedule,
            128,
            dtype=torch.float16,
            **keywords,
        )
        error_of(ValueError, "rotary_dim must be even and at least ", schedule, 127, **keywords)
        error_of(TypeError, "rotary_dim must be an int, got 128.0", schedule, 128.0, **keywords)
        error_of(ValueError, "base must be positive, got -1.0", schedule, 128, -1.0, **keywords)
        error_of(TypeError, "base must be a number, got '1'", schedule, 128, "1", **keywords)
        if "factor" in keywords:
            error_of(ValueError, "factor must be positive, got 0", schedule, 128, **keywords | {"factor": 0})
            error_of(TypeError, "factor must be a number, got True", schedule, 128, **keywords | {"factor": True})
    length = {"original_max_position": 10}
    error_of(ValueError, "alpha must be positive, got -1", "ntk", 8, alpha=-1)
    error_of(ValueError, "rotary_dim must be even and at least 4, got 2", "ntk", 2, alpha=2)
    error_of(ValueError, "max_position must be positive, got 0", "dynamic_ntk", 8, factor=2, max_position=0)
    error_of(TypeError, "seqlen must be an int, got 2.5", "dynamic_ntk", 8, factor=2, max_position=9, seqlen=2.5)
    error_of(ValueError, "factor must be given when max_position is not, got None", "yarn", 8, **length)
    error_of(
        ValueError,
        "beta_fast must be at least beta_slow 2, got 1",
        "yarn",
        8,
        factor=2,
        beta_fast=1,
        beta_slow=2,
        **length,
    )
    error_of(ValueError, "base must be above 1 for yarn, got 1", "yarn", 8, 1, factor=2, **length)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 3}
    error_of(
        ValueError,
        "long_factor must have rotary_dim / 2 = 4 numbers, got 3",
        "longrope",
        8,
        factor=2,
        **length,
        **factors,
    )
    factors = {"short_factor": [1.0, 1.0, 1.0, 0.0], "long_factor": [1.0] * 4}
    error_of(ValueError, "short_factor must be positive, got 0.0", "longrope", 8, factor=2, **length, **factors)
    rule = "high_freq_factor must be above low_freq_factor 4, got 4"
    error_of(ValueError, rule, "llama3", 8, factor=2, low_freq_factor=4, high_freq_factor=4)
    error_of(
        ValueError, "partial_rotary_factor must be in 0 to 1, got 1.5", "proportional", 8, partial_rotary_factor=1.5
    )
    error_of(ValueError, "base must be at least 1 for warped, got 0.5", "warped", 8, 0.5, factor=2)
    error_of(ValueError, "rotary_dim must be a multiple of 2 * axes = 6, got 8", "axial", 8, axes=3)
    error_of(
        ValueError, "axis_order must hold each of 0 to axes - 1 = 1 once, got (0, 0)", "axial", 8, axis_order=(0, 0)
    )
    inv_freq = torch.ones(3)
    error_of(ValueError, "pair_axis must have 3 entries, got 2", "per_axis", inv_freq, (0, 1))
    error_of(
        ValueError, "pair_axis must be in 0 to axes - 1 = 1, got (0, 1, 2)", "per_axis", inv_freq, (0, 1, 2), axes=2
    )
    error_of(ValueError, "pair_axis must be in 0 to axes - 1 = 1, got (0, 1, -1)", "per_axis", inv_freq, (0, 1, -1))
    error_of(
        ValueError,
        "inv_freq must be (pairs,) or (heads, pairs), got (1, 1, 3)",
        "per_axis",
        inv_freq[None, None],
        (0, 0, 0),
    )
    error_of(ValueError, "mrope_section must be numbers of pairs, got [1, -1]", "mrope_pair_axis", (1, -1))
    error_of(
        ValueError,
        "mrope_section must have 3 entries when it is interleaved, got [1, 1]",
        "mrope_pair_axis",
        (1, 1),
        True,
    )
    error_of(ValueError, "scale_base must be positive, got 0", "xpos_scale", torch.arange(3), 8, scale_base=0)


NAN, INF, HUGE = math.nan, math.inf, 10**400
LENGTH = {"original_max_position": 64}
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0, **LENGTH}
BAD_NUMBERS = [
    ("default", {"base": NAN}, ValueError, "base must be positive, got nan"),
    ("default", {"base": INF}, ValueError, "base must be finite, got inf"),
    ("default", {"base": HUGE}, ValueError, "base must be finite, got 1000"),
    ("default", {"rotary_dim": 10**9}, ValueError, "rotary_dim must be at most 1048576, got 1000000000"),
    ("linear", {"factor": NAN}, ValueError, "factor must be positive, got nan"),
    ("ntk", {"rotary_dim": 4, "alpha": 1e300}, ValueError, "alpha must keep the base positive and finite, got 1e+300"),
    ("dynamic_ntk", {"factor": 2, "max_position": 9, "seqlen": True}, TypeError, "seqlen must be an int, got True"),
    (
        "dynamic_ntk",
        {"factor": 2, "max_position": 9, "seqlen": 2**63},
        ValueError,
        "seqlen must be in 0 to 2 ** 63 - 1, got ",
    ),
    ("yarn", {"factor": 2, "truncate": "no", **LENGTH}, TypeError, "truncate must be True or False, got 'no'"),
    ("yarn", {"factor": 2, "mscale": "1", **LENGTH}, TypeError, "mscale must be a number, got '1'"),
    ("yarn", {"factor": 2, "mscale_all_dim": -1, **LENGTH}, ValueError, "mscale_all_dim must be finite and not "),
    (
        "yarn",
        {"factor": 2, "attention_factor": NAN, **LENGTH},
        ValueError,
        "attention_factor must be positive, got nan",
    ),
    ("yarn", {"factor": 2, "max_position": "9", **LENGTH}, TypeError, "max_position must be a number, got '9'"),
    (
        "yarn",
        {"factor": 2, "original_max_position": 5e-324},
        ValueError,
        "original_max_position must be a number of pos",
    ),
    ("longrope", LONG | {"short_factor": [1.0, NAN, 1.0, 1.0]}, ValueError, "short_factor must be positive, got nan"),
    ("longrope", LONG | {"long_factor": [1.0, 1.0, 1.0, INF]}, ValueError, "long_factor must be finite, got inf"),
    ("longrope", LONG | {"long_factor": [1.0, 1.0, "1", 1.0]}, TypeError, "long_factor must be a number, got '1'"),
    ("longrope", LONG | {"long_factor": 2.0}, TypeError, "long_factor must be a list of numbers, got 2.0"),
    ("longrope", LONG | {"attention_factor": "1"}, TypeError, "attention_factor must be a number, got '1'"),
    ("longrope", LONG | {"attention_factor": (1.0,)}, ValueError, "attention_factor must be one number or two, got 1"),
    ("longrope", LONG | {"original_max_position": 1}, ValueError, "original_max_position must be above 1, got 1"),
    ("llama3", {"factor": 2, "high_freq_factor": "4"}, TypeError, "high_freq_factor must be a number, got '4'"),
    ("llama3", {"factor": 2, "high_freq_factor": INF}, ValueError, "high_freq_factor must be finite, got inf"),
    ("proportional", {"partial_rotary_factor": "1"}, TypeError, "partial_rotary_factor must be a number, got '1'"),
    ("proportional", {"partial_rotary_factor": True}, TypeError, "partial_rotary_factor must be a number, got True"),
    ("axial", {"rotary_dim": "8"}, TypeError, "rotary_dim must be an int, got '8'"),
    ("axial", {"divide": "no"}, TypeError, "divide must be True or False, got 'no'"),
    ("axial", {"axis_order": 1}, TypeError, "axis_order must be a list of ints, got 1"),
    ("axial", {"axis_order": (0, "1")}, TypeError, "axis_order must be a list of ints, got an entry '1'"),
]


@pytest.mark.parametrize(("schedule", "keywords", "kind", "rule"), BAD_NUMBERS)
def test_invalid_numbers_are_refused(schedule, keywords, kind, rule):
    """NaN, infinities, strings, True, and numbers beyond float64; RotaryEmbedding refuses them when it is created."""
    error_of(kind, rule, schedule, **{"rotary_dim": 8} | keywords)
    if "seqlen" not in keywords and "rotary_dim" not in keywords:
        with pytest.raises(kind, match=f"^rope_ext: {re.escape(rule)}"):
            rope_ext.RotaryEmbedding(8, schedule=schedule, **keywords)


def test_frequencies_must_be_finite():
    """Finite parameters may give infinite frequencies: 1 / 1e-320 is inf, and so is 1e40 in float32."""
    for rule, keywords in (
        ("in schedule 'linear' at precision 'exact', got base=10000.0, factor=1e-320", {"factor": 1e-320}),
        (
            "in schedule 'linear' at precision 'hf', got base=10000.0, factor=1e-40",
            {"factor": 1e-40, "precision": "hf"},
        ),
    ):
        with pytest.raises(ValueError, match=f"^rope_ext: parameters must give finite frequencies {re.escape(rule)}$"):
            rope_ext.RotaryEmbedding(8, schedule="linear", **keywords)
    long = {**LONG, "long_factor": [1e-320] * 4}
    with pytest.raises(ValueError, match=r"^rope_ext: parameters must give finite frequencies in schedule 'longrope'"):
        rope_ext.RotaryEmbedding(8, schedule="longrope", **long)


def test_errors_of_rotary_embedding():
    for keywords, kind, rule in (
        ({"head_dim": 10**9}, ValueError, "head_dim must be at most 1048576, got 1000000000"),
        ({"head_dim": 10**9, "rotary_dim": 8}, ValueError, "head_dim must be at most 1048576, got 1000000000"),
        ({"head_dim": True}, TypeError, "head_dim must be an int, got True"),
        ({"base": "10000"}, TypeError, "base must be a number, got '10000'"),
        ({"base": True}, TypeError, "base must be a number, got True"),
        ({"base": NAN}, ValueError, "base must be positive, got nan"),
        ({"base": INF}, ValueError, "base must be finite, got inf"),
        ({"base": None}, TypeError, "base must be a number, got None"),
        ({"schedule": ["default"]}, ValueError, "schedule must be one of default, "),
        ({"precision": ["hf"]}, ValueError, "precision must be 'exact' or 'hf', got ['hf']"),
        ({"pair_axis": "0000"}, TypeError, "pair_axis must be a list of ints, got '0000'"),
        ({"pair_axis": (0, 0.7, 1, 1)}, TypeError, "pair_axis must be a list of ints, got an entry 0.7"),
        ({"pair_axis": (0, 1, 2, 10**9)}, ValueError, "pair_axis must be in 0 to 63, got 1000000000"),
    ):
        with pytest.raises(kind, match=f"^rope_ext: {re.escape(rule)}"):
            rope_ext.RotaryEmbedding(**{"head_dim": 8} | keywords)
    assert rope_ext.RotaryEmbedding(8, base=torch.tensor(100.0)) == rope_ext.RotaryEmbedding(8, base=100)
