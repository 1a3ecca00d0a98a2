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
        "norm": [False, True],
        "in_place": [False, True],
    }
)


def keywords_of(way, **others):
    return {**dict(zip(("num_heads", "num_kv_heads", "grouped"), way)), **others}


def weights(head_dim, dtype):
    return [random((head_dim,), dtype, seed).requires_grad_() for seed in (21, 22)]


def problem(case, tables):
    """(function of qkv, the weights of the norm if there is one, and cos and sin if tables; these)"""
    head_dim, rotary_dim, rotary_offset = case["channels"]
    keywords = keywords_of(case["way"], layout=case["layout"], interleaved=case["interleaved"])
    keywords |= {"rotary_dim": rotary_dim, "rotary_offset": rotary_offset}
    if case["moved"] and not case["in_place"]:
        keywords["out_interleaved"] = not case["interleaved"]
    qkv = packed(case["form"], case["layout"], *case["way"], head_dim, F64).requires_grad_()
    norm = weights(head_dim, F64) if case["norm"] else []

    def function(qkv, *others):
        given = {"norm": others[:2], "eps": 0.1} if norm else {}
        cos, sin = others[-2:] if tables else (COS, SIN)
        if case["in_place"]:
            return rope_ext.apply_qkv_(qkv * 1.0, cos, sin, **keywords, **given)
        return rope_ext.apply_qkv(qkv, cos, sin, **keywords, **given)

    return function, (qkv, *norm, *((COS.clone().requires_grad_(), SIN.clone().requires_grad_()) if tables else ()))


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_finite_differences(case, tables):
    function, inputs = problem(case, tables)
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": not case["in_place"]}
    assert gradcheck(function, inputs, **checks, fast_mode=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


def of_parts(qkv, cos, sin, *, num_heads, num_kv_heads, grouped, layout="bshd", **options):
    """apply_qkv, composed: PyTorch differentiates the way to q, k and v."""
    q, k, v = unpacked(qkv, layout, num_heads, num_kv_heads, grouped)
    return *rope_ext.apply((q, k), cos, sin, layout=layout, **options), v


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_that_of_the_parts_bitwise(dtype, way, norm):
    """Whichever results a loss reads; and whether or not the gradient is itself recorded, but for its rounding then."""
    keywords = keywords_of(way)
    of_norm = weights(4, dtype) if norm else []
    if norm:
        keywords |= {"norm": tuple(of_norm), "eps": 1e-5}
    tables = [t if dtype == F64 else t.float() for t in (COS, SIN)]
    form = FORMS[len(way) % 2]
    qkv = packed(form, "bshd", *way, 4, dtype).requires_grad_()
    got, wanted = rope_ext.apply_qkv(qkv, *tables, **keywords), of_parts(qkv, *tables, **keywords)
    grads = [random(t.shape, dtype, 3 + i) for i, t in enumerate(got)]
    for read in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        needs = [qkv, *(of_norm[i] for i in read if i < len(of_norm))]

        def gradient(results, read=read, needs=needs, **options):
            picked = [results[i] for i in read]
            return torch.autograd.grad(picked, needs, [grads[i] for i in read], retain_graph=True, **options)

        of_qkv, *of_weights = gradient(got)
        expected_qkv, *expected_weights = gradient(wanted)
        assert_same_bits(of_qkv, expected_qkv)
        # The q heads of a group are added part by part: 10 * 4 products below 2^4, added in another order.
        bound = 40 * 16 * torch.finfo(dtype).eps if way[2] else 0
        torch.testing.assert_close(of_weights, expected_weights, rtol=0, atol=bound)
        assert_same_bits(next(iter(gradient(got, create_graph=True))).detach(), expected_qkv)


def called(function):
    """{op: the number of its calls} in function()."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return {e.key.removeprefix("aten::"): e.count for e in profiler.key_averages()}


WRITES = {
    "cat",
    "stack",
    "add",
    "add_",
    "sum",
    "clone",
    "contiguous",
    "zeros",
    "new_zeros",
    "slice_backward",
    "_to_copy",
}


@pytest.mark.parametrize("way", WAYS)
def test_gradient_is_written_once(way):
    """No zeros, sums, concatenations or copies, but the copy of the gradient of v; zeros for results that are not read."""
    qkv, tables, keywords = (
        packed("flat", "bshd", *way, 4, F32).requires_grad_(),
        (COS.float(), SIN.float()),
        keywords_of(way),
    )
    grads = [random(t.shape, F32) for t in rope_ext.apply_qkv(qkv, *tables, **keywords)]
    passes = -(-(way[0] // way[1] + 1) // 8) if way[2] and way[0] != way[1] else 1
    for read in ([0, 1, 2], [0, 1]):

        def step(read=read):
            results = rope_ext.apply_qkv(qkv, *tables, **keywords)
            torch.autograd.grad([results[i] for i in read], qkv, [grads[i] for i in read])

        calls = called(step)
        assert calls.get("rope_ext::rotate_out", 0) + calls.get("rope_ext::rotate", 0) == 2 * passes
        assert calls.get("copy_", 0) == (2 in read)
        assert calls.get("zero_", 0) == calls.get("fill_", 0) == (2 not in read)
        assert not WRITES & set(calls)


@pytest.mark.parametrize("way", WAYS[:2])
def test_gradient_with_norm_is_written_once(way):
    qkv, tables = packed("flat", "bshd", *way, 4, F32).requires_grad_(), (COS.float(), SIN.float())
    norm = tuple(weights(4, F32))
    keywords = keywords_of(way, norm=norm, eps=1e-6)
    results = rope_ext.apply_qkv(qkv, *tables, **keywords)
    grads = [random(t.shape, F32) for t in results]
    calls = called(lambda: torch.autograd.grad(results, (qkv, *norm), grads))
    assert calls["rope_ext::norm_grad_out"]
    assert calls["copy_"] == 1
    assert calls.get("add", 0) == way[2]  # of the weights of two parts of q
    assert not {*WRITES - {"add"}, "zero_", "fill_"} & set(calls)


@pytest.mark.parametrize("norm", [False, True])
def test_qkv_is_kept_for_backward_only_for_a_norm(norm):
    qkv = packed("flat", "bshd", 4, 2, False, 4, F32).requires_grad_()
    keywords = {"norm": torch.ones(4), "eps": 1e-6} if norm else {}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        rope_ext.apply_qkv(qkv, COS.float(), SIN.float(), num_heads=4, num_kv_heads=2, **keywords)
    assert (qkv.data_ptr() in saved) == norm


@pytest.mark.devices("cpu")
def test_gradient_comes_from_the_output_pool():
    """As large as the pool takes: the memory of a gradient that is gone serves the next."""
    qkv = torch.zeros(1, 4096, 64).requires_grad_()
    cos, sin = (random((4096, 4), F32, s) for s in (1, 2))
    places = []
    rope_ext.set_output_pool(1 << 24)
    try:
        for _ in range(2):
            results = rope_ext.apply_qkv(qkv, cos, sin, num_heads=4, num_kv_heads=2)
            places.append(torch.autograd.grad(results, qkv, [t.detach() for t in results])[0].data_ptr())
        assert places[0] == places[1] and places[0] % (2 << 20) == 0  # the pool aligns to huge pages
    finally:
        rope_ext.set_output_pool(0)


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


def per_sample(function, of):
    return vmap(grad(function, of), (0, None, None))


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("of", [0, 1, 2])
@pytest.mark.parametrize("transform", [grad, hessian, jacfwd, per_sample])
def test_transforms(transform, of, way):
    factors = [random((), F64, 4 + i) for i in range(3)]

    def loss(function):
        def of_tensors(qkv, cos, weight):
            results = function(qkv, cos, SIN, **keywords_of(way, layout="thd", norm=(weight, None), eps=0.1))
            return sum((factor * t.pow(3)).sum() for factor, t in zip(factors, results))

        return of_tensors

    qkv = packed("flat", "thd", *way, 4, F64)
    if transform is per_sample:
        qkv = torch.stack((qkv, qkv + 1))
    tensors = qkv, COS, random((4,), F64, 7)
    got, wanted = (transform(loss(f), of)(*tensors) for f in (rope_ext.apply_qkv, of_parts))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_batched_gradients(norm):
    qkv = packed("flat", "bshd", 4, 2, True, 4, F64).requires_grad_()
    given = {"norm": tuple(weights(4, F64)), "eps": 0.1} if norm else {}
    needs = (qkv, *given.get("norm", ()))
    results = rope_ext.apply_qkv(qkv, COS, SIN, **keywords_of(WAYS[1], **given))
    many = [random((3, *t.shape), F64, 5) for t in results]
    got = torch.autograd.grad(results, needs, many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        one = torch.autograd.grad(results, needs, [g[i] for g in many], retain_graph=True)
        torch.testing.assert_close([g[i] for g in got], list(one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    qkv = packed("flat", "bshd", 4, 2, True, 4, F32).requires_grad_()

    def block(x):
        norm = {"norm": (None, torch.ones(4)), "eps": 1e-6}
        q, k, v = rope_ext.apply_qkv(x * 2, COS.float(), SIN.float(), **keywords_of(WAYS[1], **norm))
        return q.pow(3).sum() + k.pow(2).sum() + v.sum()

    plain = torch.autograd.grad(block(qkv), qkv)
    checkpoint(block, qkv, use_reentrant=use_reentrant).backward()
    assert_same_bits(qkv.grad, *plain)


@pytest.mark.parametrize(("way", "backend"), [(WAYS[0], "aot_eager"), (WAYS[1], "inductor")])
def test_compile(way, backend):
    torch._dynamo.reset()

    def step(function, x, weight):
        options = keywords_of(way, norm=(None, weight), eps=1e-6)
        q, k, v = function(x * 2, COS.float(), SIN.float(), **options)
        return q.sin().sum() + k.cos().sum() + v.exp().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    weight = random((4,), F32, 8).requires_grad_()
    for seqlen in (5, 3):
        qkv = packed("flat", "bshd", *way, 4, F32)[:, :seqlen].requires_grad_()
        got, wanted = compiled(rope_ext.apply_qkv, qkv, weight), step(rope_ext.apply_qkv, qkv, weight)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        pair = [torch.autograd.grad(loss, (qkv, weight)) for loss in (got, wanted)]
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
    """Gradients of two calls accumulate in a leaf, and a hook of v sees the gradient of v and can replace it."""
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
