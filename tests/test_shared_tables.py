"""What a process keeps between calls: tables that are shared, and frequencies; never what belongs to one caller."""

import itertools
import threading

import pytest
import torch
from conftest import assert_same_bits, random
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rope_ext

UNSEEN = itertools.count(5000)  # bases of which nothing is kept yet


def test_equal_rotations_share_one_table():
    """By what the frequencies are, not by how they are called."""
    one, other = rope_ext.RotaryEmbedding(32, base=777.0), rope_ext.RotaryEmbedding(64, rotary_dim=32, base=777)
    same = rope_ext.RotaryEmbedding(32, base=777.0, schedule="linear", factor=1)
    addresses = {rope.tables(rows)[0].data_ptr() for rope in (one, other, same) for rows in (5, 9, 7)}
    assert len({rope.tables(5)[0].data_ptr() for rope in (one, other, same)}) == 1 and len(addresses) <= 2
    assert one.tables(5)[0].data_ptr() != one.tables(5, dtype=torch.float64)[0].data_ptr()
    hf = rope_ext.RotaryEmbedding(32, base=777.0, precision="hf")
    assert one.tables(5)[0].data_ptr() != hf.tables(5)[0].data_ptr()


@pytest.mark.parametrize("precision", ["exact", "hf"])
def test_growing_keeps_the_rows_there_are(precision):
    rope = rope_ext.RotaryEmbedding(32, base=778.0, precision=precision)
    before = rope.tables(5)
    kept = [t.clone() for t in before]
    after = rope.tables(6)
    assert after[0].shape == (6, 16) and before[0].shape == (5, 16)
    for old, copied, new in zip(before, kept, after):
        assert torch.equal(old, copied) and torch.equal(new[:5], copied)
    assert rope.tables(10)[0].data_ptr() == after[0].data_ptr()  # grown twofold at least
    assert all(torch.equal(a, b) for a, b in zip(rope.tables(300), rope(torch.arange(300))))


def test_a_table_somebody_wrote_into_is_not_handed_out_again():
    rope = rope_ext.RotaryEmbedding(32, base=779.0)
    wanted = rope.tables(5)[0].clone()
    rope.tables(4)[0].zero_()
    assert torch.equal(rope.tables(5)[0], wanted)


def test_requires_grad_of_a_caller_stays_with_it():
    rope = rope_ext.RotaryEmbedding(32, base=780.0)
    cos, sin = (t.requires_grad_() for t in rope.tables(5))
    (cos * sin).sum().backward()
    assert cos.grad is not None and not any(t.requires_grad for t in rope.tables(5))


def test_tables_are_bounded():
    from rope_ext import _shared_tables

    for i in range(_shared_tables.MOST + 5):
        rope_ext.RotaryEmbedding(8, base=1001.0 + i).tables(3)
    assert len(_shared_tables._tables) == _shared_tables.MOST


def test_tables_of_inference_mode_can_be_trained_with():
    rope = rope_ext.RotaryEmbedding(8, base=781.0)
    with torch.inference_mode():
        inside = rope.tables(5)
        rope.tables(9)
    assert not any(t.is_inference() for t in (*inside, *rope.tables(5), *rope.tables(20)))
    x = torch.randn(1, 5, 2, 8, requires_grad=True)
    rope_ext.apply(x, *rope.tables(5)).sum().backward()
    assert x.grad is not None


def traced_by_fake_tensors(rope):
    with torch._subclasses.FakeTensorMode():
        return rope.tables(7)


def traced_by_vmap(rope):
    return torch.vmap(lambda x: x * rope.tables(7)[0])(torch.ones(3, 7, 4))


def traced_by_grad(rope):
    return torch.func.grad(lambda x: (x * rope.tables(7)[0]).sum())(torch.ones(7, 4))


def traced_by_jvp(rope):
    x = torch.ones(7, 4)
    return torch.func.jvp(lambda x: x * rope.tables(7)[0], (x,), (x,))


def traced_by_functionalize(rope):
    return torch.func.functionalize(lambda x: x * rope.tables(7)[0])(torch.ones(7, 4))


def traced_by_make_fx(rope):
    return make_fx(lambda x: x * rope.tables(7)[0], tracing_mode="symbolic")(torch.ones(7, 4))


def traced_by_compile(rope):
    return torch.compile(lambda x: x * rope.tables(7)[0], fullgraph=True, backend="aot_eager")(torch.ones(7, 4))


def traced_on_meta(rope):
    with torch.device("meta"):
        return rope.tables(7)


@pytest.mark.parametrize(
    "trace",
    [
        traced_by_fake_tensors,
        traced_by_vmap,
        traced_by_grad,
        traced_by_jvp,
        traced_by_functionalize,
        traced_by_make_fx,
        traced_by_compile,
        traced_on_meta,
    ],
)
@pytest.mark.parametrize("first", ["trace", "table"])
def test_traces_and_tables_do_not_meet(trace, first):
    """What a trace makes does not outlive it, and a table that is there does not disturb the trace."""
    rope = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN)))
    if first == "table":
        rope.tables(7)
    trace(rope)
    cos, sin = rope.tables(7)
    assert type(cos) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(cos)
    wanted = rope(torch.arange(7))
    assert torch.equal(cos, wanted[0]) and torch.equal(sin, wanted[1])
    assert torch.equal(cos * 2, wanted[0] + wanted[0])


def test_tables_from_many_threads():
    ropes = [rope_ext.RotaryEmbedding(16, base=2000.0 + i) for i in range(3)]
    wanted = [rope(torch.arange(3000)) for rope in ropes]
    wrong = []

    def work(seed):
        for step in range(60):
            which, rows = (seed + step) % 3, 1 + (seed * 131 + step * 577) % 3000
            cos, sin = ropes[which].tables(rows)
            if not (torch.equal(cos, wanted[which][0][:rows]) and torch.equal(sin, wanted[which][1][:rows])):
                wrong.append((which, rows))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.devices("cuda")
def test_tables_and_cuda_graphs():
    """A graph reads the addresses it was captured with: a table is built before, and lives as long."""
    rope, late = rope_ext.RotaryEmbedding(16, base=783.0), rope_ext.RotaryEmbedding(16, base=784.0)
    cos, _ = rope.tables(100)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = rope.tables(100)[0] * 2
    wanted = cos.double().mul(2).float()
    del cos
    rope.tables(1000)
    kept = [rope_ext.RotaryEmbedding(16, base=3000.0 + i).tables(100) for i in range(40)]
    graph.replay()
    assert torch.equal(doubled, wanted) and kept
    message = "rope_ext: tables must be built before a CUDA graph is captured"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        late.tables(100)
    assert torch.equal(late.tables(100)[0], late.tables(100, device="cpu")[0].cuda())


@pytest.mark.devices("cpu")
def test_a_call_under_fake_tensors_leaves_no_trace():
    rope, x = rope_ext.RotaryEmbedding(8, base=12345.0), random((1, 2, 3, 8), torch.float32)
    with FakeTensorMode() as mode:
        assert rope.apply(mode.from_tensor(x)).shape == x.shape
    expected = rope_ext.apply(x, inv_freq=rope.inv_freq)
    assert_same_bits(rope.apply(x), expected)
    with FakeTensorMode() as mode:  # what a real call kept is not mixed in
        assert type(rope.apply(mode.from_tensor(x))) is FakeTensor
    assert_same_bits(rope.apply(x), expected)
