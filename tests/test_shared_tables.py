"""What a process keeps between calls: tables that are shared, and frequencies; never what belongs to one caller."""

import copy
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rope_ext
from rope_ext import _kept, _rotary_apply, _rotary_tables, _shared_tables
from tests.conftest import assert_same_bits

LONGROPE = {
    "schedule": "longrope",
    "short_factor": (1.0, 1.5, 2.0, 4.0),
    "long_factor": (2.0, 4.0, 8.0, 16.0),
    "original_max_position": 64,
    "factor": 4.0,
}
UNSEEN = itertools.count(5000)  # bases for which no table is kept yet


def test_equal_rotations_share_one_table():
    """Equal frequencies share a table, whatever the arguments that made them."""
    one, other = rope_ext.RotaryEmbedding(32, base=777.0), rope_ext.RotaryEmbedding(64, rotary_dim=32, base=777)
    same = rope_ext.RotaryEmbedding(32, base=777.0, schedule="linear", factor=1)
    addresses = {rope.tables(rows)[0].data_ptr() for rope in (one, other, same) for rows in (5, 9, 7)}
    assert len({rope.tables(5)[0].data_ptr() for rope in (one, other, same)}) == 1 and len(addresses) <= 2
    assert one.tables(5)[0].data_ptr() != one.tables(5, dtype=torch.float64)[0].data_ptr()
    hf = rope_ext.RotaryEmbedding(32, base=777.0, precision="hf")
    assert one.tables(5)[0].data_ptr() != hf.tables(5)[0].data_ptr()


@pytest.mark.parametrize("precision", ["exact", "hf"])
def test_growing_keeps_existing_rows(precision):
    rope = rope_ext.RotaryEmbedding(32, base=778.0, precision=precision)
    before = rope.tables(5)
    kept = [t.clone() for t in before]
    after = rope.tables(6)
    assert after[0].shape == (6, 16) and before[0].shape == (5, 16)
    for old, copied, new in zip(before, kept, after):
        assert torch.equal(old, copied) and torch.equal(new[:5], copied)
    assert rope.tables(10)[0].data_ptr() == after[0].data_ptr()  # grown twofold at least
    assert all(torch.equal(a, b) for a, b in zip(rope.tables(300), rope(torch.arange(300))))


def test_a_table_that_a_caller_wrote_to_is_not_shared_again():
    rope = rope_ext.RotaryEmbedding(32, base=779.0)
    expected = rope.tables(5)[0].clone()
    rope.tables(4)[0].zero_()
    assert torch.equal(rope.tables(5)[0], expected)


def test_requires_grad_of_one_caller_does_not_reach_another():
    rope = rope_ext.RotaryEmbedding(32, base=780.0)
    cos, sin = (t.requires_grad_() for t in rope.tables(5))
    (cos * sin).sum().backward()
    assert cos.grad is not None and not any(t.requires_grad for t in rope.tables(5))


def test_slices_of_one_table_can_be_differentiated():
    """Layers take slices of one table as they run; the backward pass goes through all of them."""
    rope = rope_ext.RotaryEmbedding(16, base=782.0)
    rope.tables(100)
    x = torch.randn(1, 5, 2, 16, requires_grad=True)
    y, table = x, rope.tables(100)[0]
    version = table._version
    for rows in (5, 6, 5, 100, 7):
        y = rope_ext.apply(y, *rope.tables(rows))
    (y[..., :8] * rope.tables(5)[0][:, None]).sum().backward()
    assert x.grad is not None and table._version == version


def test_tables_of_inference_mode_can_be_trained_with():
    rope = rope_ext.RotaryEmbedding(8, base=781.0)
    with torch.inference_mode():
        inside = rope.tables(5)
        rope.tables(9)
    assert not any(t.is_inference() for t in (*inside, *rope.tables(5), *rope.tables(20)))
    x = torch.randn(1, 5, 2, 8, requires_grad=True)
    rope_ext.apply(x, *rope.tables(5)).sum().backward()
    assert x.grad is not None


