"""Shifts, operations on bits and predicates, and moves from register to register."""

import numpy as np

from tools.machine_code.state import (
    UNIFORM,
    Mask,
    Pairs,
    State,
    Words,
    is_predicate,
    joined,
    next_register,
    predicate,
    predicate_of,
    register_of,
    whole_warps,
    word,
)
from tools.machine_code.table import Run, Take, instruction

U32, S32, U64, S64 = np.uint32, np.int32, np.uint64, np.int64


@instruction("LOP3", "ULOP3")
def lop3(take: Take) -> Run:
    take.modifier("LUT")
    found = predicate_of(take.operand()) if is_predicate(take.operands[0]) else None
    register = register_of(take.operand())
    reads, table = [word(take.operand()) for _ in range(3)], int(take.operand(), 0)
    also = predicate(take.operand())

    def run(s: State, mask: Mask) -> None:
        a, b, c = (read(s) for read in reads)
        value: Words = np.zeros(1, U32)
        for i in range(8):
            if table >> i & 1:
                value = value | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        s.write(register, value, mask)
        if found is not None:
            s.write_predicate(found, (value != 0) | also(s), mask)

    return run


@instruction("SHF", "USHF")
def shf(take: Take) -> Run:
    """A shift of the 64 bits high:low; .HI keeps the upper word. 32-bit kinds shift the upper word alone."""
    left, high = take.one_of(("L", "R")) == "L", take.modifier("HI")
    kind = take.one_of(("U32", "S32", "U64", "S64"))
    register = register_of(take.operand())
    low, count, upper = (word(take.operand()) for _ in range(3))
    bits = U32(int(kind[1:]))
    if (kind == "S32" and (left or not high)) or (kind == "U32" and left and high):
        raise ValueError("a kind of shift")

    def run(s: State, mask: Mask) -> None:
        n = np.minimum(count(s), bits)
        if kind == "S32":
            value = (upper(s).view(S32).astype(S64) >> n).astype(U32)
        elif kind == "U32" and high:
            value = (upper(s).astype(U64) >> n).astype(U32)
        elif kind == "U32" and left:
            value = (low(s).astype(U64) << n).astype(U32)
        else:
            both = joined(low(s), upper(s))
            n64, whole = np.minimum(n, U32(63)).astype(U64), n == 64
            both = (
                both << n64 if left else (both.view(S64) >> n64.view(S64)).view(U64) if kind == "S64" else both >> n64
            )
            if kind != "S64":
                both = np.where(whole, U64(0), both)
            value = (both >> U64(32) if high else both).astype(U32)
        s.write(register, value, mask)

    return run


@instruction("PRMT", "UPRMT")
def prmt(take: Take) -> Run:
    """Each byte of the result is one of the eight bytes of b:a, or eight copies of the sign of that byte."""
    register, a, selector, b = register_of(take.operand()), *(word(take.operand()) for _ in range(3))

    def run(s: State, mask: Mask) -> None:
        both, chosen = joined(a(s), b(s)), selector(s).astype(U64)
        value: Pairs = np.zeros(1, U64)
        for i in range(4):
            nibble = chosen >> U64(4 * i)
            byte = both >> ((nibble & U64(7)) << U64(3)) & U64(255)
            sign = np.where(byte >> U64(7), U64(255), U64(0))
            value = value | np.where(nibble & U64(8), sign, byte) << U64(8 * i)
        s.write(register, value.astype(U32), mask)

    return run


@instruction("POPC", "UPOPC")
def popc(take: Take) -> Run:
    register, a = register_of(take.operand()), word(take.operand())
    return lambda s, mask: s.write(register, np.bitwise_count(a(s)).astype(U32), mask)


@instruction("BREV", "UBREV")
def brev(take: Take) -> Run:
    """The bits in reverse order."""
    register, a = register_of(take.operand()), word(take.operand())

    def run(s: State, mask: Mask) -> None:
        bits = np.unpackbits(a(s).view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        s.write(register, np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(U32).ravel(), mask)

    return run


@instruction("FLO", "UFLO")
def flo(take: Take) -> Run:
    """The index of the highest bit that is set, or -1; .SH counts from the top."""
    take.one_of(("U32",))
    from_top = take.modifier("SH")
    register, a = register_of(take.operand()), word(take.operand())

    def run(s: State, mask: Mask) -> None:
        index = np.frexp(a(s).astype(np.float64))[1] - 1
        value = np.where(index >= 0, 31 - index if from_top else index, -1)
        s.write(register, value.astype(S32).view(U32), mask)

    return run


@instruction("PLOP3", "UPLOP3")
def plop3(take: Take) -> Run:
    take.modifier("LUT")
    first, second = predicate_of(take.operand()), predicate_of(take.operand())
    reads = [predicate(take.operand()) for _ in range(3)]
    bits = [int(take.operand(), 0) for _ in range(2)]
    tables = [np.array([table >> i & 1 for i in range(8)], np.bool_) for table in bits]

    def run(s: State, mask: Mask) -> None:
        a, b, c = (read(s).astype(np.int8) for read in reads)
        index = 4 * a + 2 * b + c
        s.write_predicate(first, tables[0][index], mask)
        s.write_predicate(second, tables[1][index], mask)

    return run


# ---- moves ----


@instruction("MOV", "UMOV")
def mov(take: Take) -> Run:
    register, a = register_of(take.operand()), word(take.operand())
    return lambda s, mask: s.write(register, a(s), mask)


@instruction("SEL", "USEL")
def sel(take: Take) -> Run:
    register, a, b = register_of(take.operand()), word(take.operand()), word(take.operand())
    first = predicate(take.operand())
    return lambda s, mask: s.write(register, np.where(first(s), a(s), b(s)), mask)


@instruction("P2R")
def p2r(take: Take) -> Run:
    """The bits in the mask come from the predicates, the others from a register."""
    register, source = register_of(take.operand()), take.operand()
    a, chosen = word(take.operand()), word(take.operand())
    if source != "PR":
        raise ValueError("a source")

    def run(s: State, mask: Mask) -> None:
        found: Words = sum(s.predicates[i].astype(U32) << U32(i) for i in range(7))
        s.write(register, a(s) & ~chosen(s) | found & chosen(s), mask)

    return run


@instruction("CS2R")
def cs2r(take: Take) -> Run:
    narrow, register = take.modifier("32"), register_of(take.operand())
    if take.operand() != "SRZ":
        raise ValueError("a special register")
    zero = np.zeros(1, U32)

    def run(s: State, mask: Mask) -> None:
        s.write(register, zero, mask)
        if not narrow:
            s.write(next_register(register), zero, mask)

    return run


@instruction("S2R", "S2UR")
def s2r(take: Take) -> Run:
    register, name = register_of(take.operand()), take.operand()
    if register >= UNIFORM:
        return lambda s, mask: s.write(register, s.special[name], whole_warps(mask))
    return lambda s, mask: s.write(register, s.special[name], mask)
