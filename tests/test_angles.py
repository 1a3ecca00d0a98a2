"""Angles from positions, without a table: bit-identical to the reference, exact at any position, with derivatives."""

import pickle
import re
from decimal import Decimal

import numpy as np
import pytest
import torch

import rope_ext
from rope_ext import _introspect, angles, reference
from rope_ext._torch.flags import FREQUENCIES
from rope_ext._torch.library import torch_ops
from tests.conftest import assert_same_bits, random, random_integers, shape_of
from tests.exact import exact_cos_sin
from tests.pairwise import pairwise

FLOATS = [torch.float32, torch.float64]
FAR = [0, 1, -1, 4095, 131071, 1_000_000, -1_000_000, 2**24, -(2**24)]


def frequencies(pairs, *more, dtype=torch.float64):
    """Frequencies (*more, pairs): they fall from 1 radian per position, and with each step of the leading axes."""
    count = torch.Size(more).numel()
    scales = torch.linspace(1, 0.5, count, dtype=torch.float64).reshape(*more, 1)
    return (scales * 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)).to(dtype)


# ---- bit-identical everywhere ----


def kinds_of_positions(axes, tokens, dtype):
    small = random_integers(4096, (axes, tokens)) - 2048
    return [
        small,
        small.int(),
        small * 16411,
        small.to(dtype) / 7,
        small * 2**30 + 5,
        small * 2**49,
        small.to(dtype) * 1e8,
    ]


