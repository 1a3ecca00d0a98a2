"""rope_ext.frequencies: every schedule against numbers worked by hand, and against its formula in 60 digits."""

import math
from decimal import Decimal

import pytest
import torch

import rope_ext
from rope_ext import frequencies
from tests.exact import PI, exact_cos_sin

pytestmark = pytest.mark.devices("cpu")


def close(found, expected, ulps=4):
    """The relative error is a few units of 2^-53: the last bits of a few float64 operations."""
    inv_freq = found.inv_freq if isinstance(found, frequencies.Frequencies) else found
    expected = torch.tensor(expected, dtype=torch.float64)
    assert inv_freq.shape == expected.shape and inv_freq.dtype == torch.float64
    assert (inv_freq - expected).abs().le(ulps * 2**-53 * expected.abs()).all(), (inv_freq, expected)


# ---- by hand: base 100 and four channels have the frequencies 1 and 1 / 10 ----


def test_default_by_hand():
    close(frequencies.default(4, 100.0), [1.0, 0.1])
    close(frequencies.default(8), [1.0, 0.1, 0.01, 0.001])
    assert frequencies.default(8).attention_scaling == 1


def test_linear_by_hand():
    close(frequencies.linear(4, 100.0, factor=4.0), [0.25, 0.025])


def test_ntk_by_hand():
    """alpha 4 and exponent 4 / 2 give base 100 * 16: the slowest pair is alpha times slower, the fastest unchanged."""
    close(frequencies.ntk(4, 100.0, alpha=4.0), [1.0, 1 / 40])


def test_dynamic_ntk_by_hand():
    """Twice the length, factor 2: alpha = 2 * 16 / 8 - 1 = 3, base 900."""
    dynamic = {"factor": 2.0, "max_position": 8}
    close(frequencies.dynamic_ntk(4, 100.0, seqlen=16, **dynamic), [1.0, 1 / 30])
    for short in (None, 1, 7, 8):
        close(frequencies.dynamic_ntk(4, 100.0, seqlen=short, **dynamic), [1.0, 0.1])
    assert frequencies.dynamic_ntk(4, 100.0, seqlen=9, **dynamic).inv_freq[1] < 0.1


def test_yarn_by_hand():
    """200 pi positions: the pair of frequency 1 makes 100 revolutions, that of 1 / 100 makes one. The ramp lies between."""
    yarn = {"original_max_position": 200 * math.pi, "beta_fast": 100, "beta_slow": 1}
    close(frequencies.yarn(4, factor=4.0, **yarn), [1.0, 0.01 / 4])
    # eight channels: frequencies 1, 1/10, 1/100, 1/1000, the ramp is 0, 1/2, 1, 1
    expected = [1.0, (0.1 + 0.1 / 4) / 2, 0.01 / 4, 0.001 / 4]
    close(frequencies.yarn(8, factor=4.0, **yarn), expected)
    close(frequencies.yarn(8, max_position=800 * math.pi, **yarn), expected)
    # beta_fast 10 ** 1.5: d = 0.5 * 8 / 8 ... between pairs 0 and 1; whole pairs unless truncate=False
    half = {**yarn, "beta_fast": 100 / 10**0.5, "beta_slow": 10**0.5, "factor": 4.0}  # d = 1/2 and 3/2
    close(frequencies.yarn(8, truncate=False, **half), [1.0, (0.1 + 0.1 / 4) / 2, 0.01 / 4, 0.001 / 4], ulps=64)
    close(frequencies.yarn(8, **half), expected)  # 0 and 2


def test_attention_scaling_of_yarn():
    def scaling(**keywords):
        return frequencies.yarn(64, original_max_position=4096, **keywords).attention_scaling

    assert scaling(factor=40) == 0.1 * math.log(40) + 1
    assert scaling(max_position=4096 * 40) == scaling(factor=40)
    assert scaling(factor=40, mscale=1.0, mscale_all_dim=1.0) == 1
    assert scaling(factor=40, mscale=0.707, mscale_all_dim=0.5) == (0.0707 * math.log(40) + 1) / (
        0.05 * math.log(40) + 1
    )
    assert scaling(factor=40, mscale=0.707) == scaling(factor=40) == scaling(factor=40, mscale=0.7, mscale_all_dim=0)
    assert scaling(factor=40, mscale=0.707, attention_factor=1.5) == 1.5
    assert scaling(factor=1) == scaling(factor=0.5) == 1


