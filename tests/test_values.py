"""rope_ext.apply, apply_ and out= equal the reference bit for bit, over everything the contract allows."""

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DTYPES, assert_same_bits, in_memory, random, random_integers, shape_of
from tests.pairwise import pairwise

BATCH, SEQLEN, ROWS = 3, 7, 16
PARAMETERS = {
    "dtype": DTYPES,
    "layout": list(reference.LAYOUTS),
    "lookup": [
        "rows",
        "offset",
        "offset per batch",
        "one offset",
        "positions",
        "positions per batch",
        "cu_seqlens",
        "int64 cu_seqlens",
        "token",
        "head",
    ],
    "channels": [(16, None, 0), (20, 8, 0), (72, 40, 32), (80, 2, 40), (64, 64, 0)],  # head_dim, rotary_dim, offset
    "memory": ["contiguous", "transposed", "sliced", "last stride 2", "reversed strides"],
    "heads": [(4,), (4, 1), (2, 4, 2)],
    "mode": ["functional", "out", "in place"],
    "interleaved": [False, True],
    "per_channel": [False, True],
    "inverse": [False, True],
    "table": ["float32", "dtype of x", "strided"],
    "rounding": ["once", "eager"],
    "out_interleaved": [None, False, True],
}
CASES = pairwise(PARAMETERS)


def lookup_of(case):
    """(keywords of apply, shape of the tables without the last axis)"""
    batch = BATCH if "b" in case["layout"] else 1
    kind = case["lookup"]
    if kind == "cu_seqlens" and case["layout"] == "thd":
        return {"cu_seqlens": torch.tensor([0, 0, 3, 3, 5], dtype=torch.int32), "offset": 1}, (ROWS,)
    if kind == "int64 cu_seqlens" and case["layout"] == "thd":
        return {"cu_seqlens": torch.tensor([0, 0, 3, 3, 5]), "offset": torch.tensor(1)}, (ROWS,)
    if kind == "positions per batch" and batch > 1:
        return {"positions": random_integers(ROWS, (SEQLEN, batch)).T}, (ROWS,)
    if kind == "positions":
        positions = random_integers(ROWS - 4, (SEQLEN,), torch.int32)
        return {"positions": positions, "offset": 4}, (ROWS,)
    if kind == "offset per batch":
        return {"offset": torch.arange(batch, dtype=torch.int32) * 4}, (ROWS,)
    if kind == "one offset":
        return {"offset": torch.tensor(4) if batch > 1 else torch.tensor([4], dtype=torch.int32)}, (ROWS,)
    if kind == "token":
        return {}, (batch, SEQLEN)
    if kind == "head" and len(set(case["heads"])) == 1:
        return {}, shape_of(
            case["layout"] if len(case["layout"]) == 4 else "b" + case["layout"], 1, SEQLEN, case["heads"][0], 0
        )[:-1]
    return {"offset": 5 if kind == "offset" else 0}, (ROWS,)


