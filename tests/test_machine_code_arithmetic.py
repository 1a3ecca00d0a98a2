"""What the interpreter of machine code makes of numbers, against Python's integers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.machine_code import run
from tools.machine_code.conversions import bfloat16, float16, rounded_up
from tools.machine_code.fused import fused_double, fused_single

pytestmark = pytest.mark.devices("cpu")
WORDS = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x12345678, 0xDEADBEEF]
ALL = 2**32 - 1


def pairs_of_words():
    a, b = np.array([(a, b) for a in WORDS for b in WORDS], np.uint32).T
    return a, b, np.roll(a, 7)


# ---- integers ----


def signed(x, bits=32):
    return int(x) - (int(x) >> (bits - 1) << bits)


INTEGERS = {
    ("IADD3 R8, R5, -R6, R7",): lambda a, b, c: a - b + c,
    ("IMAD R8, R5, R6, R7",): lambda a, b, c: a * b + c,
    ("IMAD.HI.U32 R8, R5, R6, RZ",): lambda a, b, c: a * b >> 32,
    ("IMAD.HI R8, R5, R6, RZ",): lambda a, b, c: signed(a) * signed(b) >> 32,
    ("IADD3 R8, P0, P1, R5, R6, R7", "IADD3.X R8, RZ, RZ, RZ, P0, P1"): lambda a, b, c: a + b + c >> 32,
    ("IADD3 R8, P0, R5, -R6, RZ", "IMAD.X R8, RZ, RZ, ~R7, P0"): lambda a, b, c: ~c + (a >= b),
    ("LEA R8, P0, R5, R6, 0x5", "LEA.HI.X R8, R5, R7, R6, 0x5, P0"): lambda a, b, c: (
        ((b << 32 | a) << 5 >> 32) + c + (((a << 5) & ALL) + b >> 32)
    ),
    ("LEA.HI R8, R5, R6, R7, 0x3",): lambda a, b, c: ((c << 32 | a) << 3 >> 32) + b,
    ("IABS R8, R5",): lambda a, b, c: abs(signed(a)),
    ("VIMNMX R8, R5, R6, PT",): lambda a, b, c: min(signed(a), signed(b)),
    ("VIMNMX.U32 R8, R5, R6, !PT",): lambda a, b, c: max(a, b),
    ("SHF.R.S32.HI R8, RZ, 0x7, R5",): lambda a, b, c: signed(a) >> 7,
    ("SHF.R.U32.HI R8, RZ, 0x7, R5",): lambda a, b, c: a >> 7,
    ("SHF.L.U32 R8, R5, 0x9, RZ",): lambda a, b, c: a << 9,
    ("SHF.L.U64.HI R8, R5, 0x9, R6",): lambda a, b, c: (b << 32 | a) << 9 >> 32,
    ("SHF.R.S64 R8, R5, 0x9, R6",): lambda a, b, c: signed(b << 32 | a, 64) >> 9,
    ("SHF.R.U64 R8, R5, 0x21, R6",): lambda a, b, c: b >> 1,
    ("LOP3.LUT R8, R5, R6, R7, 0x96, !PT",): lambda a, b, c: a ^ b ^ c,
    ("LOP3.LUT R8, R5, R6, R7, 0xca, !PT",): lambda a, b, c: (a & b) | (~a & c),
    ("PRMT R8, R5, 0x7610, R6",): lambda a, b, c: (a & 0xFFFF) | (b & 0xFFFF0000),
    ("PRMT R8, R5, 0x9910, RZ",): lambda a, b, c: signed(a & 0xFFFF, 16),
    ("POPC R8, R5",): lambda a, b, c: a.bit_count(),
    ("FLO.U32 R8, R5",): lambda a, b, c: a.bit_length() - 1,
    ("BREV R8, R5",): lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    ("ISETP.GT.AND P0, PT, R5, R6, PT", "SEL R8, R5, 0x7, P0"): lambda a, b, c: a if signed(a) > signed(b) else 7,
    ("ISETP.LT.U32.AND P0, PT, R5, R6, PT", "ISETP.LT.AND.EX P1, PT, R6, R7, PT, P0", "SEL R8, RZ, 0x1, P1"): (
        lambda a, b, c: signed(b << 32 | a, 64) >= signed(c << 32 | b, 64)
    ),
    ("ISETP.GE.U32.AND P0, PT, R5, R6, PT", "ISETP.LT.OR P1, PT, R7, R6, P0", "SEL R8, RZ, 0x1, P1"): (
        lambda a, b, c: not (signed(c) < signed(b) or a >= b)
    ),
    ("LOP3.LUT P0, RZ, R5, R6, RZ, 0xc0, !PT", "SEL R8, RZ, 0x1, P0"): lambda a, b, c: not a & b,
    (
        "ISETP.GT.U32.AND P0, PT, R5, R6, PT",
        "ISETP.GT.U32.AND P1, P2, R6, R7, PT",
        "PLOP3.LUT P3, P4, P0, P1, !P2, 0xa8, 0x1",  # (P0 | P1) & P1, and none of the three
        "SEL R8, RZ, 0x1, P3",
        "@P4 IADD3 R8, R8, 0x2, RZ",
    ): lambda a, b, c: (not b > c) + 2 * (not a > b and not b > c),
    ("I2F.S64 R8, R5",): lambda a, b, c: int(np.float32(signed(b << 32 | a, 64)).view(np.uint32)),
    ("I2FP.F32.S32 R8, R5",): lambda a, b, c: int(np.float32(signed(a)).view(np.uint32)),
    ("ISETP.GT.U32.AND P1, PT, R5, R6, PT", "P2R R8, PR, R7, 0x2"): lambda a, b, c: c & ~2 | (a > b) << 1,
    ("I2F R8, R5", "F2I.TRUNC.U32 R8, R8"): lambda a, b, c: max(int(np.float32(signed(a))), 0),
}


@pytest.mark.parametrize("lines", INTEGERS, ids="; ".join)
def test_integers(lines):
    """Words at the ends of their range, against Python's integers."""
    a, b, c = pairs_of_words()
    got, _ = run(*lines, inputs=(a, b, c), threads=len(a))
    expected = [INTEGERS[lines](int(x), int(y), int(z)) & ALL for x, y, z in zip(a, b, c)]
    assert got[0].tolist() == expected


