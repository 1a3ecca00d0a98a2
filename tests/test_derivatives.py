"""Derivatives: against finite differences, against the reference, and what autograd promises around them."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import rope_ext
from rope_ext import reference
from rope_ext._torch.flags import INVERSE
from rope_ext._torch.library import torch_ops
from tests.conftest import DTYPES, assert_same_bits, random
from tests.pairwise import pairwise

F64 = torch.float64
# Bound on a GPU, where PyTorch's index_add_ adds the tokens that read one row in any order: two float64 gradients may
# differ by 32 roundings (two tensors, two heads, two channels, up to four tokens) of sums below 2^7.
ANY_ORDER = 32 * 2.0**7 * 2.0**-53


def bound(on_cpu):
    return on_cpu if torch.get_default_device().type == "cpu" else ANY_ORDER


CU_SEQLENS = torch.tensor([0, 0, 1, 3], dtype=torch.int32)
LOOKUPS = {
    "rows": ((6,), {"offset": 2}),
    "offset per batch": ((6,), {"offset": torch.tensor([2, 0])}),
    "positions": ((6,), {"positions": torch.tensor([[1, 1, 5, 0], [3, 2, 1, 1]])}),
    "cu_seqlens": ((6,), {"cu_seqlens": CU_SEQLENS, "layout": "thd"}),  # one token is past the last boundary
    "token": ((2, 4), {}),
    "token, shared by the batch": ((1, 4), {}),
    "head": ((2, 4, 2), {}),
}
CASES = pairwise(
    {
        "lookup": list(LOOKUPS),
        "interleaved": [False, True],
        "per_channel": [False, True],  # random entries, so asymmetric within a pair
        "channels": [(4, None, 0), (6, 4, 1)],
        "inverse": [False, True],
        "in_place": [False, True],
        "moved": [False, True],  # the result has the other pairing
    }
)


def problem(case):
    """(function of q, k, cos, sin; those four, in float64 and requiring grad; the keywords of apply)"""
    shape, keywords = LOOKUPS[case["lookup"]]
    head_dim, rotary_dim, rotary_offset = case["channels"]
    batch = () if "layout" in keywords else (2,)
    q, k = random((*batch, 4, 2, head_dim), F64, 0), random((*batch, 4, 2, head_dim), F64, 1)
    width = 4 if case["per_channel"] else 2
    cos, sin = random((*shape, width), F64, 2), random((*shape, width), F64, 3)
    keywords = {**keywords, "rotary_dim": rotary_dim, "rotary_offset": rotary_offset}
    keywords |= {"interleaved": case["interleaved"], "inverse": case["inverse"]}

    if case["moved"] and not case["in_place"]:
        keywords["out_interleaved"] = not case["interleaved"]

    def function(q, k, cos, sin):
        if not case["in_place"]:
            return rope_ext.apply((q, k), cos, sin, **keywords)
        return rope_ext.apply_((q * 1.0, k * 1.0), cos, sin, **keywords)

    return function, tuple(t.requires_grad_() for t in (q, k, cos, sin)), keywords


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_finite_differences(case):
    function, inputs, _ = problem(case)
    checks = {"check_forward_ad": True, "check_batched_grad": True, "nondet_tol": bound(0.0)}
    checks["check_batched_forward_grad"] = not case["in_place"]  # PyTorch's vmap writes into unbatched tangents
    assert gradcheck(function, inputs, **checks)
    # gradcheck compares whole Jacobians; second order compares random projections, in a tenth of the time
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True, nondet_tol=bound(0.0))


def test_finite_differences_fast_mode():
    function, inputs, _ = problem(CASES[0])
    assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: "-".join(map(str, c.values())))
def test_gradients_equal_the_reference_in_fp64(case):
    function, inputs, keywords = problem(case)
    got = function(*inputs)
    expected = reference.apply(inputs[:2], *inputs[2:], **keywords)
    weights = [random(t.shape, F64, 4) for t in got]
    torch.testing.assert_close(
        torch.autograd.grad(got, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        rtol=0,
        atol=bound(1e-14),
    )


def test_gradients_of_a_tensor_that_is_x_and_both_tables_add_up_in_this_order():
    shared = random((2, 5, 3, 16), torch.float32).requires_grad_()
    rope_ext.apply(shared, shared, shared).sum().backward()
    alone = [shared.detach().requires_grad_() for _ in range(3)]
    of_x, of_cos, of_sin = torch.autograd.grad(rope_ext.apply(*alone).sum(), alone)
    assert torch.equal(shared.grad, of_x + of_cos + of_sin)
    assert not torch.equal(shared.grad, of_cos + of_sin + of_x)


@pytest.mark.parametrize("pairings", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_x_equals_the_reference_bitwise(dtype, pairings):
    """The gradient is the rotation with transposed blocks, back to the pairing of x: a call of the same kernel."""
    of_x, of_result = pairings
    x = random((2, 5, 3, 16), dtype).requires_grad_()
    g = random(x.shape, dtype, 3)
    for table in {F64} if dtype == F64 else {torch.float32, dtype}:
        cos, sin = random((5, 16), table, 1), random((5, 16), table, 2)
        for rounding in ("once", "eager"):
            y = rope_ext.apply(x, cos, sin, interleaved=of_x, out_interleaved=of_result, rounding=rounding)
            (got,) = torch.autograd.grad(y, x, g)
            options = {"interleaved": of_result, "out_interleaved": of_x, "rounding": rounding, "transposed": True}
            assert_same_bits(got, reference.apply(g, cos, sin, **options))


@pytest.mark.parametrize("table", ["dtype of x", "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_rounding_has_the_bits_of_eager_code(dtype, table):
    """Results and gradients are equal, whether or not the tables are recorded."""
    x = random((2, 5, 3, 64), dtype).requires_grad_()
    table = dtype if table == "dtype of x" or dtype == F64 else torch.float32
    cos, sin, g = random((5, 64), table, 1), random((5, 64), table, 2), random(x.shape, dtype, 3)

    def eager(x):
        first, second = x.chunk(2, dim=-1)
        return (x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]).to(dtype)

    expected = eager(x)
    got = rope_ext.apply(x, cos, sin, rounding="eager")
    assert_same_bits(got, expected)
    assert_same_bits(*(torch.autograd.grad(y, x, g, retain_graph=True) for y in (got, expected)))
    assert_same_bits(rope_ext.apply(x, cos.requires_grad_(), sin, rounding="eager"), expected)
    if dtype in (torch.bfloat16, torch.float16):  # the test could not fail otherwise
        once = rope_ext.apply(x, cos, sin)
        assert torch.equal(once, expected) == (table != dtype)
        assert not torch.equal(*(torch.autograd.grad(y, x, g, retain_graph=True)[0] for y in (once, got)))


def test_eager_rounding_without_table():
    """The gradient of 16-bit x does not depend on whether frequencies are learned."""
    x, g = random((2, 5, 3, 64), torch.bfloat16).requires_grad_(), random((2, 5, 3, 64), torch.bfloat16, 3)
    inv_freq = rope_ext.frequencies.default(64).inv_freq
    cos, sin = rope_ext.cos_sin(torch.arange(5), inv_freq)
    tables = {"cos": cos, "sin": sin}
    expected, frozen, learned = (
        torch.autograd.grad(rope_ext.apply(x, rounding="eager", **angles), x, g)
        for angles in (tables, {"inv_freq": inv_freq}, {"inv_freq": inv_freq.clone().requires_grad_()})
    )
    assert_same_bits(frozen, expected)
    assert_same_bits(learned, expected)


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_tables_accumulates_in_fp32(table_dtype):
    """All 2 x 2048 tokens read row 1. The products are small integers with sums below 2^24, which float32 adds exactly:
    the result is the exact sum rounded once. Sums in bfloat16, exact up to 2^8 only, would differ."""
    x, g = ((random((2, 2048, 4, 4), F64, seed).abs() * 5).ceil().clamp(max=15) for seed in (0, 1))
    cos, sin = (random((3, 4), torch.float32, s).to(table_dtype).requires_grad_() for s in (2, 3))
    positions = torch.ones(2048, dtype=torch.int64)
    y = rope_ext.apply(x.bfloat16(), cos, sin, positions=positions)
    got = torch.autograd.grad(y, (cos, sin), g.bfloat16())
    double = [t.detach().double().requires_grad_() for t in (cos, sin)]
    expected = torch.autograd.grad(reference.apply(x, *double, positions=positions), double, g)
    assert expected[0].max() > 2**16
    assert_same_bits(got, [t.to(table_dtype) for t in expected])


def test_gradient_of_16_bit_tables_is_not_rounded_per_token():
    """2100 tokens add 1 * 1 + 16 * 16 = 257 each, which bfloat16 rounds to 256: the sum shows it."""
    x = torch.tensor([1.0, 16.0]).expand(1, 2100, 1, 2).bfloat16()
    cos, sin = (torch.ones(1, 1, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    y = rope_ext.apply(x, cos, sin, positions=torch.zeros(2100, dtype=torch.int64))
    (got,) = torch.autograd.grad(y, cos, x)
    assert got == torch.tensor(2100 * 257.0).bfloat16() != torch.tensor(2100 * 256.0).bfloat16()


def test_tokens_past_the_last_boundary_reach_no_table_gradient():
    """They are not multiplied by 0 either: infinity would become NaN."""
    x = random((4, 2, 8), F64)
    x[3:] = torch.inf
    cos, sin = random((5, 4), F64, 1).requires_grad_(), random((5, 4), F64, 2).requires_grad_()
    cu_seqlens = torch.tensor([0, 3], dtype=torch.int32)
    y = rope_ext.apply(x.requires_grad_(), cos, sin, layout="thd", cu_seqlens=cu_seqlens)
    grad_x, *grads = torch.autograd.grad(y, (x, cos, sin), torch.ones_like(y))
    inside = reference.apply(x[:3], cos, sin, layout="shd")
    torch.testing.assert_close(grads, list(torch.autograd.grad(inside.sum(), (cos, sin))), rtol=1e-14, atol=1e-14)
    assert torch.equal(grad_x[3:], torch.ones(1, 2, 8, dtype=F64))


def test_batched_gradients_of_tables():
    """is_grads_batched, over q and k at once."""
    q, k = random((1, 4, 3, 8), F64, 0).requires_grad_(), random((1, 4, 1, 8), F64, 1).requires_grad_()
    cos, sin = random((4, 4), F64, 2).requires_grad_(), random((4, 4), F64, 3).requires_grad_()
    y = rope_ext.apply((q, k), cos, sin)
    many = [random((5, *t.shape), F64, 4) for t in y]
    got = torch.autograd.grad(y, (q, k, cos, sin), many, is_grads_batched=True, retain_graph=True)
    for i in range(5):
        one = torch.autograd.grad(y, (q, k, cos, sin), [g[i] for g in many], retain_graph=True)
        torch.testing.assert_close([g[i] for g in got], list(one), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("tables_need", [False, True])
def test_x_is_kept_for_backward_only_for_tables(tables_need):
    x, cos, sin = random((1, 5, 2, 8), F64).requires_grad_(), random((5, 4), F64, 1), random((5, 4), F64, 2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        rope_ext.apply(x, cos.requires_grad_(tables_need), sin)
    assert (x.data_ptr() in saved) == tables_need


def incoming_gradients():
    x = random((2, 5, 3, 8), torch.float32)
    return {
        "sum": (lambda y: y.sum(), torch.ones_like(x)),
        "cat": (lambda y: (torch.cat((y, y * 0), dim=-1) * torch.cat((x, x), dim=-1)).sum(), x),
        "transpose": (lambda y: (y.transpose(1, 2).contiguous() * x.transpose(1, 2)).sum(), x),
        "expand": (lambda y: (y.sum(0, keepdim=True).expand(4, 5, 3, 8)).sum(), torch.full_like(x, 4.0)),
        "mean over heads": (lambda y: y.mean(2).sum(), torch.full_like(x, 1 / 3)),
        "every second token": (lambda y: y[:, ::2].sum(), torch.tensor([1.0, 0, 1, 0, 1])[:, None, None].expand_as(x)),
        "flipped": (lambda y: (y.flip(1) * x).sum(), x.flip(1)),
    }


@pytest.mark.parametrize("name", incoming_gradients())
def test_incoming_gradients_of_any_stride(name):
    """gradcheck feeds contiguous gradients only and cannot find a stride bug."""
    loss, g = incoming_gradients()[name]
    x = random((2, 5, 3, 8), torch.float32, 4).requires_grad_()
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)
    (got,) = torch.autograd.grad(loss(rope_ext.apply(x, cos, sin)), x)
    assert_same_bits(got, reference.apply(g, cos, sin, transposed=True))


def test_incoming_gradients_that_are_slices_of_packed_qkv():
    packed = random((2, 5, 3, 4, 8), torch.float32).requires_grad_()
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)

    def loss(packed, apply):
        q, k, v = packed.unbind(2)
        q, k = apply((q, k), cos, sin)
        return (torch.stack((q, k, v), dim=2).reshape(2, 5, -1) ** 2).sum()

    got, expected = (torch.autograd.grad(loss(packed, f), packed)[0] for f in (rope_ext.apply, reference.apply))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_incoming_gradients_are_never_written():
    x = random((2, 5, 3, 8), torch.float32).requires_grad_()
    cos, sin = random((5, 4), torch.float32, 1).requires_grad_(), random((5, 4), torch.float32, 2)
    g = random(x.shape, torch.float32, 3)
    kept, version = g.clone(), g._version
    y = rope_ext.apply(x, cos, sin)
    for _ in range(2):
        y.backward(g, retain_graph=True)
    assert torch.equal(g, kept) and g._version == version


@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 1, 0), (0, 1, 0, 1)])
def test_only_some_need_gradients(needs):
    """Every subset of q, k, cos and sin gets the right gradients, and nothing is computed for the others."""
    tensors = [
        random((2, 5, 3, 8), F64, 0),
        random((2, 5, 1, 8), F64, 1),
        random((5, 4), F64, 2),
        random((5, 4), F64, 3),
    ]
    inputs = [t.requires_grad_(bool(need)) for t, need in zip(tensors, needs)]
    expected_inputs = [t for t, need in zip(inputs, needs) if need]

    def grads(apply):
        q, k = apply((inputs[0], inputs[1]), *inputs[2:])
        return torch.autograd.grad(q.pow(2).sum() + k.pow(2).sum(), expected_inputs)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        got = grads(rope_ext.apply)
    torch.testing.assert_close(got, grads(reference.apply), rtol=0, atol=1e-13)
    calls = {e.key: e.count for e in profiler.key_averages()}
    tables = any(needs[2:])
    # Forward: where tables are differentiated above and below autograd, else one call. Backward: one call.
    assert calls["rope_ext::rotate"] == 1 + tables + any(needs[:2])
    assert calls.get("rope_ext::table_grad", 0) == tables
    assert ("aten::index_select" in calls) == tables


@pytest.mark.parametrize("views", [0, 1, 2])
def test_apply_in_place_in_training_writes_once(views):
    """No temporary and no copy: one call of the kernel for all tensors that are no views, and one for each view."""
    cos, sin = random((4, 4), F64, 2), random((4, 4), F64, 3)
    base = random((1, 4, 8, 8), F64).requires_grad_() * 2
    q, k = (base[:, :, 4 * i : 4 * i + 4] if i < views else base[:, :, :4].clone() for i in range(2))
    expected = [reference.apply(t.detach(), cos, sin) for t in (q, k)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        rope_ext.apply_((q, k), cos, sin)
    calls = {e.key: e.count for e in profiler.key_averages()}
    assert calls["rope_ext::rotate_"] == 1 + (2 if views else 1)  # the first: above autograd
    assert not {"rope_ext::rotate", "aten::copy_", "aten::empty", "aten::empty_like"} & set(calls)
    for t, e in zip((q, k), expected):
        assert_same_bits(t.detach(), e)
        assert t.requires_grad


def test_an_output_that_is_not_used_costs_nothing():
    q, k = (random((1, 4, h, 8), F64, h).requires_grad_() for h in (3, 1))
    cos, sin = random((4, 4), F64, 2), random((4, 4), F64, 3)
    rotated_q, _ = rope_ext.apply((q, k), cos, sin)
    grad_q, grad_k = torch.autograd.grad(rotated_q.sum(), (q, k), allow_unused=True)
    assert grad_k is None or not grad_k.any()
    assert_same_bits(grad_q, reference.apply(torch.ones_like(q), cos, sin, transposed=True))


def test_requires_grad_of_the_result():
    x, cos, sin = random((1, 4, 2, 8), F64), random((4, 4), F64), random((4, 4), F64)
    assert not rope_ext.apply(x, cos, sin).requires_grad
    assert rope_ext.apply(x.requires_grad_(), cos, sin).requires_grad
    assert rope_ext.apply(x.detach(), cos.requires_grad_(), sin).requires_grad
    with torch.no_grad():
        assert not rope_ext.apply(x, cos, sin).requires_grad


def test_gradient_of_a_frequency():
    """A learned frequency trains through the formula of RotaryEmbedding."""
    inv_freq = rope_ext.RotaryEmbedding(8).inv_freq.to(torch.get_default_device()).requires_grad_()
    x, g = random((2, 5, 3, 8), F64), random((2, 5, 3, 8), F64, 1)

    def loss(inv_freq):
        angles = torch.outer(torch.arange(5.0, dtype=F64), inv_freq)
        return (rope_ext.apply(x, angles.cos(), angles.sin()) * g).sum()

    assert gradcheck(loss, inv_freq)


def test_in_place_on_views_still_refuses_overlap():
    whole = random((1, 5, 3, 8), F64).requires_grad_() * 1
    with pytest.raises(ValueError, match="rope_ext: x must not overlap"):
        rope_ext.apply_((whole[:, :, :2], whole[:, :, 1:]), random((5, 4), F64, 1), random((5, 4), F64, 2))


def refused_in_place():
    """Calls of apply_ that are refused while gradients are recorded, because of the second tensor or of the table."""
    leaf = random((1, 5, 4, 8), F64).requires_grad_()
    good, cos, sin = (leaf * 1)[:, :, :2], random((9, 4), F64, 1), random((9, 4), F64, 2)
    inference = torch.inference_mode()(lambda: torch.ones(1, 5, 2, 8, dtype=F64))()
    return {
        "another seqlen": (good, (leaf * 1)[:, :4], cos, "hold tensors with the batch and seqlen"),
        "another dtype": (good, (leaf * 1).float(), cos, "hold tensors of the dtype"),
        "another head_dim": (good, (leaf * 1)[..., :6], cos, "be given when the tensors differ in head_dim"),
        "overlapping cos": (good, (memory := leaf * 1), memory.flatten()[:36].view(9, 4), "not overlap"),
        "a leaf": (good, leaf, cos, "not be a leaf that requires grad, or a view of one"),
        "a view of a leaf": (good, leaf[:, :, 2:], cos, "not be a leaf that requires grad, or a view of one"),
        "one part of a split": (good, (leaf * 1).split(2, dim=2)[1], cos, "not be one of several views"),
        "an inference tensor": (good, inference, cos, "not be an inference tensor outside inference mode"),
    }, sin


@pytest.mark.parametrize("name", refused_in_place()[0])
def test_refused_in_place_before_anything_is_written(name):
    cases, sin = refused_in_place()
    q, k, cos, message = cases[name]
    before = q.detach().clone(), k.detach().clone()
    with pytest.raises((ValueError, TypeError), match=f"rope_ext: (x|rotary_dim) must {message}"):
        rope_ext.apply_((q, k), cos, sin)
    assert_same_bits((q.detach(), k.detach()), before)


def test_inference_tensors_are_written_only_in_inference_mode():
    cos, sin = random((5, 4), F64, 1), random((5, 4), F64, 2)
    with torch.inference_mode():
        x = torch.ones(1, 5, 2, 8, dtype=F64)
    for write in (lambda: rope_ext.apply_(x, cos, sin), lambda: rope_ext.apply(x.clone(), cos, sin, out=x)):
        with pytest.raises(ValueError, match="not be an inference tensor outside inference mode"):
            write()
    assert torch.equal(x, torch.ones_like(x))


def test_in_place_on_a_tensor_that_a_transform_captured_is_refused():
    """Otherwise its gradient would silently be zero."""
    x, cos, sin = random((1, 5, 2, 8), F64), random((5, 4), F64, 1), random((5, 4), F64, 2)
    with pytest.raises(ValueError, match="x must be inside every transform"):
        torch.func.grad(lambda cos: rope_ext.apply_(x, cos, sin).pow(2).sum())(cos)


def test_an_output_whose_input_needs_no_gradient_needs_none():
    q, k = random((1, 5, 2, 8), F64).requires_grad_(), random((1, 5, 1, 8), F64)
    cos, sin = random((5, 4), F64, 1), random((5, 4), F64, 2)
    assert [t.requires_grad for t in rope_ext.apply((q, k), cos, sin)] == [True, False]
    assert [t.requires_grad for t in rope_ext.apply((q, k), cos.requires_grad_(), sin)] == [True, True]


def test_second_order_with_tables_that_repeat():
    """The gradient that arrives at table_grad is expanded along the channels: one row per token, so no lookup copies it."""
    x = random((1, 4, 2, 8), F64).requires_grad_()
    cos, sin = (random((1, 4, 8), F64, s).requires_grad_() for s in (1, 2))
    weights = random((1, 4, 8), F64, 3)

    def second(apply):
        grad_cos, grad_sin = torch.autograd.grad(apply(x, cos, sin).pow(2).sum(), (cos, sin), create_graph=True)
        return torch.autograd.grad(grad_cos.sum() + (grad_sin * weights).sum(), (x, cos, sin))

    torch.testing.assert_close(second(rope_ext.apply), second(reference.apply), rtol=0, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)
    grads = []
    for wrap in (False, True):
        x = random((2, 5, 3, 8), torch.float32).requires_grad_()

        def block(x):
            return rope_ext.apply(rope_ext.apply_(x * 2, cos, sin), cos, sin, inverse=True).pow(3)

        y = checkpoint(block, x, use_reentrant=use_reentrant) if wrap else block(x)
        y.sum().backward()
        grads.append(x.grad)
    assert_same_bits(*grads)


# ---- in place ----


def test_in_place_counts_as_a_write():
    """autograd must notice that a tensor it saved was overwritten."""
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)
    x = random((1, 5, 2, 8), torch.float32)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            version = x._version
            rope_ext.apply_(x, cos, sin)
            assert x._version > version
            version = x._version
            rope_ext.apply(x, cos, sin, out=x)
            assert x._version > version
    base = random((1, 5, 2, 8), torch.float32).requires_grad_()
    y = base * 1
    square = y**2  # saves y
    rope_ext.apply_(y, cos, sin)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_the_ops_themselves_count_their_writes():
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)
    x, out = random((1, 5, 2, 8), torch.float32), torch.empty(1, 5, 2, 8)
    arguments = ([x], cos, sin)
    torch.ops.rope_ext.rotate_out([out], *arguments)
    assert (x._version, out._version) == (0, 1)
    torch.ops.rope_ext.rotate_(*arguments)
    assert (x._version, out._version) == (1, 1)


def test_in_place_on_a_leaf_without_recording():
    x, cos, sin = random((1, 5, 2, 8), F64).requires_grad_(), random((5, 4), F64, 1), random((5, 4), F64, 2)
    expected = reference.apply(x.detach(), cos, sin)
    with torch.no_grad():
        rope_ext.apply_(x, cos, sin)
    assert_same_bits(x.detach(), expected)


def test_in_place_on_a_view_reaches_the_base():
    cos, sin = random((5, 4), F64, 1), random((5, 4), F64, 2)
    packed = random((2, 5, 3, 2, 8), F64).requires_grad_()

    def function(packed):
        whole = packed * 1
        rope_ext.apply_((whole[:, :, 0], whole[:, :, 1]), cos, sin)
        return whole

    assert gradcheck(function, packed)


def test_inference_mode():
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)
    x = random((1, 5, 2, 8), torch.float32)
    with torch.inference_mode():
        y = rope_ext.apply(x, cos, sin)
        assert y.is_inference()
        assert_same_bits(rope_ext.apply_(y.clone(), cos, sin), reference.apply(y, cos, sin))
    assert_same_bits(y, reference.apply(x, cos, sin))


def test_autocast_changes_no_dtype():
    cos, sin = random((5, 4), torch.float32, 1), random((5, 4), torch.float32, 2)
    for dtype in (torch.float32, torch.bfloat16):
        x = random((1, 5, 2, 8), dtype).requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16):
            y = rope_ext.apply(x, cos, sin)
        assert_same_bits(y.detach(), reference.apply(x.detach(), cos, sin))
        y.sum().backward()
        assert x.grad.dtype == dtype


def test_in_place_on_slices_of_one_tensor_with_learned_tables():
    """Writing q through autograd makes k, another view of the same tensor, part of the graph too."""
    packed = random((1, 3, 6, 8), torch.float64)
    cos, sin = (random((3, 4), torch.float64, seed).requires_grad_() for seed in (1, 2))
    expected = torch.cat((rope_ext.apply(packed[:, :, :4], cos, sin), packed[:, :, 4:]), 2)
    written = packed.clone()
    rope_ext.apply_((written[:, :, :2], written[:, :, 2:4]), cos, sin)
    assert_same_bits(written.detach(), expected.detach())
    grad = random(packed.shape, torch.float64, 3)
    for a, b in zip(*(torch.autograd.grad(y, (cos, sin), grad) for y in (written, expected))):
        assert (a - b).abs().max() < 1e-14  # two terms, added in another order


# ---- the lean way of recorded calls: x alone is differentiated ----


@pytest.mark.parametrize("scalars", [(), (1,), (1, INVERSE), (0, INVERSE, 8), (0, 0, 4, 2), (1, 0, 4, 0, 1.0)])
@pytest.mark.parametrize("op", ["rotate", "rotate_", "apply_"])
def test_kernels_differentiate_however_many_arguments_are_given(op, scalars):
    """Kernels in Python get no defaults at the end of the arguments, given or not."""
    x, cos, sin = random((1, 4, 2, 8), F64), *(t.double() for t in rope_ext.RotaryEmbedding(8).tables(5))
    offset, flags, rotary_dim, rotary_offset, *_ = (*scalars, *(0, 0, None, 0)[len(scalars) :])
    cos, sin = (t[:, : (rotary_dim or 8) // 2] for t in (cos, sin))
    options = {"offset": offset, "inverse": flags == INVERSE, "rotary_dim": rotary_dim, "rotary_offset": rotary_offset}

    def call(x):
        x = x * 1
        if op == "apply_":
            given = {name: value for name, value in options.items() if value}
            return rope_ext.apply_(x, cos, sin, **given)
        y = getattr(torch_ops, op)([x], cos, sin, *scalars)
        return x if y is None else y[0]

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(call(leaf), leaf, x)
    assert_same_bits(call(x), reference.apply(x, cos, sin, **options))
    assert_same_bits(grad, reference.apply(x, cos, sin, transposed=True, **options))


@pytest.mark.parametrize("call", [rope_ext.apply, lambda x, *tables: rope_ext.apply_(x * 1, *tables)])
def test_batched_gradients_are_differentiated_again(call):
    x, cos, sin = random((1, 2, 1, 4), F64), random((2, 2), F64, 1), random((2, 2), F64, 2)

    def penalty(x, vectorize):
        y = torch.autograd.functional.jacobian(
            lambda v: call(v**3, cos, sin).pow(2).sum((0, 1, 2)), x, create_graph=True, vectorize=vectorize
        )
        return torch.autograd.grad(y.pow(2).sum(), x)[0]

    got, expected = (penalty(x.clone().requires_grad_(), vectorize) for vectorize in (True, False))
    assert expected.any()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def written_with_hooks(write, prepare, view):
    """Gradients that hooks and retain_grad of a tensor see which is written after they were set."""
    seen, leaf = [], random((1, 4, 4, 8), F64).requires_grad_()
    q, k = leaf[:, :, :2] * 1, (leaf * 2)[:, :, 1:3] if view else leaf[:, :, 1:3] * 2
    prepare(q, k, seen)
    write((q, k))
    (q.pow(2).sum() + k.pow(3).sum()).backward()
    return [leaf.grad, *seen, *(t.grad for t in (q, k) if t.retains_grad)]


@pytest.mark.parametrize("view", [True, False])
@pytest.mark.parametrize(
    "prepare",
    [
        lambda q, k, seen: k.register_hook(lambda g: seen.append(g.clone()) or 2 * g),
        lambda q, k, seen: q.register_hook(lambda g: seen.append(g.clone()) or 2 * g),
        lambda q, k, seen: (q.retain_grad(), k.retain_grad()),
    ],
)
def test_hooks_and_retained_gradients_are_those_of_a_copy(prepare, view):
    cos, sin = random((4, 4), F64, 1), random((4, 4), F64, 2)

    def copied(x):
        for t, y in zip(x, rope_ext.apply([t.clone() for t in x], cos, sin)):
            t.copy_(y)

    got = written_with_hooks(lambda x: rope_ext.apply_(x, cos, sin), prepare, view)
    expected = written_with_hooks(copied, prepare, view)
    assert len(got) == len(expected) > 1
    for g, e in zip(got, expected):
        assert_same_bits(g, e)


@pytest.mark.devices("cpu")
def test_what_a_torch_function_makes_of_the_result_is_differentiated():
    class Doubles(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            return [2 * t for t in y] if "rotate" in str(func) else y

    x, cos, sin = random((1, 4, 2, 8), F64).requires_grad_(), random((4, 4), F64, 1), random((4, 4), F64, 2)
    with Doubles():
        y = rope_ext.apply(x, cos, sin)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(x))
    assert_same_bits(grad, 2 * reference.apply(torch.ones_like(x), cos, sin, transposed=True))


def test_nothing_is_recorded_in_inference_mode_with_grad_enabled():
    x, cos, sin = random((1, 4, 2, 8), F64).requires_grad_(), random((5, 4), F64, 1), random((5, 4), F64, 2)
    with torch.inference_mode(), torch.enable_grad():
        positions = torch.arange(4, device=x.device)
        assert not rope_ext.apply(x, cos, sin, positions=positions).requires_grad


@pytest.mark.devices("cpu")
def test_a_lazy_negation_is_written_in_training():
    q, cos, sin = random((1, 4, 2, 8), F64), random((4, 4), F64, 1), random((4, 4), F64, 2)
    leaf = q.clone().requires_grad_()
    h, k = leaf * 1, torch._neg_view(leaf * 2)
    rope_ext.apply_((h, k), cos, sin)
    assert_same_bits(h.detach(), reference.apply(q, cos, sin))
    assert_same_bits(k.detach().resolve_neg(), reference.apply(-2 * q, cos, sin))
