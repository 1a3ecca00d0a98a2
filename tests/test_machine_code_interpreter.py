"""tools/machine_code: what instructions do, how lanes part and join, and that it refuses what it does not know."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tools.machine_code.conversions import bfloat16, float16, rounded_up
from tools.machine_code.disassembly import NotFound, NotUnderstood, parse, tool
from tools.machine_code.fused import fused_double, fused_single
from tools.machine_code.memory import AccessError, HostMemory, Span
from tools.machine_code.warps import Launch, Program

pytestmark = pytest.mark.devices("cpu")
WORDS = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x12345678, 0xDEADBEEF]
ALL = 2**32 - 1


def kernel_of(*lines):
    """A kernel of these lines of SASS; one that ends in a colon is a label."""
    address, text = 0, [".section .text.test"]
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"/*{address:04x}*/ {line} ;")
            address += 16
    return parse("\n".join(text))["test"]


def run(*lines, inputs=None, threads=32, outputs=1, grid=1):
    """Runs lines with R4 = the index of the thread, R5, R6 .. = its inputs; then stores R8, R9 .. to the outputs.
    Returns (outputs, counts)."""
    inputs = np.array(inputs if inputs is not None else np.zeros((1, threads)), np.uint32)
    results = np.zeros((outputs, threads), np.uint32)
    loads = ["S2R R4, SR_TID.X", "S2R R0, SR_CTAID.X", "IMAD.WIDE.U32 R2, R4, 0x4, RZ"]
    for i in range(len(inputs)):
        loads += ["ULDC.64 UR8, c[0x0][0x210]", "IADD3 R20, P6, R2, UR8, RZ", "IADD3.X R21, R3, UR9, RZ, P6, !PT"]
        loads += [f"LDG.E R{5 + i}, desc[UR4][R20.64+{4 * threads * i:#x}]"]
    stores = ["ULDC.64 UR8, c[0x0][0x218]", "IADD3 R20, P6, R2, UR8, RZ", "IADD3.X R21, R3, UR9, RZ, P6, !PT"]
    stores += [f"STG.E desc[UR4][R20.64+{4 * threads * i:#x}], R{8 + i}" for i in range(outputs)]
    program = Program(kernel_of(*loads, *lines, *stores, "EXIT"))
    memory = HostMemory([span_of(inputs, read=True), span_of(results, most=1)])
    arguments = np.array([inputs.ctypes.data, results.ctypes.data], np.uint64).tobytes()
    counts = program.run(Launch((grid, 1, 1), (threads, 1, 1), arguments), memory)
    counts.instructions -= counts.warps * (len(loads) + len(stores) + 1)
    return results, counts


def span_of(array, read=False, most=0):
    return Span(array.ctypes.data, array.itemsize, (array.size,), (1,), read, 0, most)


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
    ("I2F R8, R5", "F2I.TRUNC.U32 R8, R8"): lambda a, b, c: max(int(np.float32(signed(a))), 0),
}


@pytest.mark.parametrize("lines", INTEGERS, ids="; ".join)
def test_integers(lines):
    """Against Python's integers, over words at the ends of their range."""
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
    """Of any exponent, some close to one another, some special."""
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


# ---- lanes ----


def test_lanes_that_part_execute_both_sides_and_join():
    lines = ["MOV R8, 0x1", "ISETP.GE.AND P0, PT, R4, 0x10, PT", "BSSY B0, `(.L_2)", "@P0 BRA `(.L_1)"]
    lines += ["IADD3 R8, R8, 0x4, RZ", "BRA `(.L_0)", ".L_1:", "IADD3 R8, R8, 0x8, RZ", ".L_0:", "BSYNC B0", ".L_2:"]
    (got,), counts = run(*lines, "IADD3 R8, R8, 0x40, RZ", threads=64)
    assert got.tolist() == [0x45] * 16 + [0x49] * 48
    # The first warp executes both sides, each with BSYNC, the second one of them.
    assert counts.instructions == (4 + 3 + 2 + 1) + (4 + 1 + 1 + 1)
    assert counts.warps == 2


