"""The CUDA kernels run on the CPU, thread after thread of the grid, in the place of the CPU kernels.

This tests indices, strides, alignment, rounding and what each thread does without a GPU, once more under sanitizers.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import _introspect, reference
from tests import test_angles
from tests.conftest import DTYPES, assert_same_bits, random
from tests.pairwise import pairwise
from tests.test_instruction_sets import params_of
from tests.test_values import PARAMETERS, test_equals_reference

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
emulator = ctypes.CDLL(os.environ.get("ROPE_EXT_EMULATOR", _introspect.__file__))
emulator.rope_ext_emulated_cuda.restype = ctypes.c_void_p
emulator.rope_ext_emulated_cuda.argtypes = ctypes.c_int, ctypes.c_bool
emulator.rope_ext_emulated_instances.restype = ctypes.c_uint64

# With one multiprocessor a thread does many heads, with many it does one. Backwards: the last thread runs first.
GRIDS = {"multiprocessors": [1, 132], "backwards": [False, True]}
CASES = pairwise({**PARAMETERS, **GRIDS})
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux: memory that nothing writes takes no room
KEPT = {"ids": lambda case: "-".join(str(value).replace("torch.", "") for value in case.values())}


@pytest.fixture
def emulated(use_kernels):
    """A function that makes the ops use the emulated kernels instead of the CPU's."""

    def start(multiprocessors=132, backwards=False):
        use_kernels(emulator.rope_ext_emulated_cuda(multiprocessors, backwards))

    return start


@pytest.mark.parametrize("case", CASES, **KEPT)
def test_values(case, emulated):
    emulated(case["multiprocessors"], case["backwards"])
    assert rope_ext.build_info()["cpu_isa"] == "cuda"
    test_equals_reference(case)


@pytest.mark.parametrize("case", pairwise({**test_angles.PARAMETERS, **GRIDS}), **KEPT)
def test_values_from_inv_freq(case, emulated):
    emulated(case["multiprocessors"], case["backwards"])
    test_angles.test_inv_freq_gives_the_bits_of_the_tables(case)


