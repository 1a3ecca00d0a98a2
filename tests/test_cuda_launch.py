"""How kernels are launched: on the current stream and device, without synchronising, and as CUDA graphs require."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DEVICES, assert_same_bits, moved, random, random_integers

if "cuda" not in DEVICES:
    pytest.skip("no GPU with kernels for it", allow_module_level=True)

pytestmark = pytest.mark.devices("cuda")
BUSY = 10**9  # cycles of torch.cuda._sleep: half a second, the calls below take a hundredth
BF16, F32 = torch.bfloat16, torch.float32


def problem(dtype=BF16, seed=0):
    """(q, k), cos, sin, positions (batch, seqlen)"""
    q, k = random((2, 64, 8, 128), dtype, seed), random((2, 64, 2, 128), dtype, seed + 1)
    cos, sin = rope_ext.RotaryEmbedding(128).tables(256)
    return (q, k), cos, sin, random_integers(256, (2, 64), seed=seed)


def calls():
    """{name: call} for every way into the kernels. Each call returns the tensors that it created or wrote."""
    (q, k), cos, sin, positions = problem()
    out, y, packed = (torch.empty_like(q), torch.empty_like(k)), q.clone(), q[0].clone()
    boundaries, offsets = torch.tensor([0, 10, 60], dtype=torch.int32), torch.tensor([3, 100])
    leaf, g = q.clone().requires_grad_(), random(q.shape, BF16, 7)
    rows = [t[None, :64].clone().requires_grad_() for t in (cos, sin)]
    return {
        "functional": lambda: rope_ext.apply((q, k), cos, sin),
        "positions": lambda: rope_ext.apply((q, k), cos, sin, positions=positions),
        "offset": lambda: rope_ext.apply(q, cos, sin, offset=offsets),
        "cu_seqlens": lambda: rope_ext.apply(packed, cos, sin, layout="thd", cu_seqlens=boundaries),
        "out": lambda: rope_ext.apply((q, k), cos, sin, positions=positions, out=out),
        "in place": lambda: rope_ext.apply_(y.copy_(q), cos, sin, positions=positions),
        "gradient of x": lambda: torch.autograd.grad(rope_ext.apply(leaf, cos, sin, positions=positions), leaf, g),
        "gradient of tables": lambda: torch.autograd.grad(rope_ext.apply(leaf, *rows), (leaf, *rows), g),
    }


# ---- streams ----


@pytest.mark.parametrize("name", calls())
def test_runs_on_the_current_stream(name):
    """The default stream is busy: work that ran there, or waited for it, would not be finished."""
    call, stream = calls()[name], torch.cuda.Stream()
    expected = moved(call(), "cpu")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        before = call()  # loads kernels and allocates memory, for which the driver may wait
        torch.cuda.synchronize()
        [t.zero_() for t in before]  # so that the memory does not hold a result already
        del before
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY)
    with torch.cuda.stream(stream):
        got = moved(call(), "cpu")  # waits for `stream` only
    assert not torch.cuda.default_stream().query()  # otherwise this test shows nothing
    assert_same_bits(got, expected)


def test_waits_for_what_was_queued_before():
    """x is written on the same stream, late."""
    (x, _), cos, sin, positions = problem()
    source, x = x, torch.zeros_like(x)
    expected = reference.apply(source, cos, sin, positions=positions)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY // 10)
        x.copy_(source)
        y = rope_ext.apply(x, cos, sin, positions=positions)
    stream.synchronize()
    assert_same_bits(y, expected)


def test_the_host_never_waits():
    """Waits of PyTorch raise an error; after any other wait the stream would be idle at the end."""
    ways = calls()
    results = [call() for call in ways.values()]
    del results  # all of it is in the allocator's cache now: new memory from the driver could wait
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [call() for call in ways.values()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query()
    assert len(results) == len(ways)


# ---- memory ----


RESULTS = {"functional": 2, "positions": 2, "offset": 1, "cu_seqlens": 1, "out": 0, "in place": 0, "gradient of x": 2}


@pytest.mark.parametrize(("name", "tensors"), RESULTS.items())
def test_allocates_results_and_nothing_else(name, tensors):
    """One allocation per returned tensor; the gradient of x needs y as well."""
    call = calls()[name]
    call()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    call()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == tensors


# ---- order ----


def test_repeated_launches_give_the_same_bits():
    """So do sums of gradients: blocks finish in any order, and must not add in that order."""
    x, g = random((4, 512, 8, 128), F32).requires_grad_(), random((4, 512, 8, 128), F32, 1)
    tables = [random((1, 512, 128), F32, seed).requires_grad_() for seed in (2, 3)]
    first, *others = (torch.autograd.grad(rope_ext.apply(x, *tables), (x, *tables), g) for _ in range(10))
    for other in others:
        assert_same_bits(other, first)


def test_calls_leave_nothing_behind_for_the_next():
    """Any two calls, in either order, give what each gives alone."""
    ways = calls()
    alone = {name: [t.detach().clone() for t in call()] for name, call in ways.items()}
    for pair in itertools.permutations(ways, 2):
        for name in pair:
            assert_same_bits([t.detach() for t in ways[name]()], alone[name])


# ---- CUDA graphs ----


def captured(call):
    """(the graph of call, what it returned in it)"""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a warm-up on a side stream, as PyTorch's manual asks, initialises everything
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@pytest.mark.parametrize("mode", ["functional", "out", "in place", "gradient of x"])
def test_replay_with_other_values(mode):
    """Everything that is in memory may change between replays: x, tables and positions."""
    (x, _), cos, sin, positions = problem()
    keywords = {"positions": positions, "offset": 2}
    rows = random((300, 64), F32, 5), random((300, 64), F32, 6)
    cos, sin, out, g = rows[0].clone(), rows[1].clone(), torch.empty_like(x), random(x.shape, BF16, 8)
    leaf = x.clone().requires_grad_()
    graph, y = captured(
        {
            "functional": lambda: rope_ext.apply(x, cos, sin, **keywords),
            "out": lambda: rope_ext.apply(x, cos, sin, **keywords, out=out),
            "in place": lambda: rope_ext.apply_(x, cos, sin, **keywords),
            "gradient of x": lambda: torch.autograd.grad(rope_ext.apply(leaf, cos, sin, **keywords), leaf, g)[0],
        }[mode]
    )
    for seed in (10, 20):
        (other, _), _, _, other_positions = problem(seed=seed)
        x.copy_(other)
        g.copy_(other)
        positions.copy_(other_positions)
        cos.copy_(rows[0] * seed)
        graph.replay()
        at = {"positions": other_positions, "offset": 2, "transposed": mode == "gradient of x"}
        assert_same_bits(y, reference.apply(other, rows[0] * seed, rows[1], **at))


def test_replay_with_other_boundaries():
    x, (cos, sin) = random((20, 3, 8), F32), (random((20, 4), F32, seed) for seed in (1, 2))
    cu_seqlens = torch.tensor([0, 5, 20], dtype=torch.int32)
    graph, y = captured(lambda: rope_ext.apply(x, cos, sin, layout="thd", cu_seqlens=cu_seqlens))
    for boundaries in ([0, 5, 20], [0, 0, 7], [0, 19, 19]):
        cu_seqlens.copy_(torch.tensor(boundaries, dtype=torch.int32))
        graph.replay()
        assert_same_bits(y, reference.apply(x, cos, sin, layout="thd", cu_seqlens=cu_seqlens))


def test_compiled_into_a_graph():
    """torch.compile with CUDA graphs."""

    def function(q, k, cos, sin, positions):
        q, k = rope_ext.apply((q * 2, k), cos, sin, positions=positions)
        return q + 1, k

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # warm-up, recording, replays
        (q, k), cos, sin, positions = problem(F32, seed)
        assert_same_bits(compiled(q, k, cos, sin, positions), function(q, k, cos, sin, positions))


FIRST_USE = """
import torch, rope_ext
def calls(x, cos, sin, frequencies, positions, weights):
    tables = [t[None].clone().requires_grad_() for t in (cos, sin)]
    return [
        rope_ext.apply(x, cos, sin),
        rope_ext.apply(x, cos, sin, interleaved=True, positions=positions),
        rope_ext.apply(x[..., :6], cos[:, :3], sin[:, :3]),
        rope_ext.apply(x, inv_freq=frequencies, positions=positions),
        *torch.autograd.grad(rope_ext.apply(x, *tables), tables, weights),
    ]