def test_products_of_64_bits_with_a_carry():
    a, b, c = pairs_of_words()
    lines = ["IMAD.WIDE.U32 R8, P0, R5, R6, R6", "SEL R10, RZ, 0x1, !P0", "IMAD.WIDE R12, R5, R7, RZ", "MOV R11, R13"]
    got, _ = run(*lines, inputs=(a, b, c), threads=len(a), outputs=4)
    for i, (x, y, z) in enumerate(zip(*(v.tolist() for v in (a, b, c)))):
        total = x * y + (z << 32 | y)
        assert int(got[0, i]) | int(got[1, i]) << 32 == total & (2**64 - 1) and got[2, i] == total >> 64
        assert got[3, i] == (signed(x) * signed(z) >> 32) & ALL


# ---- floating point ----


def numbers(dtype, seed, count=4000):
    """Numbers of any exponent, numbers close to one another, and special ones."""
    bits = np.random.default_rng(seed).integers(0, 2 ** (8 * np.dtype(dtype).itemsize), count, dtype=np.uint64)
    values = bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    near = np.random.default_rng(seed).standard_normal(count).astype(dtype)
    special = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny, np.finfo(dtype).max], dtype)
    return np.concatenate((values, near, np.repeat(special, 20)))


def rounded(exact, dtype):
    """The nearest number, ties to even."""
    if dtype == np.float64:
        return float(exact)
    scale = max(math.frexp(abs(float(exact)))[1] - 24, -149)
    units = exact / Fraction(2) ** scale
    return float(round(units) * Fraction(2) ** scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fused_products_round_once(dtype):
    with np.errstate(all="ignore"):
        a, b = numbers(dtype, 1), numbers(dtype, 2)
        rng = np.random.default_rng(4)
        a, b = rng.permutation(a), rng.permutation(b)
        c = np.where(rng.random(len(a)) < 0.5, rng.permutation(numbers(dtype, 3)), -a * b * dtype(1 + 1e-7))
        got = fused_single(a, b, c) if dtype == np.float32 else fused_double(a, b, c, np.ones(len(a), np.bool_))
    assert got.dtype == dtype
    for x, y, z, result in zip(*(values.tolist() for values in (a, b, c, got))):
        if math.isfinite(x) and math.isfinite(y) and math.isfinite(z):
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            if abs(exact) < Fraction(float(np.finfo(dtype).max)):
                assert result == rounded(exact, dtype), (x, y, z)
            else:
                assert abs(result) >= np.finfo(dtype).max and (result > 0) == (exact > 0)
        else:
            finite = math.isfinite(x) and math.isfinite(y)
            assert np.array_equal(result, z if finite else x * y + z, equal_nan=True), (x, y, z)


def test_directed_roundings_enclose_the_exact_result():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(200) * 2.0 ** rng.integers(-20, 20, 200) for _ in range(3))
    everywhere = np.ones(200, np.bool_)
    down, up, zero = (fused_double(a, b, c, everywhere, r) for r in ("RM", "RP", "RZ"))
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a, b, c)]
    assert all(low < e < high for low, e, high in zip(down, exact, up))
    assert (np.nextafter(down, np.inf) == up).all() and (zero == np.where(down > 0, down, up)).all()
    f = [v.astype(np.float32) for v in (a, b, c)]
    down, up, zero = (fused_single(*f, r) for r in ("RM", "RP", "RZ"))
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(*f)]
    assert all(low <= e <= high for low, e, high in zip(down.astype(float), exact, up.astype(float)))
    assert (zero == np.where(down > 0, down, up)).all()


def test_conversions_to_16_bits_round_to_even():
    values = numbers(np.float32, 5)
    for convert, dtype in ((bfloat16, torch.bfloat16), (float16, torch.float16)):
        with np.errstate(all="ignore"):
            got = convert(values)
        expected = torch.from_numpy(values).to(dtype)
        nan = expected.isnan().numpy()
        assert (got[nan] == 0x7FFF).all()
        assert (got.astype(np.int16) == expected.view(torch.int16).numpy())[~nan].all()


def test_integers_rounded_up():
    values = np.array([0, 1, 2**24 - 1, 2**24 + 1, 2**31 - 1, 2**53 - 1, 2**54 - 1, 2**63 + 1, 2**64 - 1], np.uint64)
    for value, got in zip(values, rounded_up(values)):
        assert int(got) >= int(value) and int(np.nextafter(got, np.float32(0))) < max(int(value), 1)
    assert rounded_up(np.array([-(2**31) + 1], np.int32))[0] == -(2**31) + 128
