"""Derivatives of a rotation with a norm: to x, weights, tables and frequencies, of every order and mode."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import rope_ext
from rope_ext import _reference_norm, reference
from tests.conftest import DTYPES, assert_same_bits, in_memory, random, shape_of
from tests.pairwise import pairwise

F64 = torch.float64
EPS = 0.1  # large, so that the derivative of 1 / rms is no multiple of x alone
LOOKUPS = {
    "rows": ((6,), {"offset": 2}),
    "positions": ((6,), {"positions": torch.tensor([[1, 1, 5], [3, 2, 1]])}),
    "cu_seqlens": ((6,), {"cu_seqlens": torch.tensor([0, 0, 1, 2]), "layout": "thd"}),  # one token is past the end
    "token": ((2, 3), {}),
    "head": ((2, 3, 2), {}),
    "inv_freq": (None, {"offset": 3}),
}
CASES = pairwise(
    {
        "lookup": list(LOOKUPS),
        "interleaved": [False, True],
        "per_channel": [False, True],
        "channels": [(4, None, 0), (6, 4, 1)],
        "norm": ["one", "two", "first"],
        "in_place": [False, True],
        "moved": [False, True],
        "constant": ["none", "tables", "weights"],  # which of the inputs are not differentiated
    }
)


def problem(case):
    """(function of tensors, these tensors, in float64 and requiring grad)"""
    shape, keywords = LOOKUPS[case["lookup"]]
    head_dim, rotary_dim, rotary_offset = case["channels"]
    batch = () if "layout" in keywords else (2,)
    q, k = random((*batch, 3, 2, head_dim), F64, 0), random((*batch, 3, 2, head_dim), F64, 1)
    weights = [random((head_dim,), F64, seed) for seed in range(4, 4 + (case["norm"] == "two") + 1)]
    keywords = {**keywords, "rotary_dim": rotary_dim, "rotary_offset": rotary_offset, "eps": EPS}
    keywords["interleaved"] = case["interleaved"]
    if case["moved"] and not case["in_place"]:
        keywords["out_interleaved"] = not case["interleaved"]
    if shape is None:
        tables = [random((2,), F64, 2)]
    else:
        tables = [random((*shape, 4 if case["per_channel"] else 2), F64, seed) for seed in (2, 3)]

    def function(q, k, *others):
        others = iter(others)
        tables_, weights_ = (
            [next(others) for _ in given] if case["constant"] != name else given
            for name, given in (("tables", tables), ("weights", weights))
        )
        norm = {"one": weights_[0], "two": weights_, "first": (weights_[0], None)}[case["norm"]]
        x = (q * 1.0, k * 1.0) if case["in_place"] else (q, k)
        angles = {"inv_freq": tables_[0]} if shape is None else dict(zip(("cos", "sin"), tables_))
        return (rope_ext.apply_ if case["in_place"] else rope_ext.apply)(x, **angles, **keywords, norm=norm)

    others = [*(tables if case["constant"] != "tables" else ()), *(weights if case["constant"] != "weights" else ())]
    return function, tuple(t.clone().requires_grad_() for t in (q, k, *others))


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_finite_differences(case):
    function, inputs = problem(case)
    checks = {"check_forward_ad": True, "check_batched_grad": True}
    checks["check_batched_forward_grad"] = not case["in_place"]  # PyTorch's vmap writes into unbatched tangents
    assert gradcheck(function, inputs, **checks)
    # gradcheck compares whole Jacobians; second order compares random projections, in a tenth of the time
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_second_order_of_the_fused_gradient_in_full():
    function, inputs = problem(CASES[0] | {"lookup": "rows", "constant": "tables", "norm": "two", "in_place": False})
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


# ---- the fused gradient is bit-identical to its formula ----


def formula(x, weight, grad, layout, cos, sin, cu_seqlens=None, **keywords):
    """The gradients of x and weight, by _reference_norm."""
    dtype, eager = x.dtype, keywords.get("rounding") == "eager"
    arithmetic = F64 if dtype == F64 else torch.float32
    g = grad if eager else grad.to(arithmetic)
    tables = (cos, sin) if eager else (cos.to(arithmetic), sin.to(arithmetic))
    g = reference.apply(g, *tables, layout=layout, cu_seqlens=cu_seqlens, transposed=True, **keywords).to(arithmetic)
    if weight is None:
        return g.to(dtype), None
    x4, g4 = (reference.as_bshd(t.to(arithmetic), layout) for t in (x, g))
    if cu_seqlens is not None:
        end = int(cu_seqlens[-1])
        rotated = torch.arange(x.shape[0]).reshape(1, -1, 1, 1) < end
        x4, g4 = torch.where(rotated, x4, 1), torch.where(rotated, g4, 0)
    of_x, of_weight = _reference_norm.norm_gradients(x4.flatten(0, 1), weight, EPS, g4.flatten(0, 1))
    of_x = reference.from_bshd(of_x.unflatten(0, x4.shape[:2]), layout).to(dtype)
    if cu_seqlens is not None:
        of_x[end:] = grad[end:]
    return of_x, of_weight.to(weight.dtype)


BITS = pairwise(
    {
        "layout": ["bshd", "bhsd", "sbhd", "shd", "thd"],
        "channels": [(8, None, 0), (80, 64, 8), (72, None, 0), (128, None, 0), (6, 4, 1)],
        "dtype": DTYPES,
        "weight_dtype": ["x", torch.float32],
        "norm": ["one", "two", "first"],
        "seqlen": [5, 37],  # tokens in one block of sums, and in several
        "interleaved": [False, True],
        "moved": [False, True],
        "per_channel": [False, True],
        "rounding": ["once", "eager"],
        "order": ["contiguous", "transposed", "last stride 2", "reversed strides"],
        "ends": [False, True],
    }
)


@pytest.mark.parametrize("case", BITS, ids=lambda c: "-".join(map(str, c.values())))
def test_gradients_have_the_bits_of_the_formula(case):
    (head_dim, rotary_dim, rotary_offset), dtype, layout = case["channels"], case["dtype"], case["layout"]
    shapes = [shape_of(layout, 2, case["seqlen"], heads, head_dim) for heads in (3, 1)]
    x = [in_memory(random(shape, dtype, s), case["order"]).requires_grad_() for s, shape in enumerate(shapes)]
    grads = [random(shape, dtype, 7 + s) for s, shape in enumerate(shapes)]
    width = (rotary_dim or head_dim) // (1 if case["per_channel"] else 2)
    table_dtype = F64 if dtype == F64 else dtype if case["rounding"] == "eager" else torch.float32
    cos, sin = (random((case["seqlen"], width), table_dtype, s) for s in (2, 3))
    weight_dtype = dtype if case["weight_dtype"] == "x" else case["weight_dtype"]
    weights = [random((head_dim,), weight_dtype, s).requires_grad_() for s in (5, 6)]
    norm = {"one": weights[:1] * 2, "two": weights, "first": [weights[0], None]}[case["norm"]]
    keywords = {"rotary_dim": rotary_dim, "rotary_offset": rotary_offset}
    keywords |= {"layout": layout, "interleaved": case["interleaved"], "rounding": case["rounding"]}
    if case["moved"]:
        keywords["out_interleaved"] = not case["interleaved"]
    if case["ends"] and layout == "thd":
        keywords["cu_seqlens"] = torch.tensor([0, 3, case["seqlen"] - 2])
    y = rope_ext.apply(x, cos, sin, **keywords, norm=norm, eps=EPS)
    differentiated = list({id(t): t for t in (*x, *norm) if t is not None}.values())
    got = torch.autograd.grad(y, differentiated, grads)
    with torch.no_grad():
        if case["moved"]:  # the transposed rotation reads the pairing of the result
            keywords |= {"interleaved": not case["interleaved"], "out_interleaved": case["interleaved"]}
        made = [formula(t, w, g, cos=cos, sin=sin, **keywords) for t, w, g in zip(x, norm, grads)]
    expected = [of_x for of_x, _ in made]
    of_weights = [of_weight for _, of_weight in made if of_weight is not None]
    expected += [of_weights[0] + of_weights[1]] if case["norm"] == "one" else of_weights
    assert_same_bits(got, expected)


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_weights_do_not_depend_on_the_number_of_threads(dtype):
    x, g = (random((3, 50, 4, 64), dtype, seed) for seed in (0, 1))
    x.requires_grad_()
    cos, sin = rope_ext.RotaryEmbedding(64).tables(50)
    weight = random((64,), torch.float32, 2).requires_grad_()
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = rope_ext.apply(x, cos, sin, norm=weight, eps=EPS)
        found.append(torch.autograd.grad(y, (x, weight), g))
    torch.set_num_threads(before)
    for others in found[1:]:
        assert_same_bits(others, found[0])
    assert_same_bits(found[0], [t.detach() for t in formula(x, weight, g, "bshd", cos, sin)])


# ---- transforms ----

X, COS, SIN, WEIGHT = (random(shape, F64, seed) for seed, shape in enumerate(((5, 2, 4), (7, 2), (7, 2), (4,))))
BATCH = [random((3, *t.shape), F64, seed) for seed, t in enumerate((X, COS, SIN, WEIGHT))]


def loss(apply, in_place=False):
    def of_tensors(x, cos, sin, weight):
        keywords = {"layout": "shd", "offset": 1, "norm": (weight, None), "eps": EPS}
        x = (x * 1, x * 2)
        a, b = rope_ext.apply_(x, cos, sin, **keywords) if in_place else apply(x, cos, sin, **keywords)
        return a.pow(3).sum() + b.pow(3).sum()

    return of_tensors


EXPECTED = loss(reference.apply)


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)  # float64, sums of terms of size 1 to 1000


@pytest.mark.parametrize("argnum", [0, 1, 3])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian])
def test_func(transform, in_place, argnum):
    arguments = X, COS, SIN, WEIGHT
    got, expected = (transform(f, argnum)(*arguments) for f in (loss(rope_ext.apply, in_place), EXPECTED))
    assert_close(got, expected)


def test_jvp_of_all_inputs():
    arguments = X, COS, SIN, WEIGHT
    tangents = [t + 1 + i for i, t in enumerate(arguments)]
    got, expected = (jvp(f, arguments, tuple(tangents)) for f in (loss(rope_ext.apply), EXPECTED))
    assert_close(got, expected)


@pytest.mark.parametrize("in_dims", [(0, None, None, None), (None, None, None, 0), (0, 0, None, 0), (None, 0, 0, None)])
def test_vmap(in_dims):
    arguments = [many if d == 0 else one for d, one, many in zip(in_dims, (X, COS, SIN, WEIGHT), BATCH)]
    for transform in (lambda f: f, grad, lambda f: grad(f, 3), lambda f: hessian(f, 3)):
        got, expected = (vmap(transform(f), in_dims)(*arguments) for f in (loss(rope_ext.apply), EXPECTED))
        assert_close(got, expected)


def test_samples_that_share_weights_take_one_call():
    def calls(**norm):
        function = vmap(lambda x: rope_ext.apply(x, COS, SIN, layout="shd", **norm))
        return ops_of(lambda: function(BATCH[0]))["rope_ext::rotate"]

    assert calls(norm=WEIGHT, eps=EPS) == calls()


def test_vmap_of_a_layer_in_training():
    """vmap over samples, within a backward pass of autograd: the op is fused there."""
    x, weight = BATCH[0].clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    grads = []
    for apply in (rope_ext.apply, reference.apply):
        y = vmap(lambda x, apply=apply: apply(x, COS, SIN, layout="shd", norm=weight, eps=EPS))(x)
        grads.append(torch.autograd.grad(y.pow(3).sum(), (x, weight)))
    assert_close(*grads)


def test_vmap_of_a_gradient_of_autograd():
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    y = rope_ext.apply(x, COS, SIN, layout="shd", norm=weight, eps=EPS)
    many = BATCH[0]
    got = vmap(lambda g: torch.autograd.grad(y, (x, weight), g, retain_graph=True))(many)
    expected = [torch.autograd.grad(y, (x, weight), g, retain_graph=True) for g in many]
    assert_same_bits(got, [torch.stack(grads) for grads in zip(*expected)])


def test_batched_gradients_are_differentiated_again():
    x, weight = X[:2, :1].clone(), WEIGHT.clone().requires_grad_()

    def penalty(x, vectorize):
        def outputs(x):
            y = rope_ext.apply(x**3, COS, SIN, layout="shd", norm=weight, eps=EPS)
            return y.pow(2).sum((0, 1))

        y = torch.autograd.functional.jacobian(outputs, x, create_graph=True, vectorize=vectorize)
        return torch.autograd.grad(y.pow(2).sum(), (x, weight))

    got, expected = (penalty(x.clone().requires_grad_(), vectorize) for vectorize in (True, False))
    assert all(t.any() for t in expected)
    assert_close(got, expected)


class Layer(torch.nn.Module):
    """Queries and keys of one projection, normalised by weights of their own, and rotated."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.q_norm, self.k_norm = (torch.nn.Parameter(random((8,), dtype, seed)) for seed in (5, 6))
        cos, sin = rope_ext.RotaryEmbedding(8).tables(64)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x, offset=0):
        q, k = x.split((2, 1), dim=2)
        norm = self.q_norm, self.k_norm
        q, k = rope_ext.apply((q, k), self.cos, self.sin, offset=offset, norm=norm, eps=1e-6)
        return torch.cat((q, k), 2)


