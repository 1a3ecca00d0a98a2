"""The machine code at indices of more than 32 bits: a few blocks of launches whose tensors no machine could hold."""

import numpy as np
import pytest
import torch

from benchmarks.harness.machine_code import FUNCTIONAL, launch_of
from benchmarks.harness.shapes import Shape
from rope_ext import _introspect
from tests.machine_code import kernels
from tests.test_instruction_sets import params_of
from tools.machine_code.launches import Machine, Recorder
from tools.machine_code.memory import Bounds

pytestmark = pytest.mark.devices("cpu")


class MadeUp:
    """Memory whose float32 numbers follow from their addresses, and which remembers what is written."""

    def __init__(self, spans):
        self.bounds, self.written = Bounds(spans), {}

    def read(self, addresses, size):
        self.bounds.located(addresses, size)
        words = addresses[:, None] + np.arange(0, size, 4, dtype=np.uint64)
        return number_at(words).view(np.uint8)

    def write(self, addresses, values):
        self.bounds.located(addresses, values.shape[1])
        for address, value in zip(addresses.tolist(), values):
            assert address not in self.written
            self.written[address] = value.tobytes()


def number_at(addresses):
    return ((addresses >> np.uint64(2)) * np.uint64(2654435761) % np.uint64(2048)).astype(np.float32) / 1024 - 1


@pytest.mark.parametrize("batch", [2**16, 3 * 2**14 + 1])
def test_tokens_of_more_than_32_bits(batch):
    """The first blocks of both tensors in some rounds, and the last, of a rotation of 2^17 tokens of many sequences."""
    shape = Shape("large", "", batch, 2**17 + 3, heads_q=3, heads_k=1, head_dim=16)
    launch, machine = launch_of(shape, "float32", FUNCTIONAL), Machine(kernels())
    blocks, rounds = launch.launch.grid[:2]
    # Accesses of one element: a thread rotates a pair in all heads of a token, which has 8 pairs.
    section, of_block = blocks // 2, launch.launch.threads // 8
    tokens = shape.batch * shape.seqlen - (rounds - 1) * section * of_block  # of the last round
    last_block = (rounds - 1) * blocks + (tokens - 1) // of_block
    first_blocks = (number * blocks + i for number in (0, rounds // 2, rounds - 1) for i in range(2))
    chosen = {block + offset for block in (*first_blocks, last_block) for offset in (0, section)}
    memory = MadeUp(launch.spans)
    machine.program(launch).run(launch.launch, memory, sorted(chosen))

    reads = [span for span in launch.spans if span.most == 0]
    x, (cos, sin) = reads[:2], reads[2:]
    results = [span for span in launch.spans if span.most == 1]
    written, last = 0, 0
    for of, to in zip(x, results):
        begin, end = to.ends()
        at = sorted(a for a in memory.written if begin <= a < end)
        offset = (np.array(at) - begin) // 4  # elements
        channel, token = offset % 16, offset // (16 * of.sizes[2]) % shape.seqlen
        partner = np.where(channel < 8, offset + 8, offset - 8)

        def number(span, index):
            return number_at(np.uint64(span.address) + index.astype(np.uint64) * np.uint64(4))

        entry = token * 8 + channel % 8
        own, other, c, s = number(of, offset), number(of, partner), number(cos, entry), number(sin, entry)
        expected = np.where(channel < 8, own * c - other * s, own * c + other * s)
        got = np.frombuffer(b"".join(memory.written[a] for a in at), np.float32)
        assert np.array_equal(got, expected)
        written, last = written + len(at), max(last, int(offset.max()))
        assert offset.max() == np.prod(of.sizes) - 1  # the last element of the tensor is among them
    assert last > 2**36 and written == len(memory.written)


def test_divisions_of_more_than_32_bits():
    """table_rows divides the index of a thread by seqlen."""
    batch, seqlen, rows = 3, 2**33 + 5, 1 << 40
    launches = []
    Recorder(_introspect.__file__, launches.append).start()
    x, table = (torch.empty(size, device="meta") for size in ((batch, seqlen, 1, 2), (seqlen, 1)))
    _introspect.table_rows(params_of(x, x, table, table, False), rows)
    (launch,), machine = launches, Machine(kernels())
    blocks = {0, 2**33 // 256, 2**34 // 256, launch.launch.blocks - 1}
    memory = MadeUp(launch.spans)
    counts = machine.program(launch).run(launch.launch, memory, sorted(blocks))
    assert len(memory.written) == 3 * 256 + (batch * seqlen - 1) % 256 + 1 and counts.approximations
    for address, value in memory.written.items():
        assert int.from_bytes(value, "little") == (address - rows) // 8 % seqlen
