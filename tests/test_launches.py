"""The launches of csrc/cuda, with a stand-in for the CUDA runtime that runs kernels on the CPU and fails as told."""

import ctypes
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import _reference_angles
from tests import norm_calls
from tests.conftest import DTYPES, assert_same_bits, random
from tests.test_emulated_cuda import KEPT
from tests.test_emulated_norm import CASE
from tests.test_values import CASES, test_equals_reference

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "cuda_stand_in.cpp"
ARCHITECTURES = "8.0 9.0+PTX"


class Seen(ctypes.Structure):
    """What the runtime saw of the last launch, and how many launches and queries of the device there were."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared_memory", ctypes.c_int64),
        ("attributes", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
        ("first_argument", ctypes.c_void_p),
        ("launches", ctypes.c_int),
        ("queries", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def headers():
    """The folder of CUDA's headers."""
    if not (shutil.which("nvcc") and shutil.which("g++")):
        pytest.skip("needs nvcc and g++")
    said = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "/dev/null"], check=True, capture_output=True, text=True)
    return Path(re.search(r'INCLUDES="?-I([^" ]+)', said.stderr)[1])


@pytest.fixture(scope="module")
def library(headers, tmp_path_factory):
    path = tmp_path_factory.mktemp("launches") / "launches.so"
    # Bsymbolic: torch may have loaded a CUDA runtime whose functions have the same names.
    flags = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-Wl,--no-undefined", "-Wl,-Bsymbolic"]
    versions = [f'-DROPE_CUDA_ARCHITECTURES="{ARCHITECTURES}"', '-DROPE_CUDA_VERSION="13.0"']
    folders = ["-I", ROOT / "csrc", "-isystem", headers]
    subprocess.run(["g++", *flags, *versions, *folders, SOURCE, "-o", path], check=True)
    loaded = ctypes.CDLL(str(path))
    for name in ("what_was_seen", "kernels_through_launches"):
        getattr(loaded, name).restype = ctypes.c_void_p
    for name in ("launch_revolutions", "launch_table_rows", "launch_items", "too_large", "message"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.launch_items.argtypes = (ctypes.c_int64,)
    return loaded


@pytest.fixture
def seen(library):
    yield Seen.from_address(library.what_was_seen())
    library.set_error(0, b"")


def pointer(t):
    return ctypes.c_void_p(t.data_ptr())


# ---- what reaches the runtime ----


def test_an_error_of_another_call_is_not_asked_for():
    """cudaGetLastError and cudaPeekAtLastError return errors of others, and the first clears them."""
    for path in (ROOT / "csrc").rglob("*.*"):
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"LastError|<<<", code), path


@pytest.mark.parametrize("case", CASES[::4], **KEPT)
def test_rotate_gives_the_reference(case, library, seen, use_kernels):
    use_kernels(library.kernels_through_launches())
    before = seen.launches
    test_equals_reference(case)
    assert seen.launches > before
    assert (seen.dynamic_shared_memory, seen.attributes, seen.stream) == (0, 0, ctypes.addressof(seen))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_tables_and_frequencies_have_the_bits_of_the_cpu(dtype, library, seen, use_kernels):
    """table_grad and cos_sin, in grids of more than one block."""
    table = torch.float64 if dtype == torch.float64 else torch.float32
    x, weights = random((3, 33, 2, 32), dtype), random((3, 33, 2, 32), dtype, 1)
    tables = [random((33, 16), table, seed).requires_grad_() for seed in (2, 3)]
    frequencies = torch.linspace(0.1, 1, 16, dtype=torch.float64).requires_grad_()
    results = []
    for kernels in (None, library.kernels_through_launches()):
        use_kernels(kernels)
        before = seen.launches
        results.append(torch.autograd.grad(rope_ext.apply(x, *tables), tables, weights))
        results[-1] += torch.autograd.grad(rope_ext.apply(x, inv_freq=frequencies), frequencies, weights)
    assert seen.launches >= before + 4 and seen.grid[0] > 1
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("channels", [(64, None, 0), (48, 16, 8), (6, None, 0)])
@pytest.mark.parametrize(("norm", "launches"), [("all", 2), ("first", 3)])
def test_norm_has_the_bits_of_the_cpu(norm, launches, channels, library, seen, use_kernels):
    """One launch; for its derivatives one, one for tensors that are only rotated, and one for sums over blocks."""
    case = {**CASE, "dtype": torch.float32, "channels": channels, "norm": norm}
    before = seen.launches
    norm_calls.check("normalise", case, lambda: use_kernels(library.kernels_through_launches()), use_kernels, 9)
    assert seen.launches == before + 1 and seen.dynamic_shared_memory == 0
    norm_calls.check("differentiate", case, lambda: use_kernels(library.kernels_through_launches()), use_kernels, 9)
    assert seen.launches == before + 1 + launches
    assert (seen.dynamic_shared_memory, seen.stream) == (4 * 32 * 16, ctypes.addressof(seen))
    assert seen.grid[1] == (2 if norm == "all" else 1)


