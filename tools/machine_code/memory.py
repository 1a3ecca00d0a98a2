"""Memory as kernels see it: the bytes that they may read and write, and how often each was written.

A fault of a kernel is an error at the instruction: an address outside every region, one that is not a multiple of the
size of the access, a byte that may not be read or written.
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Addresses: TypeAlias = npt.NDArray[np.uint64]
Bytes: TypeAlias = npt.NDArray[np.uint8]


class AccessError(Exception):
    """A kernel accessed memory that it may not access, or did not write what it must write."""


@dataclass(frozen=True)
class Span:
    """The elements of a tensor: `item` bytes each, strides in elements.

    least, most: how often a kernel must and may write each byte. read: whether it may read them.
    """

    address: int
    item: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    read: bool
    least: int
    most: int

    def ends(self) -> tuple[int, int]:
        """The addresses of the first byte and of the byte after the last."""
        reach = [(size - 1) * stride for size, stride in zip(self.sizes, self.strides)]
        low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
        return self.address + low * self.item, self.address + (high + 1) * self.item

    def offsets(self) -> npt.NDArray[np.int64]:
        """The offsets of all bytes of the elements from `address`."""
        offsets = np.zeros(1, np.int64)
        for size, stride in zip(self.sizes, self.strides):
            offsets = np.unique(offsets[:, None] + np.arange(size) * stride)
        return (offsets[:, None] * self.item + np.arange(self.item)).ravel()


class Memory(Protocol):
    """Memory that instructions access; addresses are those of the lanes that access `size` bytes together."""

    def read(self, addresses: Addresses, size: int) -> Bytes:
        """A row of bytes for each address."""
        ...

    def write(self, addresses: Addresses, values: Bytes) -> None: ...


def intervals(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """The address ranges of the nonempty spans, ascending, with overlapping ranges merged."""
    united: list[tuple[int, int]] = []
    for begin, end in sorted(span.ends() for span in spans if all(span.sizes)):
        if united and begin < united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((begin, end))
    return united


class Bounds:
    """The check of all memories: accesses must be aligned and within one interval."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.intervals = intervals(spans)
        self.begins = np.array([begin for begin, _ in self.intervals], np.uint64)
        self.ends = np.array([end for _, end in self.intervals], np.uint64)

    def located(self, addresses: Addresses, size: int) -> npt.NDArray[np.int64]:
        """The index of the interval that contains each address."""
        misaligned = addresses % np.uint64(size) != 0
        if misaligned.any():
            raise AccessError(f"{size} bytes at {addresses[misaligned][0]:#x}, which is not aligned")
        index = np.searchsorted(self.begins, addresses, "right") - 1
        outside = index < 0
        if len(self.ends):
            outside |= addresses + np.uint64(size) > self.ends[index]
        if outside.any():
            raise AccessError(f"{size} bytes at {addresses[outside][0]:#x}, outside of every tensor")
        return index


class Region:
    """An interval of the host's memory, with counts per byte."""

    def __init__(self, begin: int, end: int) -> None:
        size = end - begin
        self.begin = np.uint64(begin)
        self.bytes: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(begin))
        self.readable = np.zeros(size, np.bool_)
        self.least, self.most, self.writes = (np.zeros(size, np.uint8) for _ in range(3))

    def allow(self, span: Span) -> None:
        at = span.offsets() + (span.address - int(self.begin))
        self.readable[at] |= span.read
        self.least[at] = np.maximum(self.least[at], span.least)
        self.most[at] = np.maximum(self.most[at], span.most)


