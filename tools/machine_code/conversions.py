"""Conversions between floating-point formats, and from and to integers. Each rounds once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.machine_code.floating import write_double, write_single
from tools.machine_code.state import Floats, Mask, Pairs, State, Words, double, half, pair, register_of, single, word
from tools.machine_code.table import Run, Take, instruction

U32, U64 = np.uint32, np.uint64


def bfloat16(value: Floats) -> Words:
    """The bits of the nearest bfloat16, ties to even."""
    bits: Words = value.view(U32)
    rounded: Words = bits + U32(0x7FFF) + (bits >> U32(16) & U32(1)) >> U32(16)
    rounded[np.isnan(value)] = 0x7FFF
    return rounded


def float16(value: Floats) -> Words:
    """The bits of the nearest float16, ties to even."""
    bits = value.astype(np.float16).view(np.uint16).astype(U32)
    bits[np.isnan(value)] = 0x7FFF
    return bits


SIXTEEN_BITS = {"BF16": bfloat16, "F16": float16}


@instruction("F2FP")
def f2fp(take: Take) -> Run:
    take.one_of(("PACK_AB",))
    narrow = SIXTEEN_BITS[take.one_of(SIXTEEN_BITS)]
    take.one_of(("F32",))
    register, high, low = register_of(take.operand()), single(take.operand()), single(take.operand())
    return lambda s, mask: s.write(register, narrow(high(s)) << U32(16) | narrow(low(s)), mask)


@instruction("F2F")
def f2f(take: Take) -> Run:
    to, of = take.modifiers
    take.modifiers.clear()
    register, text = register_of(take.operand()), take.operand()
    if (to, of) == ("F32", "F64"):
        wide = double(text)
        return lambda s, mask: write_single(s, register, wide(s).astype(np.float32), mask)
    narrow = single(text)
    if (to, of) == ("F64", "F32"):
        return lambda s, mask: write_double(s, register, narrow(s).astype(np.float64), mask)
    if of != "F32":
        raise ValueError(f"a conversion from {of}")
    bits = SIXTEEN_BITS[to]
    return lambda s, mask: s.write(register, bits(narrow(s)), mask)


@instruction("HADD2")
def hadd2(take: Take) -> Run:
    """.F32: the sum of two halves of registers, widened."""
    take.one_of(("F32",))
    register, a, b = register_of(take.operand()), half(take.operand()), half(take.operand())
    return lambda s, mask: write_single(s, register, a(s) + b(s), mask)


@instruction("HFMA2")
def hfma2(take: Take) -> Run:
    """A sum of products of halves; only the form that loads a constant is modeled: 0 * 0 + (high, low)."""
    take.modifier("MMA")
    register, a, b = register_of(take.operand()), take.operand(), take.operand()
    take.operand(), take.operand()  # the halves as decimal numbers
    if (a, b) != ("-RZ", "RZ"):
        raise ValueError("a product of halves")
    value = np.array([take.immediate], U32)
    return lambda s, mask: s.write(register, value, mask)


# ---- integers ----

ROUNDINGS: dict[str, Callable[[Any], Any]] = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


@instruction("FRND")
def frnd(take: Take) -> Run:
    wide = take.modifier("F64")
    rounding = next((ROUNDINGS[name] for name in ROUNDINGS if take.modifier(name)), np.rint)
    register, text = register_of(take.operand()), take.operand()
    if wide:
        a = double(text)
        return lambda s, mask: write_double(s, register, rounding(a(s)), mask)
    b = single(text)
    return lambda s, mask: write_single(s, register, rounding(b(s)), mask)


@instruction("I2F", "I2FP")
def i2f(take: Take) -> Run:
    wide, up = take.modifier("F64"), take.modifier("RP")
    take.modifier("F32")
    kind = next((name for name in ("U32", "U64", "S64", "S32") if take.modifier(name)), "S32")
    register, text = register_of(take.operand()), take.operand()
    read: Callable[[State], Any] = pair(text) if kind.endswith("64") else word(text)
    dtype = np.dtype(f"{kind[0].lower().replace('s', 'i')}{int(kind[1:]) // 8}")

    def run(s: State, mask: Mask) -> None:
        a = read(s).view(dtype)
        if wide:
            write_double(s, register, a.astype(np.float64), mask)
        else:
            write_single(s, register, rounded_up(a) if up else a.astype(np.float32), mask)

    if wide and up:
        raise ValueError("a rounding of float64")
    return run


def rounded_up(a: npt.NDArray[Any]) -> Floats:
    """The smallest float32 that is not below an integer, rounded up to 24 bits."""
    negative = a < 0
    size: Pairs = np.where(negative, -a, a).astype(U64)
    high, low = (np.frexp((size >> U64(n) & U64(0xFFFFFFFF)).astype(np.float64))[1] for n in (32, 0))
    drop = np.maximum(np.where(high > 0, high + 32, low) - 24, 0).astype(U64)
    kept = size >> drop
    kept = kept + ((kept << drop != size) & ~negative)
    value: Floats = np.ldexp(kept.astype(np.float64), drop.astype(np.int32)).astype(np.float32)
    return np.negative(value, out=value, where=negative)


@instruction("F2I")
def f2i(take: Take) -> Run:
    """A number truncated to an integer and clamped to the range; NaN gives 0."""
    take.one_of(("TRUNC",))
    for name in ("FTZ", "NTZ"):  # modifiers about denormal numbers, which become 0 either way
        take.modifier(name)
    wide, of_double = take.one_of(("U32", "U64")) == "U64", take.modifier("F64")
    register, text = register_of(take.operand()), take.operand()
    read: Callable[[State], Any] = double(text) if of_double else single(text)
    limit = 2.0 ** (64 if wide else 32)

    def run(s: State, mask: Mask) -> None:
        a = np.nan_to_num(np.trunc(read(s).astype(np.float64)), nan=0.0, posinf=limit, neginf=0.0)
        inside = np.where((a > 0) & (a < limit), a, 0.0).astype(U64)
        value = np.where(a >= limit, U64(2**64 - 1), inside)
        if wide:
            s.write_pair(register, value, mask)
        else:
            s.write(register, value.astype(U32), mask)

    return run