def op(positions, rates, attention_scaling=1.0):
    """cos and sin of the raw op, each (tokens, heads, pairs), for positions (axes, tokens)."""
    high, low, _ = rates
    x = high.new_empty(()).expand(positions.shape[1], high.shape[1], 2 * high.shape[2])
    flags = reference.LAYOUTS.index("shd") + FREQUENCIES
    cos, sin, at = torch_ops.cos_sin([x], high, low, 0, flags, None, 0, attention_scaling, positions[:, None])
    assert torch.equal(at[:, 0], positions.to(high.dtype))
    return cos[0], sin[0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_cos_sin_equals_the_reference(dtype):
    """Sizes just off vectors and blocks, one and three axes, several heads, integers beyond 2^24, and fractions."""
    for pairs, heads, axes in ((1, 1, 1), (7, 3, 1), (64, 1, 3), (130, 2, 1), (36, 1, 1)):
        rates = angles.revolutions(frequencies(pairs, axes, heads), dtype)
        for positions in kinds_of_positions(axes, 50, dtype):
            expected = reference.cos_sin(positions, *rates[:2], 0.75)
            assert_same_bits(op(positions, rates, 0.75), expected)


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("dtype", FLOATS)
def test_instruction_sets_give_the_same_bits(dtype, use_kernels):
    """The CUDA kernel, emulated on the CPU, counts as one of them."""
    rates = angles.revolutions(frequencies(70, 2, 1), dtype)
    for positions in kinds_of_positions(2, 50, dtype):
        expected = reference.cos_sin(positions, *rates[:2])
        for isa in [*_introspect.supported_isas(), "cuda"]:
            use_kernels(_introspect.kernels(isa))
            assert rope_ext.build_info()["cpu_isa"] == isa
            assert_same_bits(op(positions, rates), expected)


PARAMETERS = {
    "dtype": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    "layout": list(reference.LAYOUTS),
    "interleaved": [False, True],
    "rotary": [(None, 0), (12, 0), (12, 4)],
    "positions": [None, "seqlen", "batch", "float", "axes"],
    "offset": [0, -3, "batch", "one"],
    "heads": ["shared", "per head"],
    "inverse": [False, True],
    "form": ["functional", "in place", "out"],
}


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=lambda c: "-".join(str(v) for v in c.values()))
def test_inv_freq_gives_the_bits_of_the_tables(case):
    """apply(inv_freq=...) equals apply with the tables of cos_sin, bit for bit; so does its gradient of x."""
    dtype, layout, (rotary_dim, rotary_offset) = case["dtype"], case["layout"], case["rotary"]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    batched = "b" in layout
    batch, seqlen, heads, head_dim = 2 if batched else 1, 9, 3, 20
    axes, pairs = 3 if case["positions"] == "axes" else 1, (rotary_dim or head_dim) // 2
    inv_freq = frequencies(pairs, axes, heads if case["heads"] == "per head" else 1)
    x = random(shape_of(layout, batch, seqlen, heads, head_dim), dtype)
    positions = {
        None: None,
        "seqlen": random_integers(1000, (seqlen,), torch.int32),
        "batch": random_integers(1_000_000, (batch, seqlen) if batched else (seqlen,)),
        "float": (random_integers(1000, (seqlen,)) / 3).to(arithmetic),
        "axes": random_integers(1000, (axes, batch, seqlen)),
    }[case["positions"]]
    tensors = {"batch": torch.arange(5, 5 + batch), "one": torch.tensor(5)}
    offset = tensors.get(case["offset"], case["offset"])
    options = {"layout": layout, "interleaved": case["interleaved"], "inverse": case["inverse"]}
    options |= {"rotary_dim": rotary_dim, "rotary_offset": rotary_offset}

    at = torch.arange(seqlen) if positions is None else positions
    at = at + (offset.reshape(-1, 1) if isinstance(offset, torch.Tensor) else offset)
    at = at.expand(axes, batch, seqlen)
    cos, sin = reference.cos_sin(at.flatten(1), *angles.revolutions(inv_freq, arithmetic)[:2], 1.25)
    shape = (batch, seqlen, cos.shape[1], pairs)
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    order = layout if batched else "bshd"
    cos, sin = (t.permute(*("bshd".index(axis) for axis in order)) for t in (cos, sin))
    expected = reference.apply(x, cos, sin, **options)

    options |= {"inv_freq": inv_freq, "positions": positions, "offset": offset, "attention_scaling": 1.25}
    if case["form"] == "functional":
        got = rope_ext.apply(x, **options)
    elif case["form"] == "out":
        got = rope_ext.apply(x, out=torch.full_like(x, torch.nan), **options)
    else:
        got = rope_ext.apply_(x.clone(), **options)
    assert_same_bits(got, expected)
    if case["form"] != "out":  # learned frequencies go through a differentiable table, which is bit-identical
        learned = options | {"inv_freq": inv_freq.clone().requires_grad_()}
        got = rope_ext.apply(x, **learned) if case["form"] == "functional" else rope_ext.apply_(x.clone(), **learned)
        assert got.requires_grad
        assert_same_bits(got.detach(), expected)
    leaf, grad = x.clone().requires_grad_(), random(x.shape, dtype, 5)
    (grad_x,) = torch.autograd.grad(rope_ext.apply(leaf, **options), leaf, grad)
    options = {name: options[name] for name in ("layout", "interleaved", "inverse", "rotary_dim", "rotary_offset")}
    assert_same_bits(grad_x, rope_ext.apply(grad, cos, sin, **(options | {"inverse": not options["inverse"]})))


def test_packed_sequences():
    """Positions restart at the boundaries, from the offset; tokens past the last are copied bit for bit."""
    x, inv_freq = random((12, 2, 8), torch.float32), frequencies(4)
    x[9] = torch.inf  # which a rotation by 0 would make NaN
    boundaries = torch.tensor([0, 5, 5, 9], dtype=torch.int32)
    restarted = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    expected = torch.cat(
        (
            rope_ext.apply(
                x[:9], *rope_ext.cos_sin(restarted + 7, inv_freq)[:2], layout="thd", positions=torch.arange(9)
            ),
            x[9:],
        )
    )
    packed = {"layout": "thd", "cu_seqlens": boundaries, "offset": 7}
    assert_same_bits(rope_ext.apply(x, inv_freq=inv_freq, **packed), expected)
    learned = inv_freq.clone().requires_grad_()
    assert_same_bits(rope_ext.apply(x, inv_freq=learned, **packed).detach(), expected)


