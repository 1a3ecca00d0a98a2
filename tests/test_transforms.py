"""torch.func, torch.compile, torch.export, fake tensors: functions that use `apply` agree with the reference."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import rope_ext
from rope_ext import reference
from tests.conftest import assert_same_bits, in_memory, random, random_integers, shape_of

F64 = torch.float64
X, COS, SIN = random((5, 2, 4), F64, 0), random((7, 2), F64, 1), random((7, 2), F64, 2)
BATCH = [random((3, *t.shape), F64, seed) for seed, t in enumerate((X, COS, SIN))]


def out_of_place(apply, x, cos, sin):
    return apply(x, cos, sin, layout="shd", offset=1)


def in_place(_, x, cos, sin):
    return rope_ext.apply_(x * 1, cos, sin, layout="shd", offset=1)


def loss(rotate, apply=rope_ext.apply):
    return lambda x, cos, sin: rotate(apply, x, cos, sin).pow(3).sum()


EXPECTED = loss(out_of_place, reference.apply)


def assert_close(got, expected):
    torch.testing.assert_close(
        got, expected, rtol=1e-12, atol=1e-12
    )  # float64, sums of a few dozen terms of size 1 to 100


@pytest.mark.parametrize("argnum", [0, 1, 2])
@pytest.mark.parametrize("rotate", [out_of_place, in_place])
@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian])
def test_func(transform, rotate, argnum):
    assert_close(transform(loss(rotate), argnum)(X, COS, SIN), transform(EXPECTED, argnum)(X, COS, SIN))


@pytest.mark.parametrize("inner", [grad, jacfwd])
@pytest.mark.parametrize("outer", [jacfwd, jacrev])
def test_func_nested(outer, inner):
    got, expected = (outer(inner(f, 0), 1)(X, COS, SIN) for f in (loss(out_of_place), EXPECTED))
    assert_close(got, expected)


def test_jvp_and_vjp():
    arguments, tangents = (X, COS, SIN), (X + 1, COS + 2, SIN + 3)
    assert_close(jvp(loss(out_of_place), arguments, tangents), jvp(EXPECTED, arguments, tangents))
    (_, got), (_, expected) = vjp(loss(out_of_place), *arguments), vjp(EXPECTED, *arguments)
    assert_close(got(torch.ones((), dtype=F64)), expected(torch.ones((), dtype=F64)))


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, None), (None, 0, 0), (0, 0, 0)])
def test_vmap(in_dims):
    arguments = [many if d == 0 else one for d, one, many in zip(in_dims, (X, COS, SIN), BATCH)]
    for transform in (lambda f: f, grad, lambda f: grad(f, 1), hessian):
        assert_close(
            vmap(transform(loss(out_of_place)), in_dims)(*arguments), vmap(transform(EXPECTED), in_dims)(*arguments)
        )


def test_vmap_of_pairs_layouts_and_positions():
    q, k = random((3, 2, 2, 5, 4), F64, 0), random((2, 1, 5, 4), F64, 1)  # k is the same for all samples
    positions = random_integers(7, (3, 2, 5))

    def rotated(apply, q, k, positions):
        return apply((q, k), COS, SIN, layout="bhsd", positions=positions)

    for in_dims in ((0, None, None), (0, None, 0), (None, None, 0)):
        arguments = [t if d == 0 else t[0] if t.shape[0] == 3 else t for d, t in zip(in_dims, (q, k, positions))]
        got, expected = (
            vmap(lambda *a, f=f: rotated(f, *a), in_dims)(*arguments) for f in (rope_ext.apply, reference.apply)
        )
        assert_same_bits(got, expected)


def test_vmap_with_tables_per_head():
    x, tables = random((3, 2, 5, 2, 4), F64), [random((2, 5, 2, 2), F64, s) for s in (1, 2)]
    got, expected = (vmap(lambda x, f=f: f(x, *tables))(x) for f in (rope_ext.apply, reference.apply))
    assert_same_bits(got, expected)


def test_vmap_in_place():
    x = random((3, 5, 2, 4), F64)
    expected = vmap(lambda x: reference.apply(x, COS, SIN, layout="shd"))(x)
    vmap(lambda x: rope_ext.apply_(x, COS, SIN, layout="shd"))(x)
    assert_same_bits(x, expected)
    with pytest.raises(ValueError, match="rope_ext: x must be inside every transform"):
        vmap(lambda cos: rope_ext.apply_(X.clone(), cos, SIN, layout="shd"))(BATCH[1])


# ---- compile ----


def model_part(q, k, cos, sin, offset):
    q, k = rope_ext.apply((q * 2, k), cos, sin, offset=offset, layout="bhsd")
    rope_ext.apply_(q, cos, sin, inverse=True, layout="bhsd")
    return torch.nn.functional.scaled_dot_product_attention(q, k, k).sum(), k


def qk(seqlen, heads=2):
    return [random((2, seqlen, heads, 8), torch.float32, seed).transpose(1, 2).requires_grad_() for seed in (0, 1)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph_dynamic_one_graph_for_any_offset(backend):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(model_part, fullgraph=True, dynamic=True, backend=counting)
    cos, sin = (t.requires_grad_() for t in rope_ext.RotaryEmbedding(8).tables(64))
    for seqlen, offset in ((5, 2), (5, 3), (9, 4), (9, 0), (11, 1), (6, 50)):
        inputs = (*qk(seqlen), cos, sin)
        (loss, k), (expected, expected_k) = compiled(*inputs, offset), model_part(*inputs, offset)
        assert_same_bits(k.detach(), expected_k.detach())
        got = torch.autograd.grad(loss + k.sum(), inputs)
        # float32; attention and sums are compiled in another order
        torch.testing.assert_close(got, torch.autograd.grad(expected + expected_k.sum(), inputs), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


def test_compile_of_transforms_and_writes_to_inputs():
    torch._dynamo.reset()
    x, cos, sin = random((1, 5, 2, 4), F64), COS, SIN

    def gradient(x):
        return grad(lambda x: rope_ext.apply(x, cos, sin).pow(3).sum())(x)

    def per_sample(x):
        return vmap(grad(lambda x: rope_ext.apply(x, cos, sin, layout="shd").pow(3).sum()))(x)

    def writes(x, out):
        rope_ext.apply(x, cos, sin, out=out)
        rope_ext.apply_(x, cos, sin)
        return out + x

    for function in (gradient, per_sample):
        assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))
    results = []
    for function in (torch.compile(writes, fullgraph=True, backend="aot_eager"), writes):
        y, out = x.clone(), torch.empty_like(x)
        results.append((function(y, out), y, out))
    assert_same_bits(*results)


def test_export():
    class Module(torch.nn.Module):
        def forward(self, q, k, cos, sin, positions):
            return rope_ext.apply((q, k), cos, sin, positions=positions, layout="bhsd")

    def arguments(seqlen):
        return (
            *(t.detach() for t in qk(seqlen)),
            *rope_ext.RotaryEmbedding(8).tables(64),
            torch.arange(seqlen).expand(2, seqlen),
        )

    seqlen = torch.export.Dim("seqlen", min=2, max=64)
    dynamic = ({2: seqlen}, {2: seqlen}, None, None, {1: seqlen})
    program = torch.export.export(Module(), arguments(5), dynamic_shapes=dynamic)
    assert [n.target for n in program.graph.nodes if "rope_ext" in str(n.target)] == [torch.ops.rope_ext.rotate.default]
    assert_same_bits(program.module()(*arguments(11)), Module()(*arguments(11)))


@pytest.mark.parametrize("memory", ["contiguous", "transposed", "sliced", "reversed strides"])
@pytest.mark.parametrize("op", ["rotate", "rotate_", "rotate_out", "table_grad", "table_rows", "check_in_place"])
def test_opcheck(op, memory):
    """PyTorch checks custom ops: schema, strides of the fake kernel, autograd registration, compiled autograd."""
    x = [in_memory(random((2, 5, h, 4), F64, h), memory) for h in (2, 1)]
    leaf = op in ("rotate", "table_grad")
    x = [t.requires_grad_(leaf) for t in x]
    tables = (
        [in_memory(t[None, :5], memory).requires_grad_(leaf) for t in (COS, SIN)] if op == "table_grad" else [COS, SIN]
    )
    arguments = (x, *tables)
    if op in ("rotate_out", "table_grad"):
        arguments = ([in_memory(t.detach(), memory) for t in x], *arguments)
    results = torch.library.opcheck(getattr(torch.ops.rope_ext, op).default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", reference.LAYOUTS)
def test_fake_rows(layout):
    """table_rows: positions that repeat one row with stride 0 still have a batch."""
    x = [random(shape_of(layout, 2 if "b" in layout else 1, 5, 3, 4), F64)]
    positions = torch.arange(5).expand(2, 5) if "b" in layout else torch.arange(5)
    for lookup in ((None, None), (positions, None), (None, torch.tensor([0, 1] if "b" in layout else [1]))):
        arguments = (x, COS, SIN, 0, reference.LAYOUTS.index(layout), None, 0, 1.0, *lookup)
        assert set(torch.library.opcheck(torch.ops.rope_ext.table_rows.default, arguments).values()) == {"SUCCESS"}


class Seen(TorchDispatchMode):
    """The ops that reach a mode."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.ops.append(op)
        return op(*args, **(kwargs or {}))


