"""RMSNorm of the heads before they are rotated: bit-identical to the reference, for every form of a call."""

import pytest
import torch

import rope_ext
from rope_ext import _reference_norm, reference
from tests.conftest import DTYPES, assert_same_bits, in_memory, random, random_integers, shape_of
from tests.pairwise import pairwise

ROWS, SEQLEN = 9, 5
CASES = pairwise(
    {
        "lookup": ["rows", "offsets", "positions", "cu_seqlens", "tokens", "heads", "inv_freq"],
        "layout": ["bshd", "bhsd", "sbhd", "shd", "thd"],
        "channels": [(8, None, 0), (80, 64, 8), (72, None, 0), (96, 32, 64), (6, 4, 1), (160, 128, 0)],
        "dtype": DTYPES,
        "weight_dtype": ["x", *DTYPES],
        "norm": ["one", "two", "first", "second"],
        "interleaved": [False, True],
        "moved": [False, True],  # the result has the other pairing
        "per_channel": [False, True],
        "inverse": [False, True],
        "rounding": ["once", "eager"],
        "form": ["apply", "out", "apply_"],
        "order": ["contiguous", "transposed", "last stride 2", "reversed strides"],
    }
)


def weights_of(case, dtype):
    head_dim, dtype = case["channels"][0], dtype if case["weight_dtype"] == "x" else case["weight_dtype"]
    q, k = random((head_dim,), dtype, 5), random((2 * head_dim,), dtype, 6)[::2]
    return {"one": q, "two": (q, k), "first": [q, None], "second": (None, k)}[case["norm"]]


def lookup_of(case, layout, batch, width, dtype):
    """cos, sin and the keywords that say which row a token reads."""
    shape = {
        "tokens": (batch, SEQLEN, width),
        "heads": shape_of(layout, batch, SEQLEN, 2, width) if batch > 1 else (1, SEQLEN, 2, width),
    }
    cos, sin = (random(shape.get(case["lookup"], (ROWS, width)), dtype, seed) for seed in (2, 3))
    per_token = (batch, SEQLEN) if batch > 1 else (SEQLEN,)
    keywords = {
        "rows": {"offset": 2},
        "offsets": {"offset": torch.tensor([2, 0][:batch])},
        "positions": {"positions": random_integers(ROWS, per_token)},
        "cu_seqlens": {"cu_seqlens": torch.tensor([0, 0, 1, 3])},  # two tokens are past the last boundary
        "inv_freq": {"positions": random_integers(1000, per_token)},
    }
    return cos, sin, keywords.get(case["lookup"], {})


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_every_form_of_a_call_has_the_bits_of_the_reference(case):
    layout = "thd" if case["lookup"] == "cu_seqlens" else case["layout"]
    dtype, batch, (head_dim, rotary_dim, rotary_offset) = case["dtype"], 2 if "b" in layout else 1, case["channels"]
    table_dtype = dtype if case["rounding"] == "eager" or dtype == torch.float64 else torch.float32
    pairs = (rotary_dim or head_dim) // 2
    cos, sin, keywords = lookup_of(case, layout, batch, pairs * (1 + case["per_channel"]), table_dtype)
    x = [in_memory(random(shape_of(layout, batch, SEQLEN, 2, head_dim), dtype, s), case["order"]) for s in (0, 1)]
    keywords |= {
        "layout": layout,
        "rotary_dim": rotary_dim,
        "rotary_offset": rotary_offset,
        "norm": weights_of(case, dtype),
    }
    keywords |= {"eps": 1e-3, **{name: case[name] for name in ("interleaved", "inverse", "rounding")}}
    if case["moved"] and case["form"] != "apply_":
        keywords["out_interleaved"] = not case["interleaved"]
    given = cos, sin
    if case["lookup"] == "inv_freq":
        inv_freq = random((pairs,), torch.float32, 4).abs()
        positions = keywords.pop("positions")
        arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
        given = [t.unflatten(0, (batch, -1)) for t in rope_ext.cos_sin(positions.flatten(), inv_freq, dtype=arithmetic)]
    expected = reference.apply(x, *given, **keywords)
    if case["lookup"] == "inv_freq":
        given, keywords = (), {**keywords, "inv_freq": inv_freq, "positions": positions}
    before = [t.clone() for t in x]
    if case["form"] == "apply_":
        assert_same_bits(rope_ext.apply_([t.clone() for t in x], *given, **keywords), expected)
    else:
        out = [torch.full_like(t, 7) for t in x] if case["form"] == "out" else None
        got = rope_ext.apply(x, *given, **keywords, out=out)
        assert_same_bits(got, expected)
        assert out is None or got is out
    assert_same_bits(x, before)