def test_several_tensors_share_angles():
    q, k = random((2, 5, 4, 8), torch.bfloat16), random((2, 5, 1, 8), torch.bfloat16, 1)
    both = rope_ext.apply((q, k), inv_freq=frequencies(4), offset=100)
    assert isinstance(both, tuple)
    for got, x in zip(both, (q, k)):
        assert_same_bits(got, rope_ext.apply(x, inv_freq=frequencies(4), offset=100))


def test_revolutions_computed_in_advance_give_the_same_bits():
    x, inv_freq = random((1, 5, 2, 8), torch.float32), frequencies(4)
    rates = angles.revolutions(inv_freq)
    assert_same_bits(rope_ext.apply(x, inv_freq=rates), rope_ext.apply(x, inv_freq=inv_freq))
    assert_same_bits(rope_ext.cos_sin(torch.arange(9), rates), rope_ext.cos_sin(torch.arange(9), inv_freq))


# ---- exact ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_cos_sin_is_exact(dtype):
    """The bound in float32 adds 2^-25 for rounding results below 1, 2^-26 for the series, and the errors of the angle
    in radians: position * 2^-50 from the frequency, and 2^-25 of the fraction of a revolution from its product with
    the position. In float64 it is 29 bits smaller."""
    scale = 2.0 if dtype == torch.float32 else 2.0**-28
    inv_freq = frequencies(16)
    cos, sin = rope_ext.cos_sin(torch.tensor(FAR), inv_freq, dtype=dtype)
    for row, position in enumerate(FAR):
        bound = scale * (2**-26 + 2**-27 + 2**-27 + abs(position) * 2**-51)
        for pair, frequency in enumerate(inv_freq.tolist()):
            for ours, expected in zip((cos, sin), exact_cos_sin(Decimal(position) * Decimal(frequency))):
                assert abs(ours[row, pair].item() - float(expected)) <= bound, (position, pair)


def test_positions_that_are_not_finite_give_nan():
    """A token at an infinite or NaN position becomes NaN; the others do not change."""
    positions = torch.tensor([1.0, torch.inf, torch.nan, 2.0])
    cos, sin = rope_ext.cos_sin(positions, frequencies(5))
    assert cos[1:3].isnan().all() and sin[1:3].isnan().all()
    assert_same_bits(cos[[0, 3]], rope_ext.cos_sin(torch.tensor([1, 2]), frequencies(5))[0])
    x = random((1, 4, 2, 10), torch.bfloat16)
    y = rope_ext.apply(x, inv_freq=frequencies(5), positions=positions)
    assert y[:, 1:3].isnan().all() and y[:, [0, 3]].isfinite().all()


def test_distant_positions_need_no_table():
    """Tokens at position 1,000,000 need no table of 512 MiB to get its values."""
    x, inv_freq = random((1, 3, 2, 128), torch.float32), frequencies(64)
    cos, sin = rope_ext.cos_sin(torch.arange(1_000_000, 1_000_003), inv_freq)
    assert_same_bits(rope_ext.apply(x, inv_freq=inv_freq, offset=1_000_000), rope_ext.apply(x, cos[None], sin[None]))


# ---- derivatives ----

