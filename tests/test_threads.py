"""torch.set_num_threads is obeyed wherever `apply` is called from, and a forked process gets its result."""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.devices("cpu"),
    pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them"),
]

SETUP = """
import os, threading, torch, rope_ext
torch.set_num_threads(1)  # so that PyTorch starts none
cos, sin = rope_ext.RotaryEmbedding(64)(torch.arange(4096))  # tables() starts a thread, which may still run
x = torch.ones(1, 4096, 8, 64)  # 8 MiB: work for many threads
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
"""


def printed(program):
    result = subprocess.run(
        [sys.executable, "-c", SETUP + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "4"},
    )
    return result.stdout.strip()


@pytest.mark.parametrize("threads", [1, 3])
def test_set_num_threads_is_obeyed(threads):
    program = f"torch.set_num_threads({threads}); rope_ext.apply(x, cos, sin); print(count() - before)"
    assert printed(program) == str(threads - 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_set_num_threads_is_obeyed_in_a_new_thread(threads):
    program = f"""
torch.set_num_threads({threads})
def run():
    before = count()
    rope_ext.apply(x, cos, sin)
    print(count() - before)
thread = threading.Thread(target=run); thread.start(); thread.join()
"""
    assert printed(program) == str(threads - 1)


def test_set_num_threads_is_obeyed_in_backward():
    program = """
torch.set_num_threads(1)
x.requires_grad_(); cos.requires_grad_()
torch.autograd.grad(rope_ext.apply(x, cos, sin), (x, cos), x)
print(count() - before)
"""
    assert printed(program) == "0"


def test_small_calls_stay_on_their_thread():
    assert printed("torch.set_num_threads(3); rope_ext.apply(x[:, :64], cos, sin); print(count() - before)") == "0"


def test_a_forked_child_gets_the_result():
    program = """
torch.set_num_threads(3)
y = rope_ext.apply(x, cos, sin)  # the parent has threads, which the child has not
child = os.fork()
if child == 0:
    z = rope_ext.apply(x, cos, sin)
    torch.set_num_threads(1)  # PyTorch's own ops would wait for ever
    os._exit(0 if torch.equal(z, y) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert printed(program) == "0"


def test_a_forked_child_computes_cos_and_sin():
    program = """
torch.set_num_threads(3)
positions, inv_freq = torch.arange(4096), torch.ones(32)
first = rope_ext.cos_sin(positions, inv_freq)  # the parent has threads, which the child has not
child = os.fork()
if child == 0:
    again = rope_ext.cos_sin(positions, inv_freq)
    torch.set_num_threads(1)  # PyTorch's own ops would wait for ever
    os._exit(0 if all(map(torch.equal, first, again)) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert printed(program) == "0"


def test_a_forked_child_finds_the_lock_of_the_pool_free():
    """A mutex that another thread holds at the fork would stay locked in the child."""
    program = """
import signal
stop = threading.Event()
def others():
    while not stop.is_set():
        rope_ext.set_output_pool(1 << 30)
        kept = [rope_ext.apply(x, cos, sin) for _ in range(8)]
        del kept
        rope_ext.set_output_pool(0)  # frees under the lock
thread = threading.Thread(target=others)
thread.start()
states = []
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        rope_ext.set_output_pool(1 << 20)
        rope_ext.apply(x, cos, sin)
        os._exit(0)
    states.append(os.waitpid(child, 0)[1])
stop.set(); thread.join()
print(any(states))
"""
    assert printed(program) == "False"
