"""rope_ext.compat.vllm.register, with a package that has the registry and the classes of vLLM 0.32, in a few lines.

Where vLLM itself can be imported the same tests run on it.
"""

import importlib
import pathlib
import re
import sys
import types

import pytest
import torch

from rope_ext.compat import vllm
from tests.conftest import random, random_integers

pytestmark = pytest.mark.devices("cpu")
HEAD_SIZE, ROWS, HEADS, KEY_HEADS, TOKENS = 16, 32, 3, 2, 7
CUSTOM_OP = """
from torch import nn

op_registry_oot = {}

class CustomOp(nn.Module):
    def __new__(cls, *args, **kwargs):
        return super().__new__(op_registry_oot.get(cls.__name__, cls))

    def forward(self, *args):
        return self.forward_cpu(*args)

    @classmethod
    def register_oot(cls, name):
        def decorator(kind):
            assert name not in op_registry_oot, f"Duplicate op name: {name}"
            kind.name = name
            op_registry_oot[name] = kind
            return kind
        return decorator
"""
BASE = """
import torch
from vllm.model_executor.custom_op import CustomOp

class RotaryEmbeddingBase(CustomOp):
    def __init__(self, head_size, rotary_dim, rows, base, is_neox_style, dtype):
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        angles = torch.arange(rows)[:, None] * self.inv_freq(base)
        self.register_buffer("cos_sin_cache", torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype))

    def inv_freq(self, base):
        return base ** -(torch.arange(0, self.rotary_dim, 2) / self.rotary_dim)

    def _match_cos_sin_cache_dtype(self, query):
        return self.cos_sin_cache.to(query.device, query.dtype)

class RotaryEmbedding(RotaryEmbeddingBase):
    @staticmethod
    def forward_static(positions, x, head_size, cache, is_neox):
        heads = x.unflatten(-1, (-1, head_size))
        cos, sin = cache[positions][..., None, :].chunk(2, dim=-1)
        rotated, passed = heads[..., : cache.shape[-1]], heads[..., cache.shape[-1] :]
        x1, x2 = rotated.chunk(2, dim=-1) if is_neox else rotated.unflatten(-1, (-1, 2)).unbind(-1)
        y = (x1 * cos - x2 * sin, x2 * cos + x1 * sin)
        y = torch.cat(y, dim=-1) if is_neox else torch.stack(y, dim=-1).flatten(-2)
        return torch.cat((y, passed), dim=-1).flatten(-2)

    def forward_native(self, positions, query, key=None):
        how = self.head_size, self._match_cos_sin_cache_dtype(query), self.is_neox_style
        return tuple(x if x is None else self.forward_static(positions, x, *how) for x in (query, key))

    def forward_cpu(self, positions, query, key=None):
        return self.forward_native(positions, query, key)

    forward_cuda = forward_cpu
"""
OTHERS = """
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding, RotaryEmbeddingBase

class Gemma4RotaryEmbedding(RotaryEmbedding):
    def inv_freq(self, base):
        return super().inv_freq(base) / 2

class FourierRotaryEmbedding(RotaryEmbedding):
    def forward_native(self, positions, query, key=None):
        return query, key

class SubclassOfFourier(FourierRotaryEmbedding):
    pass

class MRotaryEmbedding(RotaryEmbeddingBase):
    def forward_cpu(self, positions, query, key=None):
        return query, key
"""
LAYERS = "vllm.model_executor.layers.rotary_embedding"
MODULES = {
    "vllm": "",
    "vllm.model_executor": "",
    "vllm.model_executor.custom_op": CUSTOM_OP,
    "vllm.model_executor.layers": "",
    f"{LAYERS}.base": BASE,
    f"{LAYERS}.others": OTHERS,
    LAYERS: f"from {LAYERS}.others import *",
}


@pytest.fixture(params=["stand-in", "vLLM"])
def layers(request, monkeypatch):
    """The module of rotary embeddings, with nothing registered out of tree; what a test registers goes with it."""
    if request.param == "vLLM":
        found = pytest.importorskip(LAYERS, exc_type=ImportError, reason="vLLM cannot be imported")
    else:
        for name in MODULES:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for name, source in MODULES.items():
            exec(source, vars(sys.modules[name]))
        found = sys.modules[LAYERS]
    monkeypatch.setattr(importlib.import_module("vllm.model_executor.custom_op"), "op_registry_oot", {})
    if request.param == "stand-in":
        yield found
    else:  # makes no embedding without a configuration
        config = importlib.import_module("vllm.config")
        with config.set_current_vllm_config(config.VllmConfig()):
            yield found


def arguments(dtype):
    """(positions, query, key): the latter are slices of one tensor, which is the fourth."""
    packed = random((TOKENS, (HEADS + 2 * KEY_HEADS) * HEAD_SIZE), dtype)
    query, key, _ = packed.split([n * HEAD_SIZE for n in (HEADS, KEY_HEADS, KEY_HEADS)], dim=-1)
    return random_integers(ROWS, (TOKENS,)), query, key, packed


