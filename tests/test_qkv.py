"""apply_qkv and apply_qkv_: every packed form, what they share with their argument, what they refuse."""

import inspect

import pytest
import torch

import rope_ext
from rope_ext.errors import ArgumentError, ArgumentTypeError
from tests.conftest import DTYPES, assert_same_bits, in_memory, lazy_negation, random
from tests.packed import FORMS, LEAD, NORMS, expected, packed
from tests.pairwise import pairwise

F32 = torch.float32
ONES = torch.ones(8)
COS, SIN = random((9, 4), F32, 1), random((9, 4), F32, 2)
HEADS = [(4, 2), (3, 3), (4, 1), (18, 2)]  # the last: more tensors than one call of the kernel takes
CASES = [
    case
    for case in pairwise(
        {
            "form": FORMS,
            "layout": list(LEAD),
            "heads": HEADS,
            "grouped": [False, True],
            "dtype": DTYPES,
            "memory": ["contiguous", "transposed", "last stride 2"],
            "norm": list(NORMS),
            "needs": [False, True],
        }
    )
    if case["form"] != "parted" or case["grouped"] or case["heads"][0] == case["heads"][1]
]


def made(case):
    """qkv of a case, the tables, the keywords."""
    num_heads, num_kv_heads = case["heads"]
    keywords = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "grouped": case["grouped"]}
    qkv = packed(case["form"], case["layout"], *keywords.values(), 8, case["dtype"])
    memory = "contiguous" if case["memory"] == "transposed" and len(LEAD[case["layout"]]) == 1 else case["memory"]
    tables = [t.to(torch.float64) if case["dtype"] == torch.float64 else t for t in (COS, SIN)]
    keywords["layout"] = case["layout"]
    if case["norm"] != "no norm":
        keywords |= {"norm": NORMS[case["norm"]], "eps": 1e-5}
    return in_memory(qkv, memory), tables, keywords


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_results_are_those_of_apply_and_v_is_a_view(case):
    qkv, tables, keywords = made(case)
    wanted = expected(qkv, *tables, **keywords)
    before = qkv.clone()
    q, k, v = rope_ext.apply_qkv(qkv.requires_grad_(case["needs"]), *tables, **keywords)
    assert_same_bits((q.detach(), k.detach(), v.detach()), wanted)
    assert_same_bits(qkv.detach(), before)
    storage = qkv.untyped_storage().data_ptr()
    assert [t.untyped_storage().data_ptr() == storage for t in (q, k, v)] == [False, False, True]
    assert [t.requires_grad for t in (q, k, v)] == [case["needs"]] * 3


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_in_place(case):
    qkv, tables, keywords = made(case)
    wanted = expected(qkv, *tables, **keywords)
    results = rope_ext.apply_qkv_(qkv, *tables, **keywords)
    assert_same_bits([t.reshape(w.shape) for t, w in zip(results, wanted)], wanted)
    storage = qkv.untyped_storage().data_ptr()
    assert all(t.untyped_storage().data_ptr() == storage for t in results)
    assert (results[0].dim() == results[1].dim() + 1) == case["grouped"]  # q keeps its axis of groups


