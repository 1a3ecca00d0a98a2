"""The CUDA kernels' machine code for compute capability 9.0, as shipped, executed on the CPU in place of its kernels.

This tests what nvcc and ptxas made of the sources: bits, bounds, alignment, and how often each byte is written, without
a GPU (tools/machine_code). A launch in which approximations are executed runs three times, see Machine.
"""

import re
from collections import Counter

import pytest
import torch

import rope_ext
from rope_ext import _introspect, _reference_angles, reference
from tests import test_angles, test_emulated_cuda, test_values
from tests.conftest import DTYPES, assert_same_bits, random
from tests.machine_code import OF_NORM, executed_by, kernels
from tests.pairwise import pairwise
from tests.test_instruction_sets import dtype_name, params_of
from tests.test_revolutions import assert_same, patterns
from tools.machine_code.launches import Machine

pytestmark = pytest.mark.devices("cpu")
GRIDS = {"multiprocessors": [1, 132]}  # with one multiprocessor a thread does many heads, with many it does one
CASES = pairwise({**test_values.PARAMETERS, **GRIDS})
CASES_FROM_INV_FREQ = pairwise({**test_angles.PARAMETERS, **GRIDS})
NAMES = {"ids": lambda case: "-".join(str(value).replace("torch.", "") for value in case.values())}
NOT_EXECUTED = re.compile(f"assert_positions_kernel|{OF_NORM.pattern}")  # the first calls printf


@pytest.fixture(scope="module")
def machine():
    return Machine(kernels())


@pytest.fixture
def executed(machine, use_kernels):
    """A function that makes the ops use the machine code. The test fails unless it ran, without an error."""
    yield from executed_by(machine, _introspect.__file__, use_kernels)


def table_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- values ----


@pytest.mark.parametrize("case", CASES, **NAMES)
def test_values_from_tables(case, executed, machine):
    before = machine.launches.total()
    executed(case["multiprocessors"])
    assert rope_ext.build_info()["cpu_isa"] == "recorded"
    test_values.test_equals_reference(case)
    assert machine.launches.total() == before + 1


