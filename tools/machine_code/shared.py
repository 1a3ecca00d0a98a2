"""The shared memory of blocks, and the instructions that access it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tools.machine_code.memory import AccessError, Bytes
from tools.machine_code.state import LANES, Mask, State, Words, matched, next_register, register_of, word
from tools.machine_code.table import Run, Take, instruction
from tools.machine_code.transfer import size_of, write_bytes

NEVER = -1


class SharedMemory:
    """The shared memory of the blocks of a batch, `size` bytes each.

    A byte must be written before it is read: by a lane of the same warp, or before the block's last barrier.
    """

    def __init__(self, blocks: int, lanes_of_block: int, size: int) -> None:
        self.lanes_of_block = lanes_of_block
        self.bytes = np.zeros((blocks, size), np.uint8)
        self.writer = np.full((blocks, size), NEVER, np.int32)  # the warp that wrote a byte
        self.written = np.zeros((blocks, size), np.int32)  # the number of barriers before the write
        self.barriers = np.zeros(blocks, np.int32)

    def places(
        self, addresses: Words, lanes: npt.NDArray[np.intp], size: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The block of each lane, as a column, and the bytes that it accesses."""
        offsets = addresses.astype(np.int64)
        if (offsets % size).any() or (offsets + size > self.bytes.shape[1]).any():
            raise AccessError(f"{size} bytes of shared memory, misaligned or past its {self.bytes.shape[1]} bytes")
        return (lanes // self.lanes_of_block)[:, None], offsets[:, None] + np.arange(size)

    def read(self, addresses: Words, lanes: npt.NDArray[np.intp], size: int) -> Bytes:
        at = block, _ = self.places(addresses, lanes, size)
        others = (self.writer[at] != (lanes // LANES)[:, None]) & (self.written[at] >= self.barriers[block])
        if (self.writer[at] == NEVER).any() or others.any():
            raise AccessError("shared memory is read that no lane of the warp has written, nor any before a barrier")
        values: Bytes = self.bytes[at]
        return values

    def write(self, addresses: Words, lanes: npt.NDArray[np.intp], values: Bytes) -> None:
        at = block, _ = self.places(addresses, lanes, values.shape[1])
        self.bytes[at], self.writer[at] = values, (lanes // LANES)[:, None]
        self.written[at] = self.barriers[block]


def address(text: str) -> Callable[[State, Mask], Words]:
    """The address [R2+UR4+0x10], any part of which may be missing, for all lanes."""
    base, uniform, sign, offset = matched(r"\[(?:(R\d+|RZ)\+?)?(?:(UR\d+)\+?)?(?:(-?)0x([0-9a-f]+))?\]", text)
    read, more = word(base or "RZ"), word(uniform or "URZ")
    immediate = np.uint32((-1 if sign else 1) * int(offset or "0", 16) & 0xFFFFFFFF)
    return lambda s, mask: np.broadcast_to(read(s) + more(s) + immediate, mask.shape)


@instruction("LDS")
def lds(take: Take) -> Run:
    size, signed = size_of(take)
    register, at = register_of(take.operand()), address(take.operand())

    def run(s: State, mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        if len(lanes):
            write_bytes(s, register, s.shared.read(at(s, mask)[lanes], lanes, size), lanes, signed)

    return run


@instruction("STS")
def sts(take: Take) -> Run:
    size, _ = size_of(take)
    at, register = address(take.operand()), register_of(take.operand())
    sources = [next_register(register, i) for i in range(max(size // 4, 1))]

    def run(s: State, mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        if len(lanes):
            words = np.stack([s.registers[source, lanes] for source in sources], axis=1)
            s.shared.write(at(s, mask)[lanes], lanes, words.view(np.uint8)[:, :size])

    return run
