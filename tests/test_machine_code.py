"""The CUDA kernels' machine code for compute capability 9.0, as shipped, executed on the CPU in place of its kernels.

This tests what nvcc and ptxas made of the sources: bits, bounds, alignment, and how often each byte is written, without
a GPU (tools/machine_code).
"""

from pathlib import Path

import pytest

import rope_ext
from rope_ext import _introspect
from tests import test_angles
from tests.conftest import WITHOUT_KERNELS
from tests.pairwise import pairwise
from tests.test_values import PARAMETERS, test_equals_reference
from tools.machine_code.disassembly import NotFound, kernels_of
from tools.machine_code.launches import Machine, Recorder

pytestmark = pytest.mark.devices("cpu")
LIBRARY = Path(rope_ext.__file__).parent / "_ops.so"
GRIDS = {"multiprocessors": [1, 132]}  # with one multiprocessor a thread does many heads, with many it does one
CASES = pairwise({**PARAMETERS, **GRIDS})
CASES_FROM_INV_FREQ = pairwise({**test_angles.PARAMETERS, **GRIDS})
NAMES = {"ids": lambda case: "-".join(str(value).replace("torch.", "") for value in case.values())}


@pytest.fixture(scope="module")
def machine():
    if not rope_ext.build_info().get("cuda_architectures"):
        pytest.skip(WITHOUT_KERNELS)
    try:
        return Machine(kernels_of(LIBRARY))
    except NotFound as why:
        pytest.skip(str(why))


@pytest.fixture
def executed(machine, use_kernels):
    """A function that makes the ops use the machine code. The test fails unless it ran, without an error."""
    recorder = Recorder(_introspect.__file__, machine.execute)
    before = machine.launches.total()

    def start(multiprocessors=132):
        use_kernels(recorder.start(multiprocessors))

    yield start
    for error in recorder.errors:
        raise error
    assert machine.launches.total() > before


@pytest.mark.parametrize("case", CASES, **NAMES)
def test_values(case, executed):
    executed(case["multiprocessors"])
    test_equals_reference(case)


@pytest.mark.parametrize("case", CASES_FROM_INV_FREQ, **NAMES)
def test_values_from_inv_freq(case, executed):
    executed(case["multiprocessors"])
    test_angles.test_inv_freq_gives_the_bits_of_the_tables(case)
