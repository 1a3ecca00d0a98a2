"""tools/machine_code: how lanes part and join, what the memory allows, and that what is not understood is an error."""

import numpy as np
import pytest

from tests.machine_code import kernel_of, run, span_of
from tools.machine_code.disassembly import NotFound, NotUnderstood, parse, tool
from tools.machine_code.memory import AccessError, HostMemory, Span
from tools.machine_code.warps import Launch, Program

pytestmark = pytest.mark.devices("cpu")

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


def test_lanes_that_are_not_together_take_a_branch():
    """BRA.DIV: the second warp, of which only half has come; the first is whole."""
    lines = ["MOV R8, R4", "UMOV UR6, 0xffffffff", "ISETP.GE.AND P0, PT, R4, 0x30, PT", "BSSY B0, `(.L_1)"]
    lines += ["@P0 BRA `(.L_0)", "BRA.DIV UR6, `(.L_0)", "IADD3 R8, R8, 0x64, RZ", ".L_0:", "BSYNC B0", ".L_1:"]
    (got,), _ = run(*lines, threads=64)
    assert got.tolist() == [100 + i for i in range(32)] + list(range(32, 64))


def test_lanes_exit_where_a_guard_and_an_operand_hold():
    lines = ["MOV R8, R4", "ISETP.GE.AND P0, PT, R4, 0x8, PT", "ISETP.LT.AND P1, PT, R4, 0x10, PT", "@P0 EXIT P1"]
    (got,), _ = run(*lines)
    assert got.tolist() == [0 if 8 <= i < 16 else i for i in range(32)]


# ---- shared memory ----

SWAPPED = ["SHF.L.U32 R6, R4, 0x2, RZ", "STS [R6], R5", "BAR.SYNC.DEFER_BLOCKING 0x0"]
SWAPPED += ["LOP3.LUT R6, R6, 0x80, RZ, 0x3c, !PT", "LDS R8, [R6+0x0]"]  # of the lane with the same number


def test_shared_memory_between_the_warps_of_a_block():
    values = np.arange(64, dtype=np.uint32)[None] * 3
    (got,), _ = run(*SWAPPED, inputs=values, threads=64, shared=256)
    assert got.tolist() == np.roll(values[0], 32).tolist()


def test_a_barrier_does_not_wait_for_warps_that_have_left():
    lines = ["MOV R8, R4", "ISETP.GE.AND P0, PT, R4, 0x20, PT", "@P0 EXIT", "BAR.SYNC.DEFER_BLOCKING 0x0"]
    (got,), _ = run(*lines, "MOV R8, 0x7", threads=96)
    assert got.tolist() == [7] * 32 + [0] * 64
    lines[2:] = ["@!P0 BRA `(.L_0)", "NOP", "NOP", "EXIT", ".L_0:", "BAR.SYNC.DEFER_BLOCKING 0x0"]
    assert run(*lines, "MOV R8, 0x7", threads=96)[0].tolist() == [got.tolist()]


def test_wrong_accesses_of_shared_memory():
    values = np.zeros((1, 64), np.uint32)
    with pytest.raises(AccessError, match="nor any before a barrier"):
        run(*SWAPPED[:2], *SWAPPED[3:], inputs=values, threads=64, shared=256)
    with pytest.raises(AccessError, match="nor any before a barrier"):
        run("LDS R8, [RZ]", shared=256)
    with pytest.raises(AccessError, match="past its 252 bytes"):
        run(*SWAPPED, inputs=values, threads=64, shared=252)
    with pytest.raises(AccessError, match="misaligned"):
        run("STS.64 [R4], R8", shared=256)
    with pytest.raises(NotUnderstood, match="at which lanes of a warp are missing"):
        run("ISETP.GE.AND P0, PT, R4, 0x8, PT", "@P0 BRA `(.L_0)", "BAR.SYNC.DEFER_BLOCKING 0x0", ".L_0:")


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


def test_a_line_that_is_no_instruction_is_not_passed_over():
    with pytest.raises(NotUnderstood, match="lines of test"):
        parse(".section .text.test\n/*0000*/ NOP ;\n/*0010*/ {NOP, NOP}\n/*0020*/ EXIT ;")


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


def test_results_may_not_be_read_back():
    lines = ["ULDC.64 UR8, c[0x0][0x218]", "IADD3 R20, P6, R2, UR8, RZ", "IADD3.X R21, R3, UR9, RZ, P6, !PT"]
    with pytest.raises(AccessError, match="not of an input"):
        run(*lines, "LDG.E R8, desc[UR4][R20.64]")


def test_memory_may_not_be_read_after_another_thread_may_have_written_it():
    array = np.zeros(2, np.uint32)
    memory, address = HostMemory([span_of(array, read=True, most=1)]), np.array([array.ctypes.data], np.uint64)
    memory.write(memory.bounds.begins, memory.read(address, 4))
    with pytest.raises(AccessError, match="after a thread has written"):
        memory.read(address, 4)
    memory.read(address + np.uint64(4), 4)


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
