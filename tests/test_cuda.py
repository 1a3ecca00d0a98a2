"""CUDA and the CPU are bit-identical, forward and backward; and what concerns both devices at once.

The other files run on a GPU too (conftest.py); here and in the other test_cuda files is what only a GPU can get wrong.
"""

import re

import pytest
import torch

import rope_ext
import rope_ext.profile
from tests.conftest import DEVICES, DTYPES, assert_same_bits, in_memory, moved, random, random_integers
from tests.pairwise import pairwise
from tests.test_derivatives import CASES as DERIVATIVES
from tests.test_derivatives import problem
from tests.test_values import PARAMETERS, inputs_of

if "cuda" not in DEVICES:
    pytest.skip("no GPU with kernels for it", allow_module_level=True)

pytestmark = pytest.mark.devices("cuda")
CASES = pairwise({**PARAMETERS, "index": [torch.int32, torch.int64]})
NAME = {"ids": lambda case: "-".join(str(v).replace("torch.", "") for v in case.values())}


@pytest.mark.parametrize("case", CASES, **NAME)
def test_same_bits_as_the_cpu(case):
    x, cos, sin, keywords = inputs_of(case)
    for name in ("positions", "offset"):
        if isinstance(keywords.get(name), torch.Tensor):
            keywords[name] = keywords[name].to(case["index"])
    expected = rope_ext.apply(*moved((x, cos, sin), "cpu"), **moved(keywords, "cpu"))
    if case["mode"] == "in place":
        got = rope_ext.apply_(x, cos, sin, **keywords)
    else:
        out = tuple(in_memory(torch.full_like(t, torch.nan), case["memory"]) for t in x)
        got = rope_ext.apply(x, cos, sin, **keywords, out=out if case["mode"] == "out" else None)
    assert_same_bits([t.cpu() for t in got], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_same_bits_as_the_cpu_at_the_size_of_a_model(dtype, layout):
    """q and k of 2 x 1024 tokens in both memory orders, both pairings: more than one block of every kernel."""
    q, k = random((2, 1024, 8, 128), dtype, 0), random((2, 1024, 2, 128), dtype, 1)
    x = (q, k) if layout == "bshd" else (q.transpose(1, 2), k.transpose(1, 2).contiguous())
    table = torch.float64 if dtype == torch.float64 else torch.float32
    tables = rope_ext.RotaryEmbedding(128).tables(1024, dtype=table)
    for interleaved in (False, True):
        options = {"layout": layout, "interleaved": interleaved}
        expected = rope_ext.apply(*moved((x, *tables), "cpu"), **options)
        assert_same_bits([t.cpu() for t in rope_ext.apply(x, *tables, **options)], expected)


# ---- gradients ----


def whole(t):
    """A leaf of whole numbers, 1 to 15 either way: float32 sums of their products are exact, in any order."""
    return (t.detach().sign() * (t.detach().abs() * 4).ceil().clamp(max=15)).requires_grad_()


def check_gradients(inputs, keywords):
    """Both devices give bit-identical gradients of inputs, which are (*x, cos, sin)."""
    found = []
    for device in ("cpu", "cuda"):
        *x, cos, sin = here = moved(inputs, device)
        y = rope_ext.apply(x, cos, sin, **moved(keywords, device))
        with torch.device(device):
            weights = [whole(random(t.shape, t.dtype, seed=4)).detach() for t in y]
        found.append([t.cpu() for t in torch.autograd.grad(y, here, weights)])
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", DERIVATIVES, **NAME)
def test_gradients_equal_those_of_the_cpu(case, dtype):
    _, (q, k, cos, sin), keywords = problem(case)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    check_gradients([whole(t.to(d)) for t, d in ((q, dtype), (k, dtype), (cos, table), (sin, table))], keywords)


@pytest.mark.parametrize("shape", [(1024, 64), (1, 1024, 64), (2, 1024, 64), (2, 1024, 8, 64), (1, 1024, 1, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_at_the_size_of_a_model(dtype, shape):
    """Many blocks sum over heads, batch and tokens. The sum of 2 x 1024 x 8 x 2 products of up to 225 is below 2^24."""
    keywords = {"positions": random_integers(1024, (2, 1024))} if len(shape) == 2 else {}
    tables = [whole(random(shape, torch.float32, seed)) for seed in (1, 2)]
    check_gradients([whole(random((2, 1024, 8, 128), dtype)), *tables], keywords)


# ---- both devices in one call ----


def arguments():
    x, table = torch.ones(2, 5, 3, 8), torch.ones(9, 4)
    return {"x": (x, x.clone()), "cos": table, "sin": table.clone()}


@pytest.mark.parametrize("name", ["cos", "sin", "positions", "offset", "cu_seqlens", "out"])
def test_an_argument_on_the_cpu_is_refused(name):
    given = {**arguments(), "positions": torch.arange(5), "offset": torch.arange(2), "out": arguments()["x"]}
    if name == "cu_seqlens":
        given = {**arguments(), "x": torch.ones(5, 3, 8), "layout": "thd"}
        given[name] = torch.tensor([0, 5], dtype=torch.int32)
    given[name] = moved(given[name], "cpu")
    with pytest.raises(ValueError, match=f"^rope_ext: {name} must be on the device of x"):
        rope_ext.apply(**given)


def test_tensors_of_x_on_two_devices_are_refused():
    given = arguments()
    for x in (given["x"][0], given["x"][1].cpu()), (given["x"][0].cpu(), given["x"][1]):
        with pytest.raises(ValueError, match=r"^rope_ext: every tensor of x must be on the device of x"):
            rope_ext.apply(x, given["cos"], given["sin"])


def test_x_on_the_cpu_with_tables_on_the_gpu_is_refused():
    given = arguments()
    for function in (rope_ext.apply, rope_ext.apply_):
        with pytest.raises(ValueError, match=r"^rope_ext: cos must be on the device of x"):
            function(given["x"][0].cpu(), given["cos"], given["sin"])


# ---- the package ----


def test_build_info_of_cuda():
    info = rope_ext.build_info()
    assert re.match(r"\d+\.\d+", info["cuda"])
    assert all(re.match(r"\d+\.\d", name) for name in info["cuda_architectures"])


def test_profile_on_the_gpu():
    case = {"seqlen": 64, "heads": (4, 2), "head_dim": 64, "dtype": torch.bfloat16}
    found = rope_ext.profile.profile(**case, device="cuda", rounds=2)
    copy, functional, out, in_place, _ = found.rows
    assert all(row.seconds > 0 for row in found.rows)
    assert (copy.peak_bytes, out.peak_bytes, in_place.peak_bytes) == (0, 0, 0)
    assert functional.peak_bytes >= 64 * 6 * 64 * 2  # the allocator rounds up