def test_modes_see_the_ops_that_know_their_derivatives():
    """They do not see the overload that apply calls when nothing is recorded. Writes are counted once."""
    ops = torch.ops.rope_ext
    x, out = random((5, 2, 4), F64), torch.empty(5, 2, 4, dtype=F64)
    with Seen() as seen:
        y = rope_ext.apply(x, COS, SIN, layout="shd")
        rope_ext.apply(x, COS, SIN, layout="shd", out=out)
        rope_ext.apply_(x, COS, SIN, layout="shd")
    assert seen.ops == [ops.rotate.default, ops.rotate_out.default, ops.rotate_.default]
    assert_same_bits(out, y)
    assert_same_bits(x, y)
    assert (x._version, out._version) == (1, 1)


def test_meta_and_fake_tensors():
    q, k = (torch.empty_strided((2, 5, h, 8), (5 * 8 * h, 8, 40, 1), device="meta") for h in (2, 1))
    cos, sin = rope_ext.RotaryEmbedding(8).tables(5, device="meta")
    y = rope_ext.apply((q, k), cos, sin)
    assert [(t.device.type, t.shape, t.stride()) for t in y] == [
        ("meta", t.shape, torch.empty_like(t).stride()) for t in (q, k)
    ]


# ---- vmap: what is refused, and what is left as it was ----