def test_a_loop_whose_lanes_leave_one_after_another():
    lines = ["MOV R8, RZ", "BSSY B0, `(.L_1)", ".L_0:", "IADD3 R8, R8, 0x1, RZ", "ISETP.GT.AND P0, PT, R8, R4, PT"]
    lines += ["@!P0 BRA `(.L_0)", "BSYNC B0", ".L_1:"]
    (got,), _ = run(*lines)
    assert got.tolist() == list(range(1, 33))


def test_lanes_that_break_or_exit_are_not_waited_for():
    lines = ["MOV R8, R4", "ISETP.GE.AND P0, PT, R4, 0x8, PT", "ISETP.GE.AND P1, PT, R4, 0x10, PT"]
    lines += ["BSSY B0, `(.L_1)", "@P0 BREAK B0", "@P0 BRA `(.L_2)", "BSYNC B0", ".L_1:", "IADD3 R8, R8, 0x64, RZ"]
    (got,), _ = run(*lines, "BRA `(.L_3)", ".L_2:", "@P1 EXIT", ".L_3:")
    assert got.tolist() == [100 + i if i < 8 else i if i < 16 else 0 for i in range(32)]


def test_a_subroutine_from_two_places():
    lines = ["MOV R8, R4", "MOV R21, RZ", "ISETP.GE.AND P0, PT, R4, 0x8, PT", "BSSY B0, `(.L_2)", "@P0 BRA `(.L_1)"]
    first = 7 + len(lines)  # loads come before
    lines += [f"MOV R20, {16 * (first + 2):#x}", "CALL.REL.NOINC `($square)", "IADD3 R8, R8, 0x1, RZ", "BRA `(.L_0)"]
    lines += [".L_1:", f"MOV R20, {16 * (first + 6):#x}", "CALL.REL.NOINC `($square)", ".L_0:", "BSYNC B0", ".L_2:"]
    lines += ["BRA `(.L_3)", "$square:", "IMAD R8, R8, R8, RZ", "RET.REL.NODEC R20 `(test)", ".L_3:"]
    (got,), _ = run(*lines)
    assert got.tolist() == [i * i + (i < 8) for i in range(32)]


def test_shuffles_and_votes():
    """A sum over 8 lanes; the lanes at which a predicate holds."""
    values = np.arange(64, dtype=np.float32)
    lines = []
    for step in (4, 2, 1):
        lines += [f"SHFL.BFLY PT, R6, R5, {step:#x}, 0x181f", "FADD R5, R5, R6"]
    lines += ["MOV R8, R5", "SHFL.IDX PT, R9, R4, 0x3, 0x1f", "SHFL.UP P0, R10, R4, 0x1, RZ"]
    lines += ["SHFL.DOWN P1, R11, R4, 0x5, 0x181f", "ISETP.GT.AND P2, PT, R4, 0x28, PT", "VOTE.ANY R12, PT, P2"]
    lines += ["VOTE.ALL P3, P2", "SEL R13, RZ, 0x1, P3", "SEL R14, RZ, 0x1, P0", "R2UR UR6, R9", "MOV R15, UR6"]
    got, _ = run(*lines, inputs=[values.view(np.uint32)], threads=64, outputs=8)
    assert got[0].view(np.float32).tolist() == np.repeat(values.reshape(-1, 8).sum(axis=1), 8).tolist()
    lane = np.arange(64) % 32
    assert got[1].tolist() == [3] * 32 + [35] * 32
    assert got[2].tolist() == np.where(lane > 0, np.arange(64) - 1, np.arange(64)).tolist()
    assert got[3].tolist() == [i + 5 if i % 8 < 3 else i for i in range(64)]
    assert got[4].tolist() == [0] * 32 + [sum(1 << i for i in range(9, 32))] * 32
    assert got[5].tolist() == [1] * 64 and got[6].tolist() == (lane == 0).astype(int).tolist()
    assert got[7].tolist() == got[1].tolist()


def test_a_guard_that_is_false_still_counts():
    (got,), counts = run("MOV R8, R4", "@!PT MOV R8, RZ")
    assert got.tolist() == list(range(32)) and counts.instructions == 2