SHAPES = {"shared": (4,), "per head": (2, 4), "axes": (3, 1, 4), "axes, per head": (3, 2, 4)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradients_of_frequencies_and_positions(shape):
    x = random((2, 3, 2, 8), torch.float64).requires_grad_()
    inv_freq = (random(shape, torch.float64, 1) / 4).requires_grad_()
    positions = random((3, 2, 3) if len(shape) == 3 else (2, 3), torch.float64, 2).requires_grad_()

    def function(x, inv_freq, positions):
        return rope_ext.apply(x, inv_freq=inv_freq, positions=positions, attention_scaling=1.5)

    arguments = (x, inv_freq, positions)
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("layout", ["bhsd", "thd"])
def test_gradients_in_other_layouts(layout):
    x = random(shape_of(layout, 2, 3, 2, 8), torch.float64).requires_grad_()
    inv_freq = (random((2, 4), torch.float64, 1) / 4).requires_grad_()

    def function(x, f):
        return rope_ext.apply(x, inv_freq=f, layout=layout, offset=5, interleaved=True)

    assert torch.autograd.gradcheck(function, (x, inv_freq))


def test_learned_frequencies_rotate_with_the_same_bits():
    """Whether a derivative is recorded does not show in the result."""
    x, inv_freq = random((2, 5, 2, 8), torch.bfloat16), frequencies(4, 2, dtype=torch.float32)
    positions = random_integers(100000, (2, 5))
    expected = rope_ext.apply(x, inv_freq=inv_freq, positions=positions, offset=3)
    learned = inv_freq.clone().requires_grad_()
    got = rope_ext.apply(x, inv_freq=learned, positions=positions, offset=3)
    assert got.requires_grad
    assert_same_bits(got.detach(), expected)


def test_second_derivative_is_minus_the_value():
    """d2 cos(p f) / df2 = -p^2 cos(p f), where the change of the angle alone carries the derivatives."""
    f = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([7])
    cos, _ = rope_ext.cos_sin(p, f, dtype=torch.float64)
    (first,) = torch.autograd.grad(cos.sum(), f, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), f)
    torch.testing.assert_close(second, -49 * torch.cos(7 * f.detach()), rtol=1e-14, atol=0)


def test_under_torch_func():
    x, inv_freq = random((3, 2, 5, 2, 8), torch.float64), frequencies(4)
    mapped = torch.func.vmap(lambda t: rope_ext.apply(t, inv_freq=inv_freq, offset=9))(x)
    assert_same_bits(mapped, torch.stack([rope_ext.apply(t, inv_freq=inv_freq, offset=9) for t in x]))
    rates = angles.revolutions(frequencies(4, 2), torch.float64)  # with heads, and not differentiable
    mapped = torch.func.vmap(lambda t: rope_ext.apply(t, inv_freq=rates, positions=torch.arange(5)))(x)
    assert_same_bits(mapped, torch.stack([rope_ext.apply(t, inv_freq=rates) for t in x]))
    positions = torch.arange(6).reshape(3, 2)
    mapped = torch.func.vmap(lambda p: rope_ext.cos_sin(p, inv_freq)[0])(positions)
    assert_same_bits(mapped, rope_ext.cos_sin(positions, inv_freq)[0])
    jacobian = torch.func.jacrev(lambda f: rope_ext.apply(x[0], inv_freq=f))(inv_freq)
    forward = torch.func.jacfwd(lambda f: rope_ext.apply(x[0], inv_freq=f))(inv_freq)
    torch.testing.assert_close(jacobian, forward, rtol=1e-12, atol=1e-12)
    assert jacobian.abs().max() > 1


def test_compiled_transforms():
    """torch.compile traces torch.func derivatives with respect to frequencies, positions, cos_sin and tables."""
    x, inv_freq = random((1, 3, 2, 8), torch.float64), frequencies(4)
    positions = torch.tensor([0.5, 2.0, 7.5], dtype=torch.float64)

    def of_frequencies(f):
        return rope_ext.apply(x, inv_freq=f, positions=positions).pow(3).sum()

    def of_positions(p):
        return rope_ext.apply(x, inv_freq=inv_freq, positions=p).pow(3).sum()

    def of_cos_sin(f):
        return torch.stack(rope_ext.cos_sin(positions, f, dtype=torch.float64)).pow(3).sum()

    cos, sin = rope_ext.cos_sin(positions, inv_freq, dtype=torch.float64)

    def of_tables(c):
        return rope_ext.apply(x, c, sin).pow(3).sum()

    grad, jacfwd, hessian = torch.func.grad, torch.func.jacfwd, torch.func.hessian  # the last: forward over reverse
    cases = [(f, inv_freq, of_frequencies) for f in (grad, jacfwd, hessian)] + [(hessian, positions, of_positions)]
    cases += [(hessian, inv_freq, of_cos_sin), (jacfwd, cos, of_tables), (hessian, cos, of_tables)]
    for transform, at, function in cases:
        torch._dynamo.reset()
        expected = transform(function)(at)
        got = torch.compile(lambda t, f=function, to=transform: to(f)(t), backend="aot_eager")(at)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("learned", [False, True])
