"""Floating-point arithmetic and comparisons.

Every result is rounded once, as on the GPU. Payloads of NaN are not modeled: all NaN are equivalent.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.machine_code.fused import NEAREST, TOWARDS, fused_double, fused_single
from tools.machine_code.integer import LOGIC
from tools.machine_code.state import (
    Doubles,
    Floats,
    Mask,
    State,
    double,
    predicate,
    predicate_of,
    register_of,
    single,
    word,
)
from tools.machine_code.table import Run, Take, instruction

U32, U64 = np.uint32, np.uint64


def write_single(s: State, register: int, value: Floats, mask: Mask) -> None:
    s.write(register, value.view(U32), mask)


def write_double(s: State, register: int, value: Doubles, mask: Mask) -> None:
    s.write_pair(register, value.view(U64), mask)


# ---- arithmetic ----

# x * 1 and x + -0.0 are x, for every x.
ONE, NOTHING = np.ones(1, np.float32), np.full(1, -0.0, np.float32)
ONE_DOUBLE, NOTHING_DOUBLE = np.ones(1), np.full(1, -0.0)


def rounding_of(take: Take) -> str:
    return next((name for name in TOWARDS if take.modifier(name)), NEAREST)


def flush(value: Floats) -> Floats:
    """.FTZ: denormal numbers count as zeros of their sign."""
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value)


def arithmetic(take: Take, compute: Callable[..., Floats], operands: int) -> Run:
    """An instruction whose result is compute(float32 operands, rounding)."""
    flushes, rounding = take.modifier("FTZ"), rounding_of(take)
    register, *reads = register_of(take.operand()), *(single(take.operand()) for _ in range(operands))

    def run(s: State, mask: Mask) -> None:
        values = [flush(read(s)) if flushes else read(s) for read in reads]
        result = compute(*values, rounding)
        write_single(s, register, flush(result) if flushes else result, mask)

    return run


@instruction("FADD")
def fadd(take: Take) -> Run:
    return arithmetic(take, lambda a, b, r: a + b if r == NEAREST else fused_single(a, ONE, b, r), 2)


@instruction("FMUL")
def fmul(take: Take) -> Run:
    return arithmetic(take, lambda a, b, r: a * b if r == NEAREST else fused_single(a, b, NOTHING, r), 2)


@instruction("FFMA")
def ffma(take: Take) -> Run:
    return arithmetic(take, fused_single, 3)


@instruction("DADD")
def dadd(take: Take) -> Run:
    rounding = rounding_of(take)
    register, a, b = register_of(take.operand()), double(take.operand()), double(take.operand())

    def run(s: State, mask: Mask) -> None:
        result = a(s) + b(s) if rounding == NEAREST else fused_double(a(s), ONE_DOUBLE, b(s), mask, rounding)
        write_double(s, register, result, mask)

    return run


@instruction("DMUL")
def dmul(take: Take) -> Run:
    rounding = rounding_of(take)
    register, a, b = register_of(take.operand()), double(take.operand()), double(take.operand())

    def run(s: State, mask: Mask) -> None:
        result = a(s) * b(s) if rounding == NEAREST else fused_double(a(s), b(s), NOTHING_DOUBLE, mask, rounding)
        write_double(s, register, result, mask)

    return run


@instruction("DFMA")
def dfma(take: Take) -> Run:
    rounding = rounding_of(take)
    register, a, b, c = register_of(take.operand()), *(double(take.operand()) for _ in "abc")
    return lambda s, mask: write_double(s, register, fused_double(a(s), b(s), c(s), mask, rounding), mask)


@instruction("MUFU")
def mufu(take: Take) -> Run:
    """Approximations, whose exact results on a GPU are not documented.

    The result is the nearest number, moved by seed_ulps. Code with identical results for -1, 0 and 1 does not depend on
    the approximation.
    """
    name = take.one_of(("RCP", "RSQ", "RCP64H", "RSQ64H"))
    register = register_of(take.operand())
    whole = name.endswith("64H")  # operates on the upper words of float64 numbers
    read = word(take.operand()) if whole else single(take.operand())

    def run(s: State, mask: Mask) -> None:
        a = read(s)
        x: Doubles = (a.astype(U64) << U64(32)).view(np.float64) if whole else a.astype(np.float64)
        y = 1 / (np.sqrt(x) if name.startswith("RSQ") else x)
        bits = (y.view(U64) >> U64(32)).astype(U32) if whole else y.astype(np.float32).view(U32)
        moved = bits + np.array([s.seed_ulps]).astype(np.int32).view(U32)
        s.write(register, np.where(np.isfinite(y) & (y != 0), moved, bits), mask)

    return run


@instruction("FCHK")
def fchk(take: Take) -> Run:
    """Whether a quotient is beyond the range of the short division.

    The exponents for which a GPU says so are not documented. Here all but the most usual ones count, since the long
    division is right for every quotient.
    """
    result, a, b = predicate_of(take.operand()), single(take.operand()), single(take.operand())

    def run(s: State, mask: Mask) -> None:
        sizes = np.abs(a(s)), np.abs(b(s))
        usual = [(size > np.float32(2.0**-60)) & (size < np.float32(2.0**60)) for size in sizes]
        s.write_predicate(result, ~(usual[0] & usual[1]), mask)

    return run


# ---- comparisons and choices ----

ORDERED: dict[str, Callable[[Any, Any], Mask]] = {
    "EQ": np.equal,
    "NE": lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b)),
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "NUM": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "NAN": lambda a, b: np.isnan(a) | np.isnan(b),
}
UNORDERED: dict[str, Callable[[Any, Any], Mask]] = {
    "EQU": lambda a, b: ~((a < b) | (a > b)),
    "NEU": np.not_equal,
    "LTU": lambda a, b: ~(a >= b),
    "LEU": lambda a, b: ~(a > b),
    "GTU": lambda a, b: ~(a <= b),
    "GEU": lambda a, b: ~(a < b),
}
COMPARISONS = ORDERED | UNORDERED


def setp(take: Take, operand: Callable[[str], Callable[[State], Any]]) -> Run:
    compare, logic = COMPARISONS[take.one_of(COMPARISONS)], LOGIC[take.one_of(LOGIC)]
    first, second = predicate_of(take.operand()), predicate_of(take.operand())
    a, b, combined = operand(take.operand()), operand(take.operand()), predicate(take.operand())

    def run(s: State, mask: Mask) -> None:
        found, also = compare(a(s), b(s)), combined(s)
        results = logic(found, also), logic(~found, also)
        s.write_predicate(first, results[0], mask)
        s.write_predicate(second, results[1], mask)

    return run


@instruction("FSETP")
def fsetp(take: Take) -> Run:
    if not take.modifier("FTZ"):
        return setp(take, single)

    def flushed(text: str) -> Callable[[State], Floats]:
        read = single(text)
        return lambda s: flush(read(s))

    return setp(take, flushed)


@instruction("DSETP")
def dsetp(take: Take) -> Run:
    return setp(take, double)


@instruction("FSEL")
def fsel(take: Take) -> Run:
    register, a, b = register_of(take.operand()), single(take.operand()), single(take.operand())
    first = predicate(take.operand())
    return lambda s, mask: write_single(s, register, np.where(first(s), a(s), b(s)), mask)


@instruction("FMNMX")
def fmnmx(take: Take) -> Run:
    register, a, b = register_of(take.operand()), single(take.operand()), single(take.operand())
    least = predicate(take.operand())

    def run(s: State, mask: Mask) -> None:
        x, y = a(s), b(s)
        write_single(s, register, np.where(least(s), np.fmin(x, y), np.fmax(x, y)), mask)

    return run
