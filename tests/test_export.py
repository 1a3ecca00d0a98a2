"""rope_ext.export: programs of torch.export in PyTorch's own ops, with the numbers of the ops.

Bounds, where the bits are not those of the op: cos and sin of inv_freq differ by 1.8e-7 at positions up to 2^24 (4.3e-15
in float64), so results do by 1.8e-7 (|x1| + |x2|) and a rounding; sums of gradients have another order.
"""

from decimal import Decimal

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import rope_ext
from rope_ext import angles
from rope_ext._torch import flags
from rope_ext._torch.library import torch_ops
from rope_ext.reference import LAYOUTS
from tests.conftest import DTYPES, assert_same_bits, in_memory, random, random_integers
from tests.deployed_forms import COS, FORMS, HEAD_DIM, REFUSED, SIN, WEIGHT, AllForms, decomposed, inputs
from tests.exact import exact_cos_sin
from tests.pairwise import name_of, pairwise

pytestmark = pytest.mark.devices("cpu")
DYNAMIC = {0: Dim("batch", min=2, max=8), 1: Dim("seqlen", min=5, max=64)}


def angle_bound(form):
    """How far a result may be from that of the op, for |x1|, |x2| of 1 together: the table and a rounding."""
    if not any(word in form for word in ("inv_freq", "rope.apply", "attention_scaling")) or "hf" in form:
        return 0
    return 4.2e-15 if "float64" in form else 2.7e-7


def strides(t):
    return [stride for stride, size in zip(t.stride(), t.shape) if size > 1]  # others mean nothing


def ops_of(program):
    """The ops of rope_ext, and the wrappers of ops that write."""
    names = {str(node.target) for node in program.graph.nodes}
    return {name for name in names if name.startswith("rope_ext.") or "auto_functionalized" in name}


def test_every_op_and_overload_is_decomposed():
    prefix = torch_ops.name + "::"
    schemas = {str(s).partition("(")[0] for s in torch._C._jit_get_all_schemas() if s.name.startswith(prefix)}
    assert {str(overload.name()) for overload in rope_ext.export.decompositions()} == schemas


# ---- the functions themselves, bit for bit ----

PARAMETERS = {
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "channels": [(16, None, 0), (16, 8, 0), (16, 8, 4), (12, 12, 0), (20, 6, 14)],
    "heads": [(1,), (4, 2), (3, 3, 1)],
    "tables": ["pairs", "channels", "tokens", "heads", "x"],
    "lookup": ["rows", "positions", "offsets", "cu_seqlens"],
    "order": ["contiguous", "transposed", "sliced", "last stride 2"],
    "interleaved": [False, True],
    "moved": [False, True],
    "way": ["forward", "inverse", "transposed"],
    "eager": [False, True],
    "norm": ["none", "all", "first"],
    "form": ["new", "out", "in place"],
}


def arguments_of(case):
    """x, and what follows it in a call of the op."""
    layout, dtype, (head_dim, rotary_dim, rotary_offset) = case["layout"], case["dtype"], case["channels"]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = {"b": 2, "s": 5, "t": 5}
    per_head = case["tables"] == "heads"
    heads = (2, 2) if per_head else case["heads"]
    x = [
        in_memory(random([{**sizes, "h": n, "d": head_dim}[axis] for axis in layout], dtype, i), case["order"])
        for i, n in enumerate(heads)
    ]
    pairs = (head_dim - rotary_offset if rotary_dim is None else rotary_dim) // 2
    batch = 2 if "b" in layout else 1
    shape = {
        "pairs": (9, pairs),
        "channels": (9, 2 * pairs),
        "tokens": (batch, 5, pairs),
        "heads": [{"b": batch, "s": 5, "t": 5, "h": 2, "d": pairs}[a] for a in (layout if batch == 2 else "bthd")],
        "x": (9, pairs),
    }[case["tables"]]
    cos, sin = (random(shape, dtype if case["tables"] == "x" else wide, i) for i in (7, 8))
    value = LAYOUTS.index(layout) | flags.INTERLEAVED * case["interleaved"] | flags.OTHER_PAIRING * case["moved"]
    value |= {"forward": 0, "inverse": flags.INVERSE, "transposed": flags.TRANSPOSED}[case["way"]]
    value |= flags.ROUND_PRODUCTS * case["eager"]
    positions = offsets = cu_seqlens = None
    if len(shape) == 2:
        if case["lookup"] == "positions":
            positions = random_integers(9, (5,) if batch == 1 else (2, 5))
        elif case["lookup"] == "offsets":
            offsets = random_integers(3, (batch,))
        elif case["lookup"] == "cu_seqlens" and layout == "thd":
            cu_seqlens = torch.tensor([0, 1, 1, 4])
    offset = 1 if offsets is not None else 0
    norm = [None if case["norm"] == "first" and i else random((head_dim,), dtype, 20 + i) for i in range(len(x))]
    norm = None if case["norm"] == "none" or case["way"] == "transposed" else norm
    return x, (cos, sin, offset, value, rotary_dim, rotary_offset, 1.0, positions, offsets, cu_seqlens, norm, 1e-3)


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=name_of)
def test_decompositions_have_the_bits_and_strides_of_the_op(case):
    x, others = arguments_of(case)
    wanted = torch_ops.rotate(x, *others)
    functions = rope_ext.export.decompositions()
    if case["form"] == "new":
        found = functions[torch_ops.rotate.default](x, *others)
        assert [strides(t) for t in found] == [strides(t) for t in wanted]
    elif case["form"] == "out":
        found = [in_memory(torch.empty_like(t), case["order"]) for t in x]
        assert functions[torch_ops.rotate_out.unrecorded](found, x, *others) is None
    else:
        found = [t.clone() for t in x]
        assert functions[torch_ops.rotate_.default](found, *others) is None
    assert_same_bits(found, wanted)