def by_tables(rope, x):
    return rope_ext.apply(x, *rope.tables(x.shape[1]))


def by_apply(rope, x):
    return rope.apply(x)


X = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0))


def under_fake_tensors(function):
    with FakeTensorMode() as mode:
        assert type(function(mode.from_tensor(X))) is FakeTensor


def under_torch_function(function):
    class Wraps(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            made = function(*args, **kwargs or {})
            return made.as_subclass(torch.nn.Parameter) if type(made) is torch.Tensor else made

    with Wraps():
        function(X)


def under_meta(function):
    with torch.device("meta"):
        function(torch.empty(2, 7, 3, 8))


def under_inference(function):
    with torch.inference_mode():
        function(X)


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("call", [by_tables, by_apply])
@pytest.mark.parametrize("precision", ["exact", "hf"])
@pytest.mark.parametrize(
    "trace",
    [
        under_fake_tensors,
        under_torch_function,
        under_meta,
        under_inference,
        lambda f: torch.vmap(lambda x: f(x[None]))(X),
        lambda f: torch.func.grad(lambda x: f(x).sum())(X),
        lambda f: torch.func.jvp(f, (X,), (X,)),
        lambda f: torch.func.functionalize(f)(X),
        lambda f: make_fx(f, tracing_mode="symbolic")(X),
        lambda f: make_fx(f)(X),
        lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")(X),
        lambda f: torch.jit.trace(f, X),
    ],
)
def test_the_first_call_may_be_traced(trace, precision, call):
    """Tensors of a trace do not outlive it, and tables that are kept do not disturb a trace."""
    rope = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN)), precision=precision)
    trace(lambda x: call(rope, x))
    if call is by_apply and precision == "exact":
        expected = rope_ext.apply(X, inv_freq=rope.inv_freq)
    else:
        expected = rope_ext.apply(X, *rope(torch.arange(7)))
    got = call(rope, X)
    assert type(got) is torch.Tensor
    assert_same_bits(got, expected)
    leaf = X.clone().requires_grad_()
    call(rope, leaf).sum().backward()  # fails with a table made in inference mode
    trace(lambda x: call(rope, x))


def kept_bytes():
    return sum(table.nbytes for table in _shared_tables._tables.values())


@pytest.fixture
def limit():
    rope_ext.clear_tables()
    yield rope_ext.set_table_limit
    rope_ext.set_table_limit(256 << 20)


def test_tables_are_bounded_by_bytes(limit):
    """A table of dynamic_ntk has rows of its own for each length beyond the training."""
    limit(1 << 20)
    rope = rope_ext.RotaryEmbedding(64, schedule="dynamic_ntk", factor=2.0, max_position=512)
    for length in range(1000, 1020):  # 256 kB each
        cos, _ = rope.tables(length)
        assert kept_bytes() <= 1 << 20
        assert torch.equal(cos[::499], rope(torch.arange(0, length, 499), seqlen=length)[0])
    assert rope.tables(1019)[0].data_ptr() == cos.data_ptr()
    large = rope.tables(9000)[0]  # the table that was used last stays, however large
    assert rope.tables(9000)[0].data_ptr() == large.data_ptr() and len(_shared_tables._tables) == 1
    rope_ext.clear_tables()
    assert kept_bytes() == 0
    assert torch.equal(rope.tables(9000)[0], large)


def test_tables_that_were_dropped_are_freed(limit):
    """Tables are freed with the last of the tensors that share them, also where these were slices."""
    rope = rope_ext.RotaryEmbedding(64, base=float(next(UNSEEN)))
    rope.tables(50)
    first, few = rope.tables(60), rope.tables(7)
    tables = [weakref.ref(t) for table in _shared_tables._tables.values() for t in (table.cos, table.sin)]
    assert len(tables) == 2 and few[0]._base is tables[0]()
    rope_ext.clear_tables()
    assert torch.equal(few[0], first[0][:7])
    del first, few
    assert [table() for table in tables] == [None, None]


