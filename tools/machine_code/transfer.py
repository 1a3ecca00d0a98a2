"""Instructions that move values between registers and memory, and between the lanes of a warp."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.machine_code.disassembly import NotUnderstood
from tools.machine_code.memory import Bytes
from tools.machine_code.state import (
    LANES,
    TRUE,
    UNIFORM,
    Mask,
    Pairs,
    State,
    Words,
    is_predicate,
    matched,
    next_register,
    pair,
    predicate,
    predicate_of,
    register_of,
    whole_warps,
    word,
)
from tools.machine_code.table import Run, Take, instruction

U32, U64 = np.uint32, np.uint64

SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
# 64-bit addresses and cache hints have no effect on values, since no two threads share memory.
HINTS = ("E", "CONSTANT", "EF", "EL", "LU", "NA", "LTC64B", "LTC128B", "LTC256B", "STRONG", "GPU", "SYS")


def size_of(take: Take) -> tuple[int, bool]:
    """The number of bytes of an access, and whether they are sign-extended."""
    for name, size in SIZES.items():
        if take.modifier(name):
            return size, name.startswith("S")
    return 4, False


def write_bytes(s: State, register: int, values: Bytes, lanes: npt.NDArray[np.intp], signed: bool) -> None:
    """Write bytes of memory to one or several consecutive registers of some lanes."""
    size = values.shape[1]
    if size < 4:
        narrow = values.view(f"{'i' if signed else 'u'}{size}")
        words = narrow.astype(np.int32 if signed else U32).view(U32)
    else:
        words = values.view(U32)
    for i in range(words.shape[1]):
        at = next_register(register, i)
        if at == register and i:
            return  # RZ
        s.registers[at, lanes] = words[:, i]


def address(text: str) -> Callable[[State], Pairs]:
    """The address desc[UR4][R2.64+UR6+0x10]."""
    base, uniform, sign, offset = matched(r"desc\[UR\d+\]\[(R\d+|RZ)\.64(?:\+(UR\d+))?(?:\+(-?)0x([0-9a-f]+))?\]", text)
    read, more = pair(base), pair(uniform) if uniform else None
    immediate = U64((-1 if sign else 1) * int(offset or "0", 16) & (2**64 - 1))
    return lambda s: read(s) + immediate if more is None else read(s) + more(s) + immediate


SECTOR = 32  # bytes; the minimum that a multiprocessor requests from the L2


def sectors_of(addresses: Pairs, lanes: npt.NDArray[np.intp]) -> int:
    """The number of sectors that the lanes of each warp access at once, summed over warps; an access is within one."""
    warps = (lanes // LANES).astype(np.uint64)
    return len(np.unique(warps << np.uint64(48) | addresses // np.uint64(SECTOR)))


@instruction("LDG")
def ldg(take: Take) -> Run:
    size, signed = size_of(take)
    for hint in HINTS:
        take.modifier(hint)
    register, at = register_of(take.operand()), address(take.operand())

    def run(s: State, mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        if len(lanes):
            addresses = at(s)[lanes]
            s.sectors_read += sectors_of(addresses, lanes)
            write_bytes(s, register, s.memory.read(addresses, size), lanes, signed)

    return run


@instruction("STG")
def stg(take: Take) -> Run:
    size, _ = size_of(take)
    for hint in HINTS:
        take.modifier(hint)
    at, register = address(take.operand()), register_of(take.operand())
    sources = [next_register(register, i) for i in range(max(size // 4, 1))]

    def run(s: State, mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        if len(lanes):
            words = np.stack([s.registers[source, lanes] for source in sources], axis=1)
            addresses = at(s)[lanes]
            s.sectors_written += sectors_of(addresses, lanes)
            s.memory.write(addresses, words.view(np.uint8)[:, :size])

    return run


@instruction("LDC", "ULDC")
def ldc(take: Take) -> Run:
    size, signed = size_of(take)
    register = register_of(take.operand())
    index, offset = matched(r"c\[0x0\]\[(?:(U?R\d+|U?RZ)\+?)?(-?0x[0-9a-f]+)?\]", take.operand())
    fixed, read = int(offset or "0", 16), word(index or "RZ")
    if fixed % size and not index:
        raise ValueError("alignment")

    def words(s: State, mask: Mask) -> None:
        for i in range(size // 4):
            s.write(next_register(register, i), s.bank.word(fixed + 4 * i), mask)

    def indexed(s: State, mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        offsets = np.broadcast_to(read(s), mask.shape)[lanes].view(np.int32).astype(np.int64) + fixed
        write_bytes(s, register, s.bank.read(offsets, size), lanes, signed)

    return words if index in ("", "RZ", "URZ") and size >= 4 else indexed


# ---- between lanes ----


def by_warp(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.reshape(-1, LANES)


def for_all_lanes(of_warp: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One value per warp, for each of its lanes."""
    return np.repeat(of_warp, LANES)


