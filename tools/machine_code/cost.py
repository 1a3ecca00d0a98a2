"""The cost of a launch of any size: the instructions that it issues, and how it fills the multiprocessors."""

from collections.abc import Iterator
from dataclasses import dataclass

from tools.machine_code.launches import Machine, Recorded
from tools.machine_code.memory import ZeroMemory
from tools.machine_code.state import LANES
from tools.machine_code.warps import Counts

# A multiprocessor of compute capability 9.0, from "Technical Specifications" in the CUDA C++ Programming Guide.
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
REGISTERS_AT_ONCE, WARPS_AT_ONCE = 256, 4  # allocation units of registers to a warp, and of warps to a block


@dataclass(frozen=True)
class Cost:
    """The counts of a launch.

    instructions, sectors_read, sectors_written: sums over all warps of the grid (see warps.Counts). longest_warp:
    instructions of the warp with most. registers: per thread. threads: per block. resident: blocks per multiprocessor.
    """

    instructions: int
    sectors_read: int
    sectors_written: int
    longest_warp: int
    registers: int
    blocks: int
    threads: int
    resident: int

    def occupancy(self) -> float:
        """The share of the warps that a multiprocessor could hold."""
        return self.resident * warps_of(self.threads) / WARPS

    def waves(self, multiprocessors: int) -> float:
        """How often the grid fills the GPU."""
        return self.blocks / (self.resident * multiprocessors)


def count(machine: Machine, launch: Recorded) -> Cost:
    """Count by executing two rounds of the grid on memory of zeros.

    A round is the blocks along x. A middle round and the last one, which may have less to do, are executed; every other
    round counts as a middle one.
    """
    program, grid = machine.program(launch), launch.launch
    rounds = grid.grid[1]
    middle, last = (of_round(machine, launch, number) for number in ((rounds - 1) // 2, rounds - 1))
    return Cost(
        instructions=middle.instructions * (rounds - 1) + last.instructions,
        sectors_read=middle.sectors_read * (rounds - 1) + last.sectors_read,
        sectors_written=middle.sectors_written * (rounds - 1) + last.sectors_written,
        longest_warp=max(middle.longest_warp, last.longest_warp),
        registers=program.kernel.registers,
        blocks=grid.blocks,
        threads=grid.threads,
        resident=resident_blocks(program.kernel.registers, grid.threads),
    )


def of_round(machine: Machine, launch: Recorded, number: int) -> Counts:
    """Execute the blocks of one round."""
    blocks = launch.launch.grid[0]
    chosen = range(number * blocks, (number + 1) * blocks)
    return machine.program(launch).run(launch.launch, ZeroMemory(launch.spans), chosen)


def listing(machine: Machine, launch: Recorded) -> Iterator[str]:
    """The instructions that a middle round executes, each preceded by the number of warps that issue it.

    An empty line stands for instructions that are not executed.
    """
    issued, before = of_round(machine, launch, (launch.launch.grid[1] - 1) // 2).issued, 0
    for index in sorted(issued):
        if index > before:
            yield ""
        yield f"{issued[index]:6} {machine.program(launch).kernel.instructions[index]}"
        before = index + 1


def warps_of(threads: int) -> int:
    return -(-threads // LANES)


def resident_blocks(registers: int, threads: int) -> int:
    """The number of blocks that a multiprocessor holds at once."""
    of_warp = -(-registers * LANES // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    warps = min(REGISTERS // of_warp // WARPS_AT_ONCE * WARPS_AT_ONCE, WARPS)
    return min(warps // warps_of(threads), BLOCKS)