def test_functional_call_and_gradients_per_sample():
    layer, x = Layer(), random((3, 5, 3, 8), torch.float32)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def of_sample(weights, x):
        return functional_call(layer, weights, (x[None],)).pow(2).sum()

    got = vmap(grad(of_sample), (None, 0))(weights, x)
    for i in range(3):
        expected = torch.autograd.grad(layer(x[i : i + 1]).pow(2).sum(), list(layer.parameters()))
        for a, b in zip(got.values(), expected):
            torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-5)  # float32, added in another order


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    layer, grads = Layer(), []
    for wrap in (False, True):
        x = random((2, 5, 3, 8), torch.float32).requires_grad_()

        def block(x):
            return layer(layer(x * 2)).pow(3)

        y = checkpoint(block, x, use_reentrant=use_reentrant) if wrap else block(x)
        grads.append(torch.autograd.grad(y.sum(), (x, *layer.parameters())) if not wrap or not use_reentrant else None)
        if grads[-1] is None:  # the reentrant kind takes backward() alone
            y.sum().backward()
            grads[-1] = x.grad, *(p.grad for p in layer.parameters())
    assert_same_bits(*grads)


# ---- compile and export ----


def ops_in(graph):
    return [str(node.target) for node in graph.graph.nodes if "rope_ext" in str(node.target)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_in_training_is_one_graph_with_two_ops(backend):
    graphs, ops = [], []

    def counting(graph, inputs):
        graphs.append(ops_in(graph))
        if backend == "inductor":
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

        def compiler(graph, _inputs):
            ops.append(ops_in(graph))
            return graph

        return torch._dynamo.backends.common.aot_autograd(fw_compiler=compiler, bw_compiler=compiler)(graph, inputs)

    torch._dynamo.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counting)
    for seqlen, offset in ((5, 2), (9, 3), (6, 50)):
        x = random((2, seqlen, 3, 8), torch.float32).requires_grad_()
        got, expected = (f(x, offset) for f in (compiled, layer))
        assert_same_bits(got.detach(), expected.detach())
        of_got, of_expected = (torch.autograd.grad(y.pow(2).sum(), (x, *layer.parameters())) for y in (got, expected))
        torch.testing.assert_close(of_got, of_expected, rtol=1e-5, atol=1e-5)  # the compiled power may round otherwise
    assert graphs == [["rope_ext.rotate.default"]]
    assert ops in ([], [["rope_ext.norm_rotate.default"], ["rope_ext.norm_grad.default"]])