def test_revolutions(library, seen):
    radians = random((1, 1, 300), torch.float32)
    high, low = torch.empty_like(radians), torch.empty_like(radians)
    assert library.launch_revolutions(pointer(radians), ctypes.c_int64(300), pointer(high), pointer(low)) is None
    assert_same_bits((high, low), _reference_angles.revolutions(radians, torch.float32))
    assert (tuple(seen.grid), tuple(seen.block)) == ((2, 1, 1), (256, 1, 1))


def test_rows(library, seen):
    """And an error is that of the call: the call before and the one after have none."""
    for error in (None, b"cudaErrorLaunchOutOfResources", None):
        library.set_error(701 if error else 0, error)
        rows = torch.zeros(3, 100, dtype=torch.int64)
        assert library.launch_table_rows(*map(ctypes.c_int64, (3, 100, 7)), pointer(rows)) == error
        assert torch.equal(rows, torch.zeros_like(rows) if error else torch.arange(7, 107).expand(3, 100))


CHECK_POSITIONS = """
import ctypes, sys
path, tokens, rows, *boundaries = sys.argv[1:]
boundaries = (ctypes.c_int64 * len(boundaries))(*map(int, boundaries))
arguments = map(ctypes.c_int64, (int(tokens), int(rows), len(boundaries) - 1))
ctypes.CDLL(path).launch_assert_positions(*arguments, boundaries)
"""


@pytest.mark.parametrize(
    ("tokens", "rows", "boundaries", "said"),
    [
        (6, 4, (0, 2, 6), ""),
        (7, 4, (0, 2, 6), ""),  # the last token is copied
        (6, 3, (0, 2, 6), "positions must index rows 0 to 2 of the table, got row 3 for token 5 of batch 0"),
        (6, 4, (0, -2, 6), "cu_seqlens must start at 0 and ascend, got a negative boundary before token 0"),
    ],
)
def test_checks_of_positions(tokens, rows, boundaries, said, library):
    """ROPE_EXT_CHECK_POSITIONS=1, which names the token and stops the program."""
    arguments = map(str, (library._name, tokens, rows, *boundaries))
    ended = subprocess.run(
        [sys.executable, "-c", CHECK_POSITIONS, *arguments], check=False, capture_output=True, text=True
    )
    assert ended.stdout == (f"rope_ext: {said}\n" if said else "")
    assert ("leads_to_a_row_of_the_table" in ended.stderr) == (ended.returncode != 0) == bool(said)


def test_arguments_are_converted_to_the_parameters_of_the_kernel(library):
    assert library.launch_two(-5, ctypes.c_void_p(2**40 + 3))


@pytest.mark.parametrize(("items", "blocks"), [(1, 1), (256, 1), (257, 2), (2**31 + 1, 2**23 + 1)])
def test_one_thread_per_item(items, blocks, library, seen):
    library.set_error(1, b"recorded, not run")
    assert library.launch_items(items) == b"recorded, not run"
    assert (tuple(seen.grid), tuple(seen.block), seen.stream) == ((blocks, 1, 1), (256, 1, 1), None)