def test_vmap_does_not_write_a_tensor_from_outside_once_per_sample():
    q, k = random((3, 1, 4, 2, 8), torch.float32), random((1, 4, 2, 8), torch.float32, 1)
    cos, sin = rope_ext.RotaryEmbedding(8).tables(4)
    before = k.clone()
    rule = r"^rope_ext: x must be inside torch\.func\.vmap when it is written, got one of shape \(1, 4, 2, 8\) from outside$"
    with pytest.raises(ValueError, match=rule):
        torch.func.vmap(lambda q: rope_ext.apply_((q, k), cos, sin)[0])(q)
    with pytest.raises(ValueError, match=rule):
        torch.func.vmap(lambda c: torch.ops.rope_ext.rotate_([k], c, sin))(cos.expand(3, 4, 4))
    assert torch.equal(k, before)


def test_vmap_over_nothing_and_into_out():
    x, (cos, sin) = random((1, 4, 2, 8), torch.float32), rope_ext.RotaryEmbedding(8).tables(4)
    for call, mapped in (
        (lambda x: rope_ext.apply(x, cos, sin), x.expand(0, *x.shape)),
        (lambda c: rope_ext.apply(x, c, sin), cos.expand(0, *cos.shape)),
        (lambda p: rope_ext.cos_sin(p, torch.ones(4)), torch.empty(0, 5)),
    ):
        with pytest.raises(
            ValueError, match=r"^rope_ext: torch\.func\.vmap must map over at least one sample, got none$"
        ):
            torch.func.vmap(call)(mapped)
    with pytest.raises(ValueError, match=r"^rope_ext: out must be None under a transform of torch\.func, got tensors$"):
        torch.func.vmap(lambda x: rope_ext.apply(x, cos, sin, out=torch.empty_like(x)))(x.expand(3, *x.shape))


@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_a_view_of_a_tensor_from_outside_is_not_written(transform):
    """Nothing would be recorded for the table: its gradient would silently be zero."""
    k, (cos, sin) = random((1, 4, 2, 8), torch.float32), rope_ext.RotaryEmbedding(8).tables(4)
    before = k.clone()

    def rotated(c):
        rope_ext.apply_(k[:, :, :1], c, sin)
        return k.sum()

    with pytest.raises(ValueError, match=r"^rope_ext: x must be inside every transform that cos, sin or the positions"):
        grad(rotated)(cos) if transform == "grad" else jvp(rotated, (cos,), (cos,))
    assert torch.equal(k, before)

    def made_inside(c):
        own = k * 1
        rope_ext.apply_(own[:, :, :1], c, sin)
        return own.sum()

    expected = grad(lambda c: rope_ext.apply(k[:, :, :1], c, sin).sum())(cos)
    assert_same_bits(grad(made_inside)(cos), expected)


# ---- jit ----


def into_out(_, x, cos, sin):
    out = torch.zeros_like(x)
    return rope_ext.apply(x, cos, sin, layout="shd", offset=1, out=out)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("rotate", [out_of_place, in_place, into_out])
def test_a_jit_trace(rotate, recorded):
    """torch.jit.trace compares with a trace made in no_grad mode, and drops ops that write into lists of tensors."""
    x = X.clone().requires_grad_(recorded and rotate is not into_out)
    traced = torch.jit.trace(lambda x: rotate(rope_ext.apply, x, COS, SIN), x)
    expected = rotate(rope_ext.apply, x, COS, SIN)
    assert_same_bits(traced(x), expected)
    if x.requires_grad:
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (traced(x), expected)]
        assert torch.equal(*grads)


def test_sizes_in_a_jit_trace():
    """torch.jit.trace makes 0-dim tensors of sizes; whatever takes an int takes them."""
    rope = rope_ext.RotaryEmbedding(4, schedule="dynamic_ntk", factor=2.0, max_position=3)
    x = X.float()[None]

    def function(x):
        y = rope.apply(x, seqlen=x.shape[1], offset=x.shape[1], rotary_dim=x.shape[3])
        return rope_ext.apply(y, *rope.tables(x.shape[1], seqlen=x.shape[1]), rotary_dim=x.shape[3])

    assert_same_bits(torch.jit.trace(function, x)(x), function(x))