def test_compiles(learned):
    inv_freq = frequencies(4, dtype=torch.float32).requires_grad_(learned)

    def function(x, p):
        return rope_ext.apply(x, inv_freq=inv_freq, positions=p, attention_scaling=1.5)

    x, positions = random((2, 5, 2, 8), torch.float32).requires_grad_(), torch.arange(5)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, expected = compiled(x, positions), function(x, positions)
    assert_same_bits(got.detach(), expected.detach())
    inputs = (x, inv_freq) if learned else (x,)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(expected.sum(), inputs)):
        torch.testing.assert_close(a, b)


def test_the_public_function_compiles_with_dynamic_numbers():
    """torch.compile(dynamic=True) of `apply` itself makes symbols of its numbers, defaults among them."""
    x, (cos, sin) = random((2, 5, 2, 8), torch.float32), rope_ext.RotaryEmbedding(8).tables(64)
    compiled = torch.compile(rope_ext.apply, fullgraph=True, dynamic=True, backend="aot_eager")
    for offset in (0, 1, 7):
        assert_same_bits(compiled(x, cos, sin, offset=offset), rope_ext.apply(x, cos, sin, offset=offset))
    for scaling in (1, 2, 1.5, 0.25):
        options = {"inv_freq": frequencies(4), "positions": torch.arange(5), "attention_scaling": scaling}
        assert_same_bits(compiled(x, **options), rope_ext.apply(x, **options))


@pytest.mark.parametrize("layout", reference.LAYOUTS)
def test_opcheck(layout):
    x = [random(shape_of(layout, 2 if "b" in layout else 1, 5, 2, 8), torch.float32)]
    high, low, _ = angles.revolutions(frequencies(4, 3, 2))
    flags = reference.LAYOUTS.index(layout) + FREQUENCIES
    batch = 2 if "b" in layout else 1
    for positions in (None, torch.arange(5), torch.arange(5).expand(3, batch, 5), torch.rand(3, 1, 5)):
        arguments = (x, high, low, 3, flags, None, 0, 1.5, positions)
        for name in ("cos_sin", "rotate"):
            found = torch.library.opcheck(getattr(torch_ops, name).default, arguments)
            assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("learned", [False, True])
def test_positions_of_any_size(learned):
    """int32 does not overflow; cos and sin stay on the circle where a float no longer holds the angle."""
    inv_freq = frequencies(4, dtype=torch.float32).requires_grad_(learned)
    x = random((1, 2, 1, 8), torch.float32)
    largest = torch.full((2,), 2**31 - 1, dtype=torch.int32)
    expected = rope_ext.apply(x, inv_freq=inv_freq, offset=2**31 + 9, positions=torch.zeros(2, dtype=torch.int64))
    assert_same_bits(rope_ext.apply(x, inv_freq=inv_freq, offset=10, positions=largest).detach(), expected.detach())
    far = torch.tensor([2**e + 1 for e in range(24, 63)])
    for positions in (far, -far, far.float()):
        cos, sin = rope_ext.cos_sin(positions, inv_freq)
        assert (cos**2 + sin**2 - 1).abs().max() < 1e-6