def test_every_keyword_of_apply_arrives():
    options = {"interleaved": True, "rotary_dim": 4, "rotary_offset": 2, "inverse": True, "per_channel": True}
    heads = {"num_heads": 4, "num_kv_heads": 2, "grouped": True}
    qkv = packed("flat", "bshd", *heads.values(), 8, F32)
    given = {**options, "positions": torch.arange(5).flip(0), "offset": torch.tensor([1, 3])}
    wanted = expected(qkv, COS, SIN, **heads, **given)
    assert_same_bits(rope_ext.apply_qkv(qkv, COS, SIN, **heads, **given), wanted)
    moved = {"out_interleaved": True, "rounding": "eager"}
    half, cos, sin = qkv.bfloat16(), COS.bfloat16(), SIN.bfloat16()
    assert_same_bits(rope_ext.apply_qkv(half, cos, sin, **heads, **moved), expected(half, cos, sin, **heads, **moved))
    boundaries = {"layout": "thd", "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32)}
    qkv = packed("heads", "thd", *heads.values(), 8, F32)
    got = rope_ext.apply_qkv(qkv, COS, SIN, **heads, **boundaries)
    assert_same_bits(got, expected(qkv, COS, SIN, **heads, **boundaries))
    inv_freq = rope_ext.RotaryEmbedding(8).inv_freq.to(qkv.device)
    *got, _ = rope_ext.apply_qkv(qkv, inv_freq=inv_freq, attention_scaling=2.0, layout="thd", **heads)
    *x, _ = expected(qkv, torch.ones(6, 4), torch.zeros(6, 4), **heads, layout="thd")
    assert_same_bits(got, rope_ext.apply(x, inv_freq=inv_freq, attention_scaling=2.0, layout="thd"))
    named = set(inspect.signature(rope_ext.apply).parameters) - {"x", "out"}
    assert named <= set(inspect.signature(rope_ext.apply_qkv).parameters)


def test_tables_per_head():
    qkv, tables = packed("parted", "bshd", 3, 3, False, 8, F32), [random((2, 5, 3, 4), F32, s) for s in (1, 2)]
    for form in (qkv, qkv.transpose(2, 3)):
        grouped = form is not qkv
        heads = {"num_heads": 3, "num_kv_heads": 3, "grouped": grouped}
        assert_same_bits(rope_ext.apply_qkv(form, *tables, **heads), expected(form, *tables, **heads))


@pytest.mark.parametrize("grouped", [False, True])
def test_without_tokens_or_channels(grouped):
    heads = {"num_heads": 4, "num_kv_heads": 2, "grouped": grouped}
    q, k, v = rope_ext.apply_qkv(torch.empty(0, 5, 64), COS, SIN, **heads)
    assert (q.shape, k.shape, v.shape) == ((0, 5, 4, 8), (0, 5, 2, 8), (0, 5, 2, 8))
    qkv = torch.empty(0, 5, 64).requires_grad_()
    weight = torch.ones(8).requires_grad_()
    for norm in ({}, {"norm": weight, "eps": 1e-6}):
        total = sum(t.sum() for t in rope_ext.apply_qkv(qkv, COS, SIN, **heads, **norm))
        of_qkv, *of_weight = torch.autograd.grad(total, [qkv, weight] if norm else [qkv])
        assert of_qkv.shape == qkv.shape and all(torch.equal(g, torch.zeros(8)) for g in of_weight)


def test_lazy_negations_and_subclasses():
    heads = {"num_heads": 4, "num_kv_heads": 2}
    qkv = packed("flat", "bshd", 4, 2, False, 8, F32)
    wanted = expected(qkv, COS, SIN, **heads)
    got = rope_ext.apply_qkv(lazy_negation(qkv), COS, SIN, **heads)
    assert_same_bits([t.resolve_neg() for t in got], wanted)

    class Named(torch.Tensor):
        pass

    by_weight = rope_ext.apply_qkv(qkv, COS, SIN, **heads, norm=ONES.as_subclass(Named), eps=0.0)
    assert [type(t) for t in by_weight] == [Named, Named, torch.Tensor]
    got = rope_ext.apply_qkv(qkv.as_subclass(Named), COS, SIN, **heads)
    assert all(type(t) is Named for t in got)
    assert_same_bits([t.as_subclass(torch.Tensor) for t in got], wanted)
    with torch.device("meta"):
        assert rope_ext.apply_qkv(torch.empty(2, 5, 64), COS.to("meta"), SIN.to("meta"), **heads)[0].shape[2] == 4


# ---- mistakes ----

QKV = {
    "flat": random((2, 5, 64), F32),
    "heads": random((2, 5, 8, 8), F32),
    "parted": random((2, 5, 3, 4, 8), F32),
    "groups": random((2, 5, 2, 4, 8), F32),
    "packed": random((6, 64), F32),
    "odd": random((2, 5, 8 * 7), F32),
    "integers": torch.ones(2, 5, 64, dtype=torch.int32),
    "sparse": torch.ones(2, 64).to_sparse(),
}
WIDTH = "qkv must have a last axis of (num_heads + 2 * num_kv_heads) * head_dim, a multiple of"
PARTED = "head_dim) after those of the tokens, got shape"
MISTAKES = [
    # qkv and heads
    ([[1.0]], {}, "qkv must be a Tensor, got [[1.0]]: use torch.tensor(qkv)"),
    ("flat", {"num_heads": 4.0}, "num_heads must be an int, got 4.0"),
    ("flat", {"num_heads": 0}, "num_heads must be at least 1, got 0"),
    ("flat", {"num_kv_heads": True}, "num_kv_heads must be an int, got True"),
    ("flat", {"num_kv_heads": 3}, "num_kv_heads must divide num_heads, 4, got 3"),
    ("flat", {"grouped": 1}, "grouped must be True or False, got 1"),
    ("flat", {"num_kv_heads": 4}, f"{WIDTH} 12, got shape (2, 5, 64)"),
    ("packed", {}, "qkv must have 3 to 5 dimensions for layout 'bshd', got shape (6, 64)"),
    ("groups", {"layout": "thd"}, "qkv must have 2 to 4 dimensions for layout 'thd', got shape (2, 5, 2, 4, 8)"),
    ("heads", {"num_heads": 6}, "qkv must have 10 heads, num_heads + 2 * num_kv_heads, got shape (2, 5, 8, 8)"),
    (
        QKV["groups"].flatten(-2),
        {"grouped": True},
        "qkv must have 8 heads, num_heads + 2 * num_kv_heads, got shape (2, 5, 2, 32): qkv.flatten(-2) fits",
    ),
    (
        QKV["parted"].flatten(-2),
        {"num_kv_heads": 4},
        "qkv must have 12 heads, num_heads + 2 * num_kv_heads, got shape (2, 5, 3, 32): qkv.flatten(-2) fits",
    ),
    ("parted", {}, "num_kv_heads must equal num_heads, 4, if qkv has an axis for q, k and v, got 2"),
    ("groups", {}, f"qkv must have axes (3, 4, {PARTED} (2, 5, 2, 4, 8): pass grouped=True for groups"),
    ("groups", {"num_kv_heads": 4}, f"qkv must have axes (3, 4, {PARTED} (2, 5, 2, 4, 8)"),
    ("groups", {"num_heads": 2, "grouped": True}, f"qkv must have axes (2, 3, {PARTED} (2, 5, 2, 4, 8)"),
    ("integers", {}, "qkv must be float64, float32, bfloat16 or float16, got int32"),
    ("odd", {}, "qkv must have an even number of channels unless rotary_dim is given, got 7"),
    # layout
    ("flat", {"layout": "hbsd"}, "layout must be one of bshd, sbhd, thd, shd, got 'hbsd'"),
    (
        "flat",
        {"layout": "bhsd"},
        "layout must be one of bshd, sbhd, thd, shd for a packed tensor, in which the heads of a token are adjacent,"
        " got 'bhsd': for 'bhsd' use q.transpose(1, 2) afterwards",
    ),
    # norm
    ("flat", {"norm": (ONES, ONES, ONES), "eps": 1e-6}, "norm must hold two weights, one for q and one for k, got 3"),
    (
        "flat",
        {"norm": 1.0, "eps": 1e-6},
        "norm must be a Tensor, or a tuple or list (q_weight, k_weight) of Tensors or None, got 1.0",
    ),
    (
        "flat",
        {"norm": (ONES, "k"), "eps": 1e-6},
        "norm must be a Tensor, or a tuple or list (q_weight, k_weight) of Tensors or None, got (Tensor of shape (8,), float32, 'k')",
    ),
    (
        "flat",
        {"norm": ONES[:4], "eps": 1e-6},
        "norm must have shape (8,), one weight per channel of a head, got (4,)",
    ),
    ("flat", {"norm": ONES.int(), "eps": 1e-6}, "norm must be float64, float32, bfloat16 or float16, got int32"),
    (
        "flat",
        {"norm": torch.ones(32), "eps": 1e-6},
        "norm must have shape (8,), one weight per channel of a head, got (32,): to normalize across all heads, call"
        " torch.nn.functional.rms_norm before apply",
    ),
    (
        "flat",
        {"norm": ONES},
        "eps must be given with norm, got None: there is no default, since models differ: 1e-6 and 1e-5 are common",
    ),
    ("flat", {"eps": 1e-6}, "eps must be given only with norm, got 1e-06"),
    # tables and other arguments
    (
        "flat",
        {"cos": random((2, 5, 4, 4), F32)},
        "cos must have 1 head when num_kv_heads is not num_heads, got 4 heads",
    ),
    (
        "flat",
        {"cos": None, "inv_freq": torch.ones(2, 4)},
        "inv_freq must have 1 head when num_kv_heads is not num_heads, got 2 heads",
    ),
    ("flat", {"cos": COS.double()}, "cos must be float32 or the dtype of qkv, float32, got float64"),
    (
        "flat",
        {"cos": COS[:4]},
        "cos must have a row for each of the 5 tokens of qkv, got 4 rows: rope.tables(5) has enough",
    ),
    ("flat", {"rotary_dim": 10}, "rotary_dim must fit head_dim 8 from rotary_offset 0, got 10"),
    ("flat", {"interleaved": None}, "interleaved must be True or False, got None"),
]


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("function", [rope_ext.apply_qkv, rope_ext.apply_qkv_])
@pytest.mark.parametrize(("qkv", "keywords", "message"), MISTAKES, ids=[message[:60] for *_, message in MISTAKES])
def test_mistakes(function, qkv, keywords, message):
    qkv = QKV.get(qkv) if isinstance(qkv, str) else qkv
    keywords = {"num_heads": 4, "num_kv_heads": 2, "cos": COS, **keywords}
    cos = keywords.pop("cos")
    sin = SIN if cos is COS else cos
    with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
        function(qkv, cos, sin, **keywords)
    assert str(caught.value) == f"rope_ext: {message}"
    assert caught.value.argument in inspect.signature(function).parameters


@pytest.mark.parametrize("function", [rope_ext.apply_qkv, rope_ext.apply_qkv_])
def test_a_forgotten_num_kv_heads(function):
    """With 4 q heads per k head, half the head_dim is inferred, for which the table has one entry per channel."""
    head_dim = 2 * COS.shape[-1]
    qkv, heads = random((2, 5, (4 + 2) * head_dim), F32), {"num_heads": 4}
    q, _, _ = function(qkv.clone(), COS, SIN, **heads)
    assert q.shape == (2, 5, 4, head_dim // 2)
    q, _, _ = function(qkv.clone(), COS, SIN, **heads, num_kv_heads=1, rotary_dim=head_dim, per_channel=False)
    assert q.shape == (2, 5, 4, head_dim)
    for stated, argument in (({"rotary_dim": head_dim}, "rotary_dim"), ({"per_channel": False}, "cos")):
        with pytest.raises(ArgumentError) as caught:
            function(qkv, COS, SIN, **heads, **stated)
        assert caught.value.argument == argument


def test_a_mistake_is_found_before_anything_is_written():
    qkv, heads = random((2, 5, 2 * 11 * 8), F32), {"num_heads": 18, "num_kv_heads": 2, "grouped": True}
    before = qkv.clone()
    for norm in ((ONES, ONES[:4]), (ONES[:4], ONES)):  # the q heads of a group take more than one call
        with pytest.raises(ArgumentError, match=r"^rope_ext: norm must have shape \(8,\)"):
            rope_ext.apply_qkv_(qkv, COS, SIN, **heads, norm=norm, eps=1e-6)
        assert_same_bits(qkv, before)


def test_calls_that_python_refuses():
    with pytest.raises(TypeError, match="num_heads"):
        rope_ext.apply_qkv(QKV["flat"], COS, SIN)
    for function in (rope_ext.apply_qkv, rope_ext.apply_qkv_):
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument 'out'"):
            function(QKV["flat"], COS, SIN, num_heads=4, num_kv_heads=2, out=QKV["flat"])
        with pytest.raises(
            ArgumentTypeError, match="1 to 3 arguments by position, qkv, cos and sin, got 5: pass all others"
        ):
            function(QKV["flat"], COS, SIN, 4, 2, num_heads=4)


def test_tensors_that_are_not_ordinary():
    nested = torch.nested.nested_tensor([torch.ones(3, 64), torch.ones(2, 64)], layout=torch.jagged)
    for qkv, kind in ((QKV["sparse"], "torch.sparse_coo"), (nested, "a nested tensor")):
        with pytest.raises(NotImplementedError, match=f"rope_ext: qkv must be an ordinary tensor, got {kind}"):
            rope_ext.apply_qkv(qkv, COS, SIN, num_heads=4, num_kv_heads=2)


def test_writes_that_autograd_refuses():
    heads, leaf = {"num_heads": 4, "num_kv_heads": 2}, random((2, 5, 64), F32).requires_grad_()
    for qkv, rule in ((leaf, "a leaf that requires grad"), ((leaf * 1).chunk(1, 0)[0], "one of several views")):
        before = qkv.detach().clone()
        with pytest.raises(ArgumentError, match=rf"qkv must not be {rule}.* got one of shape \(2, 5, 64\)"):
            rope_ext.apply_qkv_(qkv, COS, SIN, **heads)
        assert_same_bits(qkv.detach(), before)
    with torch.inference_mode():
        qkv = torch.ones(2, 5, 64)
    with pytest.raises(ArgumentError, match="qkv must not be an inference tensor outside inference mode"):
        rope_ext.apply_qkv_(qkv, COS, SIN, **heads)
    q, k, v = rope_ext.apply_qkv(leaf * 1, COS, SIN, **heads)
    with pytest.raises(RuntimeError, match="returns multiple views"):
        v.mul_(2)
    for t in (q, k, v.clone()):
        t.mul_(2)
    with pytest.raises(ArgumentError, match=r"qkv must be inside every transform .* shape \(2, 5, 64\) from outside"):
        outside = leaf.detach().clone()
        torch.func.grad(lambda cos: rope_ext.apply_qkv_(outside, cos, SIN, **heads)[0].sum())(COS)
