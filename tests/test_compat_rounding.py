"""rope_ext.compat with 16-bit x: where float32 and one rounding is documented, the gradient is rounded once too; where
the bits are those of eager code, those of the gradient are too."""

from functools import partial

import pytest
import torch

from rope_ext import compat
from tests.compat_cases import BF16, CU, F32, LENGTHS, ROWS, B, D, H, P, S, module, vllm_arguments
from tests.conftest import assert_same_bits, random, random_integers
from tests.test_compat import CASES, apex_2d_definition, is_rotated, leading, rotated, te_definition

F16 = torch.float16
LIBRARIES = ("flash_attn", "TE", "apex", "liger", "torchtitan", "meta_llama")
ONCE = [name for name in CASES if name.split()[0] in LIBRARIES] + ["torchtune", "torchtune input_pos"]


def result_and_gradients(function, x, others):
    """Results, and the gradients in x, both as lists."""
    x = [t.detach().requires_grad_() for t in x]
    y = function(*x, *others)
    y = [y] if isinstance(y, torch.Tensor) else list(y)
    return y, torch.autograd.grad(y, x, [random(t.shape, BF16, 20 + i).to(t.dtype) for i, t in enumerate(y)])


def assert_rounded_once(got, exact, largest):
    """Half a unit in the last place, and what float32 adds: two products, a sum, and the cosine of an angle.

    A product rounded to 16 bits is off by up to 2^-9 (bfloat16) or 2^-12 of the product, however small the sum is.
    """
    half_a_unit = torch.finfo(got.dtype).eps / 2 * exact.abs().clamp(min=torch.finfo(got.dtype).smallest_normal)
    assert ((got.double() - exact).abs() <= half_a_unit + 8 * 2**-24 * largest).all()


@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ONCE)
def test_result_and_gradient_are_rounded_once(name, dtype):
    shapes, function, definition = CASES[name]
    n = sum(is_rotated(name, i) for i in range(len(shapes)))
    x = [random(shape, dtype, i) for i, shape in enumerate(shapes[:n])]
    tables = [random(shape, F32, n + i) for i, shape in enumerate(shapes[n:])]
    got = result_and_gradients(function, x, tables)
    exact = result_and_gradients(definition, [t.double() for t in x], [t.double() for t in tables])
    largest = 2 * 4 * max(1, *(t.abs().max() for t in tables))  # two products; x and the gradients are below 4
    for a, b in zip((*got[0], *got[1]), (*exact[0], *exact[1])):
        assert a.dtype == dtype
        assert_rounded_once(a, b, largest)


def test_vllm_is_rounded_once_in_place():
    case = {"axes": "tokens, heads", "memory": "contiguous", "dtype": BF16, "key": False, "positions": torch.int64}
    positions, query, _, cache = vllm_arguments(case)

    def ours(query, cache):
        y = query * 1
        compat.vllm.rotary_embedding(positions, y, None, D, cache, True)
        return y

    def definition(query, cache):
        return leading(query, *(t[positions][:, None] for t in cache.chunk(2, -1)), 6)

    got = result_and_gradients(ours, [query], [cache])
    exact = result_and_gradients(definition, [query.double()], [cache.double()])
    for a, b in zip((*got[0], *got[1]), (*exact[0], *exact[1])):
        assert_rounded_once(a, b, 8 * cache.abs().max())


@pytest.mark.parametrize(
    "function",
    [
        partial(compat.transformer_engine.apply_rotary_pos_emb, fused=True),
        compat.apex.fused_apply_rotary_pos_emb,
        lambda t, freqs: compat.apex.fused_apply_rotary_pos_emb_cached(t, freqs.cos(), freqs.sin()),
        lambda t, freqs: compat.apex.fused_apply_rotary_pos_emb_thd(
            t[0], torch.tensor([0, 1], dtype=torch.int32), freqs
        )[None],
    ],
    ids=["TE", "apex", "apex cached", "apex thd"],
)
def test_a_gradient_whose_terms_nearly_cancel(function):
    """cos 0.7 - 1.1875 sin 0.7 = -1.659e-4: of terms rounded to bfloat16 nothing is left."""
    t = torch.zeros(1, 1, 1, 2, dtype=BF16, requires_grad=True)
    g = torch.tensor([1, -1.1875], dtype=BF16).view(1, 1, 1, 2)
    freqs = torch.full((1, 1, 1, 2), 0.7)
    (got,) = torch.autograd.grad(function(t, freqs), t, g)
    c, s = freqs.double().cos()[0, 0, 0, 0], freqs.double().sin()[0, 0, 0, 0]
    a, b = g.double().flatten()
    assert_same_bits(got.flatten(), torch.stack((a * c + b * s, b * c - a * s)).to(BF16))