def test_compile_with_an_eps_of_the_module():
    """With dynamic=True a float is an input of the graph until an op takes it, which makes dynamo trace it again."""

    class Normed(torch.nn.Module):
        eps = 1e-3

        def forward(self, x, weight):
            return rope_ext.apply(x, COS, SIN, layout="shd", norm=weight, eps=self.eps)

    torch._dynamo.reset()
    module = Normed()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for module.eps in (1e-3, 1e-1):
        assert_same_bits(compiled(X, WEIGHT), module(X, WEIGHT))


def test_compile_without_gradients():
    torch._dynamo.reset()
    layer, x = Layer(torch.bfloat16), random((2, 5, 3, 8), torch.bfloat16)
    with torch.no_grad():
        assert_same_bits(torch.compile(layer, fullgraph=True)(x, 1), layer(x, 1))


def test_compile_of_transforms_and_of_learned_tables():
    torch._dynamo.reset()

    def gradient(x, weight):
        return grad(lambda x, w: rope_ext.apply(x, COS, SIN, layout="shd", norm=w, eps=EPS).pow(3).sum(), (0, 1))(
            x, weight
        )

    assert_close(torch.compile(gradient, fullgraph=True, backend="aot_eager")(X, WEIGHT), gradient(X, WEIGHT))
    inputs = [t.clone().requires_grad_() for t in (X, COS, SIN, WEIGHT)]
    compiled = torch.compile(loss(rope_ext.apply), fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, EXPECTED))
    assert_close(got, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    layer, x = Layer(), random((2, 5, 3, 8), torch.float32)
    seqlen = torch.export.Dim("seqlen", min=2, max=32)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: seqlen},), strict=strict)
    assert ops_in(program) == ["rope_ext.rotate.default"]
    x = random((2, 9, 3, 8), torch.float32).requires_grad_()
    module = program.module()
    assert_same_bits(module(x).detach(), layer(x).detach())
    parameters = dict(module.named_parameters())
    of_module = torch.autograd.grad(module(x).sum(), (x, parameters["q_norm"], parameters["k_norm"]))
    assert_same_bits(of_module, torch.autograd.grad(layer(x).sum(), (x, layer.q_norm, layer.k_norm)))
    with torch.no_grad():
        assert_same_bits(program.run_decompositions().module()(x.detach()), layer(x.detach()))