@pytest.mark.parametrize("learned", [False, True])
def test_shapes_of_positions_mean_the_same_with_derivatives(learned):
    """Positions with one leading axis, with one row for all sequences, and with one row for each."""
    inv_freq = frequencies(4).requires_grad_(learned)
    x, positions = random((2, 2, 2, 8), torch.float32), torch.tensor([[3, 50], [7, 9]])
    expected = torch.stack(
        [rope_ext.apply(t, inv_freq=inv_freq, positions=p, layout="shd") for t, p in zip(x, positions)]
    )
    for same in (positions, positions[None]):
        assert_same_bits(rope_ext.apply(x, inv_freq=inv_freq, positions=same).detach(), expected.detach())
    assert_same_bits(
        rope_ext.apply(x, inv_freq=inv_freq, positions=positions[:1]).detach(),
        rope_ext.apply(x, inv_freq=inv_freq, positions=positions[0]).detach(),
    )


def test_revolutions_with_derivatives_of_positions():
    x, positions = random((1, 3, 2, 8), torch.float64), torch.tensor([0.5, 2.0, 7.5], dtype=torch.float64)
    rates = angles.revolutions(frequencies(4), torch.float64)
    positions.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: rope_ext.apply(x, inv_freq=rates, positions=p), (positions,))
    assert torch.autograd.gradcheck(lambda p: rope_ext.cos_sin(p, rates, dtype=torch.float64), (positions,))
    with pytest.raises(ValueError, match="out must be None when a derivative is recorded"):
        rope_ext.apply(x, inv_freq=rates, positions=positions, out=torch.empty_like(x))
    per_axis = angles.revolutions(frequencies(4, 1, 1))
    assert rope_ext.cos_sin(torch.arange(3)[None], per_axis)[0].shape == (3, 4)


def test_packed_gradients():
    """Tokens past the last boundary have no part in the gradient of frequencies."""
    x, boundaries = random((6, 2, 8), torch.float64), torch.tensor([0, 2, 4], dtype=torch.int32)
    packed = {"layout": "thd", "cu_seqlens": boundaries, "offset": 3}
    inv_freq = frequencies(4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: rope_ext.apply(x, inv_freq=f, **packed), (inv_freq,))


# ---- errors ----

X = torch.zeros(2, 3, 4, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inv_freq": [1.0]}, TypeError, r"inv_freq must be a Tensor, got \[1.0\]"),
        ({"inv_freq": torch.ones(3)}, ValueError, "inv_freq must have width 4, one entry per pair of rotary_dim 8, got width 3"),
        ({"inv_freq": torch.ones(3, 4)}, ValueError, "inv_freq must have 1 head or the 4 heads of x, got 3 heads"),
        ({"inv_freq": torch.ones(4).long()}, ValueError, "inv_freq must be floating point of shape"),
        ({"inv_freq": torch.ones(4), "cos": torch.ones(3, 4)}, ValueError, "inv_freq must be None when cos and sin are given, got both"),
        ({"inv_freq": torch.ones(4), "positions": torch.zeros(5).long()}, ValueError, r"positions must have shape \(3,\) or \(2, 3\)"),
        ({"inv_freq": torch.ones(4), "positions": torch.zeros(3).half()}, TypeError, "positions must be int32, int64 or float32, got float16"),
        ({"inv_freq": torch.ones(4), "positions": torch.zeros(3, 2, 3).long()}, ValueError, "positions must have shape"),
        ({"inv_freq": torch.ones(4), "attention_scaling": "2"}, TypeError, "attention_scaling must be a number, got '2'"),
        ({"inv_freq": torch.ones(4, requires_grad=True), "positions": torch.zeros(5)}, ValueError, "positions must have shape"),
        ({"cos": torch.ones(3, 4), "sin": torch.ones(3, 4), "attention_scaling": torch.ones(2)}, TypeError, "attention_scaling must be a number, got Tensor of shape"),
        ({"inv_freq": torch.ones(4, requires_grad=True), "offset": 0.5}, TypeError, "offset must be an int or a Tensor, got 0.5"),
        ({"inv_freq": torch.ones(4, requires_grad=True), "positions": torch.zeros(3).bool()}, TypeError, "positions must be int32, int64 or float32, got bool"),
        ({"inv_freq": torch.ones(3, 4, requires_grad=True)}, ValueError, "inv_freq must have 1 head or the 4 heads of x, got 3 heads"),
        ({"inv_freq": angles.revolutions(torch.ones(4), torch.float64)}, TypeError, "inv_freq must be converted for the arithmetic of x, float32, got Revolutions of float64"),
        ({"inv_freq": torch.ones(0, 1, 4)}, ValueError, r"inv_freq must have shape \(pairs,\), \(heads, pairs\)"),
        ({"attention_scaling": 2.0}, ValueError, "attention_scaling must be given only with inv_freq, got 2.0 with tables"),
        ({}, TypeError, "cos must be a Tensor, got None"),
    ],
)  # fmt: skip
def test_errors(options, error, message):
    with pytest.raises(error, match="rope_ext: " + message):
        rope_ext.apply(X, **options)


