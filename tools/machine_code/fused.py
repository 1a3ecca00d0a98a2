"""a * b + c, rounded once."""

import math
from fractions import Fraction

import numpy as np

from tools.machine_code.state import Doubles, Floats, Mask

NEAREST = "RN"
TOWARDS = {"RZ": 0.0, "RM": -math.inf, "RP": math.inf}
SPLIT = 2.0**27 + 1  # splits the 53 bits of a float64 into halves whose products are exact


def two_sum(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """a + b rounded, and its exact rounding error."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def two_prod(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """a * b rounded, and its rounding error, which is exact unless an exponent leaves the range."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def halves(a: Doubles) -> tuple[Doubles, Doubles]:
    high = a * SPLIT - (a * SPLIT - a)
    return high, a - high


def rounded_to_odd(total: Doubles, error: Doubles) -> Doubles:
    """total + error, rounded to odd: a sum that is no float64 becomes the neighbor whose last bit is 1.

    Rounding the result again, to fewer bits, equals rounding the exact sum.
    """
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & np.isfinite(error) & (bits & 1 == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + away, bits).view(np.float64)


def fused_single(a: Floats, b: Floats, c: Floats, rounding: str = NEAREST) -> Floats:
    product = a.astype(np.float64) * b  # exact: 48 bits
    exact = rounded_to_odd(*two_sum(product, c.astype(np.float64)))
    nearest: Floats = exact.astype(np.float32)
    if rounding == NEAREST:
        return nearest
    beyond = {"RZ": np.abs(nearest) > np.abs(exact), "RM": nearest > exact, "RP": nearest < exact}[rounding]
    return np.where(beyond, np.nextafter(nearest, np.float32(TOWARDS[rounding])), nearest)


def fused_double(a: Doubles, b: Doubles, c: Doubles, mask: Mask, rounding: str = NEAREST) -> Doubles:
    """a * b + c in float64 at the lanes of `mask`. Extreme exponents and other roundings are computed with fractions.

    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    product, product_error = two_prod(a, b)
    low, low_error = two_sum(c, product_error)
    high, high_error = two_sum(product, low)
    result = high + rounded_to_odd(*two_sum(low_error, high_error))
    plain = ~np.isfinite(a) | ~np.isfinite(b) | ~np.isfinite(c) | (a == 0) | (b == 0)
    result = np.where(plain, a * b + c, result)
    result = np.where(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(c), c, result)  # even where a * b overflows
    extreme = ~plain & ~(usual(a, 400) & usual(b, 400) & (usual(c, 800) | (c == 0))) & mask
    for i in np.flatnonzero(extreme if rounding == NEAREST else ~plain & mask):
        result[i] = exactly(float(a[i]), float(b[i]), float(c[i]), rounding)
    return result


def usual(a: Doubles, exponent: int) -> Mask:
    size = np.abs(a)
    return (size > 2.0**-exponent) & (size < 2.0**exponent)


def exactly(a: float, b: float, c: float, rounding: str) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # has the right sign
    try:
        nearest = float(exact)
    except OverflowError:
        nearest = math.inf if exact > 0 else -math.inf
    if rounding == NEAREST or (math.isfinite(nearest) and nearest == exact):
        return nearest
    above = nearest == math.inf or (math.isfinite(nearest) and nearest > exact)
    beyond = {"RZ": above == (exact > 0), "RM": above, "RP": not above}[rounding]
    return math.nextafter(nearest, TOWARDS[rounding]) if beyond else nearest
