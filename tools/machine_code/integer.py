"""Integer sums, products and comparisons."""

import re
from collections.abc import Callable

import numpy as np

from tools.machine_code.state import (
    Mask,
    Pairs,
    State,
    Words,
    is_predicate,
    joined,
    pair,
    predicate,
    predicate_of,
    register_of,
    word,
)
from tools.machine_code.table import Run, Take, instruction

U32, S32, U64, S64 = np.uint32, np.int32, np.uint64, np.int64
HALF = U64(32)


def outputs(take: Take) -> tuple[int, list[int]]:
    """The destination, and the predicates after it, which receive carries."""
    register, carries = register_of(take.operand()), []
    while take.operands and is_predicate(take.operands[0]):
        carries.append(predicate_of(take.operand()))
    return register, carries


def write_sum(s: State, register: int, carries: list[int], total: Pairs, mask: Mask) -> None:
    """The low 32 bits of a sum, and its carries: carry i says whether the sum exceeds 32 bits more than i times."""
    high = total >> HALF
    for i, carry in enumerate(carries):
        s.write_predicate(carry, high > U64(i), mask)
    s.write(register, total.astype(U32), mask)


def carry_in(take: Take) -> Callable[[State], Mask]:
    return predicate(take.operand())


# ---- sums and products ----


@instruction("IADD3", "UIADD3")
def iadd3(take: Take) -> Run:
    extended = take.modifier("X")
    register, carries = outputs(take)
    parts = [take.operand() for _ in range(3)]
    # -R is ~R + 1, where the 1 counts for the carry. With .X it comes from the carry of the low word.
    negated = [re.match(r"-U?R", part) is not None for part in parts]
    reads = [word(f"~{part[1:]}" if minus else part) for part, minus in zip(parts, negated)]
    ones = U64(sum(negated))
    carried = [carry_in(take) for _ in take.operands[:]] if extended else []
    if extended and ones:
        raise ValueError("a negated operand with .X")

    def run(s: State, mask: Mask) -> None:
        total = reads[0](s).astype(U64) + reads[1](s) + reads[2](s) + ones
        for read in carried:
            total = total + read(s)
        write_sum(s, register, carries, total, mask)

    return run


@instruction("VIADD", "UVIADD")
def viadd(take: Take) -> Run:
    register, a, b = register_of(take.operand()), word(take.operand()), word(take.operand())
    return lambda s, mask: s.write(register, a(s) + b(s), mask)


@instruction("IMAD", "UIMAD")
def imad(take: Take) -> Run:
    wide, high, extended = (take.modifier(name) for name in ("WIDE", "HI", "X"))
    unsigned = take.modifier("U32")
    for name in ("MOV", "IADD", "SHL"):  # forms of a * b + c; the name is a hint
        take.modifier(name)
    register, carries = outputs(take)
    a, b = word(take.operand()), word(take.operand())
    if wide or high:
        c64 = pair(take.operand())
        return product64(register, carries, a, b, c64, unsigned, high, carry_in(take) if extended else None)
    c = word(take.operand())
    if extended:
        carried = carry_in(take)
        return lambda s, mask: s.write(register, a(s) * b(s) + c(s) + carried(s), mask)
    return lambda s, mask: s.write(register, a(s) * b(s) + c(s), mask)


def product64(
    register: int,
    carries: list[int],
    a: Callable[[State], Words],
    b: Callable[[State], Words],
    c: Callable[[State], Pairs],
    unsigned: bool,
    high: bool,
    carried: Callable[[State], Mask] | None,
) -> Run:
    """a * b + c + carry in 64 bits; IMAD.HI keeps the upper word."""

    def run(s: State, mask: Mask) -> None:
        if unsigned:
            product: Pairs = a(s).astype(U64) * b(s)
        else:
            product = (a(s).view(S32).astype(S64) * b(s).view(S32)).view(U64)
        addend = c(s) + carried(s) if carried else c(s)
        total = product + addend
        overflow = total < product  # before the destination is written, which may be an operand
        if high:
            s.write(register, (total >> HALF).astype(U32), mask)
        else:
            s.write_pair(register, total, mask)
        for carry in carries:
            s.write_predicate(carry, overflow, mask)

    if carries and (carried or not unsigned):
        raise ValueError("the carry of a signed product, or of one with a carry")
    return run