def test_many_rotations_keep_their_tables(limit):
    ropes = [rope_ext.RotaryEmbedding(64, base=1001.0 + i) for i in range(60)]
    addresses = [rope.tables(1024)[0].data_ptr() for rope in ropes]
    assert [rope.tables(1024)[0].data_ptr() for rope in ropes] == addresses


@pytest.mark.parametrize(
    ("keywords", "lengths"),
    [
        ({"schedule": "dynamic_ntk", "factor": 2.0, "max_position": 400}, range(100, 400, 50)),
        (LONGROPE, range(100, 400, 50)),
        (LONGROPE | {"original_max_position": 400}, range(100, 400, 50)),
    ],
)
def test_lengths_with_equal_rows_share_a_table(keywords, lengths, limit):
    """Up to the length of the training, and for longrope beyond it, a longer sequence only adds rows."""
    rope, x = rope_ext.RotaryEmbedding(8, **keywords), torch.randn(1, 2, 1, 8)
    for length in lengths:
        cos, _ = rope.tables(length)
        assert torch.equal(cos, rope(torch.arange(length), seqlen=length)[0])
        rope.apply(x, seqlen=length)
    assert len(_shared_tables._tables) == 1
    assert _rotary_tables._frequencies_with_key.cache_info().misses == 1 == _rotary_apply._made.cache_info().misses


@pytest.mark.parametrize("value, error", [(-1, ValueError), (2**63, ValueError), (1.5, TypeError), (True, TypeError)])
def test_invalid_limits_are_refused(value, error):
    with pytest.raises(error, match=r"^rope_ext: max_bytes must be "):
        rope_ext.set_table_limit(value)


def test_a_table_is_saved_without_the_rows_it_shares():
    """A state dict holds another tensor with the storage of the table."""
    rope = rope_ext.RotaryEmbedding(64, base=float(next(UNSEEN)))
    rope.tables(8192)
    cos, sin = rope.tables(16)
    module = torch.nn.Module()
    module.register_buffer("cos", cos)
    for saved in (cos, module.state_dict(), copy.deepcopy(module), copy.deepcopy(sin), cos.detach()):
        file = io.BytesIO()
        torch.save(saved, file)
        assert len(file.getvalue()) < 10_000
    assert len(pickle.dumps(sin)) < 10_000
    assert cos.data_ptr() == rope.tables(8192)[0].data_ptr()
    module.cos.mul_(2)  # seen through the storage of its own
    assert torch.equal(rope.tables(16)[0], rope(torch.arange(16))[0])
    assert rope.tables(16)[0].data_ptr() != cos.data_ptr()


def test_sharing_rows_is_not_a_write_to_autograd():
    """Autograd has saved rows of the table, and would refuse them after a write."""
    rope = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN)))
    rope.tables(64)
    x = torch.randn(1, 5, 2, 8, requires_grad=True)
    y = rope_ext.apply(x, *rope.tables(5)) + x * torch.cat(rope.tables(5), -1)[:, None] * rope.tables(5)[0][:, :1, None]
    rope.tables(4)
    y.sum().backward()
    assert x.grad is not None


def test_rows_are_freed_with_their_last_tensor():
    rope = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN)))
    table, rows = rope.tables(64), rope.tables(5)
    held = [weakref.ref(t) for t in (*table, *rows)]
    rope_ext.clear_tables()
    del table
    assert torch.equal(rows[0], rope(torch.arange(5))[0])
    del rows
    assert not any(tensor() is not None for tensor in held)


