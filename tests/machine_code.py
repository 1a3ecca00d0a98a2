"""The machine code of the library under test, for modules that execute it."""

import functools
from importlib import metadata

import pytest

import rope_ext
from benchmarks.harness.machine_code import machine_of
from tests.conftest import WITHOUT_KERNELS
from tools.machine_code.disassembly import NotFound


@functools.cache
def kernels():
    """By mangled name. Skips the test where the library has no kernels for compute capability 9.0, or where CUDA's
    disassembler is missing; where its package is installed, that is an error."""
    architectures = rope_ext.build_info().get("cuda_architectures")
    if not architectures:
        pytest.skip(WITHOUT_KERNELS)
    if not any(name.startswith("9.0") for name in architectures):
        pytest.skip(f"rope_ext was built for {', '.join(architectures)}, not for 9.0")
    try:
        return machine_of().kernels
    except NotFound as why:
        if any(found.metadata["Name"] == "nvidia-cuda-nvdisasm" for found in metadata.distributions()):
            raise
        pytest.skip(str(why))