def test_one_weight_stands_for_all_tensors_and_none_for_no_norm():
    q, k, weight = (random(shape, torch.float32, 1) for shape in ((2, 5, 3, 8), (2, 5, 1, 8), (8,)))
    cos, sin = rope_ext.RotaryEmbedding(8).tables(5)
    of_one = rope_ext.apply((q, k), cos, sin, norm=weight, eps=1e-6)
    assert type(of_one) is tuple
    assert_same_bits(of_one, rope_ext.apply((q, k), cos, sin, norm=[weight, weight], eps=1e-6))
    assert_same_bits(of_one[0], rope_ext.apply(q, cos, sin, norm=weight, eps=1e-6))
    assert_same_bits(of_one[0], rope_ext.apply(q, cos, sin, norm=(weight,), eps=1e-6))
    of_none = rope_ext.apply((q, k), cos, sin, norm=(None, None), eps=1e-6)
    assert_same_bits(of_none, rope_ext.apply((q, k), cos, sin))


@pytest.mark.parametrize("recorded", [False, True])
def test_tokens_past_the_end_are_copied_whatever_is_in_them(recorded):
    """Padding may be uninitialised memory; it must not reach the gradient of the weight either."""
    x, weight = random((6, 2, 8), torch.float32), random((8,), torch.float32, 1)
    x[4:] = torch.tensor([0.0, float("nan")]).reshape(2, 1, 1)
    before, (cos, sin) = x.clone(), rope_ext.RotaryEmbedding(8).tables(6)
    keywords = {"layout": "thd", "cu_seqlens": torch.tensor([0, 1, 4]), "norm": weight, "eps": 0.0}
    if recorded:
        x.requires_grad_()
        weight.requires_grad_()
    y = rope_ext.apply(x, cos, sin, **keywords)
    assert_same_bits(y[4:].detach(), before[4:])
    assert_same_bits(y[:4].detach(), reference.apply(before, cos, sin, **keywords)[:4].detach())
    if recorded:
        of_x, of_weight = torch.autograd.grad(y, (x, weight), torch.ones_like(y), create_graph=True)
        assert_same_bits(of_x[4:].detach(), torch.ones(2, 2, 8)), of_weight.isfinite().all()
        (second,) = torch.autograd.grad(of_weight.sum() + of_x.sum(), x)
        assert second.isfinite().all() and not second[4:].any()


@pytest.mark.parametrize("precision", ["exact", "hf"])
def test_rotary_embedding(precision):
    rope = rope_ext.RotaryEmbedding(8, precision=precision)
    q, k = random((2, 5, 3, 8), torch.bfloat16), random((2, 5, 1, 8), torch.bfloat16, 1)
    norm, positions = (random((8,), torch.bfloat16, 2), None), random_integers(1000, (2, 5))
    keywords = {"norm": norm, "eps": 1e-5}
    expected = reference.apply((q, k), *rope(positions), **keywords)
    assert_same_bits(rope.apply((q, k), positions=positions, **keywords), expected)
    assert_same_bits(rope.apply((q, k), positions=positions, rotary_dim=8, **keywords), expected)
    out = [torch.empty_like(t) for t in (q, k)]
    rope.apply((q, k), positions=positions, out=out, **keywords)
    assert_same_bits(out, expected)
    weight = norm[0].clone().requires_grad_()
    rope.apply(q, positions=positions, norm=weight, eps=1e-5).sum().backward()
    by_tables = norm[0].clone().requires_grad_()
    rope_ext.apply(q, *rope(positions), norm=by_tables, eps=1e-5).sum().backward()
    assert_same_bits(weight.grad, by_tables.grad)


# ---- the code of models ----


def norms_of_models(head_dim, dtype):
    """{name: (the module, with its weight in dtype; the weight as `apply` takes it)}"""
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    gemma3 = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
    modules = {"qwen3": qwen3.Qwen3RMSNorm(head_dim), "gemma3": gemma3.Gemma3RMSNorm(head_dim)}
    for module in modules.values():
        module.weight.data = random((head_dim,), dtype, 5)
    weights = {"qwen3": modules["qwen3"].weight.detach(), "gemma3": 1 + modules["gemma3"].weight.detach().float()}
    return {name: (modules[name], weights[name]) for name in modules}, qwen3.apply_rotary_pos_emb


