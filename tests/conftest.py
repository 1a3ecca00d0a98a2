"""Shared by all tests: the devices they run on, random inputs in every layout and memory order, bitwise comparison.

Every test runs on the CPU and, where there is a GPU with kernels for it, once more with "cuda" as torch's default
device. The marker `devices` names the devices of a test that is not about all of them. ROPE_EXT_REQUIRE_CUDA=1: a
session that would not run on a GPU fails. ROPE_EXT_DEVICES=cuda: so does it, and the runs on the CPU are left out.
"""

import ctypes
import os

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import rope_ext
from rope_ext import _table_widths
from rope_ext._debug_modes import checked
from rope_ext._torch.library import native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


WITHOUT_KERNELS = "rope_ext was built without CUDA kernels"


def why_no_cuda():
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return None if rope_ext.build_info().get("cuda_architectures") else WITHOUT_KERNELS


DEVICES = ("cpu",) if why_no_cuda() else ("cpu", "cuda")
ONLY_CUDA = os.environ.get("ROPE_EXT_DEVICES", "")


def pytest_configure():
    torch.set_num_threads(2)  # large tensors take the parallel path
    if ONLY_CUDA not in ("", "cuda"):
        raise pytest.UsageError(f"ROPE_EXT_DEVICES must be cuda or unset, got {ONLY_CUDA!r}")
    for name, value in (("ROPE_EXT_REQUIRE_CUDA", "1"), ("ROPE_EXT_DEVICES", "cuda")):
        if os.environ.get(name) == value and "cuda" not in DEVICES:
            raise pytest.UsageError(f"{name}={value} requires a GPU, but {why_no_cuda()}")


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("devices")
    names = [name for name in DEVICES if marker is None or name in marker.args]
    if names != ["cpu"]:  # without a GPU the names of tests do not mention the device
        metafunc.parametrize("device", names, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if not ONLY_CUDA:
        return
    on_cuda, others = [], []
    for item in items:
        runs_there = hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"
        (on_cuda if runs_there else others).append(item)
    if not on_cuda:
        raise pytest.UsageError("ROPE_EXT_DEVICES=cuda leaves no test: none of those selected runs on a GPU")
    config.hook.pytest_deselected(items=others)
    items[:] = on_cuda


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """New tensors, and the tensors among the globals of the test's module, are on the device of this run."""
    name = getattr(request, "param", "cpu")
    if name == "cpu":
        yield name
        return
    for variable, value in list(vars(request.module).items()):
        if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
            monkeypatch.setattr(request.module, variable, moved(value, name))
    torch.set_default_device(name)
    yield name
    torch.set_default_device(None)


@pytest.fixture
def looks(monkeypatch):
    """The debug mode ROPE_EXT_CHECK_TABLES, which is otherwise chosen when rope_ext is imported."""
    monkeypatch.setattr(rope_ext.ops, "call_op", checked(rope_ext.ops.call_op, [_table_widths.check]))


@pytest.fixture
def use_kernels():
    """A function that makes the ops use the CPU kernels at an address until the test ends; None: those of the build."""
    native.rope_ext_use_cpu_kernels.argtypes = (ctypes.c_void_p,)
    yield native.rope_ext_use_cpu_kernels
    native.rope_ext_use_cpu_kernels(None)


@pytest.fixture(scope="session")
def other_library(tmp_path_factory):
    """_ops.so with its ops in namespaces.NAMESPACE."""
    from tests import namespaces  # here, because tests on a GPU have no tools

    return namespaces.other_library(tmp_path_factory.mktemp("other_library"))


@pytest.fixture(scope="module")
def one_thread():
    """For many small tensors, where a second thread would cost most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def moved(value, device):
    """value with its tensors on another device, all strides as they were; meta tensors stay."""

    def move(t):
        if t.device.type in (device, "meta"):
            return t
        elements = t.untyped_storage().nbytes() // t.element_size()
        memory = t.detach().as_strided((elements,), (1,), 0).to(device)
        copy = memory.as_strided(t.shape, t.stride(), t.storage_offset())
        return copy.detach().requires_grad_(t.requires_grad)  # detached: not a view for autograd

    return tree_map_only(torch.Tensor, move, value)


def shape_of(layout, batch, seqlen, heads, head_dim):
    sizes = {"b": batch, "s": seqlen, "t": seqlen, "h": heads, "d": head_dim}
    return tuple(sizes[axis] for axis in layout)


def random(shape, dtype, seed=0):
    """Standard normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return values.to(dtype).to(torch.get_default_device())


def random_integers(end, shape, dtype=torch.int64, seed=0):
    """Integers in [0, end), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(end, shape, generator=generator, dtype=dtype, device="cpu")
    return values.to(torch.get_default_device())


def in_memory(x, order):
    """A copy of x with strides that models produce."""
    if order == "contiguous":
        return x.clone()
    if order == "transposed":  # the axes before the last in another order in memory
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if order == "sliced":  # a slice of fused q, k, v
        packed = torch.cat([random(x.shape, x.dtype, seed=9), x, x], dim=-1)
        return packed[..., x.shape[-1] : 2 * x.shape[-1]]
    if order == "last stride 2":
        return torch.stack((x, x), dim=-1).flatten(-2)[..., ::2]
    assert order == "reversed strides"  # channels outermost
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def lazy_negation(t):
    """t, which PyTorch reads as minus the imaginary part of a complex tensor."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


def same_bits(a, b):
    """Whether all bits are equal. On a GPU any two NaN are: conversion to 16 bits gives another NaN than on a CPU."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits_a, bits_b = (t.contiguous().view(BITS[t.dtype]) for t in (a, b))
    same = bits_a == bits_b
    if torch.get_default_device().type != "cpu":
        same |= a.isnan() & b.isnan()
    return bool(same.all())


def assert_same_bits(got, expected):
    got, expected = ([t] if isinstance(t, torch.Tensor) else t for t in (got, expected))
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert same_bits(a, b), (
            f"differs in {(a != b).sum()} of {a.numel()} elements, by up to {(a.double() - b.double()).abs().max()}"
        )


@pytest.fixture(scope="session")
def ranks():
    """Four processes of a gloo group (tests/ranks.py), which all tests of DTensors share."""
    from tests.ranks import Ranks

    found = Ranks(4)
    yield found
    found.stop()
