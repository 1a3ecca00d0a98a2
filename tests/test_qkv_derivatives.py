"""Derivatives of apply_qkv: one packed gradient, written once; every order and mode; graphs."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, vmap
from torch.utils.checkpoint import checkpoint

import rope_ext
from tests.conftest import DTYPES, assert_same_bits, lazy_negation, random
from tests.packed import FORMS, packed, unpacked
from tests.pairwise import pairwise

F32, F64 = torch.float32, torch.float64
COS, SIN = random((6, 2), F64, 1), random((6, 2), F64, 2)
WAYS = [(4, 2, False), (4, 2, True), (2, 2, True), (2, 1, True), (18, 2, True)]  # num_heads, num_kv_heads, grouped
CASES = pairwise(
    {
        "form": FORMS[:2],
        "way": WAYS[:4],
        "layout": ["bshd", "sbhd", "thd"],
        "interleaved": [False, True],
        "channels": [(4, None, 0), (6, 4, 1)],
        "moved": [False, True],
        "in_place": [False, True],
    }
)


def keywords_of(way, **others):
    return {**dict(zip(("num_heads", "num_kv_heads", "grouped"), way)), **others}


def problem(case):
    """(function of qkv, cos and sin, those three)"""
    head_dim, rotary_dim, rotary_offset = case["channels"]
    keywords = keywords_of(case["way"], layout=case["layout"], interleaved=case["interleaved"])
    keywords |= {"rotary_dim": rotary_dim, "rotary_offset": rotary_offset}
    if case["moved"] and not case["in_place"]:
        keywords["out_interleaved"] = not case["interleaved"]
    qkv = packed(case["form"], case["layout"], *case["way"], head_dim, F64)

    def function(qkv, cos=COS, sin=SIN):
        if case["in_place"]:
            return rope_ext.apply_qkv_(qkv * 1.0, cos, sin, **keywords)
        return rope_ext.apply_qkv(qkv, cos, sin, **keywords)

    return function, [t.clone().requires_grad_() for t in (qkv, COS, SIN)], keywords


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_finite_differences(case, tables):
    function, inputs, _ = problem(case)
    inputs = inputs if tables else inputs[:1]
    checks = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(function, inputs, **checks, check_batched_forward_grad=not case["in_place"], fast_mode=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


def of_parts(qkv, cos, sin, *, num_heads, num_kv_heads, grouped, layout="bshd"):
    """apply_qkv, composed: PyTorch differentiates the way to q, k and v."""
    q, k, v = unpacked(qkv, layout, num_heads, num_kv_heads, grouped)
    return *rope_ext.apply((q, k), cos, sin, layout=layout), v


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_that_of_the_parts_bitwise(dtype, way):
    """Whichever results a loss reads, and whether or not the gradient is itself recorded."""
    keywords = keywords_of(way)
    tables = [t if dtype == F64 else t.float() for t in (COS, SIN)]
    for form in FORMS[:2]:
        qkv = packed(form, "bshd", *way, 4, dtype).requires_grad_()
        got, wanted = rope_ext.apply_qkv(qkv, *tables, **keywords), of_parts(qkv, *tables, **keywords)
        grads = [random(t.shape, dtype, 3 + i) for i, t in enumerate(got)]
        for read in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):

            def gradient(results, read=read, grads=grads, qkv=qkv, **options):
                picked = [results[i] for i in read]
                return torch.autograd.grad(picked, qkv, [grads[i] for i in read], retain_graph=True, **options)

            assert_same_bits(gradient(got), gradient(wanted))
            assert_same_bits([t.detach() for t in gradient(got, create_graph=True)], gradient(wanted))


@pytest.mark.parametrize("way", WAYS)
def test_gradient_is_written_once(way):
    """No zeros, sums, concatenations or copies, but the copy of the gradient of v; none of results that are not read."""
    keywords = keywords_of(way)
    qkv = packed("flat", "bshd", *way, 4, F32).requires_grad_()
    tables = COS.float(), SIN.float()
    grads = [random(t.shape, F32) for t in rope_ext.apply_qkv(qkv, *tables, **keywords)]
    for read in ([0, 1, 2], [0, 1]):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            results = rope_ext.apply_qkv(qkv, *tables, **keywords)
            torch.autograd.grad([results[i] for i in read], qkv, [grads[i] for i in read])
        calls = {e.key: e.count for e in profiler.key_averages()}
        passes = -(-(way[0] // way[1] + 1) // 8) if way[2] else 1
        assert calls.get("rope_ext::rotate_out", 0) + calls.get("rope_ext::rotate", 0) == 2 * passes
        assert calls.get("aten::copy_", 0) == (2 in read) and calls.get("aten::zero_", 0) == (2 not in read)
        written = {"aten::cat", "aten::add", "aten::add_", "aten::clone", "aten::contiguous", "aten::zeros"}
        assert not {*written, "aten::new_zeros", "aten::slice_backward", "aten::_to_copy"} & set(calls)
        assert calls.get("aten::fill_", 0) <= (2 not in read)  # by zero_


def test_qkv_is_not_kept_for_backward():
    qkv = packed("flat", "bshd", 4, 2, False, 4, F32).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        rope_ext.apply_qkv(qkv, COS.float(), SIN.float(), num_heads=4, num_kv_heads=2)
    assert qkv.data_ptr() not in saved


@pytest.mark.parametrize("way", WAYS[:2])
def test_incoming_gradients_of_any_stride_are_read_and_not_written(way):
    qkv = packed("flat", "bshd", *way, 4, F32).requires_grad_()
    tables, keywords = (COS.float(), SIN.float()), keywords_of(way)
    for results in zip(rope_ext.apply_qkv(qkv, *tables, **keywords), of_parts(qkv, *tables, **keywords)):
        shape = results[0].shape
        for g in (
            random(shape[-1:], F32).expand(shape),
            random(shape[::-1], F32).permute(3, 2, 1, 0),
            random((*shape[:-1], 8), F32)[..., ::2],
            lazy_negation(random(shape, F32)),
        ):
            before = g.clone()
            assert_same_bits(*(torch.autograd.grad(t, qkv, g, retain_graph=True) for t in results))
            assert torch.equal(g, before)


# ---- transforms ----


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("of", [0, 1])
@pytest.mark.parametrize("transform", [grad, hessian, jacfwd, lambda f, of: vmap(grad(f, of), (0, None))])
def test_transforms(transform, of, way):
    def loss(function):
        weights = [random((), F64, 4 + i) for i in range(3)]
        keywords = keywords_of(way, layout="thd")
        return lambda x, cos: sum((w * t.pow(3)).sum() for w, t in zip(weights, function(x, cos, SIN, **keywords)))

    qkv = packed("flat", "thd", *way, 4, F64)
    if transform is not grad and transform is not hessian and transform is not jacfwd:
        qkv = torch.stack((qkv, qkv + 1))
    got, wanted = (transform(loss(f), of)(qkv, COS) for f in (rope_ext.apply_qkv, of_parts))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_batched_gradients():
    qkv = packed("flat", "bshd", 4, 2, True, 4, F64).requires_grad_()
    results = rope_ext.apply_qkv(qkv, COS, SIN, **keywords_of(WAYS[1]))
    many = [random((3, *t.shape), F64, 5) for t in results]
    (got,) = torch.autograd.grad(results, qkv, many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        assert_same_bits(got[i], torch.autograd.grad(results, qkv, [g[i] for g in many], retain_graph=True)[0])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    qkv = packed("flat", "bshd", 4, 2, True, 4, F32).requires_grad_()

    def block(x):
        q, k, v = rope_ext.apply_qkv(x * 2, COS.float(), SIN.float(), **keywords_of(WAYS[1]))
        return q.pow(3).sum() + k.pow(2).sum() + v.sum()

    plain = torch.autograd.grad(block(qkv), qkv)
    checkpoint(block, qkv, use_reentrant=use_reentrant).backward()
    assert_same_bits(qkv.grad, *plain)


@pytest.mark.parametrize(("way", "backend"), [(WAYS[0], "aot_eager"), (WAYS[1], "inductor")])
def test_compile(way, backend):
    torch._dynamo.reset()

    def step(function, x):
        q, k, v = function(x * 2, COS.float(), SIN.float(), **keywords_of(way))
        return q.sin().sum() + k.cos().sum() + v.exp().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for seqlen in (5, 3):
        qkv = packed("flat", "bshd", *way, 4, F32)[:, :seqlen].requires_grad_()
        got, wanted = step(rope_ext.apply_qkv, qkv), compiled(rope_ext.apply_qkv, qkv)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        pair = [torch.autograd.grad(loss, qkv) for loss in (got, wanted)]
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)  # float32 functions that Inductor has of its own


def test_compiled_autograd_export_and_trace():
    keywords, tables = keywords_of(WAYS[1]), (COS.float(), SIN.float())
    qkv = packed("flat", "bshd", *WAYS[1], 4, F32).requires_grad_()

    def loss():
        return sum(t.pow(2).sum() for t in rope_ext.apply_qkv(qkv, *tables, **keywords))

    wanted = torch.autograd.grad(loss(), qkv)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        loss().backward()
    assert_same_bits(qkv.grad, *wanted)

    class Module(torch.nn.Module):
        def forward(self, qkv):
            return rope_ext.apply_qkv(qkv, *tables, **keywords)

    qkv = qkv.detach()
    program = torch.export.export(Module(), (qkv,), dynamic_shapes=({1: torch.export.Dim("seqlen", min=2, max=6)},))
    assert_same_bits(program.module()(qkv[:, :3].clone()), Module()(qkv[:, :3].clone()))
    assert_same_bits(torch.jit.trace(Module(), qkv)(qkv + 1), Module()(qkv + 1))


def test_accumulation_and_hooks():
    """A leaf gets its gradient as it is; the nodes of a second call, and hooks of v, see what they should."""
    keywords, tables = keywords_of(WAYS[0]), (COS.float(), SIN.float())
    qkv = packed("flat", "bshd", *WAYS[0], 4, F32).requires_grad_()
    seen = []
    for _ in range(2):
        q, k, v = rope_ext.apply_qkv(qkv, *tables, **keywords)
        v.register_hook(lambda g: seen.append(g.clone()) or g * 2)
        (q.sum() + k.sum() + v.sum()).backward()
    q, k, v = of_parts(qkv, *tables, **keywords)
    (once,) = torch.autograd.grad(q.sum() + k.sum() + 2 * v.sum(), qkv)
    assert_same_bits(qkv.grad, once + once)
    assert len(seen) == 2 and all(torch.equal(g, torch.ones_like(g)) for g in seen)
