"""Devices without float64, such as MPS: what needs it is computed on the CPU and moved, bit-identical to the CPU's.

A mode plays such a device under the name "lazy", which torch knows and nothing implements. It keeps the tensors of that
device on the CPU, and raises when one of them, or one on "meta", is float64. Nothing else of a real device is tested.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import rope_ext
from rope_ext import RotaryEmbedding, angles, frequencies
from tests.conftest import assert_same_bits

pytestmark = pytest.mark.devices("cpu")


class LazyTensor(torch.Tensor):
    """A tensor on the device "lazy", whose elements are those of the tensor `on_cpu`."""

    @staticmethod
    def __new__(cls, on_cpu):
        options = {"strides": on_cpu.stride(), "dtype": on_cpu.dtype, "device": "lazy"}
        return torch.Tensor._make_wrapper_subclass(cls, on_cpu.shape, **options)

    def __init__(self, on_cpu):
        self.on_cpu = on_cpu

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("outside of the mode")


class WithoutFloat64(TorchDispatchMode):
    """Plays a device "lazy"; refuses float64 there and on "meta"."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        takes_lazy = any(isinstance(t, LazyTensor) for t in tree_leaves((args, kwargs)))
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        args, kwargs = tree_map_only(LazyTensor, lambda t: t.on_cpu, (args, kwargs))
        if to == "lazy":
            kwargs["device"] = "cpu"
        returns_lazy = to == "lazy" or (takes_lazy and to is None)
        result = func(*args, **kwargs)
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.dtype == torch.float64 and (returns_lazy or t.device.type == "meta"):
                raise TypeError(f"{func} made float64 on a device that has none")
        return tree_map_only(torch.Tensor, LazyTensor, result) if returns_lazy else result


def to_lazy(t):
    return t.to("lazy")


YARN = {"schedule": "yarn", "factor": 4.0, "original_max_position": 64}
ROPES = [
    RotaryEmbedding(16),
    RotaryEmbedding(16, precision="hf"),
    RotaryEmbedding(16, rotary_dim=8, **YARN),
    RotaryEmbedding(16, schedule="axial"),
    RotaryEmbedding(16, schedule="dynamic_ntk", factor=2.0, max_position=4),
]
POSITIONS = [
    torch.tensor([[0, 1, 70_000], [5, 4, -3]]),
    torch.tensor([0.5, 3.25, 1e6]),
    torch.tensor([[[3, 4]], [[5, 6]]], dtype=torch.int32),
]


def calls(move):
    """{name: call} of every function that computes angles, on tensors that `move` has moved."""
    inv_freq, positions = torch.tensor([1.0, 0.3, 1e-4]), POSITIONS[0]
    high, low, per_axis = angles.revolutions(inv_freq)
    return {
        **{
            f"rope {i} {j}": lambda rope=rope, p=p: rope(move(p), seqlen=8)
            for i, rope in enumerate(ROPES)
            for j, p in enumerate(POSITIONS)
        },
        "rope in bfloat16": lambda: ROPES[0](move(positions), dtype=torch.bfloat16),
        "revolutions": lambda: angles.revolutions(move(inv_freq))[:2],
        "revolutions of axes": lambda: angles.revolutions(move(torch.ones(2, 1, 3)))[:2],
        "cos_sin": lambda: rope_ext.cos_sin(move(positions), move(inv_freq), 1.5),
        "cos_sin of revolutions": lambda: rope_ext.cos_sin(
            move(positions), angles.Revolutions(move(high), move(low), per_axis)
        ),
        "cos_sin of axes": lambda: rope_ext.cos_sin(move(POSITIONS[2]), move(torch.full((2, 1, 3), 0.1))),
        "xpos_scale": lambda: [frequencies.xpos_scale(move(positions), 8, center=move(torch.tensor(7)))],
    }


@pytest.mark.parametrize("name", calls(to_lazy))
def test_a_device_without_float64_gets_the_bits_of_the_cpu(name):
    expected = calls(lambda t: t)[name]()
    with WithoutFloat64():
        found = calls(to_lazy)[name]()
        assert all(t.device.type == "lazy" for t in found)
        found = [t.cpu() for t in found]
    assert_same_bits(found, expected)


@pytest.mark.parametrize("name", calls(to_lazy))
def test_meta_stands_for_any_device(name):
    expected = calls(lambda t: t)[name]()
    with WithoutFloat64():
        found = calls(lambda t: t.to("meta"))[name]()
    assert [(t.shape, t.dtype, t.device.type) for t in found] == [(t.shape, t.dtype, "meta") for t in expected]


def test_tables_of_a_device_without_float64():
    expected = ROPES[0].tables(5)
    with WithoutFloat64():
        for t in ROPES[0].tables(5, device="meta"):
            assert t.shape == (5, 8) and t.dtype == torch.float32
        cos, sin = (t.cpu() for t in ROPES[0].tables(5, device="lazy"))
    assert_same_bits([cos, sin], expected)


def test_frequencies_on_meta_keep_their_derivatives():
    inv_freq = torch.ones(3, device="meta", requires_grad=True)
    with WithoutFloat64():
        cos, _ = rope_ext.cos_sin(torch.ones(2, device="meta"), inv_freq)
        (grad,) = torch.autograd.grad(cos.sum(), inv_freq)
        rotated = rope_ext.apply(torch.ones(1, 2, 1, 6, device="meta"), inv_freq=inv_freq)
        rotated.sum().backward()
    assert grad.shape == inv_freq.grad.shape == (3,)


def test_the_mode_refuses_float64():
    """Otherwise the tests above show nothing."""
    with WithoutFloat64():
        for device in ("lazy", "meta"):
            with pytest.raises(TypeError, match="made float64 on a device that has none"):
                torch.ones(2, device=device).double()
            with pytest.raises(TypeError, match="made float64 on a device that has none"):
                torch.ones(2, dtype=torch.float64).to(device)
        assert torch.ones(2, device="lazy").mul(2).cpu().tolist() == [2, 2]
