"""rope_ext.compat with 16-bit x: where float32 and one rounding is documented, the gradient is rounded once too; where
the bits are those of eager code, those of the gradient are too."""

from functools import partial

import pytest
import torch
from compat_cases import BF16, F32, B, D, H, S, module, vllm_arguments
from conftest import assert_same_bits, random
from test_compat import CASES, is_rotated, leading, te_definition, turned

from rope_ext.compat import (
    apex,
    rotary_embedding_torch,
    timm,
    torchtune,
    transformer_engine,
    transformers,
    vllm,
    x_transformers,
)

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
        vllm.rotary_embedding(positions, y, None, D, cache, True)
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
        partial(transformer_engine.apply_rotary_pos_emb, fused=True),
        apex.fused_apply_rotary_pos_emb,
        lambda t, freqs: apex.fused_apply_rotary_pos_emb_cached(t, freqs.cos(), freqs.sin()),
        lambda t, freqs: apex.fused_apply_rotary_pos_emb_thd(t[0], torch.tensor([0, 1], dtype=torch.int32), freqs)[
            None
        ],
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


# name: (shapes of x and tables, dtypes of the tables, function, eager code)
EAGER = {
    "TE": (
        [(S, B, H, D), (S, 1, 1, 6)],
        [F32],
        transformer_engine.apply_rotary_pos_emb,
        lambda t, f: te_definition(t, f, rounded=t.dtype),
    ),
    "rotary_embedding_torch": (
        [(B, H, S, D), (S, 6)],
        [F32, BF16, F16],
        lambda t, f: rotary_embedding_torch.apply_rotary_emb(f, t),
        cast_back(lambda t, f: leading(t, f.cos(), f.sin(), 6, True)),
    ),
    "x_transformers": (
        [(B, H, S, D), (1, S, 6)],
        [F32, BF16, F16],
        x_transformers.apply_rotary_pos_emb,
        cast_back(lambda t, f: leading(t, f[:, None].cos(), f[:, None].sin(), 6, True)),
    ),
    "timm": (
        [(B, H, S, D), (S, D), (S, D)],
        [F32, BF16, F16],
        timm.apply_rot_embed,
        cast_back(lambda x, s, c: turned(x, c, s, True)),
    ),
    "timm cat": (
        [(B, H, S, D), (S, 2 * D)],
        [F32, BF16, F16],
        partial(timm.apply_rot_embed_cat, half=True),
        cast_back(lambda x, emb: turned(x, *emb.chunk(2, -1)[::-1])),
    ),
    "torchtune half": (
        [(B, S, H, D), (S, 2 * D)],
        [F32, BF16],
        lambda x, cache: torchtune.forward_half(module(cache), x),
        cast_back(lambda x, cache: turned(x, *cache[:, None].chunk(2, -1))),
    ),
    "transformers": (
        [(B, H, S, D), (B, S, D), (B, S, D)],
        [BF16],
        lambda q, c, s: transformers.apply_rotary_pos_emb(q, q, c, s)[0],
        lambda q, c, s: turned(q, c[:, None], s[:, None]),
    ),
}


@pytest.mark.parametrize(
    "name, table_dtype", [(name, dtype) for name, case in EAGER.items() for dtype in case[1]], ids=str
)
def test_result_and_gradient_have_the_bits_of_eager_code(name, table_dtype):
    (shape, *others), _, function, definition = EAGER[name]
    x = [random(shape, BF16)]
    tables = [random(other, table_dtype, 1 + i) for i, other in enumerate(others)]
    got, wanted = (result_and_gradients(f, x, tables) for f in (function, definition))
    assert_same_bits((*got[0], *got[1]), (*wanted[0], *wanted[1]))
