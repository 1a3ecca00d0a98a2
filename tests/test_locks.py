"""Locks of the package in a process that forks while another thread holds them."""

import importlib
import os
import pkgutil
import subprocess
import sys
import threading

import pytest

import rope_ext


def locks():
    """ "module:name" of every lock that a module of the package holds."""
    found = []
    for module in pkgutil.walk_packages(rope_ext.__path__, "rope_ext."):
        if not module.name.endswith(("._ops", "._introspect")):
            values = vars(importlib.import_module(module.name)).items()
            kinds = (type(threading.Lock()), type(threading.RLock()))
            found += [f"{module.name}:{name}" for name, value in values if isinstance(value, kinds)]
    return found


def test_the_locks_of_the_package_are_found():
    assert {"rope_ext._shared_tables:_lock", "rope_ext.integrations._patch:_lock"} <= set(locks())


def printed(program):
    """The output and errors of a program, without the warning of later Pythons that a process with threads forks."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, env=environment, timeout=90, check=False, **output).stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("lock", locks())
def test_a_forked_child_finds_the_lock_free(lock):
    """A new process runs this: the child of a process with threads may do little, and this child does more."""
    module, name = lock.split(":")
    program = f"""
import os, signal, threading, time, torch
from {module} import {name} as lock
held = threading.Event()
def hold():
    with lock:
        held.set()
        time.sleep(0.5)
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(5)
    with lock:
        os._exit(0)
print(os.waitpid(child, 0)[1])
with lock:
    os._exit(0)
"""
    assert printed(program) == "0\n"


MODEL = """
class Attention(torch.nn.Module):
    def forward(self, x):
        return x
model = Attention()
def work(model):
    import warnings
    warnings.simplefilter("ignore")
    with rope_ext.patched(model):
        rope_ext.RotaryEmbedding(8).tables(50)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_patch_while_a_thread_patches():
    program = f"""
import os, signal, threading, time, torch, rope_ext
from rope_ext.integrations import _patch
torch.set_num_threads(1)
survey = _patch.Survey
def survey_of_a_large_model(*arguments):
    time.sleep(0.02)
    return survey(*arguments)
_patch.Survey = survey_of_a_large_model
{MODEL}
work(model)  # what torch does once, under locks of its own that a child may find taken
ends = threading.Event()
def patch_again_and_again():
    while not ends.is_set():
        work(model)
thread = threading.Thread(target=patch_again_and_again)
thread.start()
statuses = set()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        work(model)
        os._exit(0)
    statuses.add(os.waitpid(child, 0)[1])
ends.set()
thread.join()
print(statuses)
"""
    assert printed(program) == "{0}\n"