OF_GRADIENTS = {**PARAMETERS, "way": ["forward", "inverse"], "form": ["new"]}
OF_TABLES = {**OF_GRADIENTS, "tables": ["tokens", "heads"], "lookup": ["rows"], "norm": ["none"]}
OF_NORMS = {**OF_GRADIENTS, "norm": ["all", "first"]}


def assert_sums_close(found, wanted):
    """Sums of at most 2 * 5 * 4 products below 32 in another order: 40 roundings of their sizes."""
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=40 * 32 * torch.finfo(b.dtype).eps)


@pytest.mark.parametrize("case", pairwise(OF_TABLES), ids=name_of)
def test_table_grad(case):
    x, (cos, sin, *rest) = arguments_of(case)
    grad = [random(t.shape, t.dtype, 30 + i) for i, t in enumerate(x)]
    arguments = grad, x, cos, sin, *rest[:4]
    found = rope_ext.export.decompositions()[torch_ops.table_grad.default](*arguments)
    assert_sums_close(found, torch_ops.table_grad(*arguments))


@pytest.mark.parametrize("case", pairwise(OF_NORMS), ids=name_of)
def test_norm_grad(case):
    x, (cos, sin, *rest) = arguments_of(case)
    functions = rope_ext.export.decompositions()
    grad = [random(t.shape, t.dtype, 30 + i) for i, t in enumerate(x)]
    y, inv_rms = torch_ops.norm_rotate(x, cos, sin, *rest)
    for found, wanted in zip(functions[torch_ops.norm_rotate.default](x, cos, sin, *rest), (y, inv_rms)):
        assert_same_bits(found, wanted)
    rest[1] = flags.TRANSPOSED ^ rest[1] ^ (flags.INTERLEAVED if rest[1] & flags.OTHER_PAIRING else 0)
    arguments = x, inv_rms, 0xFFFF, grad, cos, sin, *rest
    found, wanted = functions[torch_ops.norm_grad.default](*arguments), torch_ops.norm_grad(*arguments)
    assert_same_bits(found[0], wanted[0])
    assert_sums_close(found[1], wanted[1])


# ---- angles ----


def error_of_the_op(angle, position, dtype):
    """The error of cos_sin that its documentation states, in radians."""
    if dtype == torch.float64:
        return 3e-16
    return 1.5e-7 if position <= 2**24 else 1.2e-6 + angle * 2**-47


