"""angles.revolutions by one op: bit-identical to PyTorch's own ops, which serve where the op cannot."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rope_ext
from rope_ext import _introspect, _reference_angles, angles
from rope_ext._torch.library import native, torch_ops
from rope_ext._torch.revolutions import by_op
from tests.conftest import DTYPES, assert_same_bits, lazy_negation, random

ARITHMETIC = [torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 5e-324, -1e-310, 1e-300, 1e-45, 6e-8, 65504.0, 3e38, 1e39, 1e300, 1.7e308, 1e-7, 1e-5]
SHAPES = [(1,), (7,), (64,), (3, 5), (2, 1, 5), (2, 3, 5), (0,), (0, 4), (2, 0, 4), (0, 1, 4)]


def patterns(dtype):
    """All numbers of 16 bits, or random bits; and the ends of the range."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(bits)
    numbers = torch.randint(limits.min, limits.max, (20000,), generator=generator, dtype=bits, device="cpu").view(dtype)
    special = torch.tensor([*SPECIAL, torch.inf, -torch.inf, torch.nan], dtype=torch.float64, device="cpu").to(dtype)
    return torch.cat((numbers, special)).to(torch.get_default_device())


def assert_same(got, expected):
    """Equal bits, the payload of a NaN aside, and contiguous."""
    for a, b in zip(got, expected, strict=True):
        assert a.is_contiguous() and torch.equal(a.isnan(), b.isnan())
        assert_same_bits(a.masked_fill(a.isnan(), 0), b.masked_fill(b.isnan(), 0))


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_pytorchs_ops(dtype, arithmetic):
    inv_freq = patterns(dtype)
    assert_same(by_op(inv_freq, arithmetic == torch.float64), _reference_angles.revolutions(inv_freq, arithmetic))


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_emulated_kernel_of_a_gpu_has_these_bits(dtype, arithmetic):
    inv_freq = patterns(dtype)[: 2 * 3 * 3000].reshape(3, 2, -1).transpose(0, 1)[..., ::3]
    high, low = (torch.empty(inv_freq.shape, dtype=arithmetic) for _ in range(2))
    name_of = {t: getattr(_introspect.DType, str(t).removeprefix("torch.")) for t in DTYPES}
    view = inv_freq.data_ptr(), name_of[dtype], inv_freq.shape, inv_freq.stride()
    _introspect.revolutions(*view, name_of[arithmetic], high.data_ptr(), low.data_ptr())
    assert_same((high, low), _reference_angles.revolutions(inv_freq, arithmetic))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_strides(shape):
    inv_freq = random(shape, torch.float32)
    wide = random((*shape, 4), torch.float32)
    views = [inv_freq, wide[..., 1], inv_freq[:1].expand(shape) if shape[0] else inv_freq, lazy_negation(inv_freq)]
    views.append(random(shape[::-1], torch.float64).permute(*reversed(range(len(shape)))))
    for view in views:
        made = by_op(view, False)
        assert_same(made, _reference_angles.revolutions(view, torch.float32))
        got = angles.revolutions(view)
        assert got.per_axis is (len(shape) == 3)
        assert_same(got[:2], made)