def sign_of(low: Callable[[State], Words]) -> Callable[[State], Words]:
    """The upper word of a number that is sign-extended."""
    return lambda s: (low(s).view(S32) >> 31).view(U32)


@instruction("LEA", "ULEA")
def lea(take: Take) -> Run:
    high, extended, signed = (take.modifier(name) for name in ("HI", "X", "SX32"))
    register, carries = outputs(take)
    low, b = word(take.operand()), word(take.operand())
    upper = sign_of(low) if signed else word(take.operand()) if high else None
    shift = U64(int(take.operand(), 0)) if take.operands and not is_predicate(take.operands[0]) else U64(0)
    carried = carry_in(take) if extended else None

    def run(s: State, mask: Mask) -> None:
        shifted = joined(low(s), upper(s)) << shift >> HALF if upper else (low(s) << U32(shift)).astype(U64)
        total = shifted + b(s)
        write_sum(s, register, carries, total + carried(s) if carried else total, mask)

    return run


@instruction("IABS")
def iabs(take: Take) -> Run:
    register, a = register_of(take.operand()), word(take.operand())
    return lambda s, mask: s.write(register, np.abs(a(s).view(S32)).view(U32), mask)


@instruction("IMNMX", "VIMNMX", "UIMNMX")
def imnmx(take: Take) -> Run:
    kind = U32 if take.modifier("U32") else S32
    register, a, b, least = register_of(take.operand()), *(word(take.operand()) for _ in "ab"), carry_in(take)

    def run(s: State, mask: Mask) -> None:
        x, y = a(s).view(kind), b(s).view(kind)
        s.write(register, np.where(least(s), np.minimum(x, y), np.maximum(x, y)).view(U32), mask)

    return run


@instruction("VIADDMNMX")
def viaddmnmx(take: Take) -> Run:
    kind = U32 if take.modifier("U32") else S32
    register, a, b, c = register_of(take.operand()), *(word(take.operand()) for _ in "abc")
    least = carry_in(take)

    def run(s: State, mask: Mask) -> None:
        x, y = (a(s) + b(s)).view(kind), c(s).view(kind)
        s.write(register, np.where(least(s), np.minimum(x, y), np.maximum(x, y)).view(U32), mask)

    return run


# ---- comparisons ----

COMPARISONS: dict[str, Callable[[Words, Words], Mask]] = {
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}
LOGIC: dict[str, Callable[[Mask, Mask], Mask]] = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


@instruction("ISETP", "UISETP")
def isetp(take: Take) -> Run:
    extended, kind = take.modifier("EX"), U32 if take.modifier("U32") else S32
    name, logic = take.one_of(COMPARISONS), LOGIC[take.one_of(LOGIC)]
    first, second = predicate_of(take.operand()), predicate_of(take.operand())
    a, b, combined = word(take.operand()), word(take.operand()), predicate(take.operand())
    below = predicate(take.operand()) if extended else None  # the comparison of the low words

    def run(s: State, mask: Mask) -> None:
        x, y = a(s).view(kind), b(s).view(kind)
        if below is None:
            found = COMPARISONS[name](x, y)
        elif name == "NE":
            found = (x != y) | below(s)
        else:
            strictly = np.zeros_like(x == y) if name == "EQ" else x > y if name[0] == "G" else x < y
            found = strictly | ((x == y) & below(s))
        also = combined(s)
        results = logic(found, also), logic(~found, also)  # both before either is written
        s.write_predicate(first, results[0], mask)
        s.write_predicate(second, results[1], mask)

    return run
