"""RMSNorm before the rotation with values at the ends: eps 0, signed zeros, infinities; by every way to the kernels."""

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DTYPES, assert_same_bits, random
from tests.test_norm_derivatives import EPS, formula

F64 = torch.float64
X, WEIGHT, COS, SIN = (random(shape, F64, seed) for seed, shape in enumerate(((2, 5, 3, 4), (4,), (5, 2), (5, 2))))


def in_place(x, cos, sin, weight):
    return rope_ext.apply_(x * 1, cos, sin, norm=weight, eps=0.0)


def composed(x, cos, sin, weight):
    return rope_ext.apply(x, cos.clone().requires_grad_(), sin, norm=weight, eps=0.0)


def compiled(x, cos, sin, weight):
    def function(x, weight):
        return rope_ext.apply(x, cos, sin, norm=weight, eps=0.0)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")(x, weight)


def op_that_differentiates_tables(x, cos, sin, weight):
    (y,), _ = torch.ops.rope_ext.norm_rotate([x], cos.clone().requires_grad_(), sin, norm=[weight], eps=0.0)
    return y


@pytest.mark.parametrize("way", [in_place, composed, compiled, op_that_differentiates_tables])
def test_eps_may_be_zero(way):
    """The dispatcher leaves an argument out that has its default, and this one is that of the ops."""
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    y, expected = way(x, COS, SIN, weight), reference.apply(x, COS, SIN, norm=weight, eps=0.0)
    assert_same_bits(y.detach(), expected.detach())
    got, wanted = (torch.autograd.grad(t.pow(3).sum(), (x, weight)) for t in (y, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)  # float64, sums of terms of size 1 to 1000


def test_in_place_with_a_norm_of_no_tensor():
    leaves = [X.clone().requires_grad_(), X.clone().requires_grad_()]
    y = rope_ext.apply_([t * 1 for t in leaves], COS, SIN, norm=(None, None), eps=0.5)
    expected = rope_ext.apply(leaves, COS, SIN)
    assert_same_bits([t.detach() for t in y], [t.detach() for t in expected])
    assert_same_bits(*(torch.autograd.grad(t, leaves, [X, X]) for t in (y, expected)))


def test_batched_gradients_where_eps_is_zero():
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    y = rope_ext.apply(x, COS, SIN, norm=weight, eps=0.0)
    many = random((3, *X.shape), F64, 5)
    got = torch.autograd.grad(y, (x, weight), many, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, (x, weight), g, retain_graph=True) for g in many]
    assert_same_bits(got, [torch.stack(grads) for grads in zip(*expected)])


@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_composed_eager_rounding_keeps_signed_zeros_and_infinities(dtype, weight_dtype):
    """Where the tables are differentiated, values are rounded by PyTorch's ops, their derivatives are not."""
    x, weight = random((1, 4, 2, 4), dtype), random((4,), weight_dtype or dtype, 1)
    x[0, 0] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    x[0, 1] = torch.tensor([0.0, -0.0, 1e-30, -1e-30])  # in bfloat16 squares are 0, and 1 / rms is infinite
    x[0, 2, :, 1:3] = torch.tensor([float("inf"), -float("inf")])
    x[0, 3] = torch.tensor([4e-8, -4e-8, 1.0, 1.0])
    cos, sin = (random((4, 2), dtype, seed) for seed in (2, 3))
    sin[:] = 0.0
    keywords = {"norm": weight, "eps": 0.0, "rounding": "eager", "rotary_dim": 2}
    expected = reference.apply(x, cos[:, :1], sin[:, :1], **keywords)
    got = rope_ext.apply(x, cos[:, :1].requires_grad_(), sin[:, :1], **keywords)
    assert_same_bits(got.detach(), expected)