@pytest.mark.parametrize("case", CASES_FROM_INV_FREQ, **NAMES)
def test_values_from_inv_freq(case, executed):
    executed(case["multiprocessors"])
    test_angles.test_inv_freq_gives_the_bits_of_the_tables(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_more_than_one_block(multiprocessors, interleaved, dtype, executed):
    """The heads of two tensors spread over several blocks and rounds of a thread; the last channels are copied."""
    executed(multiprocessors)
    q, k = random((2, 5, 40, 136), dtype), random((2, 5, 3, 136), dtype, 1)
    options = {"interleaved": interleaved, "rotary_dim": 96, "rotary_offset": 16, "inverse": True}
    cos, sin = rope_ext.RotaryEmbedding(96).tables(10, dtype=table_dtype(dtype))
    options["positions"] = torch.arange(10).reshape(2, 5)
    expected = reference.apply((q, k), cos, sin, **options)
    assert_same_bits(rope_ext.apply((q, k), cos, sin, **options), expected)
    assert_same_bits(rope_ext.apply_((q, k), cos, sin, **options), expected)


@pytest.mark.parametrize("head_dim", [10, 96, 130])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_widths_and_alignment(first, head_dim, executed):
    """As where the kernel is emulated."""
    test_emulated_cuda.test_widths_and_alignment(first, head_dim, executed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinity_denormals_zeros(dtype, executed):
    """Numbers that calculations treat apart, against the CPU's kernels; any NaN equals any other."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.tiny, info.tiny / 8, -info.tiny / 2, info.max, 1.0]
    x = torch.tensor(special, dtype=dtype).expand(2, len(special), 10, 10).transpose(2, 3).reshape(1, -1, 10, 10)
    x = torch.cat((x, x.transpose(2, 3)), dim=-1)
    tables = [random((x.shape[1], 10), table_dtype(dtype), seed) for seed in (1, 2)]
    expected = rope_ext.apply(x, *tables)
    executed()
    assert_same([rope_ext.apply(x, *tables)], [expected])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_outside_the_table_are_not_read(dtype, executed):
    """Their tokens become NaN, the others do not. The ops refuse such positions on a CPU, so this calls the kernel."""
    executed()
    x, cos, sin = random((2, 3, 2, 16), dtype), *rope_ext.RotaryEmbedding(16).tables(4, dtype=table_dtype(dtype))
    positions = torch.tensor([[0, -1, 3], [4, 1, 2**62]])
    y = torch.zeros_like(x)
    params = params_of(x, y, cos, sin, False, positions=positions)
    _introspect.rotate("recorded", params)
    outside = (positions < 0) | (positions > 3)
    assert y[outside].isnan().all() and not y[~outside].isnan().any()
    expected = reference.apply(x, cos, sin, positions=positions.clamp(0, 3))
    assert_same_bits(y[~outside], expected[~outside])

    rows = torch.zeros(2, 3, dtype=torch.int64)
    _introspect.table_rows(params, rows.data_ptr())
    assert torch.equal(rows, torch.where(outside, -2, positions))


def test_rows_outside_the_table_in_several_heads_of_a_thread(executed):
    """Four heads per thread, which are other distances apart in the result than in x."""
    executed(multiprocessors=1)
    x, (cos, sin) = random((1, 48, 8, 256), torch.float32), rope_ext.RotaryEmbedding(256).tables(40)
    y = torch.zeros(1, 8, 48, 256).transpose(1, 2)
    positions = torch.arange(48)[None]
    _introspect.rotate("recorded", params_of(x, y, cos, sin, False, positions=positions))
    assert y[:, 40:].isnan().all()
    assert_same_bits(y[:, :40].clone(), reference.apply(x[:, :40], cos, sin))


# ---- the other kernels ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_tables_have_the_bits_of_the_cpu(dtype, executed, use_kernels):
    """Both sum over batch, tensors and heads in one order, with a row per token, per head, or shared by the batch."""
    q, k = random((2, 5, 4, 16), dtype), random((2, 5, 4, 16), dtype, 1)
    weights = [random((2, 5, 4, 16), dtype, seed) for seed in (2, 3)]
    for shape in [(5, 8), (1, 5, 8), (2, 5, 16), (1, 5, 4, 8)]:
        cos, sin = (random(shape, table_dtype(dtype), seed).requires_grad_() for seed in (4, 5))

        def gradients(inputs=(cos, sin), out_interleaved=shape == (2, 5, 16)):
            y = rope_ext.apply((q, k), *inputs, inverse=True, out_interleaved=out_interleaved)
            return torch.autograd.grad(y, inputs, weights)

        use_kernels(None)
        expected = gradients()
        executed()
        assert_same_bits(gradients(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cos_and_sin_have_the_bits_of_the_cpu(dtype, executed):
    """Angles are small and large, of integer and fractional positions, and of several axes."""
    embedding = rope_ext.RotaryEmbedding(40)
    calls = [
        lambda: embedding(torch.tensor([[0, 1, -5, 2**31], [2**40, 2**53 - 1, 77, 10**6]]), dtype=dtype),
        lambda: rope_ext.cos_sin(torch.arange(6).reshape(3, 1, 2) ** 9, random((3, 20), torch.float64), dtype=dtype),
        lambda: rope_ext.cos_sin(torch.arange(9, dtype=dtype) / 7, random((20,), torch.float64) * 1e-3, dtype=dtype),
    ]
    expected = [call() for call in calls]
    executed()
    for call, wanted in zip(calls, expected):
        assert_same_bits(call(), wanted)


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_revolutions(dtype, arithmetic, executed):
    executed()
    inv_freq = patterns(dtype)[: 2 * 3 * 300].reshape(3, 2, -1).transpose(0, 1)[..., ::3]
    high, low = (torch.empty(inv_freq.shape, dtype=arithmetic) for _ in range(2))
    view = inv_freq.data_ptr(), dtype_name(inv_freq), inv_freq.shape, inv_freq.stride()
    _introspect.revolutions(*view, dtype_name(high), high.data_ptr(), low.data_ptr(), recorded=True)
    assert_same((high, low), _reference_angles.revolutions(inv_freq, arithmetic))


# ---- how much has run ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instance_of_rotate(dtype, executed, machine):
    """There are 30, by dtype, width of access (16 bytes, 4 bytes, one element) and source of cos and sin (per pair, per
    channel, from positions). The public functions reach them all."""
    executed()
    before = machine.launches.copy()
    for head_dim in (64, 20, 6):
        for width in (head_dim // 2, head_dim):
            x, tables = random((1, 2, 2, head_dim), dtype), [random((2, width), table_dtype(dtype), s) for s in (1, 2)]
            assert_same_bits(rope_ext.apply(x, *tables), reference.apply(x, *tables))
        frequencies = torch.linspace(0.1, 1, head_dim // 2, dtype=torch.float64)
        tables = rope_ext.cos_sin(torch.arange(2), frequencies, dtype=table_dtype(dtype))
        assert_same_bits(rope_ext.apply(x, inv_freq=frequencies), reference.apply(x, *tables))
    launched = {name for name in (machine.launches - before) if "rotate_kernel" in name}
    assert len(launched) >= (9 if dtype in (torch.bfloat16, torch.float16) else 6)


def test_all_of_it_has_run(request, machine):
    """Each case by a launch of its own, and each kernel of the library but those of norms."""
    selected = Counter(item.originalname for item in request.session.items if item.module is request.module)
    tests = {name for name in vars(request.module) if name.startswith("test_") and callable(vars(request.module)[name])}
    if set(selected) < tests or selected["test_values_from_tables"] < len(CASES):
        pytest.skip("only some of these tests are selected")
    assert selected["test_values_from_inv_freq"] == len(CASES_FROM_INV_FREQ)
    assert machine.launches.total() > len(CASES) + 2 * len(CASES_FROM_INV_FREQ)
    assert set(machine.launches) == {name for name in machine.kernels if not NOT_EXECUTED.search(name)}
    print(f"{machine.launches.total()} launches of {len(machine.launches)} kernels")
