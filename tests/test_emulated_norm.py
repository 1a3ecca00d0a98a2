"""The CUDA kernels that normalise heads, and differentiate it, run on the CPU: lane after lane of a warp, step by step."""

import ctypes

import pytest
import torch

from tests import norm_calls, test_norm
from tests.conftest import DTYPES, random
from tests.norm_calls import NAMES
from tests.test_emulated_cuda import GRIDS, emulated, emulator

__all__ = ["emulated"]
pytestmark = pytest.mark.devices("cpu")
emulator.rope_ext_emulated_norm_instances.restype = ctypes.c_uint64
CASES = norm_calls.cases(**GRIDS)
CASE = {**{name: values[0] for name, values in norm_calls.PARAMETERS.items()}, "heads": (4, 2)}


@pytest.mark.parametrize("case", test_norm.CASES, **NAMES)
def test_norm_has_the_bits_of_the_reference(case, emulated):
    emulated()
    test_norm.test_every_form_of_a_call_has_the_bits_of_the_reference(case)


@pytest.mark.parametrize("method", ["normalise", "differentiate"])
@pytest.mark.parametrize("case", CASES, **NAMES)
def test_norm_has_the_bits_of_the_cpu(case, method, emulated, use_kernels):
    norm_calls.check(method, case, lambda: emulated(case["multiprocessors"], case["backwards"]), use_kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 30, 256, 320, 576])
def test_norm_of_narrow_and_wide_heads(head_dim, dtype, emulated, use_kernels):
    """Heads for whose sums a warp has lanes to spare, or too few for accesses of 16 bytes."""
    for method in ("normalise", "differentiate"):
        norm_calls.check(method, {**CASE, "dtype": dtype, "channels": (head_dim, None, 0)}, emulated, use_kernels)


@pytest.mark.parametrize("channels", [(64, None, 0), (70, 12, 3)])
@pytest.mark.parametrize("weights", ["like x", "wide"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_with_the_roundings_of_eager_code(dtype, weights, channels, emulated, use_kernels):
    case = {**CASE, "dtype": dtype, "weights": weights, "channels": channels, "rounding": "eager"}
    for method in ("normalise", "differentiate"):
        norm_calls.check(method, case, emulated, use_kernels)


@pytest.mark.parametrize("channels", [(64, None, 0), (96, 32, 16)])
@pytest.mark.parametrize("tokens", [60, 90])
def test_norm_of_several_heads_per_lane(tokens, channels, emulated, use_kernels):
    """Two or four of five heads, one after another, on one multiprocessor."""
    case = {**CASE, "channels": channels, "heads": (5, 2), "dtype": torch.bfloat16, "order": "sliced"}
    norm_calls.check("normalise", case, lambda: emulated(multiprocessors=1), use_kernels, tokens * 2)


@pytest.mark.parametrize("channels", [(64, None, 0), (6, None, 0)])
@pytest.mark.parametrize("tokens", [8, 9, 40, 1100])
def test_sums_over_blocks_of_tokens_of_a_norm(tokens, channels, emulated, use_kernels):
    """Up to 138 blocks, of two batch entries; the last has 8 tokens."""
    case = {**CASE, "dtype": torch.float32, "channels": channels, "heads": (2,)}
    norm_calls.check("differentiate", case, lambda: emulated(backwards=True), use_kernels, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 10])
def test_norm_with_weights_of_any_dtype_and_stride(head_dim, weight_dtype, dtype, use_kernels):
    weight = random((head_dim, 2), weight_dtype, 5)
    for w in (
        weight[:, 0].contiguous(),
        weight[:, 1],
        weight[:1, 1].expand(head_dim),
        weight.flatten()[1 : head_dim + 1],
    ):
        norm_calls.check_weights("cuda", dtype, w, use_kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 24, 64, 18])
def test_norm_of_tokens_whose_rows_are_outside_the_table(head_dim, dtype):
    norm_calls.check_rows_outside("cuda", dtype, head_dim)


def test_every_instance_of_the_norm_kernels_has_run(emulated, use_kernels):
    """There are 4 of each dtype, by source of cos and sin, and element by element."""
    seen = 0
    for dtype in DTYPES:
        for tables, channels in (("pairs", 64), ("channels", 64), ("inv_freq", 64), ("pairs", 6)):
            case = {**CASE, "dtype": dtype, "tables": tables, "channels": (channels, None, 0)}
            for method in ("normalise", "differentiate"):
                norm_calls.check(method, case, emulated, use_kernels)
                seen |= emulator.rope_ext_emulated_norm_instances()
    assert seen == 2**32 - 1