@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eager_rounding_with_tables_in_float32(dtype, weight_dtype):
    """The normalised heads are rounded, and the products of the rotation are not; those of its gradient are."""
    x, weight = random((2, 5, 3, 40), dtype), random((40,), weight_dtype or dtype, 1)
    cos, sin = (random((5, 16), torch.float32, seed) for seed in (2, 3))
    keywords = {"rounding": "eager", "rotary_dim": 32, "rotary_offset": 4}
    expected = reference.apply(x, cos, sin, norm=weight, eps=EPS, **keywords)
    assert_same_bits(rope_ext.apply(x, cos, sin, norm=weight, eps=EPS, **keywords), expected)
    leaves, g = [x.clone().requires_grad_(), weight.clone().requires_grad_()], random(x.shape, dtype, 4)
    got = torch.autograd.grad(rope_ext.apply(leaves[0], cos, sin, norm=leaves[1], eps=EPS, **keywords), leaves, g)
    assert_same_bits(got, formula(x, weight, g, "bshd", cos, sin, **keywords))


@pytest.mark.parametrize("rounding", ["once", "eager"])
@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 3])])
def test_gradients_that_are_recorded_have_the_bits_of_those_that_are_not(rounding, cu_seqlens):
    x, g = (random((5, 3, 40), torch.bfloat16, seed) for seed in (0, 1))
    cos, sin = (random((5, 20), torch.bfloat16, seed) for seed in (2, 3))
    leaves = x.requires_grad_(), random((40,), torch.bfloat16, 4).requires_grad_()
    keywords = {"layout": "thd", "cu_seqlens": cu_seqlens, "rounding": rounding}
    y = rope_ext.apply(x, cos, sin, norm=leaves[1], eps=EPS, **keywords)
    expected = torch.autograd.grad(y, leaves, g, retain_graph=True)
    assert_same_bits([t.detach() for t in torch.autograd.grad(y, leaves, g, create_graph=True)], expected)


@pytest.mark.parametrize("learned", [(True, False), (False, True)])
def test_packed_where_one_of_two_weights_is_learned(learned):
    qkv, norm = (
        random((2, 5, 20), F64),
        [random((4,), F64, seed).requires_grad_(need) for seed, need in enumerate(learned)],
    )
    qkv.requires_grad_()
    q, k, v = qkv.unflatten(-1, (5, 4)).split((3, 1, 1), 2)
    expected = *rope_ext.apply((q, k), COS, SIN, norm=norm, eps=EPS), v
    got = rope_ext.apply_qkv(qkv, COS, SIN, num_heads=3, num_kv_heads=1, norm=norm, eps=EPS)
    needs, grads = [qkv, norm[learned.index(True)]], [random(t.shape, F64, 3) for t in got]
    assert_same_bits(*(torch.autograd.grad(t, needs, grads) for t in (got, expected)))


@pytest.mark.parametrize("needs", [(0, 3), (1, 2), (1, 3)])
def test_batched_gradients_of_some_of_the_inputs(needs):
    inputs = [X.clone(), X + 1, WEIGHT.clone(), WEIGHT + 1]
    chosen = [inputs[i].requires_grad_() for i in needs]
    y = rope_ext.apply(inputs[:2], COS, SIN, norm=inputs[2:], eps=EPS)
    results = [t for t in y if t.requires_grad]
    many = [random((3, *X.shape), F64, 5 + i) for i in range(len(results))]
    got = torch.autograd.grad(results, chosen, many, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(results, chosen, grads, retain_graph=True) for grads in zip(*many)]
    assert_same_bits(got, [torch.stack(grads) for grads in zip(*expected)])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_a_number_gives_none(dtype, interleaved):
    """Whatever the other bits of NaN: rounded to 16 bits by integers, those of 0x7fffffff would carry over to -0."""
    weight = torch.ones(64, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    bits = weight.view(torch.int64 if dtype == torch.float64 else torch.int32)
    bits[3], bits[40] = torch.iinfo(bits.dtype).max, -1
    x, cos, sin = (random(shape, dtype, seed) for seed, shape in enumerate([(2, 3, 2, 64), (3, 16), (3, 16)]))
    keywords = {"interleaved": interleaved, "rotary_dim": 32, "norm": weight, "eps": 1e-6}
    y = rope_ext.apply(x, cos, sin, **keywords)
    assert y.isnan().equal(reference.apply(x, cos, sin, **keywords).isnan())
    assert y.isnan().sum() == 2 * 3 * 2 * 3  # the pair of channel 3, and channel 40