class HostMemory:
    """The memory of CPU tensors."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.bounds = Bounds(spans)
        self.regions = [Region(begin, end) for begin, end in self.bounds.intervals]
        for span in spans:
            if all(span.sizes):
                self.regions[self.bounds.located(np.array([span.ends()[0]], np.uint64), 1)[0]].allow(span)

    def read(self, addresses: Addresses, size: int) -> Bytes:
        values = np.empty((len(addresses), size), np.uint8)
        for region, chosen, at in self.parts(addresses, size):
            if not region.readable[at].all():
                raise AccessError(f"{size} bytes read that are not of an input, in the tensor at {region.begin:#x}")
            if region.writes[at].any():
                raise AccessError(f"{size} bytes read after a thread has written them, at {region.begin:#x}")
            values[chosen] = region.bytes[at]
        return values

    def write(self, addresses: Addresses, values: Bytes) -> None:
        for region, chosen, at in self.parts(addresses, values.shape[1]):
            if not region.most[at].all():
                raise AccessError(f"{values.shape[1]} bytes written that are not of a result, at {region.begin:#x}")
            region.bytes[at] = values[chosen]
            np.add.at(region.writes, at, 1)

    def parts(
        self, addresses: Addresses, size: int
    ) -> Iterable[tuple[Region, npt.NDArray[np.bool_], npt.NDArray[np.uint64]]]:
        """For each region, the accesses that go to it, and the offsets of their bytes."""
        index = self.bounds.located(addresses, size)
        for i in np.unique(index):
            chosen, region = index == i, self.regions[i]
            yield region, chosen, (addresses[chosen] - region.begin)[:, None] + np.arange(size, dtype=np.uint64)

    def contents(self) -> list[Bytes]:
        """A copy of the bytes that may be written."""
        return [region.bytes[region.most > 0] for region in self.regions]

    def restore(self, contents: list[Bytes]) -> None:
        """Restore the memory to `contents`, and forget all writes."""
        for region, values in zip(self.regions, contents):
            region.bytes[region.most > 0] = values
            region.writes[:] = 0

    def check_writes(self) -> None:
        """Raise AccessError unless every byte was written as often as its span requires."""
        for region in self.regions:
            wrong = (region.writes < region.least) | (region.writes > region.most)
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                raise AccessError(
                    f"{wrong.sum()} bytes written too seldom or too often, the first {region.writes[first]} times, "
                    f"where {region.least[first]} to {region.most[first]} is right: byte {first} of {region.begin:#x}"
                )


class ZeroMemory:
    """Memory without contents, for shapes too large to allocate: loads give zeros, stores are only checked."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.bounds = Bounds(spans)

    def read(self, addresses: Addresses, size: int) -> Bytes:
        self.bounds.located(addresses, size)
        return np.zeros((len(addresses), size), np.uint8)

    def write(self, addresses: Addresses, values: Bytes) -> None:
        self.bounds.located(addresses, values.shape[1])


PARAMETERS = 0x210  # where the arguments of a kernel begin, in bank 0 of compute capability 9.0
STACK, DESCRIPTOR = 0x28, 0x208  # other words that kernels read: the stack pointer, and the descriptor of global memory


class ConstantBank:
    """The constant bank c[0x0]: sizes of the launch, then the arguments."""

    def __init__(self, arguments: bytes, block: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
        padded = arguments + bytes(-len(arguments) % 8)
        self.bytes: Bytes = np.frombuffer(bytes(PARAMETERS) + padded, np.uint8).copy()
        self.bytes[:24] = np.array([*block, *grid], np.uint32).view(np.uint8)
        self.words = self.bytes.view(np.uint32)[:, None]
        self.checked: set[int] = set()  # offsets of words
        self.known = np.zeros(len(self.bytes), np.bool_)
        self.known[:24] = self.known[STACK : STACK + 4] = self.known[DESCRIPTOR:] = True

    def word(self, offset: int) -> npt.NDArray[np.uint32]:
        if offset not in self.checked:
            self.check(np.array([offset]), 4)
            self.checked.add(offset)
        found: npt.NDArray[np.uint32] = self.words[offset // 4]
        return found

    def read(self, offsets: npt.NDArray[np.int64], size: int) -> Bytes:
        """A row of bytes for each offset."""
        self.check(offsets, size)
        found: Bytes = self.bytes[offsets[:, None] + np.arange(size)]
        return found

    def check(self, offsets: npt.NDArray[np.int64], size: int) -> None:
        if (offsets % size).any() or (offsets < 0).any() or (offsets + size > len(self.bytes)).any():
            raise AccessError(f"{size} bytes at c[0x0][{offsets[0]:#x}], misaligned or past the arguments")
        if not self.known[offsets].all():
            raise AccessError(f"c[0x0][{offsets[0]:#x}] is not modelled")