def cast_back(definition):
    return lambda t, *tables: definition(t, *tables).to(t.dtype)


def cast_before(definition):
    return lambda t, *tables: definition(t, *(table.to(t.dtype) for table in tables))


def vllm_eager(query, cache):
    y = query * 1
    compat.vllm.rotary_embedding(VLLM_POSITIONS, y, None, D, cache, False, 2, True, rounding="eager")
    return y


def vllm_forward_native(query, cache):
    """RotaryEmbedding.forward_native, for channels from 2 on and the inverse."""
    cos, sin = cache[VLLM_POSITIONS][:, None].chunk(2, -1)
    even, odd, sin = query[..., 2::2], query[..., 3::2], -sin
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((query[..., :2], rotated), dim=-1)


# name: (shapes of x and tables, dtypes of the tables, function, eager code)
EAGER = {
    "TE": (
        [(S, B, H, D), (S, 1, 1, 6)],
        [F32],
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda t, f: te_definition(t, f, rounded=t.dtype),
    ),
    "rotary_embedding_torch": (
        [(B, H, S, D), (S, 6)],
        [F32, BF16, F16],
        lambda t, f: compat.rotary_embedding_torch.apply_rotary_emb(f, t),
        cast_back(lambda t, f: leading(t, f.cos(), f.sin(), 6, True)),
    ),
    "x_transformers": (
        [(B, H, S, D), (1, S, 6)],
        [F32, BF16, F16],
        compat.x_transformers.apply_rotary_pos_emb,
        cast_back(lambda t, f: leading(t, f[:, None].cos(), f[:, None].sin(), 6, True)),
    ),
    "timm": (
        [(B, H, S, D), (S, D), (S, D)],
        [F32, BF16, F16],
        compat.timm.apply_rot_embed,
        cast_back(lambda x, s, c: rotated(x, c, s, True)),
    ),
    "timm cat": (
        [(B, H, S, D), (S, 2 * D)],
        [F32, BF16, F16],
        partial(compat.timm.apply_rot_embed_cat, half=True),
        cast_back(lambda x, emb: rotated(x, *emb.chunk(2, -1)[::-1])),
    ),
    "torchtune half": (
        [(B, S, H, D), (S, 2 * D)],
        [F32, BF16],
        lambda x, cache: compat.torchtune.forward_half(module(cache), x),
        cast_back(lambda x, cache: rotated(x, *cache[:, None].chunk(2, -1))),
    ),
    "transformers": (
        [(B, H, S, D), (B, S, D), (B, S, D)],
        [BF16],
        lambda q, c, s: compat.transformers.apply_rotary_pos_emb(q, q, c, s)[0],
        lambda q, c, s: rotated(q, c[:, None], s[:, None]),
    ),
    "torchtune half as in Qwen 2": (
        [(B, S, H, D), (S, 2 * D)],
        [F32, BF16],
        lambda x, cache: compat.torchtune.forward_half(module(cache), x, rounding="eager"),
        cast_before(lambda x, cache: rotated(x, *cache[:, None].chunk(2, -1))),
    ),
    "apex": (
        [(S, B, H, D), (S, 1, 1, 6)],
        [F32],
        partial(compat.apex.fused_apply_rotary_pos_emb, rounding="eager"),
        lambda t, f: te_definition(t, f, rounded=t.dtype),
    ),
    "apex cached": (
        [(S, B, H, D), (S, 1, 1, 6), (S, 1, 1, 6)],
        [F32, BF16],
        partial(compat.apex.fused_apply_rotary_pos_emb_cached, rounding="eager"),
        cast_before(lambda t, c, s: leading(t, c, s, 6)),
    ),
    "apex thd": (
        [(12, H, D), (S, 1, 1, 6)],
        [F32],
        lambda t, f: compat.apex.fused_apply_rotary_pos_emb_thd(t, CU, f, rounding="eager"),
        lambda t, f: te_definition(t, f, lengths=LENGTHS, rounded=t.dtype),
    ),
    "apex 2d": (
        [(B, 6, H, D), *[(1, 4, 1, P)] * 4],
        [F32, BF16],
        lambda t, *tables: compat.apex.fused_apply_rotary_pos_emb_2d(t, 2, 3, *tables, rounding="eager"),
        cast_before(lambda t, *tables: apex_2d_definition(t, 2, 3, *tables)),
    ),
    "liger": (
        [(B, H, S, D), (S, P), (S, P)],
        [F32, BF16],
        lambda q, c, s: compat.liger.liger_rotary_pos_emb(q, q, c, s, rotary_dim=D, rounding="eager")[0],
        cast_back(lambda q, c, s: rotated(q.to(s.dtype), c, s)),
    ),
    "vllm": ([(S, H, D), (ROWS, 6)], [F32, BF16], vllm_eager, cast_before(vllm_forward_native)),
}
VLLM_POSITIONS = random_integers(ROWS, (S,))