def test_longrope_by_hand():
    longrope = {"short_factor": [1.0, 2.0], "long_factor": [4.0, 16.0], "original_max_position": 8}
    for seqlen, expected in ((None, [1.0, 1 / 20]), (8, [1.0, 1 / 20]), (9, [1 / 4, 1 / 160])):
        close(frequencies.longrope(4, 100.0, factor=2.0, seqlen=seqlen, **longrope), expected)
    scaling = frequencies.longrope(4, factor=8.0, **longrope).attention_scaling
    assert scaling == math.sqrt(2)  # ln 8 / ln 8
    assert frequencies.longrope(4, max_position=64, **longrope).attention_scaling == scaling
    assert frequencies.longrope(4, max_position=8, **longrope).attention_scaling == 1
    pair = {"attention_factor": (1.25, 1.5), **longrope}
    assert [frequencies.longrope(4, seqlen=n, **pair).attention_scaling for n in (None, 8, 9)] == [1.25, 1.25, 1.5]


def test_llama3_by_hand():
    """Wavelengths 2 pi and 20 pi. Trained on 8 positions: the first is between 8 / 4 and 8 / 1, the second beyond."""
    smooth = (8 / (2 * math.pi) - 1) / 3
    expected = [(1 - smooth) / 16 + smooth, 0.1 / 16]
    close(frequencies.llama3(4, 100.0, factor=16.0, original_max_position=8), expected)
    close(
        frequencies.llama3(4, 100.0, factor=16.0, original_max_position=64), [1.0, expected_between(64, 20 * math.pi)]
    )
    close(frequencies.llama3(4, 100.0, factor=16.0, original_max_position=10**6), [1.0, 0.1])


def expected_between(length, wavelength):
    smooth = (length / wavelength - 1) / 3
    return 0.1 * ((1 - smooth) / 16 + smooth)


def test_proportional_by_hand():
    """The exponent runs over the whole head; the pairs after the rotated ones have frequency zero."""
    close(frequencies.proportional(8, partial_rotary_factor=0.5), [1.0, 0.1, 0.0, 0.0])
    close(frequencies.proportional(8, partial_rotary_factor=0.74, factor=2.0), [0.5, 0.05, 0.0, 0.0])
    close(frequencies.proportional(8, partial_rotary_factor=0.0), [0.0] * 4)
    close(frequencies.proportional(8, partial_rotary_factor=1), frequencies.default(8).inv_freq.tolist())


def test_warped_keeps_half_a_revolution_and_divides_slow_pairs():
    warped = frequencies.warped(64, 1e6, factor=8.0).inv_freq
    plain = frequencies.default(64, 1e6).inv_freq
    close(torch.tan(warped / 2), (torch.tan(plain / 2) / 8).tolist(), ulps=16)
    assert abs(warped[-1] * 8 / plain[-1] - 1) < 1e-9 and (warped[:-1] > plain[:-1] / 8).all()
    close(frequencies.warped(64, 1e6, factor=1.0), plain.tolist(), ulps=8)
    # by the transform itself: z^-1 -> (z^-1 - a) / (1 - a z^-1) with factor = (1 - a) / (1 + a)
    a = (1 - 8.0) / (1 + 8.0)
    delay = torch.exp(-1j * plain)
    assert ((delay - a) / (1 - a * delay)).angle().neg().sub(warped).abs().max() < 1e-15


def test_axial_by_hand():
    """Eight channels, base 100: two pairs per axis with 1 and 1 / 10, or four shared out, 100 ** -(0, 1, 2, 3) / 4."""
    a, b, c, d = 1.0, 100**-0.25, 0.1, 100**-0.75
    cases = {
        (False, False, None): [[1, 0.1, 0, 0], [0, 0, 1, 0.1]],
        (True, False, None): [[1, 0, 0.1, 0], [0, 1, 0, 0.1]],
        (False, True, None): [[a, c, 0, 0], [0, 0, b, d]],
        (True, True, None): [[a, 0, c, 0], [0, b, 0, d]],
        (False, False, (1, 0)): [[0, 0, 1, 0.1], [1, 0.1, 0, 0]],
        (True, False, (1, 0)): [[0, 1, 0, 0.1], [1, 0, 0.1, 0]],
    }
    for (alternate, divide, axis_order), expected in cases.items():
        keywords = {"alternate": alternate, "divide": divide, "axis_order": axis_order}
        close(frequencies.axial(8, 100.0, **keywords), [[row] for row in expected])
    assert frequencies.axial(12, axes=3).inv_freq.shape == (3, 1, 6)


