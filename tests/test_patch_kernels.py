"""The route that transformers offers, the package `kernels`: rope_ext as the layer "rotary_pos_emb"."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rope_ext
from rope_ext.integrations import kernels
from tests.newer_kernels import NEWER_KERNELS

pytestmark = pytest.mark.devices("cpu")
missing = [name for name in ("kernels", "transformers") if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} must be installed")

BEGIN = """
import torch
import transformers
from kernels import Mode, kernelize

import rope_ext
from rope_ext.integrations.kernels import register
from tests.conftest import assert_same_bits
from tests.test_patch_behaviour import Graphs, built, function, gradients, rotations, tokens

ids = tokens()

def rotates(model):
    with rotations() as calls:
        model(ids)
    return bool(calls)
"""

# Four of the functions that share the name rotary_pos_emb: halves, entries per pair, the other direction, another dtype.
FAMILIES = """
for family in "llama", "gpt_oss", "nanochat", "modernbert-decoder":
    model = built(family)
    before = gradients(model, ids), model(ids).logits
    if family != "modernbert-decoder":  # its modules do not hold the function, so that kernelize cannot find it
        register()
        kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
        assert_same_bits(gradients(model, ids), before[0])
        assert_same_bits(model(ids).logits, before[1])
    assert rotates(model) == (family != "modernbert-decoder"), family

graphs = Graphs()
model = built()
assert_same_bits(torch.compile(model, fullgraph=True, backend=graphs)(ids).logits, model(ids).logits)
assert graphs.rotating == 1 and graphs.others == 0

with rope_ext.patched(model) as report:
    assert [entry.reason for entry in report.left_alone] == ["already replaced by the package kernels"], report
    assert rotates(model)
"""

# A function may be recognised while a graph is traced. Then come use_kernels of transformers, each mode, and rounding.
USE_KERNELS = """
model = built()
expected = model(ids).logits
register()
model.set_use_kernels(True)
graphs = Graphs()
assert_same_bits(torch.compile(model, fullgraph=True, backend=graphs)(ids).logits, expected)
assert graphs.rotating == 1 and graphs.others == 0
assert_same_bits(model.train()(ids).logits, expected)
assert rotates(model)

other = built("glm")
assert not rotates(other)
with rope_ext.patched(other):
    assert rotates(other)

register(rounding="once")
for mode in (Mode.INFERENCE, Mode.TRAINING, Mode.INFERENCE | Mode.TORCH_COMPILE, Mode.TRAINING | Mode.TORCH_COMPILE):
    once = built("qwen3")
    kernelize(once, mode=mode, device="cpu")
    assert rotates(once)
    got = once(ids).logits
    del function(once).__dict__["forward"]
    assert not rotates(once)
    assert not torch.equal(got, once(ids).logits)
    with rope_ext.patched(once, rounding="once"):
        assert_same_bits(got, once(ids).logits)

register(Mode.TRAINING)
kernelize(once, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
assert not rotates(once)
kernelize(once, mode=Mode.TRAINING, device="cpu")
assert rotates(once)
"""

# These share one process. Where kernelize has no kernel it sets a function's own forward in its place; patch sees that.
OTHERS = """
model = built()
kernelize(model, mode=Mode.INFERENCE, device="cpu")
assert "forward" in function(model).__dict__
with rope_ext.patched(model):
    assert rotates(model)
assert not rotates(model)

# A function that says it is rotary_pos_emb and is not known; a tensor that apply does not take.
from kernels import use_kernel_forward_from_hub, use_kernelized_func

@use_kernel_forward_from_hub("rotary_pos_emb")
def theirs(q, k, cos, sin, unsqueeze_dim=1):
    return q + k, cos + sin

class Layer(torch.nn.Module):
    def forward(self, *args):
        return theirs(*args)

register()
layer = kernelize(use_kernelized_func(theirs)(Layer)(), mode=Mode.INFERENCE, device="cpu")
assert theirs.forward.__func__.__module__ == "rope_ext.integrations.kernels"
assert [t.tolist() for t in layer(*map(torch.tensor, (1.0, 2.0, 3.0, 4.0)))] == [3.0, 7.0]

model = built()
q, table = torch.randn(1, 1, 5, 8), torch.randn(1, 5, 1)
expected = function(model)(q, q, table, table)
kernelize(model, mode=Mode.INFERENCE, device="cpu")
assert_same_bits(function(model)(q, q, table, table), expected)

# The choice on CUDA.
import kernels.layer.repos
from kernels.layer.globals import _KERNEL_MAPPING
from rope_ext.integrations import kernels as ours
from transformers.integrations.hub_kernels import register_kernel_mapping_transformers

register()
assert "cuda" not in _KERNEL_MAPPING.get()["rotary_pos_emb"] or rope_ext.build_info()["cuda"]
ours.build_info = lambda: {"cuda": True}
kernels.layer.repos._find_capability = lambda: 90
for step in register, register_kernel_mapping_transformers, register:
    step()
    chosen = _KERNEL_MAPPING.get()["rotary_pos_emb"]["cuda"].repos
    assert len(chosen) == 4 and all(type(repository) is ours.Repository for repository in chosen.values())
"""


@installed
@pytest.mark.parametrize("program", ["FAMILIES", "USE_KERNELS", "OTHERS"])
def test_route(program):
    folders = Path(rope_ext.__file__).parents[1], Path(__file__).parents[1]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", NEWER_KERNELS + BEGIN + globals()[program]],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"^rope_ext: rounding must be 'once' or 'eager', got 'twice'"):
        kernels.register(rounding="twice")
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ImportError, match=r"^rope_ext: kernels must be installed \(pip install kernels\), got "):
        kernels.register()
