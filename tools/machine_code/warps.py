"""Execute a launch of a kernel: all warps of the grid, many at a time.

Warps at the same instruction execute it together, as one operation on arrays. They share only memory, which no two of
them may write, and shared memory, which others may read after a barrier, so the order of warps has no effect.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tools.machine_code.control import MOVES, Move, move
from tools.machine_code.disassembly import Instruction, Kernel, NotUnderstood
from tools.machine_code.flow import NOWHERE, Flow
from tools.machine_code.instructions import Run, effect
from tools.machine_code.memory import ConstantBank, Memory
from tools.machine_code.shared import SharedMemory
from tools.machine_code.state import LANES, Mask, State, Words, predicate

Dim: TypeAlias = tuple[int, int, int]

BATCH = 64  # warps at a time; the registers of about 2,000 lanes stay in the caches
LIMIT = 100_000  # instructions of a warp; more indicate an endless loop


@dataclass(frozen=True)
class Launch:
    """The sizes and arguments of a launch.

    arguments: the bytes of the kernel's arguments, as in the constant bank. shared: bytes of dynamic shared memory per
    block, beside those that the kernel declares.
    """

    grid: Dim
    block: Dim
    arguments: bytes
    shared: int = 0

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """The number of threads per block."""
        return self.block[0] * self.block[1] * self.block[2]


@dataclass
class Counts:
    """The counts of a launch.

    instructions: issued by all warps; an instruction counts once per warp, whatever the number of its active lanes and
    even if its guard is false. longest_warp: issued by the warp with most. approximations: whether MUFU was among them.
    issued: number of warps that issued the instruction at each index. sectors_read, sectors_written: 32-byte sectors in
    global accesses of warps; a sector that two instructions access counts twice.
    """

    instructions: int = 0
    longest_warp: int = 0
    warps: int = 0
    approximations: bool = False
    issued: Counter[int] = field(default_factory=Counter)
    sectors_read: int = 0
    sectors_written: int = 0


@dataclass(frozen=True)
class Step:
    """An instruction. uniform: executed once per warp, on uniform registers."""

    run: Run
    guard: Callable[[State], Mask] | None
    uniform: bool


@dataclass(frozen=True)
class Straight:
    """Instructions without control flow, and the one with control flow that follows them, if any."""

    steps: list[Step]
    end: int
    move: Move | None
    guard: Callable[[State], Mask] | None
    approximations: bool


class Program:
    """A kernel; its instructions are translated into functions when they are first executed."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.joins = set(kernel.labels.values())
        self.parts: dict[int, Straight] = {}

    def run(self, launch: Launch, memory: Memory, blocks: Iterable[int] | None = None, seed_ulps: int = 0) -> Counts:
        """Execute the given blocks of the grid, or all. seed_ulps: see floating.mufu."""
        bank, counts = ConstantBank(launch.arguments, launch.block, launch.grid), Counts()
        with np.errstate(all="ignore"):
            for special, alive in batches(launch, range(launch.blocks) if blocks is None else blocks):
                lanes_of_block = -(-launch.threads // LANES) * LANES
                size = self.kernel.shared + launch.shared
                shared = SharedMemory(len(alive) // lanes_of_block, lanes_of_block, size)
                state = State(special, bank, memory, shared, seed_ulps)
                self.run_batch(state, Flow(alive), counts)
                counts.sectors_read += state.sectors_read
                counts.sectors_written += state.sectors_written
        return counts

    def run_batch(self, state: State, flow: Flow, counts: Counts) -> None:
        issued_by_warp, warps_at = np.zeros(len(flow.pc), np.int64), Counter[int]()
        while (at := int(flow.pc.min())) != NOWHERE:
            issued = flow.pc == at
            state.issued = np.repeat(issued, LANES)
            active = flow.active & state.issued
            part = self.parts.get(at) or self.parts.setdefault(at, self.straight(at))
            for step in part.steps:
                lanes = state.issued if step.uniform else active
                step.run(state, lanes & step.guard(state) if step.guard else lanes)
            flow.pc[issued] = part.end
            if part.move:
                part.move(state, flow, issued, active & part.guard(state) if part.guard else active)
            issued_by_warp[issued] += part.end - at
            counts.approximations |= part.approximations
            warps_at[at] += int(issued.sum())
            if issued_by_warp.max() > LIMIT:
                raise NotUnderstood(f"a warp has executed more than {LIMIT} instructions of {self.kernel.name}")
        counts.instructions += int(issued_by_warp.sum())
        counts.longest_warp = max(counts.longest_warp, int(issued_by_warp.max()))
        counts.warps += len(issued_by_warp)
        for at, warps in warps_at.items():
            counts.issued.update(dict.fromkeys(range(at, self.parts[at].end), warps))

    def straight(self, first: int) -> Straight:
        """The instructions from an index to the next control flow, or to a point where other lanes may join."""
        steps: list[Step] = []
        approximations = False
        for index in range(first, len(self.kernel.instructions)):
            instruction = self.kernel.instructions[index]
            if instruction.opcode in MOVES:
                step = move(self.kernel, index, instruction)
                return Straight(steps, index + 1, step, guard_of(instruction), approximations)
            if index > first and index in self.joins:
                return Straight(steps, index, None, None, approximations)
            steps.append(Step(effect(instruction), guard_of(instruction), is_uniform(instruction)))
            approximations |= instruction.opcode == "MUFU"
        raise NotUnderstood(f"the end of {self.kernel.name} is reached without an EXIT")


def guard_of(instruction: Instruction) -> Callable[[State], Mask] | None:
    guard = instruction.guard
    return predicate("!" * guard.negated + guard.predicate) if guard else None


def is_uniform(instruction: Instruction) -> bool:
    """Whether an instruction runs once per warp, on uniform registers alone, by its name."""
    return instruction.opcode.startswith("U")


def batches(launch: Launch, blocks: Iterable[int]) -> Iterator[tuple[dict[str, Words], Mask]]:
    """Special registers, and the lanes that have a thread, for BATCH warps or slightly more."""
    warps = (launch.threads + LANES - 1) // LANES
    chosen = list(blocks)
    size = max(BATCH // warps, 1)
    for first in range(0, len(chosen), size):
        some = np.array(chosen[first : first + size])
        block = np.repeat(some, warps * LANES)
        thread = np.tile(np.arange(warps * LANES), len(some))
        special = {"SR_LANEID": thread % LANES, "SR_CgaCtaId": np.zeros_like(thread)}
        special |= dict(zip(("SR_TID.X", "SR_TID.Y", "SR_TID.Z"), coordinates(thread, launch.block)))
        special |= dict(zip(("SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z"), coordinates(block, launch.grid)))
        yield {name: values.astype(np.uint32) for name, values in special.items()}, thread < launch.threads


def coordinates(index: npt.NDArray[np.int64], sizes: Dim) -> list[npt.NDArray[np.int64]]:
    x, y, _ = sizes
    return [index % x, index // x % y, index // x // y]
