"""What nvcc compiles the kernels to, and how setup.py is told to call it. Runs without a GPU.

Spilled registers and stack frames need no test: with ROPE_EXT_WERROR, which CI sets, they fail the build.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import rope_ext

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
SETUP = ROOT / "setup.py"

SOURCE = """
#include "cuda/rotate.cuh"
using namespace rope;
extern "C" __global__ void kernel(const __grid_constant__ cuda::RotateArguments<int> a) {
  cuda::rotate_thread<TYPE, 16 / sizeof(TYPE), Source::kPerPair>(a, int(blockIdx.y), int(threadIdx.x));
}
"""


@pytest.fixture(scope="module", params=["BFloat16", "Float16", "float", "double"])
def compiled(request, tmp_path_factory):
    """The element type of a kernel with 16-byte accesses, and the lines of its PTX."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp("ptx")
    (folder / "kernel.cu").write_text(SOURCE.replace("TYPE", request.param))
    command = ["nvcc", "-std=c++17", "-fmad=false", f"-I{ROOT / 'csrc'}", "-arch=compute_90", "-ptx", "kernel.cu"]
    subprocess.run(command, cwd=folder, check=True)
    return request.param, (folder / "kernel.ptx").read_text().splitlines()


def accesses(ptx, kind, bits):
    """The lines that access so many bits of global memory in one vector. kind: ld or st."""
    found = [(n, re.search(rf"{kind}\.global\.v(\d)\.\w(\d+)", line)) for n, line in enumerate(ptx)]
    return [n for n, access in found if access and int(access[1]) * int(access[2]) == bits]


def test_accesses_of_x_are_128_bits_wide(compiled):
    """Two heads at a time. The heads after the first two are read at a place of their own, and rows outside the table are
    written at one."""
    dtype, ptx = compiled
    memory = [line for line in ptx if re.search(r"\b(ld|st)\.(?!param)", line)]
    assert all(".global" in line for line in memory)
    assert len(accesses(ptx, "st", 128)) == len([line for line in memory if "st.global" in line]) == 4 + 2
    tables = 4 if dtype.endswith("16") else 0
    assert len(accesses(ptx, "ld", 128)) == 4 + 4 + tables


def test_accesses_of_tables_are_a_run_of_entries(compiled):
    """A unit has two runs, of half as many pairs as an access has elements, in cos and in sin. Float tables of 16-bit x:
    four entries; those of the type of x: four of 16 bits; of float x: two; of double x: one, which is no vector."""
    dtype, ptx = compiled
    assert len(accesses(ptx, "ld", 64)) == (0 if dtype == "double" else 4)


def test_accesses_do_not_wait_for_one_another(compiled):
    """The loads of both heads of x are issued before the first is used, and so are those of cos and sin."""
    _, ptx = compiled
    wide = accesses(ptx, "ld", 128)
    tables = [wide[4:-4], accesses(ptx, "ld", 64)]  # of float beside 16-bit x; of the type of x
    for group in (wide[:4], *tables):
        for number in group:
            for register in re.findall(r"%\w+", ptx[number].split("[")[0]):
                first_use = next(n for n in range(number + 1, len(ptx)) if re.search(rf"{register}\b", ptx[n]))
                assert first_use > group[-1], (ptx[number], ptx[first_use])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_built_wherever_nvcc_is():
    if os.environ.get("ROPE_EXT_CUDA") == "0":
        pytest.skip("ROPE_EXT_CUDA is 0")
    info = rope_ext.build_info()
    assert info["cuda"] and all(re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name) for name in info["cuda_architectures"])
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and "ARCHITECTURES" not in os.environ.get("CMAKE_ARGS", ""):
        newest = ["10.0", "12.0+PTX"] if tuple(map(int, info["cuda"].split(".")[:2])) >= (12, 8) else []
        assert info["cuda_architectures"] == ["8.0", "8.6", "8.9", "9.0+PTX", *newest]
