"""The instructions of control flow: branches, calls, exits and barriers."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tools.machine_code.disassembly import BYTES, Instruction, Kernel, NotUnderstood
from tools.machine_code.flow import Flow
from tools.machine_code.state import LANES, Mask, State, Words, pair, predicate, whole_warps, word
from tools.machine_code.table import Take

# (state, flow, warps that execute it, active lanes whose guard holds); pc already points to the next instruction.
Move: TypeAlias = Callable[[State, Flow, Mask, Mask], None]


def target_of(kernel: Kernel, text: str) -> int:
    return kernel.labels[text.strip("`()")]


def branch(kernel: Kernel, index: int, take: Take) -> Move:
    """.DIV: only where the active lanes of the warp are not those of a mask."""
    take.modifier("U")
    together = word(take.operand()) if take.modifier("DIV") else None
    conditions = [predicate(take.operand()) for _ in take.operands[:-1]]
    target = target_of(kernel, take.operand())

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        for condition in conditions:
            lanes = lanes & condition(s)
        if together is not None:
            expected = np.broadcast_to(together(s), lanes.shape) >> lane_numbers(lanes) & 1 != 0
            lanes = lanes & whole_warps(flow.active & ~expected | ~flow.active & expected)
        flow.part(issued, np.where(lanes, np.int64(target), np.int64(index + 1)))

    return run


def lane_numbers(lanes: Mask) -> Words:
    numbers: Words = np.arange(len(lanes), dtype=np.uint32) % np.uint32(LANES)
    return numbers


def call(kernel: Kernel, index: int, take: Take) -> Move:
    """The return address is in a register, which earlier instructions have set."""
    take.one_of(("REL",))
    take.one_of(("NOINC",))
    return branch(kernel, index, take)


def ret(kernel: Kernel, index: int, take: Take) -> Move:
    take.one_of(("REL",))
    take.one_of(("NODEC",))
    address = pair(take.operand())
    if take.operand().strip("`()") != kernel.name:
        raise ValueError("an address in another function")

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        back = (address(s) // np.uint64(BYTES)).astype(np.int64)
        flow.part(issued, np.where(lanes, back, np.int64(index + 1)))

    return run


def exit_lanes(kernel: Kernel, index: int, take: Take) -> Move:
    conditions = [predicate(take.operand()) for _ in take.operands[:]]

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        for condition in conditions:
            lanes = lanes & condition(s)
        flow.exit(issued, lanes)
        let_go(s, flow)

    return run


def let_go(s: State, flow: Flow) -> None:
    s.shared.barriers += flow.let_go(s.shared.lanes_of_block // LANES)


def bssy(kernel: Kernel, index: int, take: Take) -> Move:
    name, target = take.operand(), target_of(kernel, take.operand())

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        barrier = flow.barrier(name)
        if (barrier.arrived & s.issued).any():
            raise NotUnderstood(f"BSSY {name} while lanes wait at it")
        np.copyto(barrier.members, lanes, where=s.issued)
        barrier.target[issued] = target

    return run


def bsync(kernel: Kernel, index: int, take: Take) -> Move:
    name = take.operand()
    return lambda s, flow, issued, lanes: flow.arrive(name, issued, lanes)


def bbreak(kernel: Kernel, index: int, take: Take) -> Move:
    name = take.operand()

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        flow.barrier(name).members &= ~lanes

    return run


def warpsync(kernel: Kernel, index: int, take: Take) -> Move:
    """A barrier for all lanes that have not exited."""
    expected = None if take.modifier("ALL") else word(take.operand())

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        if expected is not None and (np.broadcast_to(expected(s), lanes.shape)[lanes] != 0xFFFFFFFF).any():
            raise NotUnderstood("WARPSYNC of some lanes")
        name = f"WARPSYNC at {index}"
        barrier = flow.barrier(name)
        barrier.members |= s.issued & flow.alive
        barrier.target[issued] = index + 1
        flow.arrive(name, issued, lanes)

    return run


def barrier_of_block(kernel: Kernel, index: int, take: Take) -> Move:
    for name in ("SYNC", "DEFER_BLOCKING"):
        take.one_of((name,))
    if take.operand() != "0x0":
        raise ValueError("a barrier")

    def run(s: State, flow: Flow, issued: Mask, lanes: Mask) -> None:
        flow.hold(issued, index + 1)
        let_go(s, flow)

    return run


MOVES: dict[str, Callable[[Kernel, int, Take], Move]] = {
    "BRA": branch,
    "CALL": call,
    "RET": ret,
    "EXIT": exit_lanes,
    "BSSY": bssy,
    "BSYNC": bsync,
    "BREAK": bbreak,
    "WARPSYNC": warpsync,
    "BAR": barrier_of_block,
}


def move(kernel: Kernel, index: int, instruction: Instruction) -> Move:
    take = Take(instruction)
    try:
        run = MOVES[instruction.opcode](kernel, index, take)
    except (ValueError, IndexError, KeyError) as error:
        raise NotUnderstood(f"{error} in {instruction}") from error
    take.all_understood(instruction)
    return run