def test_most_items(library, seen):
    """A grid has at most 2^31 - 1 blocks along x."""
    library.set_error(1, b"recorded, not run")
    before = seen.launches
    assert library.launch_items(0) is None
    for items in (2**39 - 255, 2**39, 2**40, 2**62):
        assert library.launch_items(items) == library.too_large()
    assert seen.launches == before
    assert library.launch_items(2**39 - 256) != library.too_large()
    assert tuple(seen.grid) == (2**31 - 1, 1, 1)


def test_the_number_of_multiprocessors_is_asked_for_until_it_is_known(library, seen, use_kernels):
    use_kernels(library.kernels_through_launches())
    library.set_device(5)
    x, (cos, sin) = random((1, 3, 2, 8), torch.float32), rope_ext.RotaryEmbedding(8).tables(3)
    queries = [seen.queries]
    for error in (101, 101, 0, 0):
        library.set_error(error, b"")
        rope_ext.apply(x, cos, sin)
        queries.append(seen.queries)
    assert [after - before for before, after in itertools.pairwise(queries)] == [1, 1, 1, 0]


# ---- errors ----

LAUNCH = "rope_ext could not launch a CUDA kernel, "
EARLIER = (
    ": earlier work on the GPU failed, in rope_ext or in other code; to find the call that launched it, rerun with "
    "CUDA_LAUNCH_BLOCKING=1"
)
OF_THIS_CALL = ": CUDA_LAUNCH_BLOCKING is set, so this call's kernel failed, unless an earlier error was caught"
LOST = "; the CUDA context is lost: restart this process"
MESSAGES = {
    "cudaErrorInvalidConfiguration": "",
    "cudaErrorNoKernelImageForDevice": f": built for architectures {ARCHITECTURES}; set TORCH_CUDA_ARCH_LIST to that of",
    "cudaErrorInsufficientDriver": ": built with CUDA 13.0, which needs a newer GPU driver; update the driver",
    "cudaErrorStreamCaptureUnsupported": ": a kernel is loaded at its first launch, which drivers before CUDA 12.3 refuse "
    "during graph capture; make the call once before the capture, or set CUDA_MODULE_LOADING=EAGER",
    "cudaErrorStreamCaptureInvalidated": ": an earlier call, in rope_ext or in other code, is not permitted",
}


def message(library, error, blocking=False, checks_positions=False):
    return library.message(error.encode(), blocking, checks_positions).decode()


@pytest.mark.parametrize("error", MESSAGES)
def test_messages_of_errors_of_a_launch(error, library):
    text = message(library, error)
    assert text.startswith(f"{LAUNCH}{error}{MESSAGES[error]}") and "earlier work" not in text
    assert message(library, error, blocking=True, checks_positions=True) == text


def test_messages_of_errors_of_earlier_work(library, headers):
    """Those after which CUDA's header says that the process must be terminated and relaunched."""
    documented = re.findall(r"/\*\*(.*?)\*/\s*(cudaError\w+) *=", (headers / "driver_types.h").read_text(), re.DOTALL)
    names = [name for text, name in documented if re.search(r"must\s[\s*]*be terminated|uncorrectable", text)]
    assert {"cudaErrorIllegalAddress", "cudaErrorAssert", "cudaErrorECCUncorrectable"} <= set(names)
    for error in names:
        assert message(library, error) == f"{LAUNCH}{error}{EARLIER}{LOST}"
        assert message(library, error, blocking=True) == f"rope_ext: a CUDA kernel failed, {error}{OF_THIS_CALL}{LOST}"


@pytest.mark.parametrize("blocking", [False, True])
def test_message_of_an_assert_where_positions_are_checked(blocking, library):
    text = message(library, "cudaErrorAssert", blocking, True)
    assert (
        "; ROPE_EXT_CHECK_POSITIONS is set: a position is outside its table, or a boundary of cu_seqlens is negative; "
        in text
    )
    assert "CHECK_POSITIONS" not in message(library, "cudaErrorAssert", blocking, False)
    assert "CHECK_POSITIONS" not in message(library, "cudaErrorIllegalAddress", blocking, True)