def test_coordinates_of_threads():
    program = Program(kernel_of("S2R R4, SR_TID.Y", "S2R R5, SR_TID.Z", "S2UR UR4, SR_CTAID.Y", "EXIT"))
    counts = program.run(Launch((2, 3, 1), (4, 5, 6), b""), HostMemory([]))
    assert counts.warps == 6 * 4 and counts.instructions == 4 * counts.warps
    assert program.run(Launch((2, 3, 1), (4, 5, 6), b""), HostMemory([]), blocks=[1, 4]).warps == 8


# ---- what is refused ----

REFUSED = {
    "DANCE R8, R5": "opcode DANCE",
    "FADD.SAT R8, R5, R6": "SAT left over",
    "IMAD R8, R5, R6": "pop from empty list",
    "MOV R8, R5, R6": "R6 left over",
    "SHF.R.S32 R8, R5, 0x1, R6": "a kind of shift",
    "MOV R8, c[0x3][0x210]": "operand c",
    "LDG.E R8, [R20]": "operand",
    "HFMA2.MMA R8, R5, R6, 1, 1": "a product of halves",
    "BRA `(.L_nowhere)": ".L_nowhere",
    "BSYNC B3": "barrier B3",
    ".L_0:;BRA `(.L_0)": "more than",
    "ISETP.GT.AND P0, PT, R4, 0x3, PT;@P0 BRA `(.L_0);SHFL.IDX PT, R8, R4, 0x8, 0x1f;.L_0:": "not active",
    "R2UR UR6, R4": "differs between the lanes",
    "WARPSYNC 0xff": "WARPSYNC of some lanes",
}


@pytest.mark.parametrize("lines", REFUSED, ids=str)
def test_what_is_not_understood_is_named(lines):
    with pytest.raises(NotUnderstood, match=REFUSED[lines].replace(".", r"\.")):
        run(*lines.split(";"))


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotFound, match="nvdisasm is neither on PATH nor installed"):
        tool("nvdisasm")


def test_code_that_is_not_executed_may_be_unknown():
    run("BRA `(.L_0)", "DANCE", ".L_0:")


ACCESSES = {
    "LDG.E R8, desc[UR4][R20.64+0x2]": "not aligned",
    "LDG.E.128 R8, desc[UR4][R20.64]": "not aligned",
    "LDG.E R8, desc[UR4][R20.64+0x4]": "outside of every tensor",
    "LDG.E R8, desc[UR4][R20.64+-0x4]": "outside of every tensor",
    "LDG.E R8, desc[UR4][R2.64]": "outside of every tensor",
    "STG.E desc[UR4][R20.64], R8": "not of a result",
    "LDC R8, c[0x0][0x220]": "past the arguments",
    "LDC R8, c[0x0][0x20]": "is not modelled",
}


@pytest.mark.parametrize("line", ACCESSES)
def test_accesses_outside_of_tensors(line):
    """R20 is the address of an input's element."""
    with pytest.raises(AccessError, match=ACCESSES[line]):
        run(line)


def test_results_may_not_be_read_before_they_are_written():
    lines = ["ULDC.64 UR8, c[0x0][0x218]", "IADD3 R20, P6, R2, UR8, RZ", "IADD3.X R21, R3, UR9, RZ, P6, !PT"]
    with pytest.raises(AccessError, match="not of an input"):
        run(*lines, "LDG.E R8, desc[UR4][R20.64]")


def test_bytes_between_the_elements_of_a_tensor():
    """Strided results: other bytes of the same memory may not be written, and each element once."""
    array = np.zeros(8, np.uint16)
    memory = HostMemory([Span(array.ctypes.data, 2, (4,), (2,), False, 1, 1)])
    for i in (0, 2, 4):
        memory.write(np.array([array.ctypes.data + 2 * i], np.uint64), np.array([[1, 2]], np.uint8))
    assert array.tolist() == [513, 0, 513, 0, 513, 0, 0, 0]
    with pytest.raises(AccessError, match="not of a result"):
        memory.write(np.array([array.ctypes.data + 2], np.uint64), np.array([[1, 2]], np.uint8))
    with pytest.raises(AccessError, match=r"2 bytes written .* 0 times, where 1 to 1 is right: byte 12"):
        memory.check_writes()
    memory.write(np.array([array.ctypes.data + 12], np.uint64), np.array([[1, 2]], np.uint8))
    memory.check_writes()