def made(layers, name="RotaryEmbedding", rotary_dim=HEAD_SIZE, is_neox=True, dtype=torch.float32):
    return getattr(layers, name)(HEAD_SIZE, rotary_dim, ROWS, 1e4, is_neox, dtype)


@pytest.mark.parametrize("name", ["RotaryEmbedding", "Gemma4RotaryEmbedding"])
@pytest.mark.parametrize(("rotary_dim", "is_neox", "dtype"), [(16, True, torch.float32), (8, False, torch.bfloat16)])
def test_the_bits_of_forward_native_in_place(layers, name, rotary_dim, is_neox, dtype):
    made_before = made(layers, name, rotary_dim, is_neox, dtype)
    positions, query, key, packed = arguments(dtype)
    expected = made_before.forward_native(positions, query.clone(), key.clone())
    values = packed[:, -KEY_HEADS * HEAD_SIZE :].clone()
    assert set(vllm.register("eager")) >= {"RotaryEmbedding", "Gemma4RotaryEmbedding"}
    ours = made(layers, name, rotary_dim, is_neox, dtype)
    assert isinstance(ours, getattr(layers, name)) and type(ours).__name__ == f"RopeExt{name}"
    assert type(made_before) is getattr(layers, name)
    for forward in (ours, ours.forward_cpu, ours.forward_cuda, ours.forward_native):
        positions, query, key, packed = arguments(dtype)
        result = forward(positions, query, key)
        assert result[0] is query and result[1] is key
        assert all(map(torch.equal, result, expected)) and torch.equal(packed[:, -values.shape[1] :], values)
        positions, query, _, _ = arguments(dtype)
        assert forward(positions, query) == (query, None) and torch.equal(query, expected[0])


def test_once_is_that_of_rotary_embedding(layers):
    vllm.register()
    ours = made(layers, dtype=torch.bfloat16)
    positions, query, key, _ = arguments(torch.bfloat16)
    ours(positions, query, key)
    expected = arguments(torch.bfloat16)
    vllm.rotary_embedding(positions, *expected[1:3], HEAD_SIZE, ours.cos_sin_cache, True)
    assert torch.equal(query, expected[1]) and torch.equal(key, expected[2])


def test_classes_with_a_forward_of_their_own_stay(layers):
    names = vllm.register()
    stay = {"FourierRotaryEmbedding", "SubclassOfFourier", "MRotaryEmbedding", "DeepseekScalingRotaryEmbedding"}
    stay &= vars(layers).keys()
    assert "FourierRotaryEmbedding" in stay and not stay & set(names)
    assert set(sys.modules["vllm.model_executor.custom_op"].op_registry_oot) == set(names)


def test_a_second_call(layers):
    """vLLM loads plug-ins more than once; the last rounding counts."""
    names = vllm.register()
    assert vllm.register("eager") == names
    ours = made(layers, dtype=torch.bfloat16)
    positions, query, key, _ = arguments(torch.bfloat16)
    expected = layers.RotaryEmbedding.forward_native(ours, positions, query.clone(), key.clone())
    assert all(map(torch.equal, ours(positions, query, key), expected))


def test_a_class_of_another_package_stays(layers):
    class Other(layers.RotaryEmbedding):
        pass

    layers.RotaryEmbedding.register_oot(name="Gemma4RotaryEmbedding")(Other)
    registry = sys.modules["vllm.model_executor.custom_op"].op_registry_oot
    message = "rope_ext: Gemma4RotaryEmbedding must not be registered already, got <class "
    with pytest.raises(
        ValueError, match=f"^{re.escape(message)}.*Other'>: remove the plug-in that registered it from VLLM_PLUGINS$"
    ):
        vllm.register()
    assert registry == {"Gemma4RotaryEmbedding": Other}


def test_a_device_without_kernels(layers, monkeypatch):
    vllm.register()
    ours = made(layers)
    positions, query, key, _ = arguments(torch.float32)
    monkeypatch.setattr(vllm, "DEVICES", ("cuda",))
    before, result = query.clone(), ours.forward_native(positions, query, key)
    assert torch.equal(query, before) and not torch.equal(result[0], before)


def test_forward_native_compiles_into_one_graph(layers):
    vllm.register("eager")
    ours = made(layers)

    def layer(positions, packed):
        query, key, value = packed.split([n * HEAD_SIZE for n in (HEADS, KEY_HEADS, KEY_HEADS)], dim=-1)
        return *ours.forward_native(positions, query, key), value

    positions, _, _, packed = arguments(torch.float32)
    expected = layer(positions, packed.clone())
    torch._dynamo.reset()
    for tokens in (TOKENS, 5):
        result = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)(
            positions[:tokens], packed[:tokens].clone()
        )
        assert all(torch.equal(a, b[:tokens]) for a, b in zip(result, expected))


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"^rope_ext: rounding must be 'once' or 'eager', got 'never'$"):
        vllm.register("never")
    for name in ("vllm", LAYERS):  # as where it is not installed
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^rope_ext: vllm must be installed \(pip install vllm\), got "):
        vllm.register()


def test_the_package_declares_no_entry_point():
    """vLLM loads every plug-in that is installed: a user decides."""
    text = (pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert "[project]" in text and "entry-points" not in text and "entry_points" not in text
