"""Errors of launches: those of other calls and of earlier kernels, and sizes that no grid has. The messages without a GPU:
test_launches.py."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DEVICES, assert_same_bits, random

if "cuda" not in DEVICES:
    pytest.skip("no GPU with kernels for it", allow_module_level=True)

pytestmark = pytest.mark.devices("cuda")


def runtime_of_torch():
    """The CUDA runtime that torch has loaded, or None where torch is linked with it statically."""
    paths = re.findall(r"/\S*libcudart\S*", Path("/proc/self/maps").read_text())
    return ctypes.CDLL(paths[0]) if paths else None


def test_an_earlier_error_of_a_call_is_neither_reported_nor_cleared():
    runtime = runtime_of_torch()
    if runtime is None:
        pytest.skip("torch has a runtime that this test cannot call")
    x, (cos, sin) = random((2, 5, 3, 64), torch.bfloat16), rope_ext.RotaryEmbedding(64).tables(5)
    expected = reference.apply(x, cos, sin)
    torch.cuda.synchronize()
    runtime.cudaGetLastError()
    error = runtime.cudaHostUnregister(ctypes.c_void_p(4096))  # memory that was never registered
    try:
        assert error != 0 and runtime.cudaPeekAtLastError() == error
        rope_ext.apply_(x, cos, sin)
        assert runtime.cudaPeekAtLastError() == error
    finally:
        runtime.cudaGetLastError()  # cleared for the tests that follow
    assert_same_bits(x, expected)


AFTER_A_FAILURE = """
import torch, rope_ext
x, table = torch.ones(1, 5, 2, 8, device="cuda"), torch.ones(9, 4, device="cuda")
rope_ext.apply_(x, table, table)
torch.ones(1, device="cuda")[torch.tensor([5], device="cuda")]
for call in (torch.cuda.synchronize, lambda: rope_ext.apply_(x, table, table)):
    said = "no error"
    try:
        call()
    except RuntimeError as error:
        said = str(error)
print("at the end:", said)
"""


def test_a_failure_of_an_earlier_kernel_is_reported_as_that():
    """By rope_ext, or by torch where it is asked for the device first. In a process of its own, whose context is lost."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_LAUNCH_BLOCKING"}
    ended = subprocess.run(
        [sys.executable, "-c", AFTER_A_FAILURE], env=environment, capture_output=True, text=True, check=False
    )
    said = ended.stdout.partition("at the end: ")[2]
    assert re.search("earlier work on the GPU failed|might be asynchronously reported", said), said + ended.stderr


def test_a_size_that_is_too_large():
    if torch.cuda.mem_get_info()[0] < 5 * 2**30:
        pytest.skip("needs 5 GiB of the GPU")
    x, row = torch.empty(1, 2**30, 1, 2, dtype=torch.bfloat16), torch.ones(1, 1, 1).expand(1, 2**30, 1)
    rule = r"have batch, seqlen, heads and head_dim below 2\^30 on a GPU, and need fewer than 2\^31 thread blocks"
    with pytest.raises(
        ValueError, match=f"^rope_ext: x must {rule}, got batch 1, seqlen 1073741824, heads 1, head_dim 2$"
    ):
        rope_ext.apply_(x, row, row)
