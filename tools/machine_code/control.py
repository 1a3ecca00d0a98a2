"""Where the lanes of each warp are, and the instructions that move them elsewhere.

The lanes of a warp that are at one instruction together execute it together. A branch at which they part leaves all but
one group waiting, until a barrier brings them together again: BSSY says which lanes it is for, BSYNC waits for them.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tools.machine_code.disassembly import BYTES, Instruction, Kernel, NotUnderstood
from tools.machine_code.state import LANES, Mask, State, Words, pair, predicate, whole_warps, word
from tools.machine_code.table import Take

Targets: TypeAlias = npt.NDArray[np.int64]  # indices of instructions
NOWHERE = np.int64(2**62)


class Barrier:
    """members: the lanes that it is for. arrived: those that wait at it. target: where they go on, by warp."""

    def __init__(self, lanes: int) -> None:
        self.members, self.arrived = np.zeros(lanes, np.bool_), np.zeros(lanes, np.bool_)
        self.target = np.zeros(lanes // LANES, np.int64)


class Flow:
    """pc: the index of the next instruction of each warp, NOWHERE after its last. active: the lanes that execute it.
    ready: by warp, groups of other lanes that could go on, each with its pc. alive: lanes before their EXIT. held: by
    warp, where it goes on once all warps of its block have come to the barrier, or NOWHERE."""

    def __init__(self, alive: Mask) -> None:
        self.held = np.full(len(alive) // LANES, NOWHERE)
        self.alive, self.active = alive.copy(), alive.copy()
        self.pc = np.zeros(len(alive) // LANES, np.int64)
        self.ready: list[list[tuple[int, Mask]]] = [[] for _ in self.pc]
        self.barriers: dict[str, Barrier] = {}

    def barrier(self, name: str) -> Barrier:
        if name not in self.barriers:
            self.barriers[name] = Barrier(len(self.active))
        return self.barriers[name]

    def part(self, issued: Mask, targets: Targets) -> None:
        """The active lanes of the issued warps go to a target each."""
        active, to = self.active.reshape(-1, LANES), np.broadcast_to(targets, self.active.shape).reshape(-1, LANES)
        nearest = np.where(active, to, NOWHERE).min(axis=1)
        self.pc = np.where(issued, nearest, self.pc)
        for warp in np.flatnonzero(issued & ((to != nearest[:, None]) & active).any(axis=1)):
            for target in np.unique(to[warp, active[warp]])[1:]:
                self.ready[warp].append((int(target), active[warp] & (to[warp] == target)))
            active[warp] &= to[warp] == nearest[warp]

    def exit(self, issued: Mask, lanes: Mask) -> None:
        self.alive &= ~lanes
        self.active &= ~lanes
        self.resume(issued)

    def arrive(self, name: str, issued: Mask, lanes: Mask) -> None:
        """Active lanes wait at a barrier. Its last member takes all of them along."""
        barrier = self.barrier(name)
        if (lanes & ~barrier.members).any():
            raise NotUnderstood(f"a lane waits at barrier {name}, which is not for it")
        barrier.arrived |= lanes
        self.active &= ~lanes
        missing = (barrier.members & self.alive & ~barrier.arrived).reshape(-1, LANES).any(axis=1)
        complete = issued & ~missing & lanes.reshape(-1, LANES).any(axis=1)
        here = np.repeat(complete, LANES)
        self.active |= barrier.arrived & here
        barrier.arrived &= ~here
        self.pc = np.where(complete, barrier.target, self.pc)
        self.resume(issued)

    def resume(self, issued: Mask) -> None:
        """Warps without an active lane go on with others that are ready, or that wait for lanes which are gone."""
        idle = issued & ~self.active.reshape(-1, LANES).any(axis=1)
        for warp in np.flatnonzero(idle):
            here = slice(LANES * warp, LANES * warp + LANES)
            if self.ready[warp]:
                self.ready[warp].sort(key=lambda group: -group[0])
                self.pc[warp], self.active[here] = self.ready[warp].pop()
            elif self.alive[here].any():
                self.release(int(warp), here)
            else:
                self.pc[warp] = NOWHERE

    def hold(self, issued: Mask, target: int) -> None:
        """The issued warps wait for the others of their block."""
        if (self.alive & ~self.active).reshape(-1, LANES).any(axis=1)[issued].any():
            raise NotUnderstood("a barrier of the block, at which lanes of a warp are missing")
        self.held = np.where(issued, np.int64(target), self.held)
        self.pc = np.where(issued, NOWHERE, self.pc)

    def let_go(self, warps_of_block: int) -> Mask:
        """Which blocks have come to the barrier with all warps that are left. These go on."""
        held, left = self.held != NOWHERE, self.alive.reshape(-1, LANES).any(axis=1)
        by_block = (held | ~left).reshape(-1, warps_of_block), held.reshape(-1, warps_of_block)
        complete: Mask = by_block[0].all(axis=1) & by_block[1].any(axis=1)
        going = np.repeat(complete, warps_of_block) & held
        self.pc, self.held = np.where(going, self.held, self.pc), np.where(going, NOWHERE, self.held)
        return complete

    def release(self, warp: int, here: slice) -> None:
        """Lanes that wait at a barrier for others which have left it since go on."""
        for barrier in self.barriers.values():
            arrived = barrier.arrived[here]
            if arrived.any() and not (barrier.members[here] & self.alive[here] & ~arrived).any():
                self.active[here], self.pc[warp] = arrived, barrier.target[warp]
                barrier.arrived[here] = False
                return
        raise NotUnderstood(f"all lanes of warp {warp} wait for others")


# ---- instructions ----

# (state, flow, warps that execute it, active lanes at which its guard holds); pc already points behind it.
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
    return np.arange(len(lanes), dtype=np.uint32) % np.uint32(LANES)


def call(kernel: Kernel, index: int, take: Take) -> Move:
    """The return address is in a register, to which the code moves it before."""
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
    """A barrier for all lanes that have not left."""
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
