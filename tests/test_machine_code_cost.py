"""The CUDA kernel's machine code takes as many instructions as the committed table says, and what that is made of.

Counts have no noise, but change with the compiler: they are compared where nvcc is that of the table.
"""

import json

import pytest

from benchmarks import machine_code
from benchmarks.harness.machine_code import CASES, FUNCTIONAL, SHAPE, Counted, counted, launch_of
from benchmarks.instructions import differences
from tests.machine_code import kernels
from tools.machine_code.cost import Cost, count, listing, resident_blocks
from tools.machine_code.launches import Machine
from tools.machine_code.memory import ZeroMemory

pytestmark = pytest.mark.devices("cpu")


@pytest.fixture(scope="module")
def machine():
    return Machine(kernels())


@pytest.fixture(scope="module")
def found(machine):
    return counted(machine)


def test_counts_are_those_of_the_table(found):
    table = json.loads(machine_code.TABLE.read_text())
    assert len(found) == len(CASES) == len(table["instructions"]) == 60
    if elsewhere := list(differences(table, machine_code.environment())):
        pytest.skip(f"the table is of another compiler: {'; '.join(elsewhere)}")
    complaints = "\n".join(machine_code.complaints(table, found))
    assert not complaints, complaints


def test_warps_write_whole_sectors(found):
    """A sector of 32 bytes is written by one access of a warp: by two, the L2 would be asked twice."""
    assert {c.name: c.cost.sectors_written for c in found if not c.variant.gradient} == {
        c.name: c.written // 32 for c in found if not c.variant.gradient
    }


def test_gradients_of_norms_write_whole_sectors(found):
    """Beside those of x, one number for each channel and block of 16 tokens, of q and of k."""
    for c in found:
        if c.variant.gradient:
            size, blocks = 8 if c.dtype == "float64" else 4, c.shape.batch * c.shape.seqlen // 16
            assert c.cost.sectors_written == (c.written + 2 * blocks * c.shape.head_dim * size) // 32


def test_a_change_beyond_the_tolerance_is_a_sentence(found):
    case = found[0]
    table = {"environment": {}, "instructions": {case.name: case.cost.instructions * 0.96}}
    (complaint,) = machine_code.complaints(table, [case])
    assert complaint.startswith(f"{case.name}: ") and complaint.endswith("`make machine-code` rewrites the table")


@pytest.mark.parametrize("name", ["decode", "tiny"])
def test_some_blocks_stand_for_all(name, machine):
    launch = launch_of(SHAPE[name], "bfloat16", FUNCTIONAL)
    whole = machine.program(launch).run(launch.launch, ZeroMemory(launch.spans))
    assert count(machine, launch).instructions == whole.instructions


def test_a_listing_shows_each_instruction_with_its_warps(machine):
    launch = launch_of(SHAPE["tiny"], "bfloat16", FUNCTIONAL)
    lines = [line.split() for line in listing(machine, launch) if line]
    assert sum(int(line[0]) for line in lines) == count(machine, launch).instructions
    assert lines[-1][2] == "EXIT" or lines[-1][3] == "EXIT"


@pytest.mark.parametrize(
    ("registers", "threads", "blocks"),
    [(80, 256, 3), (80, 160, 4), (64, 256, 4), (72, 128, 7), (32, 256, 8), (32, 1024, 2), (16, 32, 32), (255, 256, 1)],
)
def test_blocks_that_a_multiprocessor_holds(registers, threads, blocks):
    """As CUDA's occupancy calculator gives them for compute capability 9.0."""
    assert resident_blocks(registers, threads) == blocks


def test_the_model_names_the_bound():
    """Payload of prefill in bfloat16: 2 * 40 heads * 128 channels * 4096 tokens * 2 bytes, in 19.5 us at 4.3 TB/s."""

    def case(instructions, name="prefill"):
        return Counted(SHAPE[name], "bfloat16", FUNCTIONAL, Cost(instructions, 0, 0, 100, 80, 1000, 256, 3))

    assert case(10**7).payload == 2 * 40 * 128 * 4096 * 2
    assert (case(10**7).bound, case(2 * 10**7).bound, case(10**5, "tiny").bound) == ("memory", "issue", "latency")
    assert case(10**7).seconds == pytest.approx(21.5e-6, abs=0.05e-6)
    assert case(2 * 10**7).seconds == pytest.approx(2e7 / (132 * 4 * 1.98e9) / 0.65 + 2e-6)