def test_every_instance_of_the_kernel_has_run(emulated):
    """There are 30, by element type, width of access (16 bytes, 4 bytes, one element), and source of cos and sin (per
    pair, per channel, from positions)."""
    emulated()
    for dtype in DTYPES:
        for head_dim in (64, 20, 6):
            for width in (head_dim // 2, head_dim):
                x = random((1, 2, 2, head_dim), dtype)
                table = torch.float64 if dtype == torch.float64 else torch.float32
                tables = [random((2, width), table, seed) for seed in (1, 2)]
                assert_same_bits(rope_ext.apply(x, *tables), reference.apply(x, *tables))
            frequencies = torch.linspace(0.1, 1, head_dim // 2, dtype=torch.float64)
            tables = rope_ext.cos_sin(torch.arange(2), frequencies, dtype=tables[0].dtype)
            assert_same_bits(rope_ext.apply(x, inv_freq=frequencies), reference.apply(x, *tables))
    assert bin(emulator.rope_ext_emulated_instances()).count("1") == 30


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_more_than_one_block(multiprocessors, interleaved, dtype, emulated):
    """The heads of two tensors spread over several blocks and rounds of the grid; the last channels are copied."""
    emulated(multiprocessors, backwards=True)
    q, k = random((2, 33, 40, 136), dtype), random((2, 33, 3, 136), dtype, 1)
    options = {"interleaved": interleaved, "rotary_dim": 96, "rotary_offset": 16, "inverse": True}
    cos, sin = rope_ext.RotaryEmbedding(96).tables(40, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    options["positions"] = torch.arange(66).reshape(2, 33) % 40
    expected = reference.apply((q, k), cos, sin, **options)
    assert_same_bits(rope_ext.apply((q, k), cos, sin, **options), expected)
    assert_same_bits(rope_ext.apply_((q, k), cos, sin, **options), expected)


@pytest.mark.parametrize(
    "shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8), (1, 1, 1, 2), (70000, 1, 1, 2), (1, 1, 70000, 2)]
)
def test_grids_at_the_edges_of_their_size(shape, emulated):
    """Tensors without elements, and more heads or sequences than a grid has blocks along y (65,535)."""
    emulated()
    x = random(shape, torch.float32)
    cos, sin = rope_ext.RotaryEmbedding(shape[-1]).tables(3)
    assert_same_bits(rope_ext.apply(x, cos, sin), reference.apply(x, cos, sin))


@pytest.mark.parametrize("head_dim", [2, 6, 10, 80, 96, 100, 130, 576])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_widths_and_alignment(first, head_dim, emulated):
    """Heads, rotated channels and tables begin at any element; elements that fill no vector are accessed one by one."""
    emulated()
    whole = random((2, 5, 3, head_dim + 8), torch.bfloat16)
    tables = [random((5, head_dim // 2 + 2), torch.float32, seed) for seed in (1, 2)]
    for cos, sin in (tables, [t.bfloat16() for t in tables]):
        cos, sin = (t[:, first : first + head_dim // 2] for t in (cos, sin))
        for interleaved in (False, True):
            for x, rotary_offset in ((whole[..., first : first + head_dim], 0), (whole, first)):
                options = {"interleaved": interleaved, "rotary_dim": head_dim, "rotary_offset": rotary_offset}
                expected = reference.apply(x, cos, sin, **options)
                assert_same_bits(rope_ext.apply(x, cos, sin, **options), expected)
                assert_same_bits(rope_ext.apply_(x.clone(), cos, sin, **options), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_tables_have_the_bits_of_the_cpu(dtype, emulated, use_kernels):
    """Both sum over batch, tensors and heads in one order, with a row per token, per head, or shared by the batch."""
    table = torch.float64 if dtype == torch.float64 else torch.float32
    q, k = random((2, 5, 4, 16), dtype), random((2, 5, 4, 16), dtype, 1)
    weights = [random((2, 5, 4, 16), dtype, seed) for seed in (2, 3)]
    for shape in [(5, 8), (1, 5, 8), (2, 5, 16), (1, 5, 4, 8)]:
        cos, sin = (random(shape, table, seed).requires_grad_() for seed in (4, 5))

        def gradients(inputs=(cos, sin), out_interleaved=shape == (2, 5, 16)):
            y = rope_ext.apply((q, k), *inputs, inverse=True, out_interleaved=out_interleaved)
            return torch.autograd.grad(y, inputs, weights)

        use_kernels(None)
        expected = gradients()
        emulated()
        assert_same_bits(gradients(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_outside_the_table_are_not_read(dtype):
    """Their tokens become NaN, the others do not. The ops refuse such positions on a CPU, so this calls the kernel."""
    x, cos, sin = random((2, 3, 2, 16), dtype), *rope_ext.RotaryEmbedding(16).tables(4)
    if dtype == torch.float64:
        cos, sin = cos.double(), sin.double()
    positions = torch.tensor([[0, -1, 3], [4, 1, 2**62]])
    y = torch.zeros_like(x)
    params = params_of(x, y, cos, sin, False, positions=positions)
    _introspect.rotate("cuda", params)
    outside = (positions < 0) | (positions > 3)
    assert y[outside].isnan().all() and not y[~outside].isnan().any()
    expected = reference.apply(x, cos, sin, positions=positions.clamp(0, 3))
    assert_same_bits(y[~outside], expected[~outside])


def test_rows_beyond_32_bits(emulated):
    """A table that repeats one row has as many as one likes."""
    emulated()
    x, row = random((1, 3, 2, 32), torch.bfloat16), [random((1, 16), torch.float32, seed) for seed in (1, 2)]
    positions = torch.tensor([[2**31 + 5, 2**32, 7]])
    cos, sin = (t.expand(2**33, 16) for t in row)
    expected = reference.apply(x, *row, positions=torch.zeros_like(positions))
    assert_same_bits(rope_ext.apply(x, cos, sin, positions=positions), expected)
    assert_same_bits(rope_ext.apply(x, cos, sin, offset=2**32), expected)


def far_apart(t, apart):
    """A copy of t, (2, ...), whose two entries lie `apart` elements from one another."""
    size = t.element_size() * (apart + t[0].numel())
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    copy = torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, (apart, *t.contiguous().stride()[1:]))
    return copy.copy_(t)


@pytest.mark.parametrize("which", ["x", "out", "tables", "positions"])
def test_strides_beyond_32_bits(which, emulated):
    """Two batch entries so far apart that their distance, in accesses of 16 bytes for x, needs more than 31 bits."""
    emulated()
    x, tables = random((2, 2, 2, 16), torch.float32), [random((2, 2, 8), torch.float32, seed) for seed in (1, 2)]
    options = {}
    if which == "positions":
        tables, options = [t[0] for t in tables], {"positions": torch.tensor([[1, 0], [0, 1]])}
    expected = reference.apply(x, *tables, **options)
    if which == "x":
        x = far_apart(x, 2**33)
    elif which == "out":
        options["out"] = far_apart(torch.zeros_like(x), 2**33)
    elif which == "tables":
        tables = [far_apart(t, 2**31) for t in tables]
    else:
        options["positions"] = far_apart(options["positions"], 2**31)
    assert_same_bits(rope_ext.apply(x, *tables, **options).clone(), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_alignment_along_each_axis_of_tables(axis, emulated):
    """Rows that are a multiple of 16 bytes apart along all axes but one, (batch, seqlen, heads)."""
    emulated()
    x, memory = random((2, 3, 4, 32), torch.float32), random((4096,), torch.float32, 1)
    strides = [512, 64, 16, 1]
    strides[axis] += 1
    cos, sin = (memory[offset:].as_strided((2, 3, 4, 16), strides) for offset in (0, 2048))
    assert_same_bits(rope_ext.apply(x, cos, sin), reference.apply(x, cos, sin))


def test_cos_and_sin_of_different_strides(emulated):
    """One of the two is the same for all batch entries."""
    emulated()
    x, cos, sin = (
        random((2, 3, 2, 32), torch.float32),
        random((2, 3, 16), torch.float32, 1),
        random((1, 3, 16), torch.float32, 2),
    )
    assert_same_bits(rope_ext.apply(x, cos, sin.expand(2, 3, 16)), reference.apply(x, cos, sin.expand(2, 3, 16)))


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_eight_tensors(multiprocessors, emulated):
    """Of other sizes, x in one order in memory and the result in another: heads are other distances apart."""
    emulated(multiprocessors)
    sizes = [(1, 64), (7, 64), (12, 80), (3, 64), (40, 96), (2, 72), (5, 64), (9, 128)]
    xs = [random((2, 30, *size), torch.bfloat16, seed) for seed, size in enumerate(sizes)]
    out = [torch.zeros(2, x.shape[2], 30, x.shape[3], dtype=x.dtype).transpose(1, 2) for x in xs]
    cos, sin = rope_ext.RotaryEmbedding(64).tables(30)
    expected = reference.apply(xs, cos, sin, rotary_dim=64)
    assert_same_bits(rope_ext.apply(xs, cos, sin, rotary_dim=64, out=out), expected)


# ---- under sanitizers ----


def test_under_sanitizers(tmp_path):
    """Reads and writes stay within the tensors, and 16-byte accesses are at addresses that are multiples of 16."""
    compiler = shutil.which("g++")
    libraries = [compiler and runtime(compiler, name) for name in ("asan", "ubsan", "stdc++")]
    if not all(libraries):
        pytest.skip("needs g++ with its sanitizers")
    library = tmp_path / "emulator.so"
    sources = ["csrc/introspect/emulate_cuda.cpp", "csrc/cuda/plan.cpp", "csrc/cuda/norm_plan.cpp"]
    flags = [
        "-std=c++17",
        "-O0",
        "-g",
        "-fPIC",
        "-shared",
        "-ffp-contract=off",
        "-Icsrc",
        "-fsanitize=address,undefined",
    ]
    subprocess.run([compiler, *flags, "-fno-sanitize-recover=all", *sources, "-o", library], cwd=ROOT, check=True)
    environment = {
        **os.environ,
        "ROPE_EXT_EMULATOR": str(library),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    files = [__file__, str(Path(__file__).with_name("test_emulated_norm.py"))]
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *files]
    selected = "test_values or alignment or edge or norm and not instance"
    result = subprocess.run(
        [*pytest_here, "-k", selected], env=environment, check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-4000:] + result.stderr[-4000:]


def runtime(compiler, name):
    """The path of a library of the compiler, or None."""
    found = subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
    return found.stdout.strip() if os.path.isabs(found.stdout.strip()) else None