def inputs_of(case):
    head_dim, rotary_dim, rotary_offset = case["channels"]
    batch = BATCH if "b" in case["layout"] else 1
    x = [
        in_memory(random(shape_of(case["layout"], batch, SEQLEN, heads, head_dim), case["dtype"], seed), case["memory"])
        for seed, heads in enumerate(case["heads"])
    ]
    keywords, shape = lookup_of(case)
    pairs = (head_dim - rotary_offset if rotary_dim is None else rotary_dim) // 2
    wide = case["dtype"] == torch.float64
    dtype = torch.float64 if wide else torch.float32 if case["table"] == "float32" else case["dtype"]
    shape = (*shape, 2 * pairs if case["per_channel"] else pairs)
    cos, sin = (
        in_memory(random(shape, dtype, seed), "last stride 2" if case["table"] == "strided" else "contiguous")
        for seed in (7, 8)
    )
    keywords |= {n: case[n] for n in ("layout", "interleaved", "inverse", "rounding")}
    if case["mode"] != "in place":
        keywords["out_interleaved"] = case["out_interleaved"]
    return tuple(x), cos, sin, {**keywords, "rotary_dim": rotary_dim, "rotary_offset": rotary_offset}


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v).replace("torch.", "") for v in c.values()))
def test_equals_reference(case):
    x, cos, sin, keywords = inputs_of(case)
    before = [t.clone() for t in (*x, cos, sin)]
    expected = reference.apply(x, cos, sin, **keywords)
    if case["mode"] == "functional":
        got = rope_ext.apply(x, cos, sin, **keywords)
        assert [t.stride() for t in got] == [torch.empty_like(t).stride() for t in x]
    elif case["mode"] == "out":
        out = tuple(in_memory(torch.full_like(t, torch.nan), case["memory"]) for t in x)
        assert rope_ext.apply(x, cos, sin, **keywords, out=out) is out
        got = out
    else:
        assert rope_ext.apply_(x, cos, sin, **keywords) is x
        got = x
    assert_same_bits(got, expected)
    unwritten = slice(0 if case["mode"] != "in place" else len(x), None)
    assert_same_bits([*x, cos, sin][unwritten], before[unwritten])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill(dtype, interleaved):
    """The shape of the README, large enough to run on all threads."""
    q, k = random((1, 4096, 32, 128), dtype, 0), random((1, 4096, 8, 128), dtype, 1)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = rope_ext.RotaryEmbedding(128).tables(4096, dtype=table)
    q2, k2 = rope_ext.apply((q, k), cos, sin, interleaved=interleaved)
    assert_same_bits((q2, k2), reference.apply((q, k), cos, sin, interleaved=interleaved))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinity_denormals_zeros(dtype):
    """Specials go through as in PyTorch's own arithmetic; every 16-bit value is among them."""
    if dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    else:
        info = torch.finfo(dtype)
        specials = [
            0.0,
            -0.0,
            torch.inf,
            -torch.inf,
            torch.nan,
            info.tiny,
            info.tiny / 8,
            -info.tiny / 2,
            info.max,
            info.eps,
            1.0,
        ]
        x = torch.tensor(specials, dtype=dtype).repeat_interleave(len(specials))
    x = x.reshape(1, -1, 1, 1).expand(-1, -1, -1, 2).clone()
    x[..., 1] = x[..., 1].flip(1)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = random((x.shape[1], 1), table, 1), random((x.shape[1], 1), table, 2)
    cos[::5], sin[::5] = 1, 0
    cos[1::7] *= 1e-6  # products that are denormal in float16
    got, expected = rope_ext.apply(x, cos, sin), reference.apply(x, cos, sin)
    assert torch.equal(got.isnan(), expected.isnan())
    assert_same_bits(
        got.nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf),
        expected.nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf),
    )


@pytest.mark.devices("cpu")
def test_same_result_on_any_number_of_threads():
    x, (cos, sin) = random((2, 4096, 8, 64), torch.bfloat16), rope_ext.RotaryEmbedding(64).tables(4096)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(rope_ext.apply(x, cos, sin))
    torch.set_num_threads(2)
    assert_same_bits(results[1:], results[:1] * 2)


def test_structure_of_the_result():
    cos, sin = random((4, 2), torch.float32), random((4, 2), torch.float32)
    x = random((1, 4, 2, 4), torch.float32)
    assert isinstance(rope_ext.apply(x, cos, sin), torch.Tensor)
    assert isinstance(rope_ext.apply((x,), cos, sin), tuple)
    assert isinstance(rope_ext.apply([x, x], cos, sin), list)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_result_is_correctly_rounded(dtype):
    """float32 arithmetic moves a result across a rounding boundary of 16 bits in less than 0.1 % of cases: its error is
    some 2^-24 relative to the products, and boundaries are 2^-8 (bfloat16) or 2^-11 apart."""
    x, (cos, sin) = random((1, 512, 8, 64), dtype), rope_ext.RotaryEmbedding(64).tables(512)
    exact = reference.apply(x.double(), cos.double(), sin.double()).to(dtype)
    assert (rope_ext.apply(x, cos, sin) == exact).double().mean() >= 0.999