@pytest.mark.devices("cpu")
def test_jit_trace():
    layer, x = Layer(), random((2, 5, 3, 8), torch.float32)
    traced = torch.jit.trace(layer, x)
    x = random((2, 9, 3, 8), torch.float32, 1)
    assert_same_bits(traced(x).detach(), layer(x).detach())


@pytest.mark.parametrize("memory", ["contiguous", "sliced"])
@pytest.mark.parametrize("op", ["rotate", "rotate_", "rotate_out", "norm_rotate", "norm_grad", "norm_grad_out"])
def test_opcheck(op, memory):
    x = [in_memory(random((2, 5, heads, 8), torch.float32, heads), memory) for heads in (2, 1)]
    weight = random((8,), torch.float32, 3)
    cos, sin = random((9, 4), torch.float32, 1), random((9, 4), torch.float32, 2)
    arguments = [x, cos, sin, 1, 0, None, 0, 1.0, None, None, None, [weight, None], EPS]
    written = op in ("rotate_", "rotate_out", "norm_grad_out")
    if not written:
        for t in (*x, weight):
            t.requires_grad_()
    if "norm_grad" in op:
        _, inv_rms = torch.ops.rope_ext.norm_rotate(*arguments)
        grads = [random(t.shape, torch.float32, 6) for t in x]
        flags = rope_ext._torch.flags.TRANSPOSED
        arguments = [x, inv_rms, 0x103, grads, *arguments[1:4], flags, *arguments[5:]]
    if op.endswith("_out"):
        arguments = [[torch.empty_like(t) for t in x], *arguments]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if op == "norm_grad_out":  # no graph may hold an op that writes and returns a list: there it is norm_grad
        checks.pop()
    torch.library.opcheck(getattr(torch.ops.rope_ext, op).default, tuple(arguments), test_utils=checks)