@pytest.mark.parametrize("scaling", [1.0, 1.375])
@pytest.mark.parametrize("exponent", [20, 25, 28, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_of_cos_sin(dtype, exponent, scaling):
    """The bounds that `decompositions` states. What scaling adds: a rounding of results below 2 to half a unit."""
    inv_freq = random((12,), torch.float64).abs().clamp(max=1)
    positions = 2**exponent - random_integers(1000, (8,))
    (high, low, _), unit = angles.revolutions(inv_freq, dtype), torch.finfo(dtype).eps
    x = [high.new_empty((8, 1, 24))]
    arguments = (x, high, low, 0, LAYOUTS.index("shd") | flags.FREQUENCIES, None, 0, scaling, positions)
    found = rope_ext.export.decompositions()[torch_ops.cos_sin.default](*arguments)[:2]
    called = torch_ops.cos_sin(*arguments)[:2]
    rounding = unit / 2 if scaling != 1 else 0
    for row, position in enumerate(positions.tolist()):
        for pair, frequency in enumerate(inv_freq.tolist()):
            angle = position * frequency
            own = 4e-15 if dtype == torch.float64 else 3e-8 + angle * 2**-48
            of_op = error_of_the_op(angle, position, dtype)
            exact = exact_cos_sin(Decimal(position) * Decimal(frequency))
            for a, b, value in zip(found, called, exact):
                a, b, value = a[0, row, 0, pair].item(), b[0, row, 0, pair].item(), float(value) * scaling
                assert abs(a - value) <= own * scaling + rounding
                assert abs(b - value) <= of_op * scaling + rounding + 2**-52  # of the float `value`
                assert abs(a - b) <= (own + of_op) * scaling + 2 * rounding


# ---- programs ----


@pytest.fixture(scope="module")
def results():
    """For two sizes: the inputs, what the calls return, and what the decomposed program returns, whose sizes are open."""
    with torch.no_grad():
        model = AllForms()
        program = torch.export.export(model, inputs(), dynamic_shapes=(DYNAMIC, DYNAMIC, DYNAMIC))
        assert ops_of(program) == {f"rope_ext.{op}.default" for op in ("rotate", "cos_sin", "revolutions")}
        program = decomposed(program)
        assert not ops_of(program)
        return [(x, model(*x), program.module()(*x)) for x in (inputs(), inputs(3, 12))]


@pytest.mark.parametrize("form", FORMS)
def test_program(results, form):
    at = list(FORMS).index(form)
    for x, wanted, found in results:
        for a, b in zip(found[at], wanted[at]):
            assert strides(a) == strides(b)
            if bound := angle_bound(form):
                assert (a - b).abs().max() <= bound * 2 * max(t.abs().max() for t in x[:2])
            else:
                assert_same_bits(a, b)


def test_rows_outside_the_table_are_nan():
    class Model(torch.nn.Module):
        def forward(self, q, cos, positions):
            return rope_ext.apply(q, cos, cos, positions=positions)

    q, cos = random((2, 3, 1, 8), torch.float32), random((6, 4), torch.float32).requires_grad_()
    inside, outside = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[-1, 0, 5], [6, 1, 2**40]])
    program = decomposed(torch.export.export(Model(), (q, cos, inside)))
    found = program.module()(q, cos, outside)
    assert found.isnan().all((-1, -2)).tolist() == [[True, False, False], [True, False, True]]
    valid = found[~found.isnan().all((-1, -2))]
    assert_same_bits(valid, rope_ext.apply(q, cos, cos, positions=outside % 6)[[0, 0, 1], [1, 2, 1]])


@pytest.mark.parametrize("message", REFUSED)
def test_calls_that_apply_refuses(message):
    class Model(torch.nn.Module):
        def forward(self, q, k, positions):
            return REFUSED[message](q, k, positions)

    program = torch.export.export(Model(), inputs(), dynamic_shapes=(DYNAMIC, DYNAMIC, DYNAMIC))
    for run in (lambda: Model()(*inputs()), lambda: decomposed(program)):
        with pytest.raises((ValueError, TypeError), match=f"rope_ext: {message}"):
            run()


# ---- calls that write ----


def writes_out(x):
    return rope_ext.apply(x, COS, SIN, out=torch.empty_like(x))


def writes_packed(x):
    return rope_ext.apply_qkv_(x, COS, SIN, num_heads=2, num_kv_heads=1)


CALLS = {
    "apply_": lambda x: rope_ext.apply_(x, COS, SIN),
    "apply_ with norm": lambda x: rope_ext.apply_(x, COS, SIN, norm=WEIGHT, eps=1e-6),
    "out": writes_out,
    "apply_qkv_": writes_packed,
}


class Model(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        y = self.call(x)
        return x, y


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_calls_that_write(call, strict):
    model, x = Model(CALLS[call]), random((2, 3, 4, HEAD_DIM), torch.float32)
    program = torch.export.export(model, (x,), strict=strict)
    assert ops_of(program) == {"rope_ext.rotate.default"}
    for form in (program, decomposed(program)):
        for a, b in zip(tree_leaves(form.module()(x.clone())), tree_leaves(model(x.clone()))):
            assert_same_bits(a, b)


def test_a_tensor_written_twice_is_refused_as_in_a_call():
    model, x = Model(lambda x: rope_ext.apply_((x, x), COS, SIN)), random((2, 3, 4, HEAD_DIM), torch.float32)
    program = torch.export.export(model, (x,))
    for run in (model, program.module()):
        with pytest.raises(ValueError, match="overlap"):
            run(x)


def test_torch_compile_keeps_the_op_that_writes():
    backend = EagerAndRecordGraphs()
    torch.compile(CALLS["apply_"], backend=backend, fullgraph=True)(random((2, 3, 4, HEAD_DIM), torch.float32))
    (graph,) = backend.graphs
    assert "rope_ext.rotate_.default" in {str(node.target) for node in graph.graph.nodes}