class Subclass(torch.Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


def under_a_mode(function):
    with Mode():
        return function()


def dual(t):
    return torch.autograd.forward_ad.make_dual(t, torch.ones_like(t))


OTHERS = {
    "requires grad": lambda f, t: f(t.requires_grad_()),
    "forward mode": lambda f, t: f(dual(t)),
    "vmap": lambda f, t: torch.func.vmap(lambda u: f(u)[0])(t[None]),
    "functional grad": lambda f, t: torch.func.grad(lambda u: f(u)[0].sum())(t),
    "mode": lambda f, t: under_a_mode(lambda: f(t)),
    "subclass": lambda f, t: f(t.as_subclass(Subclass)),
    "float8": lambda f, t: f(t.to(torch.float8_e4m3fn)),
    "trace": lambda f, t: torch.jit.trace(lambda u: f(u)[0], t, check_trace=False)(t),
    "compile": lambda f, t: torch.compile(lambda u: f(u)[0] + 0, backend="eager", fullgraph=True)(t),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pytorchs_ops_serve_elsewhere(name, monkeypatch):
    """Nothing that sees ops or derivatives sees another op than before, and the results are the same."""
    calls, op, found = [], by_op, []
    monkeypatch.setattr(angles, "by_op", lambda *arguments: calls.append(op(*arguments)) or calls[-1])
    with torch.autograd.forward_ad.dual_level() if name == "forward mode" else torch.enable_grad():
        for function in (angles.revolutions, lambda t: _reference_angles.revolutions(t, torch.float32)):
            made = OTHERS[name](function, random((5,), torch.float32))
            found.append([made] if isinstance(made, torch.Tensor) else made[:2])
        for got, expected in zip(*found):
            assert type(got) is type(expected) and got.requires_grad is expected.requires_grad
            assert_same_bits(*(t.detach().as_subclass(torch.Tensor) for t in (got, expected)))
    assert calls == [None]
    assert native.rope_ext_take_error_type() == 0


def test_leaves_where_nothing_is_recorded():
    leaf = torch.nn.Parameter(random((5,), torch.float32))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            made = by_op(leaf, False)
            assert not made[0].requires_grad and made[0].is_inference() == torch.is_inference_mode_enabled()
            assert_same(made, _reference_angles.revolutions(leaf, torch.float32))


# ---- the op itself ----


@pytest.mark.parametrize("is_64", [False, True])
def test_derivatives_of_the_op(is_64):
    """Those of inv_freq / (2 pi), for callers that do not ask `by_op`."""
    inv_freq = random((2, 5), torch.float64)
    leaf = inv_freq.clone().requires_grad_()
    high, low = torch_ops.revolutions(leaf, is_64)
    assert high.requires_grad and not low.requires_grad
    assert_same((high.detach(), low), by_op(inv_freq, is_64))
    expected = torch.full_like(inv_freq, _reference_angles.ONE_REVOLUTION_PER_RADIAN[0])
    (grad,) = torch.autograd.grad(high.sum(), leaf)
    torch.testing.assert_close(grad, expected)
    _, tangent = torch.func.jvp(lambda t: torch_ops.revolutions(t, is_64)[0], (inv_freq,), (torch.ones_like(inv_freq),))
    torch.testing.assert_close(tangent[0].double(), expected)
    for dim in (0, 1):
        batched = torch.func.vmap(lambda t: torch_ops.revolutions(t, is_64), in_dims=dim)(inv_freq)
        assert_same(batched, [torch.stack(s) for s in zip(*(by_op(t, is_64) for t in inv_freq.unbind(dim)))])


@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 2, 5)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(shape, requires_grad):
    inv_freq = random(shape, torch.float32).requires_grad_(requires_grad)
    for is_64 in (False, True):
        found = torch.library.opcheck(torch_ops.revolutions.default, (inv_freq, is_64))
        assert set(found.values()) == {"SUCCESS"}
    made = torch_ops.revolutions(inv_freq.to("meta"), True)
    assert [(t.dtype, t.shape) for t in made] == 2 * [(torch.float64, (1,) * (3 - len(shape)) + shape)]


def test_errors_of_the_op():
    for wrong in (torch.ones(()), torch.ones(2, 2, 2, 2)):
        with pytest.raises(ValueError, match="rope_ext: inv_freq must have shape"):
            torch_ops.revolutions(wrong, False)
    with pytest.raises(TypeError, match="rope_ext: inv_freq must be float64, float32, bfloat16 or float16, got int64"):
        torch_ops.revolutions(torch.ones(2, dtype=torch.int64), False)


def test_one_dispatch():
    """apply with a plain inv_freq calls two ops."""
    inv_freq, x = random((4,), torch.float32), random((1, 3, 2, 8), torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        rope_ext.apply(x, inv_freq=inv_freq)
    assert [event.name for event in profile.events() if "::" in event.name] == [
        "rope_ext::revolutions",
        "rope_ext::rotate",
    ]
