"""The machine code of the library under test, for modules that execute it."""

import functools

import pytest

import rope_ext
from benchmarks.harness.machine_code import machine_of_the_library
from tests.conftest import WITHOUT_KERNELS
from tools.machine_code.disassembly import NotFound


@functools.cache
def kernels():
    """By mangled name. Skips the test where the library has no kernels, or CUDA's disassembler is missing."""
    if not rope_ext.build_info().get("cuda_architectures"):
        pytest.skip(WITHOUT_KERNELS)
    try:
        return machine_of_the_library().kernels
    except NotFound as why:
        pytest.skip(str(why))
