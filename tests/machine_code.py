"""The machine code of the library under test, and hand-written kernels, for modules that execute them."""

import functools
import re
from importlib import metadata

import numpy as np
import pytest

import rope_ext
from benchmarks.harness.machine_code import machine_of
from tests.conftest import WITHOUT_KERNELS
from tools.machine_code.disassembly import NotFound, parse
from tools.machine_code.launches import Recorder
from tools.machine_code.memory import HostMemory, Span
from tools.machine_code.warps import Launch, Program

OF_NORM = re.compile("norm_|block_sums")  # what names of kernels hold that test_machine_code_norm.py runs


@functools.cache
def kernels():
    """{mangled name: kernel}. Skips the test where the library has no kernels for compute capability 9.0, or where CUDA's
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


# ---- kernels written by hand ----


def kernel_of(*lines):
    """A kernel of these lines of SASS; one that ends in a colon is a label."""
    address, text = 0, [".section .text.test"]
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"/*{address:04x}*/ {line} ;")
            address += 16
    return parse("\n".join(text))["test"]


def run(*lines, inputs=None, threads=32, outputs=1, shared=0):
    """Runs lines with R4 = the index of the thread, R5, R6 .. = its inputs; then stores R8, R9 .. to the outputs.
    Returns (outputs, counts)."""
    inputs = np.array(inputs if inputs is not None else np.zeros((1, threads)), np.uint32)
    results = np.zeros((outputs, threads), np.uint32)
    loads = ["S2R R4, SR_TID.X", "S2R R0, SR_CTAID.X", "IMAD.WIDE.U32 R2, R4, 0x4, RZ"]
    for i in range(len(inputs)):
        loads += ["ULDC.64 UR8, c[0x0][0x210]", "IADD3 R20, P6, R2, UR8, RZ", "IADD3.X R21, R3, UR9, RZ, P6, !PT"]
        loads += [f"LDG.E R{5 + i}, desc[UR4][R20.64+{4 * threads * i:#x}]"]
    stores = ["ULDC.64 UR8, c[0x0][0x218]", "IADD3 R20, P6, R2, UR8, RZ", "IADD3.X R21, R3, UR9, RZ, P6, !PT"]
    stores += [f"STG.E desc[UR4][R20.64+{4 * threads * i:#x}], R{8 + i}" for i in range(outputs)]
    program = Program(kernel_of(*loads, *lines, *stores, "EXIT"))
    memory = HostMemory([span_of(inputs, read=True), span_of(results, most=1)])
    arguments = np.array([inputs.ctypes.data, results.ctypes.data], np.uint64).tobytes()
    counts = program.run(Launch((1, 1, 1), (threads, 1, 1), arguments, shared), memory)
    counts.instructions -= counts.warps * (len(loads) + len(stores) + 1)
    return results, counts


def span_of(array, read=False, most=0):
    return Span(array.ctypes.data, array.itemsize, (array.size,), (1,), read, 0, most)


def executed_by(machine, introspect, use_kernels):
    """The body of a fixture: yields a function that makes the ops use the machine code, for a number of multiprocessors.

    introspect: the file of _introspect. Afterwards it fails unless the machine code ran, without an error.
    """
    recorder = Recorder(introspect, machine.execute)
    before = machine.launches.total()

    def start(multiprocessors=132):
        use_kernels(recorder.start(multiprocessors))

    yield start
    for error in recorder.errors:
        raise error
    assert machine.launches.total() > before