def test_per_axis_by_hand():
    inv_freq = torch.tensor([1.0, 2.0, 3.0])
    assert frequencies.per_axis(inv_freq, (0, 2, 0)).tolist() == [[[1, 0, 3]], [[0, 0, 0]], [[0, 2, 0]]]
    assert frequencies.per_axis(inv_freq, [0, 0, 0], axes=2).tolist() == [[[1, 2, 3]], [[0, 0, 0]]]
    heads = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    spread = frequencies.per_axis(heads, (1, 0))
    assert spread.tolist() == [[[0, 2], [0, 4]], [[1, 0], [3, 0]]]
    spread.sum().backward()
    assert heads.grad.tolist() == [[1, 1], [1, 1]]


def test_mrope_sections_by_hand():
    assert frequencies.mrope_pair_axis((1, 2, 3)) == (0, 1, 1, 2, 2, 2)
    assert frequencies.mrope_pair_axis((2, 1, 1), interleaved=True) == (0, 1, 2, 0)
    assert frequencies.mrope_pair_axis((4, 2, 1), interleaved=True) == (0, 1, 2, 0, 1, 0, 0)
    axes = frequencies.mrope_pair_axis((24, 20, 20), interleaved=True)
    assert [axes.count(axis) for axis in range(3)] == [24, 20, 20]


def test_xpos_by_hand():
    """zeta = (0 + 0.4) / 1.4 and (1/2 + 0.4) / 1.4; the factors of q and k multiply to zeta ** (distance / 512)."""
    zeta = [0.4 / 1.4, 0.9 / 1.4]
    scale = frequencies.xpos_scale(torch.tensor([[0, 512, 1024]]), 4, dtype=torch.float64)
    assert scale.shape == (1, 3, 2)
    close(scale[0], [[1, 1], zeta, [z * z for z in zeta]], ulps=8)
    q, k = (frequencies.xpos_scale(torch.tensor(n), 4, center=300, dtype=torch.float64) for n in (900, 388))
    close(q / k, zeta, ulps=32)
    assert frequencies.xpos_scale(torch.arange(3), 4).dtype == torch.float32
    close(frequencies.xpos_scale(torch.tensor(8), 2, scale_base=8, gamma=1.0, dtype=torch.float64), [0.5])


# ---- in 60 digits ----


def power(base, exponent):
    return Decimal(base) ** Decimal(exponent)


