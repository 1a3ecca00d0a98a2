"""The machine code of the CUDA kernels that normalise heads and differentiate it, executed as in test_machine_code.py."""

from collections import Counter

import pytest
import torch

from rope_ext import _introspect
from tests import norm_calls, test_norm
from tests.conftest import DTYPES, random
from tests.machine_code import OF_NORM, executed_by, kernels
from tests.norm_calls import NAMES
from tests.test_emulated_norm import CASE
from tools.machine_code.launches import Machine

pytestmark = pytest.mark.devices("cpu")
CASES = norm_calls.cases(multiprocessors=[1, 132])


@pytest.fixture(scope="module")
def machine():
    return Machine(kernels())


@pytest.fixture
def executed(machine, use_kernels):
    """A function that makes the ops use the machine code. The test fails unless it ran, without an error."""
    yield from executed_by(machine, _introspect.__file__, use_kernels)


@pytest.mark.parametrize("case", test_norm.CASES, **NAMES)
def test_norm_has_the_bits_of_the_reference(case, executed):
    executed()
    test_norm.test_every_form_of_a_call_has_the_bits_of_the_reference(case)


@pytest.mark.parametrize("method", ["normalise", "differentiate"])
@pytest.mark.parametrize("case", CASES, **NAMES)
def test_norm_has_the_bits_of_the_cpu(case, method, executed, use_kernels):
    norm_calls.check(method, case, lambda: executed(case["multiprocessors"]), use_kernels)


@pytest.mark.parametrize(("dtype", "channels"), [(torch.bfloat16, (64, None, 0)), (torch.float32, (96, 32, 16))])
def test_norm_of_several_heads_per_lane(channels, dtype, executed, use_kernels):
    case = {**CASE, "channels": channels, "heads": (5, 2), "dtype": dtype}
    norm_calls.check("normalise", case, lambda: executed(multiprocessors=1), use_kernels, tokens=120)


@pytest.mark.parametrize("tokens", [9, 1030])
def test_sums_over_blocks_of_tokens_of_a_norm(tokens, executed, use_kernels):
    """2 and 129 blocks, of two batch entries; the last has 2 or 12 tokens."""
    case = {**CASE, "dtype": torch.float32, "heads": (1,), "wanted": "weights"}
    norm_calls.check("differentiate", case, executed, use_kernels, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 10])
def test_norm_with_weights_of_any_dtype_and_stride(head_dim, dtype, executed, use_kernels):
    for weight_dtype in DTYPES:
        weight = random((head_dim, 2), weight_dtype, 5)
        executed()
        norm_calls.check_weights("recorded", dtype, weight[:, 0].contiguous(), use_kernels)
    executed()
    norm_calls.check_weights("recorded", dtype, weight[:, 1], use_kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [24, 18])
def test_norm_of_tokens_whose_rows_are_outside_the_table(head_dim, dtype, executed):
    executed()
    norm_calls.check_rows_outside("recorded", dtype, head_dim)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instance_of_the_norm_kernels(dtype, executed, machine, use_kernels):
    """There are 4 of each method, by source of cos and sin, and element by element, and one that adds up blocks."""
    before = machine.launches.copy()
    for tables, channels in (("pairs", 64), ("channels", 64), ("inv_freq", 64), ("pairs", 6)):
        case = {**CASE, "dtype": dtype, "tables": tables, "channels": (channels, None, 0), "heads": (2,)}
        for method in ("normalise", "differentiate"):
            norm_calls.check(method, case, executed, use_kernels)
    assert len(machine.launches - before) == 9


def test_all_of_it_has_run(request, machine):
    """Each case, and each kernel."""
    selected = Counter(item.originalname for item in request.session.items if item.module is request.module)
    tests = {name for name in vars(request.module) if name.startswith("test_") and callable(vars(request.module)[name])}
    if set(selected) < tests or selected["test_norm_has_the_bits_of_the_cpu"] < 2 * len(CASES):
        pytest.skip("only some of these tests are selected")
    assert set(machine.launches) >= {name for name in machine.kernels if OF_NORM.search(name)}
    print(f"{machine.launches.total()} launches of {len(machine.launches)} kernels")
