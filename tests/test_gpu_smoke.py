"""benchmarks/gpu_check/smoke.py on the emulated kernels."""

import ctypes
import shutil

import pytest

from benchmarks.gpu_check import smoke
from rope_ext import _introspect

pytestmark = pytest.mark.devices("cpu")


def test_smoke_reaches_every_instance_of_the_kernel(use_kernels, tmp_path):
    """Run on the emulated kernels, whose bits are compared with the CPU's as those of a GPU are."""
    # A copy, since the loaded library also counts the instances that other tests have run.
    emulator = ctypes.CDLL(shutil.copy(_introspect.__file__, tmp_path))
    emulator.rope_ext_emulated_cuda.restype = ctypes.c_void_p
    emulator.rope_ext_emulated_instances.restype = ctypes.c_uint64
    expected = {name: call("cpu") for name, call in smoke.calls().items()}
    use_kernels(emulator.rope_ext_emulated_cuda(132, False))
    for name, call in smoke.calls().items():
        assert smoke.bit_identical(call("cpu"), expected[name]), name
    assert bin(emulator.rope_ext_emulated_instances()).count("1") == 30
    x = expected["cos_sin torch.float32"][0]
    assert (
        smoke.bit_identical([x], [x])
        and not smoke.bit_identical([-x], [x])
        and not smoke.bit_identical([x], [x.double()])
    )
