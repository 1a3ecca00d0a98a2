"""The control flow of warps: the instruction that each lane executes next.

The lanes of a warp that are at the same instruction execute it together. At a divergent branch all groups but one
wait, until a barrier reconverges them: BSSY names its lanes, BSYNC waits for them. At a barrier of the block, whole
warps wait for one another.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tools.machine_code.disassembly import NotUnderstood
from tools.machine_code.state import LANES, Mask

Targets: TypeAlias = npt.NDArray[np.int64]  # indices of instructions
NOWHERE = np.int64(2**62)


class Barrier:
    """members: the lanes of the barrier. arrived: lanes that wait. target: where they continue, by warp."""

    def __init__(self, lanes: int) -> None:
        self.members, self.arrived = np.zeros(lanes, np.bool_), np.zeros(lanes, np.bool_)
        self.target = np.zeros(lanes // LANES, np.int64)


class Flow:
    """The state of control flow.

    pc: the index of the next instruction of each warp, NOWHERE after its last. active: the lanes that execute it.
    ready: by warp, groups of other lanes that could continue, each with its pc. alive: lanes before their EXIT. held:
    by warp, where it continues once all warps of its block have reached the barrier, or NOWHERE.
    """

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
        """Move the active lanes of the issued warps, each to its target."""
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
        """Let active lanes wait at a barrier; the arrival of its last member releases all."""
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
        """Continue warps without an active lane with lanes that are ready, or that wait for lanes which have exited."""
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
        """Let the issued warps wait for the others of their block."""
        if (self.alive & ~self.active).reshape(-1, LANES).any(axis=1)[issued].any():
            raise NotUnderstood("a barrier of the block, at which lanes of a warp are missing")
        self.held = np.where(issued, np.int64(target), self.held)
        self.pc = np.where(issued, NOWHERE, self.pc)

    def let_go(self, warps_of_block: int) -> Mask:
        """The blocks whose remaining warps have all reached the barrier. They continue."""
        held, left = self.held != NOWHERE, self.alive.reshape(-1, LANES).any(axis=1)
        by_block = (held | ~left).reshape(-1, warps_of_block), held.reshape(-1, warps_of_block)
        complete: Mask = by_block[0].all(axis=1) & by_block[1].any(axis=1)
        going = np.repeat(complete, warps_of_block) & held
        self.pc, self.held = np.where(going, self.held, self.pc), np.where(going, NOWHERE, self.held)
        return complete

    def release(self, warp: int, here: slice) -> None:
        """Release lanes that wait at a barrier for others which have exited since."""
        for barrier in self.barriers.values():
            arrived = barrier.arrived[here]
            if arrived.any() and not (barrier.members[here] & self.alive[here] & ~arrived).any():
                self.active[here], self.pc[warp] = arrived, barrier.target[warp]
                barrier.arrived[here] = False
                return
        raise NotUnderstood(f"all lanes of warp {warp} wait for others")