@instruction("R2UR")
def r2ur(take: Take) -> Run:
    register, a = register_of(take.operand()), word(take.operand())

    def run(s: State, mask: Mask) -> None:
        values = by_warp(a(s))
        active = by_warp(mask)
        first = values[np.arange(len(values)), active.argmax(axis=1)]
        if ((values != first[:, None]) & active).any():
            raise NotUnderstood("R2UR of a register that differs between the lanes of a warp")
        s.write(register, for_all_lanes(first), whole_warps(mask))

    return run


@instruction("VOTE", "VOTEU")
def vote(take: Take) -> Run:
    """Whether a predicate holds in any or all active lanes; with a register, also the lanes in which it holds."""
    kind = take.one_of(("ANY", "ALL", "EQ"))
    register = None if is_predicate(take.operands[0]) else register_of(take.operand())
    result, source = predicate_of(take.operand()), predicate(take.operand())

    def run(s: State, mask: Mask) -> None:
        active, holds = by_warp(mask), by_warp(source(s))
        every, some = (holds | ~active).all(axis=1), (holds & active).any(axis=1)
        found = {"ANY": some, "ALL": every, "EQ": every | ~some}[kind]
        to = mask if result <= TRUE else whole_warps(mask)
        s.write_predicate(result, for_all_lanes(found), to)
        if register is not None:
            ballot = ((holds & active).astype(U64) << np.arange(LANES, dtype=U64)).sum(axis=1, dtype=U64)
            to = mask if register < UNIFORM else whole_warps(mask)
            s.write(register, for_all_lanes(ballot.astype(U32)), to)

    return run


@instruction("SHFL")
def shfl(take: Take) -> Run:
    """A register of another lane of the warp, which must be active."""
    mode = take.one_of(("BFLY", "IDX", "UP", "DOWN"))
    found, register = predicate_of(take.operand()), register_of(take.operand())
    a, b, c = (word(take.operand()) for _ in range(3))

    def run(s: State, mask: Mask) -> None:
        lane = s.special["SR_LANEID"].astype(np.int64)
        step, bounds = b(s).astype(np.int64) & 31, c(s).astype(np.int64)
        segment, clamp = bounds >> 8 & 31, bounds & 31
        last, first = lane & segment | clamp & ~segment, lane & segment
        source = {"BFLY": lane ^ step, "IDX": first | step & ~segment, "UP": lane - step, "DOWN": lane + step}[mode]
        inside = source >= last if mode == "UP" else source <= last
        source = np.where(inside, source, lane) + np.arange(len(lane)) // LANES * LANES
        if (mask & ~mask[source]).any():
            raise NotUnderstood("SHFL from a lane that is not active")
        values: Words = np.broadcast_to(a(s), mask.shape)[source]
        s.write(register, values, mask)
        s.write_predicate(found, inside, mask)

    return run