def test_a_graph_knows_the_strides_of_gradients():
    """Those of x, whatever those of the gradient of the result are."""

    def strides(x, inv_rms, grad, cos, sin, weight):
        rest = 0, rope_ext._torch.flags.TRANSPOSED, None, 0, 1.0, None, None, None, [weight], EPS
        (grad_x,), _ = torch.ops.rope_ext.norm_grad([x], [inv_rms], 0x101, [grad], cos, sin, *rest)
        return grad_x.stride()

    x, grad = random((2, 5, 3, 4), F64), in_memory(random((2, 5, 3, 4), F64, 1), "transposed")
    tensors = x, torch.ones(2, 5, 3, dtype=F64), grad, COS, SIN, WEIGHT
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in tensors]
        found = strides(*fake)
    assert found == strides(*tensors) == x.stride()


# ---- what needs no gradient costs none ----


def ops_of(function):
    """Names of the ops that a function runs, without views and what autograd does with its results."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    names = {e.key: e.count for e in profiler.key_averages() if e.key.startswith(("rope_ext::", "aten::"))}
    return {name: count for name, count in names.items() if name not in ("aten::empty", "aten::detach", "detach")}


NEEDS = {
    "nothing": ((False, False, False, False), {"rope_ext::rotate": 1}, {}),
    "x": ((True, True, False, False), {"rope_ext::norm_rotate": 1}, {"rope_ext::norm_grad": 1}),
    "weights": ((False, False, True, True), {"rope_ext::norm_rotate": 1}, {"rope_ext::norm_grad": 1}),
    "all": ((True, True, True, True), {"rope_ext::norm_rotate": 1}, {"rope_ext::norm_grad": 1}),
    "q": ((True, False, False, False), {"rope_ext::norm_rotate": 1}, {"rope_ext::norm_grad": 1}),
}


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("needs", NEEDS)
def test_which_ops_run(needs):
    flags, forward, backward = NEEDS[needs]
    tensors = [random((1, 5, 2, 8), torch.float32, seed) for seed in (0, 1)]
    tensors += [random((8,), torch.float32, seed) for seed in (2, 3)]
    for t, need in zip(tensors, flags):
        t.requires_grad_(need)
    (q, k, *weights), saved = tensors, []
    cos, sin = rope_ext.RotaryEmbedding(8).tables(5)
    result = []

    def run():
        result.extend(rope_ext.apply((q, k), cos, sin, norm=weights, eps=EPS))

    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        assert ops_of(run) == forward
    assert [t.requires_grad for t in result] == [flags[0] or flags[2], flags[1] or flags[3]]
    of_heads = [t for t in saved if t.dim() == 4]
    assert len(of_heads) == sum(t.requires_grad for t in result)  # x of k is not kept where k has no derivative
    if backward:
        wanted = [t for t, need in zip(tensors, flags) if need]
        outputs = [t for t in result if t.requires_grad]
        grads = [random(t.shape, torch.float32, 4) for t in outputs]
        assert ops_of(lambda: torch.autograd.grad(outputs, wanted, grads)) == backward


@pytest.mark.devices("cpu")
def test_a_tensor_that_is_not_normalised_is_not_kept():
    q, k = (random((1, 5, 2, 8), torch.float32, seed).requires_grad_() for seed in (0, 1))
    cos, sin = rope_ext.RotaryEmbedding(8).tables(5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rope_ext.apply((q, k), cos, sin, norm=(random((8,), torch.float32, 2), None), eps=EPS)
    assert [t.data_ptr() for t in saved if t.dim() == 4] == [q.data_ptr()]


def test_an_output_that_is_not_used_costs_nothing():
    q, k = (random((1, 4, h, 8), F64, h).requires_grad_() for h in (3, 1))
    cos, sin = random((4, 4), F64, 2), random((4, 4), F64, 3)
    weights = [random((8,), F64, seed).requires_grad_() for seed in (4, 5)]
    _, rotated_k = rope_ext.apply((q, k), cos, sin, norm=weights, eps=EPS)
    g = random(k.shape, F64, 6)
    got = torch.autograd.grad(rotated_k, (q, k, *weights), g, allow_unused=True)
    assert got[0] is None and got[2] is None
    assert_same_bits([got[1], got[3]], [t.detach() for t in formula(k, weights[1], g, "bshd", cos, sin)])


def test_a_weight_of_another_dtype_is_rounded_once():
    """The sum over rows is in float32: in bfloat16 it would stop to grow at 256."""
    x, weight = torch.ones(1, 400, 1, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16).requires_grad_()
    cos, sin = torch.ones(400, 4), torch.zeros(400, 4)
    rope_ext.apply(x, cos, sin, norm=weight, eps=0.0).sum().backward()
    assert weight.grad.dtype == torch.bfloat16 and torch.equal(weight.grad, torch.full_like(weight, 400))


def test_a_weight_that_is_a_lazy_negation():
    """The dispatcher, which resolves it elsewhere, does not look into an optional list."""
    x, weight, (cos, sin) = random((1, 5, 2, 8), F64), random((8,), F64, 1), (random((5, 4), F64, s) for s in (1, 2))
    leaf = weight.clone().requires_grad_()
    y = rope_ext.apply(x, cos, sin, norm=torch._neg_view(leaf), eps=EPS)
    assert_same_bits(y.detach(), reference.apply(x, cos, sin, norm=-weight, eps=EPS))
    (got,) = torch.autograd.grad(y, leaf, x)
    assert_same_bits(got, -formula(x, -weight, x, "bshd", cos, sin)[1])


@pytest.mark.devices("cpu")
def test_a_weight_of_a_subclass_is_not_read_as_if_it_were_memory():
    class Doubled(torch.Tensor):
        """Holds no memory: its elements are twice those of another tensor."""

        @staticmethod
        def __new__(cls, half):
            return torch.Tensor._make_wrapper_subclass(cls, half.shape, dtype=half.dtype, device=half.device)

        def __init__(self, half):
            self.half = half

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            args = [2 * a.half if isinstance(a, Doubled) else a for a in args]
            return func(*args, **(kwargs or {}))

    x, weight, (cos, sin) = random((1, 5, 2, 8), F64), random((8,), F64, 1), (random((5, 4), F64, s) for s in (1, 2))
    expected = reference.apply(x, cos, sin, norm=2 * weight, eps=EPS)
    assert_same_bits(rope_ext.apply(x, cos, sin, norm=Doubled(weight), eps=EPS), expected)
    assert_same_bits(rope_ext.apply(x, cos, sin, norm=Doubled(weight), eps=EPS, out=torch.empty_like(x)), expected)
    assert_same_bits(rope_ext.apply_(x.clone(), cos, sin, norm=Doubled(weight), eps=EPS), expected)
    same = x.clone()
    assert_same_bits(rope_ext.apply(same, cos, sin, norm=Doubled(weight), eps=EPS, out=same), expected)
    for out in (torch.empty(3, 5, 2, 8, dtype=F64), torch.empty(1, 5, 2, 8, dtype=torch.int32)):
        with pytest.raises((ValueError, TypeError), match=r"rope_ext: out must have the (shape|dtype) of x"):
            rope_ext.apply(x, cos, sin, norm=Doubled(weight), eps=EPS, out=out)
    with pytest.raises(ValueError, match="rope_ext: out must be None when a derivative is recorded"):
        rope_ext.apply(x.requires_grad_(), cos, sin, norm=Doubled(weight), eps=EPS, out=torch.empty_like(x))


def test_in_place_where_no_tensor_has_a_weight():
    leaf = random((2, 3, 2, 4), F64).requires_grad_()
    x = leaf * 1
    rope_ext.apply_((x[:, :, :1], x[:, :, 1:]), COS, SIN, norm=(None, None), eps=EPS)
    (got,) = torch.autograd.grad(x.sum(), leaf)
    (expected,) = torch.autograd.grad(rope_ext.apply(leaf, COS, SIN).sum(), leaf)
    assert_same_bits(got, expected)


def test_in_place_on_a_leaf_is_refused_where_a_weight_is_learned():
    x, weight = random((1, 5, 2, 8), F64), random((8,), F64).requires_grad_()
    before, (cos, sin) = x.clone(), (random((5, 4), F64, s) for s in (1, 2))
    y = rope_ext.apply_(x, cos, sin, norm=weight, eps=EPS)
    assert y is x and x.requires_grad
    (got,) = torch.autograd.grad(y.sum(), weight)
    assert_same_bits(got, formula(before, weight.detach(), torch.ones_like(x), "bshd", cos, sin)[1])
    with pytest.raises(ValueError, match="rope_ext: x must not be a leaf that requires grad"):
        rope_ext.apply_(before.requires_grad_(), cos, sin, norm=weight, eps=EPS)
    with pytest.raises(ValueError, match="rope_ext: out must be None when a derivative is recorded"):
        rope_ext.apply(before.detach(), cos, sin, norm=weight, eps=EPS, out=torch.empty_like(before))


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 4, 8), (2, 3, 0, 8)])
def test_gradients_of_a_tensor_without_elements(shape):
    x, weight = torch.empty(shape, requires_grad=True), torch.ones(8, requires_grad=True)
    cos = torch.ones(3, 4)
    rope_ext.apply(x, cos, cos, norm=weight, eps=1e-6).sum().backward()
    assert x.grad.shape == x.shape
    assert weight.grad.equal(torch.zeros(8))