x, weights = (torch.randn(2, 5, 3, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
frequencies = torch.linspace(0.1, 1, 32, dtype=torch.float64)
arguments = x, *rope_ext.cos_sin(torch.arange(5), frequencies), frequencies, torch.tensor([3, 0, 4, 1, 1]), weights
expected = calls(*arguments)
arguments = [t.cuda() for t in arguments]
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    got = calls(*arguments)
graph.replay()
assert all(map(torch.equal, [t.cpu() for t in got], expected))
"""


def test_first_use_inside_a_capture():
    """Kernels are loaded at their first launch. A process of its own, in which none has been launched."""
    environment = {**os.environ, "CUDA_MODULE_LOADING": "LAZY"}
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_USE], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


# ---- more than one GPU ----


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_a_gpu_that_is_not_the_current_one():
    x, cos, sin, positions = problem()
    expected = reference.apply(x, cos, sin, positions=positions)
    x1, cos1, sin1, positions1 = moved((x, cos, sin, positions), "cuda:1")
    x1 = tuple(t.requires_grad_() for t in x1)
    got = rope_ext.apply(x1, cos1, sin1, positions=positions1)
    torch.autograd.grad(got, x1, [torch.ones_like(t) for t in got])
    torch.cuda.synchronize("cuda:1")
    assert torch.cuda.current_device() == 0 and {t.device.index for t in got} == {1}
    assert_same_bits([t.detach().to("cuda:0") for t in got], expected)
    with pytest.raises(ValueError, match=r"^rope_ext: cos must be on the device of x"):
        rope_ext.apply(x1, cos, sin1)