def of_x(dtype, x_dtype):
    """The dtype of 16-bit tables follows that of 16-bit x where a case lists bfloat16 alone."""
    return x_dtype if dtype == BF16 else dtype


@pytest.mark.parametrize("x_dtype", [BF16, F16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "name, table_dtype", [(name, dtype) for name, case in EAGER.items() for dtype in case[1]], ids=str
)
def test_result_and_gradient_have_the_bits_of_eager_code(name, table_dtype, x_dtype):
    (shape, *others), _, function, definition = EAGER[name]
    x = [random(shape, x_dtype)]
    tables = [random(other, of_x(table_dtype, x_dtype), 1 + i) for i, other in enumerate(others)]
    got, expected = (result_and_gradients(f, x, tables) for f in (function, definition))
    assert_same_bits((*got[0], *got[1]), (*expected[0], *expected[1]))


ROUNDED = {
    "apex": lambda t, table, **o: compat.apex.fused_apply_rotary_pos_emb(t, table[:, None, None], **o),
    "apex cached": lambda t, table, **o: compat.apex.fused_apply_rotary_pos_emb_cached(
        t, *[table[:, None, None]] * 2, **o
    ),
    "apex thd": lambda t, table, **o: compat.apex.fused_apply_rotary_pos_emb_thd(
        t[:, 0], CU[:2], table[:, None, None], **o
    ),
    "apex 2d": lambda t, table, **o: compat.apex.fused_apply_rotary_pos_emb_2d(
        t, 1, 3, *[table[None, :, None, :P]] * 4, **o
    ),
    "liger": lambda t, table, **o: compat.liger.liger_rotary_pos_emb(t, t, *[table[:H]] * 2, **o),
    "torchtune half": lambda t, table, **o: compat.torchtune.forward_half(
        module(torch.cat((table, table), -1)), t, **o
    ),
    "vllm": lambda t, table, **o: (
        compat.vllm.rotary_embedding(torch.arange(3), t[:, 0], None, D, table, True, **o) or t
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounding_changes(name):
    """Nothing where x is not of 16 bits; the default is "once"."""
    function = ROUNDED[name]
    for dtype in (torch.float64, F32, BF16):
        t, table = (
            random((3, 3, H, D), dtype),
            random((3, D), torch.promote_types(dtype, F32) if name != "liger" else dtype, 1),
        )
        default, once, eager = (
            function(t.clone(), table, **o) for o in ({}, {"rounding": "once"}, {"rounding": "eager"})
        )
        assert_same_bits(once, default)
        if dtype == BF16:
            with pytest.raises(AssertionError):
                assert_same_bits(eager, once)
        else:
            assert_same_bits(eager, once)