def test_cos_sin_refuses_wrong_dtypes_and_axes():
    with pytest.raises(TypeError, match="positions must be int32, int64 or float32, got bfloat16"):
        rope_ext.cos_sin(torch.zeros(3, dtype=torch.bfloat16), frequencies(4))
    with pytest.raises(TypeError, match="positions must be int32, int64 or float32, got float64"):
        rope_ext.cos_sin(torch.zeros(3, dtype=torch.float64), frequencies(4))
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32 or torch\.float64, got float16"):
        rope_ext.cos_sin(torch.zeros(3), frequencies(4), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"positions must begin with the 3 axes of inv_freq, got shape \(2, 3\)"):
        rope_ext.cos_sin(torch.zeros(2, 3).long(), frequencies(4, 3, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"positions": torch.zeros(3).to_sparse()}, TypeError, "positions must be strided, got torch.sparse_coo"),
        ({"inv_freq": torch.ones(4).to_sparse()}, TypeError, "inv_freq must be strided, got torch.sparse_coo"),
        (
            {"inv_freq": torch.ones(0)},
            ValueError,
            "inv_freq must have at least one axis, one head and one pair, got 1, 1 and 0",
        ),
        (
            {"inv_freq": torch.ones(0, 4)},
            ValueError,
            "inv_freq must have at least one axis, one head and one pair, got 1, 0 and 4",
        ),
        (
            {"dtype": np.arange(3)},
            TypeError,
            "dtype must be torch.float32 or torch.float64, got ndarray of shape (3,), int64",
        ),
        (
            {"attention_scaling": 10**400},
            ValueError,
            "attention_scaling must be finite, got 100000000000000000...0000000000000000000",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_cos_sin_refuses_what_the_fuzzer_found(arguments, error, message):
    with pytest.raises(error, match=f"^rope_ext: {re.escape(message)}$"):
        rope_ext.cos_sin(**{"positions": torch.arange(3), "inv_freq": torch.ones(4), **arguments})


def test_former_names_of_revolutions_still_load(tmp_path):
    rates = angles.turns(frequencies(4))
    assert angles.Turns is angles.Revolutions and type(rates) is angles.Revolutions
    angles.Revolutions.__qualname__ = "Turns"  # the name in files of older releases
    try:
        torch.save(rates, tmp_path / "before")
        pickled = pickle.dumps(rates)
    finally:
        angles.Revolutions.__qualname__ = "Revolutions"
    assert b"Turns" in pickled
    for loaded in (pickle.loads(pickled), torch.load(tmp_path / "before", weights_only=True)):
        assert type(loaded) is angles.Revolutions and all(map(torch.equal, loaded[:2], rates[:2]))
