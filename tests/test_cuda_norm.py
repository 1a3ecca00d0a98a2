"""Norms on a GPU are bit-identical to those on the CPU, forward and backward, also with many blocks of threads."""

import pytest
import torch

import rope_ext
from tests import norm_calls
from tests.conftest import DEVICES, DTYPES, assert_same_bits, moved, random
from tests.norm_calls import NAMES, Call
from tests.test_emulated_norm import CASE

if "cuda" not in DEVICES:
    pytest.skip("no GPU with kernels for it", allow_module_level=True)

pytestmark = pytest.mark.devices("cuda")
METHODS = ["normalise", "differentiate"]


def check_on_both_devices(method, case, tokens=5):
    """The CPU's call is made of the same numbers: `random` gives them on every device."""
    got = getattr(Call(case, tokens), method)()
    with torch.device("cpu"):
        expected = getattr(Call(case, tokens), method)()
    assert_same_bits([t.cpu() for t in got], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", norm_calls.cases(), **NAMES)
def test_same_bits_as_the_cpu(case, method):
    check_on_both_devices(method, case)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(128, None, 0), (80, None, 0), (256, None, 0), (512, None, 0), (70, 12, 3)])
def test_same_bits_as_the_cpu_at_the_size_of_a_model(channels, dtype, method):
    """2 x 1,100 tokens: many blocks of every kernel, whose sums over tokens fill several rows."""
    check_on_both_devices(method, {**CASE, "dtype": dtype, "channels": channels, "heads": (8, 2)}, 1100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_weights_of_any_dtype_and_stride(weight_dtype, dtype):
    x, weight = random((2, 5, 3, 64), dtype), random((64, 2), weight_dtype, 5)
    table = norm_calls.arithmetic(dtype)
    cos, sin = (random((5, 32), table, seed) for seed in (1, 2))
    for w in (weight[:, 0].contiguous(), weight[:, 1], weight[:1, 1].expand(64), weight.flatten()[1:65]):
        given = {"norm": [w], "eps": 1e-3}
        got = [t for (t,) in torch.ops.rope_ext.norm_rotate([x], cos, sin, **given)]
        here = moved(([x], cos, sin, given), "cpu")
        expected = [t for (t,) in torch.ops.rope_ext.norm_rotate(*here[:3], **here[3])]
        assert_same_bits([t.cpu() for t in got], expected)


def test_weight_gradients_are_the_same_in_every_call():
    case = {**CASE, "dtype": torch.bfloat16, "channels": (128, None, 0), "heads": (8, 2)}
    call = Call(case, 1100)
    expected = call.differentiate()
    for _ in range(5):
        assert_same_bits(call.differentiate(), expected)


@pytest.mark.parametrize("method", METHODS)
def test_norms_are_captured_in_a_graph(method):
    """No call waits for the GPU or allocates outside torch's pool."""
    call = Call({**CASE, "dtype": torch.float32}, 33)
    expected = getattr(call, method)()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = getattr(call, method)()
    graph.replay()
    torch.cuda.synchronize()
    assert rope_ext.build_info()["cuda"]
    assert_same_bits([t.cpu() for t in got], [t.cpu() for t in expected])