@pytest.mark.devices("cpu")  # in the norms of transformers, what differs between devices is the order of a sum
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_eager_rounding_is_that_of_transformers(name, dtype, monkeypatch):
    """Bit-identical if transformers sums in our order and rounds 1 / sqrt as we do; unmodified, within a bound."""
    norms, rotate = norms_of_models(128, dtype)
    module, weight = norms[name]
    q, k = (random((2, 4, 16, 128), dtype, seed) for seed in (0, 1))  # bhsd
    cos, sin = (t.to(dtype)[None] for t in rope_ext.RotaryEmbedding(128).tables(16))
    repeated = [torch.cat((t, t), dim=-1) for t in (cos, sin)]
    got = rope_ext.apply((q, k), cos, sin, layout="bhsd", norm=weight, eps=1e-6, rounding="eager")

    with torch.no_grad():
        unmodified = rotate(module(q), module(k), *repeated)
        largest = max(module(q).abs().max(), module(k).abs().max())
        monkeypatch.setattr(torch.Tensor, "mean", lambda t, *_, **__: _reference_norm.sum_of_channels(t) / t.shape[-1])
        monkeypatch.setattr(torch, "rsqrt", lambda t: 1 / t.double().sqrt().to(t.dtype))
        assert_same_bits(got, rotate(module(q), module(k), *repeated))
    # 1 / rms may differ by a few roundings in float32. So x / rms, n and each of its two products may be the next
    # number in dtype: 2 * 2 * 3 half units of a largest value, doubled because a unit is up to 2 eps.
    bound = 12 * torch.finfo(dtype).eps * largest
    for a, b in zip(got, unmodified):
        assert (a.double() - b.double()).abs().max() <= bound
        assert dtype == torch.float32 or (a != b).sum() < 0.01 * a.numel()


# ---- accuracy ----


def worst(got, expected):
    """The largest error, relative to the largest value of its row."""
    return ((got.double() - expected).abs().amax(-1) / expected.abs().amax(-1)).max().item()


def eager(x, cos, sin, weight, eps):
    """The code of Qwen3 in transformers, for layout "bshd"."""
    h = x.float()
    h = weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    cos, sin = (torch.cat((t, t), -1)[:, None].to(x.dtype) for t in (cos, sin))
    return h * cos + torch.cat(h.chunk(2, -1)[::-1], -1) * torch.cat((-sin[..., :64], sin[..., 64:]), -1)


def separate(x, cos, sin, weight, eps):
    normalised = torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
    return rope_ext.apply(normalised, cos, sin)


def fused(x, cos, sin, weight, eps):
    return rope_ext.apply(x, cos, sin, norm=weight, eps=eps)


@pytest.mark.devices("cpu")
@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.1), (torch.bfloat16, 0.6)])
def test_errors_are_those_of_torch_or_smaller(dtype, factor):
    """Results and gradients, against the same in float64; beside torch's rms_norm before `apply`, and eager code."""
    x, g = (random((4, 512, 8, 128), dtype, seed) for seed in (0, 1))
    weight = (1 + random((128,), torch.float32, 2) / 4).to(dtype)
    tables = rope_ext.RotaryEmbedding(128).tables(512, dtype=torch.float64)

    def made(function, dtype):
        cos, sin = (t.to(torch.float32 if dtype != torch.float64 else dtype) for t in tables)
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        y = function(leaves[0], cos, sin, leaves[1], 1e-6)
        return [y.detach(), *torch.autograd.grad(y, leaves, g.to(dtype))]

    expected = made(reference_apply, torch.float64)
    errors = {f.__name__: [worst(a, b) for a, b in zip(made(f, dtype), expected)] for f in (fused, separate, eager)}
    for name in ("separate", "eager"):
        assert all(ours <= factor * theirs for ours, theirs in zip(errors["fused"][:2], errors[name])), errors
        assert errors["fused"][2] <= 1.1 * errors[name][2], errors


def reference_apply(x, cos, sin, weight, eps):
    return reference.apply(x, cos, sin, norm=weight, eps=eps)