def test_nothing_is_built_while_a_graph_is_captured(monkeypatch):
    rope, x = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN))), torch.ones(1, 2, 1, 8)
    other = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN)))
    rope.apply(x), rope.tables(5), other.frequencies()
    monkeypatch.setattr(_rotary_apply, "dispatch_modes", lambda: 1)  # rope.apply asks _kept, as on a GPU
    monkeypatch.setattr(_kept, "CPU", torch.device("meta"))  # _kept asks every device but this one
    monkeypatch.setattr(_kept, "is_capturing", lambda device: True)
    monkeypatch.setattr(_kept, "_read_by_graphs", held := [])
    rope.apply(x), rope.tables(4), rope.apply(x), rope.tables(3)
    assert len(held) == 2  # kept until the process ends: a graph reads their addresses
    with pytest.raises(RuntimeError, match=r"^rope_ext: tables must be built before a CUDA graph is captured"):
        rope.tables(50)
    with pytest.raises(RuntimeError, match=r"^rope_ext: frequencies must be computed before a CUDA graph is captured"):
        other.apply(x)


def test_a_signal_handler_clears_the_tables(monkeypatch):
    """A signal handler runs in the thread that holds the lock."""
    rope = rope_ext.RotaryEmbedding(8, base=float(next(UNSEEN)))
    expected = rope.tables(5)[0]
    monkeypatch.setattr(_shared_tables._Table, "is_untouched", lambda table: rope_ext.clear_tables() is None)
    assert torch.equal(rope.tables(5)[0], expected)
    assert torch.equal(rope.tables(9)[0][:5], expected)


def test_a_signal_handler_calls_while_tables_are_built():
    """A new process runs this: signals come between any two steps of a call, and a lock may be taken already."""
    program = """
import faulthandler, signal, torch, rope_ext
faulthandler.dump_traceback_later(60, exit=True)
def handler(*_):
    global base
    base += 1
    rope_ext.RotaryEmbedding(8, base=base).tables(5)
    signal.setitimer(signal.ITIMER_REAL, 0.002)
base, steps = 5000.0, 0
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.002)
while base < 5200:
    steps += 1
    rope = rope_ext.RotaryEmbedding(8, base=10000.0 + steps)
    assert torch.equal(rope.tables(5)[0], rope(torch.arange(5))[0])
signal.setitimer(signal.ITIMER_REAL, 0)
print("ended")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=90)
    assert done.stdout + done.stderr[-300:] == "ended\n"


def test_first_calls_while_the_interpreter_ends():
    """Functions of atexit run when no thread can be started any more."""
    program = """
import atexit, torch, rope_ext
@atexit.register
def work():
    rope = rope_ext.RotaryEmbedding(8, base=123.0)
    print(torch.equal(rope.tables(5)[0], rope(torch.arange(5))[0]), rope.apply(torch.ones(1, 2, 1, 8)).shape)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout + done.stderr == "True torch.Size([1, 2, 1, 8])\n"


def test_tables_from_many_threads():
    ropes = [rope_ext.RotaryEmbedding(16, base=2000.0 + i) for i in range(3)]
    expected = [rope(torch.arange(3000)) for rope in ropes]
    wrong = []

    def work(seed):
        for step in range(60):
            which, rows = (seed + step) % 3, 1 + (seed * 131 + step * 577) % 3000
            cos, sin = ropes[which].tables(rows)
            if not (torch.equal(cos, expected[which][0][:rows]) and torch.equal(sin, expected[which][1][:rows])):
                wrong.append((which, rows))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.devices("cuda")
def test_tables_and_cuda_graphs():
    """A graph reads the addresses it was captured with: its table is built before the capture and outlives it."""
    rope, late = rope_ext.RotaryEmbedding(16, base=783.0), rope_ext.RotaryEmbedding(16, base=784.0)
    cos, _ = rope.tables(100)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = rope.tables(100)[0] * 2
    expected = cos.double().mul(2).float()
    del cos
    rope.tables(1000)
    kept = [rope_ext.RotaryEmbedding(16, base=3000.0 + i).tables(100) for i in range(40)]
    graph.replay()
    assert torch.equal(doubled, expected) and kept
    message = "rope_ext: tables must be built before a CUDA graph is captured"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        late.tables(100)
    assert torch.equal(late.tables(100)[0], late.tables(100, device="cpu")[0].cuda())
