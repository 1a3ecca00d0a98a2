"""Errors of torch, of modes and of subclasses are raised unchanged, or quoted in a sentence that fits the call."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rope_ext
from tests.conftest import lazy_negation, random

pytestmark = pytest.mark.filterwarnings("ignore:.*(nested|quantize|CSR).*:UserWarning")
X, COS, SIN = random((1, 3, 2, 8), torch.float32), *rope_ext.RotaryEmbedding(8).tables(3)
on_cpu = pytest.mark.devices("cpu")


# ---- errors of modes and subclasses ----


class Refusal(TorchDispatchMode):
    """Every op raises one error."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise self.error


def leaf():
    return X.clone().requires_grad_()


def quantized(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
REFUSED_BY_A_MODE = {  # name: (x, call, error). A rule of rope_ext would fit x, but the error has another cause.
    "inference tensor": (torch.inference_mode()(X.clone), rope_ext.apply, OUT),
    "sparse": (X.to_sparse, rope_ext.apply, NotImplementedError("mine")),
    "quantized": (lambda: quantized(X), rope_ext.apply, RuntimeError("mine")),
    "nested": (lambda: torch.nested.nested_tensor([X[0]]), rope_ext.apply, NotImplementedError("mine")),
    "negation that autograd writes": (lambda: lazy_negation(leaf() * 1), rope_ext.apply_, TypeError("mine")),
}


@on_cpu
@pytest.mark.parametrize("name", REFUSED_BY_A_MODE)
def test_an_error_of_a_mode_is_not_replaced(name):
    make, function, error = REFUSED_BY_A_MODE[name]
    x = make()
    with pytest.raises(type(error)) as caught, Refusal(error):
        function(x, COS, SIN)
    assert caught.value is error


class Elsewhere(torch.Tensor):
    """A tensor of a device that no build has. Its subclass raises `error`."""

    @staticmethod
    def __new__(cls, error, **policy):
        t = torch.Tensor._make_wrapper_subclass(cls, X.shape, dtype=X.dtype, device="xpu", **policy)
        t.error = error
        return t

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise args[0][0].error if isinstance(args[0], list) else ZeroDivisionError


WORDS = "Could not run 'rope_ext::rotate' with arguments from the 'XPU' backend"
WITHOUT_KERNEL = NotImplementedError(f"{WORDS}. This could be because the operator doesn't exist for this backend")


def test_an_error_of_a_subclass_is_not_replaced():
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError) as caught:
        rope_ext.apply(Elsewhere(error), COS, SIN)
    assert caught.value is error
    with pytest.raises(NotImplementedError) as caught:  # reading its layout raises another error
        rope_ext.apply(Elsewhere(WITHOUT_KERNEL, dispatch_layout=True), COS, SIN)
    assert caught.value is WITHOUT_KERNEL


def test_a_device_without_kernels():
    rule = r"x must be on a device of this build \(cpu.*\), got xpu"
    with pytest.raises(NotImplementedError, match=rf"^rope_ext: {rule} \(torch: {WORDS}\)$"):
        rope_ext.apply(Elsewhere(WITHOUT_KERNEL), COS, SIN)


# ---- tensors of other kinds ----


@on_cpu
@pytest.mark.parametrize(
    ("make", "sentence", "of_torch"),
    [
        (X.to_sparse, "x must be a strided tensor, got torch.sparse_coo; use to_dense()", "'SparseCPU' backend"),
        (X.to_mkldnn, "x must be a strided tensor, got torch._mkldnn; use to_dense()", "'MkldnnCPU' backend"),
        (
            lambda: quantized(X),
            "x must be an ordinary tensor, got a quantized tensor; use dequantize()",
            "'QuantizedCPU' backend",
        ),
        (
            lambda: torch.nested.nested_tensor([X[0]]),
            "x must be an ordinary tensor, got a nested tensor; use unbind()",
            "'NestedTensorCPU' backend",
        ),
        (
            lambda: torch.nested.nested_tensor([X[0]], layout=torch.jagged),
            'x must be an ordinary tensor, got a nested tensor; use values() as x, with layout="thd" and'
            " cu_seqlens=x.offsets().int()",
            "rope_ext.rotate",
        ),
        (
            torch.nn.UninitializedParameter,
            "x must be an ordinary tensor, got an UninitializedParameter",
            "Call `forward` with a dummy batch",
        ),
    ],
    ids=["sparse", "mkldnn", "quantized", "nested", "jagged", "uninitialized"],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_tensors_of_other_kinds_are_refused(make, sentence, of_torch, recorded):
    with pytest.raises(NotImplementedError) as caught:
        rope_ext.apply(make(), COS.clone().requires_grad_(recorded), SIN)
    ours, _, theirs = str(caught.value).partition(" (torch: ")
    assert ours == f"rope_ext: {sentence}"
    assert of_torch in theirs.replace("table_rows", "rotate") and len(theirs) < 350


@on_cpu
def test_the_advice_for_jagged_tensors_works():
    jagged = torch.nested.nested_tensor([X[0], X[0, :2]], layout=torch.jagged)
    with pytest.raises(NotImplementedError, match=r'values\(\) .* layout="thd" and cu_seqlens=x\.offsets\(\)\.int\(\)'):
        rope_ext.apply(jagged, COS, SIN)
    packed = rope_ext.apply(jagged.values(), COS, SIN, layout="thd", cu_seqlens=jagged.offsets().int())
    rotated, expected = torch.nested.nested_tensor_from_jagged(packed, jagged.offsets()), rope_ext.apply(X, COS, SIN)[0]
    for got, whole in zip(rotated.unbind(), (expected, expected[:2])):
        assert torch.equal(got, whole)


@pytest.fixture(scope="module")
def mesh():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@on_cpu
def test_dtensors_beside_tensors_are_refused_and_local_map_takes_them(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.experimental import local_map

    x = distribute_tensor(X, mesh, [Shard(2)])
    cos, sin = (distribute_tensor(t, mesh, [Replicate()]) for t in (COS, SIN))
    weight = distribute_tensor(torch.ones(X.shape[-1]), mesh, [Replicate()])
    positions = distribute_tensor(torch.arange(X.shape[1]), mesh, [Replicate()])
    calls = {
        "x must be a DTensor when cos is one": lambda: rope_ext.apply(X, cos, sin),
        "x must be a DTensor when sin is one": lambda: rope_ext.apply_(X.clone(), COS, sin),
        "x must be a DTensor when positions is one": lambda: rope_ext.apply(X, COS, SIN, positions=positions),
        "x must be a DTensor when norm is one": lambda: rope_ext.apply(X, COS, SIN, norm=weight, eps=1e-6),
        "x must be a DTensor when out is one": lambda: rope_ext.apply(X, COS, SIN, out=x),
        "x must be a DTensor when another tensor of x is one": lambda: rope_ext.apply((x, X), COS, SIN),
        "out must be a DTensor when x is one": lambda: rope_ext.apply(x, COS, SIN, out=X.clone()),
    }
    for expected, call in calls.items():
        with pytest.raises(TypeError, match=f"^rope_ext: {expected}, got a Tensor"):
            call()
    rotated = rope_ext.apply(X, COS, SIN)
    assert torch.equal(rope_ext.apply(x.to_local(), COS, SIN), rotated)
    placements = [Shard(2)], [Replicate()], [Replicate()]
    mapped = local_map(rope_ext.apply, out_placements=[Shard(2)], in_placements=placements, device_mesh=mesh)
    assert torch.equal(mapped(x, cos, sin).to_local(), rotated)
