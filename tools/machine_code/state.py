"""The registers of a batch of warps, and the operands of instructions, which read them.

Every register is an array with one element per lane, 32 lanes per warp. A uniform register, which a GPU has once per
warp, is stored once per lane too, so that both kinds are read in the same way.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tools.machine_code.memory import ConstantBank, Memory

if TYPE_CHECKING:
    from tools.machine_code.shared import SharedMemory

LANES = 32
Words: TypeAlias = npt.NDArray[np.uint32]
Pairs: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

UNIFORM = 256  # index of UR0 among the registers
ZERO, UNIFORM_ZERO = 255, UNIFORM + 63  # RZ and URZ
TRUE, UNIFORM_TRUE = 7, 15  # PT and UPT among the predicates; UP0 is 8
LEFT_OVER = 0xBAD5EED5  # the value of registers before their first write, which on a GPU is arbitrary


class State:
    """The state of a batch of warps.

    special: special registers such as SR_TID.X, by name. issued: the lanes of the warps that execute the current
    instruction, active or not. seed_ulps: added to the last place of approximations (see floating.mufu). sectors_read,
    sectors_written: see warps.Counts.
    """

    def __init__(
        self, special: dict[str, Words], bank: ConstantBank, memory: Memory, shared: "SharedMemory", seed_ulps: int
    ) -> None:
        lanes = len(special["SR_LANEID"])
        self.registers = np.full((UNIFORM + 64, lanes), LEFT_OVER, np.uint32)
        self.registers[[ZERO, UNIFORM_ZERO]] = 0
        self.predicates = np.ones((16, lanes), np.bool_)
        self.special, self.bank, self.memory, self.shared = special, bank, memory, shared
        self.seed_ulps = seed_ulps
        self.issued: Mask = np.ones(lanes, np.bool_)
        self.sectors_read = self.sectors_written = 0

    def write(self, register: int, value: Words, mask: Mask) -> None:
        if register not in (ZERO, UNIFORM_ZERO):
            np.copyto(self.registers[register], value, where=mask)

    def write_pair(self, register: int, value: Pairs, mask: Mask) -> None:
        self.write(register, value.astype(np.uint32), mask)
        self.write(next_register(register), (value >> np.uint64(32)).astype(np.uint32), mask)

    def write_predicate(self, predicate: int, value: Mask, mask: Mask) -> None:
        if predicate not in (TRUE, UNIFORM_TRUE):
            np.copyto(self.predicates[predicate], value, where=mask)


def next_register(register: int, step: int = 1) -> int:
    """The next register of a pair or quadruple; RZ is its own successor."""
    return register if register in (ZERO, UNIFORM_ZERO) else register + step


def whole_warps(mask: Mask) -> Mask:
    """All lanes of the warps that have a lane in the mask."""
    return np.repeat(mask.reshape(-1, LANES).any(axis=1), LANES)


# ---- operands: each function parses the text of an operand, and returns a function that reads it from a State ----


def register_of(text: str) -> int:
    if text in ("RZ", "URZ"):
        return ZERO if text == "RZ" else UNIFORM_ZERO
    kind, number = matched(r"(U?R)(\d+)", text)
    return int(number) + UNIFORM * (kind == "UR")


def predicate_of(text: str) -> int:
    if text in ("PT", "UPT"):
        return TRUE if text == "PT" else UNIFORM_TRUE
    kind, number = matched(r"(U?P)(\d)", text)
    return int(number) + 8 * (kind == "UP")


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P[T\d]", text) is not None


def predicate(text: str) -> Callable[[State], Mask]:
    index = predicate_of(text.lstrip("!"))
    if text.startswith("!"):
        return lambda s: ~s.predicates[index]
    return lambda s: s.predicates[index]


def word(text: str) -> Callable[[State], Words]:
    """R4, -R4, ~R4, an immediate, or a word of the constant bank."""
    if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
        immediate = np.array([int(text, 0) & 0xFFFFFFFF], np.uint32)
        return lambda s: immediate
    if re.match(r"[-~]", text):
        read, function = word(text[1:]), np.negative if text[0] == "-" else np.invert
        return lambda s: function(read(s))
    if text.startswith("c["):
        (offset,) = matched(r"c\[0x0\]\[(0x[0-9a-f]+)\]", text)
        return lambda s: s.bank.word(int(offset, 16))
    index = register_of(text)
    return lambda s: s.registers[index]


def pair(text: str) -> Callable[[State], Pairs]:
    """64 bits in two consecutive registers, negated or inverted as a whole."""
    if re.match(r"[-~]", text):
        read, function = pair(text[1:]), np.negative if text[0] == "-" else np.invert
        return lambda s: function(read(s))
    if text.startswith("c["):
        (offset,) = matched(r"c\[0x0\]\[(0x[0-9a-f]+)\]", text)
        return lambda s: joined(s.bank.word(int(offset, 16)), s.bank.word(int(offset, 16) + 4))
    low = register_of(text)
    high = next_register(low)
    return lambda s: joined(s.registers[low], s.registers[high])


def joined(low: Words, high: Words) -> Pairs:
    both: Pairs = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return both


def single(text: str) -> Callable[[State], Floats]:
    """A float32: R4, -R4, |R4|, -|R4|, an immediate, or a word of the constant bank."""
    return floating(text, np.float32, word)


def double(text: str) -> Callable[[State], Doubles]:
    """A float64, in the forms of `single`."""
    return floating(text, np.float64, pair)


def floating(text: str, dtype: Any, bits: Callable[[str], Callable[[State], Any]]) -> Callable[[State], Any]:
    """bits: parses a register or the constant bank."""
    if re.match(r"-[|URc]", text):
        negated = floating(text[1:], dtype, bits)
        return lambda s: -negated(s)
    if text.startswith("|"):
        signed = floating(text.strip("|"), dtype, bits)
        return lambda s: np.abs(signed(s))
    if is_number(text):
        immediate = np.array([float(text.replace("QNAN", "nan"))], dtype)
        return lambda s: immediate
    read = bits(text)
    return lambda s: read(s).view(dtype)


def half(text: str) -> Callable[[State], Floats]:
    """A float16 in one half of a register, widened: R4.H0_H0, -R4.H1_H1, RZ."""
    if text.startswith("-"):
        negated = half(text[1:])
        return lambda s: -negated(s)
    if text == "RZ":
        return lambda s: np.zeros(1, np.float32)
    name, upper = matched(r"(U?R\d+)\.H([01])_H\2", text)
    index, shift = register_of(name), np.uint32(16 * int(upper))
    return lambda s: (s.registers[index] >> shift).astype(np.uint16).view(np.float16).astype(np.float32)


def is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+(\.\d*)?(e[-+]?\d+)?|INF|QNAN)", text) is not None


def matched(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError(f"operand {text}")
    return tuple(group or "" for group in found.groups())