def exact_default(dim, base):
    return [power(base, Decimal(-2 * i) / dim) for i in range(dim // 2)]


def exact_yarn(dim, base, original, factor, fast=32, slow=1):
    def pair(revolutions):
        return dim * (Decimal(original) / (revolutions * 2 * PI)).ln() / (2 * Decimal(base).ln())

    low, high = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), dim - 1)
    ramp = [min(max(Decimal(i - low) / (high - low), Decimal(0)), Decimal(1)) for i in range(dim // 2)]
    return [f / factor * r + f * (1 - r) for f, r in zip(exact_default(dim, base), ramp)]


def exact_llama3(dim, base, factor, original):
    found = []
    for f in exact_default(dim, base):
        revolutions = Decimal(original) * f / (2 * PI)
        smooth = min(max((revolutions - 1) / 3, Decimal(0)), Decimal(1))
        found.append((1 - smooth) * f / factor + smooth * f)
    return found


EXACT = {
    "default": ({}, lambda dim, base: exact_default(dim, base)),
    "linear": ({"factor": 3.0}, lambda dim, base: [f / 3 for f in exact_default(dim, base)]),
    "ntk": ({"alpha": 8.0}, lambda dim, base: exact_default(dim, base * power(8, Decimal(dim) / (dim - 2)))),
    "dynamic_ntk": (
        {"factor": 2.0, "max_position": 4096, "seqlen": 65536},
        lambda dim, base: exact_default(dim, base * power(31, Decimal(dim) / (dim - 2))),
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position": 32768},
        lambda dim, base: exact_yarn(dim, base, 32768, 4),
    ),
    "longrope": (
        {"short_factor": [1.0] * 64, "long_factor": list(range(1, 65)), "original_max_position": 4096, "seqlen": 5000}
        | {"factor": 2.0},
        lambda dim, base: [f / (i + 1) for i, f in enumerate(exact_default(dim, base))],
    ),
    "llama3": ({"factor": 8.0}, lambda dim, base: exact_llama3(dim, base, 8, 8192)),
    "proportional": (
        {"partial_rotary_factor": 0.25},
        lambda dim, base: [f if i < dim // 8 else Decimal(0) for i, f in enumerate(exact_default(dim, base))],
    ),
}


@pytest.mark.parametrize("base", [10000, 500000])
@pytest.mark.parametrize("schedule", list(EXACT))
def test_frequencies_against_60_digits(schedule, base):
    """Relative error: the rounded exponent times ln(base), and a dozen operations, each 2^-53."""
    keywords, oracle = EXACT[schedule]
    found = getattr(frequencies, schedule)(128, float(base), **keywords).inv_freq
    bound = Decimal(math.log(base * 40) + 12) * Decimal(2) ** -53
    for ours, expected in zip(found.tolist(), oracle(128, base)):
        assert abs(Decimal(ours) - expected) <= bound * expected


def test_exponents_that_float32_cannot_hold():
    """2 i / 80 is a repeating fraction in binary; 2 i / 128 is not."""
    for ours, expected in zip(frequencies.default(80).inv_freq.tolist(), exact_default(80, 10000)):
        assert abs(Decimal(ours) - expected) <= 16 * Decimal(2) ** -53 * expected


def half_an_ulp(value):
    return Decimal(2) ** (math.frexp(float(value))[1] - 25)


FAR = [1, 2047, 32768, 131071, 1_000_000, 2**24 - 1, 2**24 + 1, -(2**24)]  # one that float32 cannot hold


@pytest.mark.parametrize("schedule", list(EXACT))
def test_cos_and_sin_are_exact_up_to_16_million(schedule):
    """The bound is one rounding, half an ulp of float32, plus the error of the float64 angle. The latter is that of the
    frequency f, at most f (ln(1 / f) + 3) 2^-53 times the position, largest at f = 1, and that of the product, 2^-53:
    together |position| * 4 * 2^-53, which is 7.5e-9 at 2^24 and below one ulp of values above 1/8."""
    keywords, oracle = EXACT[schedule]
    length = {"seqlen": keywords["seqlen"]} if "seqlen" in keywords else {}
    parameters = {name: value for name, value in keywords.items() if name != "seqlen"}
    rope = rope_ext.RotaryEmbedding(128, base=500000.0, schedule=schedule, **parameters)
    scaling = Decimal(rope.frequencies(**length).attention_scaling)
    cos, sin = rope(torch.tensor(FAR), **length)
    for pair in range(0, 64, 7):
        inv_freq = oracle(128, 500000)[pair]
        for row, position in enumerate(FAR):
            for ours, expected in zip((cos, sin), exact_cos_sin(position * inv_freq)):
                error = abs(Decimal(ours[row, pair].item()) - expected * scaling)
                assert error <= half_an_ulp(expected * scaling) + scaling * abs(position) * 4 * Decimal(2) ** -53


def test_float32_is_near_float64():
    """Both precisions share one formula: they differ by rounding only."""
    for schedule, (keywords, _) in EXACT.items():
        exact, rounded = (
            getattr(frequencies, schedule)(128, dtype=d, **keywords) for d in (torch.float64, torch.float32)
        )
        assert rounded.inv_freq.dtype == torch.float32 and rounded.attention_scaling == exact.attention_scaling
        torch.testing.assert_close(rounded.inv_freq.double(), exact.inv_freq, rtol=2e-6, atol=0)


def test_frequencies_are_float64_on_the_cpu():
    """The default device and dtype of torch do not matter."""
    with torch.device("meta"):
        assert all(getattr(frequencies, s)(128, **k).inv_freq.device.type == "cpu" for s, (k, _) in EXACT.items())
        assert (
            frequencies.axial(8).inv_freq.device.type == frequencies.warped(8, factor=2).inv_freq.device.type == "cpu"
        )


def test_lists_may_be_tuples_arrays_and_tensors():
    numpy = pytest.importorskip("numpy")
    for kind in (tuple, list, iter, numpy.array, torch.tensor):
        assert frequencies.mrope_pair_axis(kind([1, 1, 2])) == (0, 1, 2, 2)
        assert rope_ext.RotaryEmbedding(8, pair_axis=kind([0, 1, 0, 1])).pair_axis == (0, 1, 0, 1)
        divisors = {"short_factor": kind([1.0, 2.0]), "long_factor": kind([4.0, 16.0]), "original_max_position": 8}
        close(frequencies.longrope(4, 100.0, factor=2.0, **divisors), [1.0, 1 / 20])
