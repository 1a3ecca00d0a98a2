"""Sizes and addresses that a GPU's grids, indices and vectors can stumble over."""

import itertools

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DEVICES, DTYPES, assert_same_bits, random, random_integers, shape_of

if "cuda" not in DEVICES:
    pytest.skip("no GPU with kernels for it", allow_module_level=True)

pytestmark = pytest.mark.devices("cuda")
BF16, F32 = torch.bfloat16, torch.float32
GUARD = 128  # elements


def table_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else F32


def placed(t, shift):
    """A copy of t `shift` elements past an aligned address, and a function: whether the memory around it is intact."""
    memory = torch.full((GUARD + shift + t.numel() + GUARD,), 7.0, dtype=t.dtype)
    inside = memory[GUARD + shift :][: t.numel()].view(t.shape).copy_(t)
    return inside, lambda: bool((memory[: GUARD + shift] == 7).all() and (memory[-GUARD:] == 7).all())


# ---- vectors ----


@pytest.mark.parametrize("head_dim", [2, 6, 10, pytest.param(80, marks=pytest.mark.sanitizer), 96, 100, 130, 576])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dims_at_any_address(dtype, head_dim):
    """x, result and tables each begin at an aligned address or a few elements later; nothing beside them is written."""
    x = random((2, 5, 3, head_dim), dtype)
    cos, sin = (random((5, head_dim // 2), table_dtype(dtype), seed) for seed in (1, 2))
    places = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 4, 2))
    for shifts, interleaved in itertools.product(places, (False, True)):
        expected = reference.apply(x, cos, sin, interleaved=interleaved)
        (source, _), (out, whole) = placed(x, shifts[0]), placed(torch.zeros_like(x), shifts[1])
        tables = [placed(t, shifts[2])[0] for t in (cos, sin)]
        rope_ext.apply(source, *tables, interleaved=interleaved, out=out)
        assert whole()
        assert_same_bits(out, expected)
        assert_same_bits(source, x)
        out.copy_(x)
        rope_ext.apply_(out, *tables, interleaved=interleaved)
        assert whole()
        assert_same_bits(out, expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_slice_of_channels(dtype, interleaved):
    """x[..., 1:]: rows an odd number of elements apart, and a first channel that stays."""
    wide = random((2, 5, 3, 65), dtype)
    cos, sin = random((5, 32), F32, 1), random((5, 32), F32, 2)
    expected = torch.cat((wide[..., :1], reference.apply(wide[..., 1:], cos, sin, interleaved=interleaved)), dim=-1)
    assert_same_bits(rope_ext.apply(wide[..., 1:], cos, sin, interleaved=interleaved), expected[..., 1:])
    rope_ext.apply_(wide[..., 1:], cos, sin, interleaved=interleaved)
    assert_same_bits(wide, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_part_of_the_channels_at_any_place(dtype):
    """Copied channels are bits, not numbers; the rotated ones begin and end where no vector does."""
    x = random((2, 5, 3, 72), dtype)
    for rotary_offset, rotary_dim, interleaved in itertools.product((0, 1, 3, 8), (2, 10, 32, 64), (False, True)):
        keywords = {"rotary_offset": rotary_offset, "rotary_dim": rotary_dim, "interleaved": interleaved}
        cos, sin = (random((5, rotary_dim // 2), table_dtype(dtype), seed) for seed in (1, 2))
        expected = reference.apply(x, cos, sin, **keywords)
        assert_same_bits(rope_ext.apply(x, cos, sin, **keywords), expected)
        out, whole = placed(x, 0)
        rope_ext.apply_(out, cos, sin, **keywords)
        assert whole()
        assert_same_bits(out, expected)


# ---- grids ----


@pytest.mark.parametrize("shape", [(0, 5, 2, 8), (2, 0, 2, 8), (2, 5, 0, 8)])
def test_tensors_without_elements(shape):
    """A launch without blocks is an error of CUDA. Results, gradients and the next launch are right."""
    x, cos, sin = torch.empty(shape).requires_grad_(), torch.ones(5, 4).requires_grad_(), torch.ones(5, 4)
    y = rope_ext.apply(x, cos, sin, positions=torch.zeros(shape[1], dtype=torch.int64))
    grad_x, grad_cos = torch.autograd.grad(y.sum(), (x, cos))
    assert y.shape == grad_x.shape == shape and not grad_cos.any()
    rows = [torch.ones(max(shape[0], 1), shape[1], 4).requires_grad_() for _ in range(2)]
    grads = torch.autograd.grad(rope_ext.apply(x, *rows).sum(), rows)
    assert not torch.stack(grads).any()  # no element of x meets the table: zeros, not uninitialised memory
    torch.cuda.synchronize()


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("sizes", [(70_000, 3, 2), (2, 70_000, 3), (1, 3, 70_000)])
def test_more_than_65535(sizes, layout):
    """batch, tokens, heads: the y axis of a grid ends there. Forward, and gradients of x and of tables."""
    batch, seqlen, heads = sizes
    x = random(shape_of(layout, *sizes, 8), BF16).requires_grad_()
    cos, sin = random((seqlen, 4), F32, 1), random((seqlen, 4), F32, 2)
    y = rope_ext.apply(x, cos, sin, layout=layout)
    assert_same_bits(y.detach(), reference.apply(x.detach(), cos, sin, layout=layout))
    g = random(x.shape, BF16, 3)
    (grad_x,) = torch.autograd.grad(y, x, g)
    assert_same_bits(grad_x, reference.apply(g, cos, sin, layout=layout, transposed=True))
    # ones: every entry counts the terms of its sum, up to 280,000, exactly
    ones, rows = torch.ones_like(g), [t[None].clone().requires_grad_() for t in (cos, sin)]
    grad_cos, _ = torch.autograd.grad(rope_ext.apply(ones, *rows, layout=layout), rows, ones)
    assert torch.equal(grad_cos, torch.full((1, seqlen, 4), 2.0 * batch * heads))


def test_more_than_2_to_the_31_elements():
    """Every index into x is 64 bits wide: result, in place and inverse."""
    tokens = 2**19 + 64  # of 32 * 128 = 2^12 elements
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of the GPU")
    x = torch.randn(1, tokens, 32, 128, dtype=BF16, generator=torch.Generator("cuda").manual_seed(0))
    cos, sin = rope_ext.RotaryEmbedding(128).tables(8192)
    positions = random_integers(8192, (tokens,), torch.int32)
    y = rope_ext.apply(x, cos, sin, positions=positions)
    # the beginning, around 2^31 bytes, around 2^31 elements and to the end
    parts = [slice(0, 64), slice(2**18 - 32, 2**18 + 32), slice(2**19 - 64, 2**19 + 64)]
    expected = [reference.apply(x[:, part], cos, sin, positions=positions[part]) for part in parts]
    assert_same_bits([y[:, part] for part in parts], expected)
    rope_ext.apply_(x, cos, sin, positions=positions)
    assert torch.equal(x, y)
    del y
    rope_ext.apply_(x, cos, sin, positions=positions, inverse=True)
    again = [
        reference.apply(part, cos, sin, positions=positions[at], inverse=True) for part, at in zip(expected, parts)
    ]
    assert_same_bits([x[:, part] for part in parts], again)
