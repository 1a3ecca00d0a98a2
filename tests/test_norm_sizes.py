"""RMSNorm before the rotation for sizes at the borders of kernels: the bits of the reference, and of its gradients.

Odd head_dim, one channel more than a vector or a block of the sum, heads whose gradients are not kept at once (more
than 2048 numbers), more pairs than cos and sin are loaded for at once (128), more heads than a vector has lanes.
"""

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DTYPES, assert_same_bits, in_memory, random
from tests.test_norm_derivatives import EPS, formula

SIZES = [  # head_dim, rotary_dim, rotary_offset, heads, tokens
    (2, None, 0, 33, 17),
    (3, 2, 1, 5, 3),
    (33, 32, 0, 70, 16),
    (33, 2, 31, 2, 17),
    (65, 64, 1, 40, 2),
    (72, None, 0, 3, 15),  # 8 + 4 + 2 + 1 tokens of a block
    (127, 64, 32, 20, 3),
    (257, 254, 3, 17, 2),
    (300, 280, 11, 9, 2),
    (576, None, 0, 5, 3),
    (2050, 514, 700, 3, 2),
    (8200, 8192, 8, 2, 1),
]


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("table_heads", [1, 2])
@pytest.mark.parametrize("order", ["contiguous", "last stride 2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_sizes(sizes, dtype, order, table_heads):
    head_dim, rotary_dim, rotary_offset, heads, tokens = sizes
    x = in_memory(random((1, tokens, heads, head_dim), dtype), order).requires_grad_()
    weight = random((head_dim,), dtype, 1).requires_grad_()
    shape = (1, tokens, 1 if table_heads == 1 else heads, (rotary_dim or head_dim) // 2)
    cos, sin = (random(shape, torch.float64 if dtype == torch.float64 else torch.float32, s) for s in (2, 3))
    keywords = {"rotary_dim": rotary_dim, "rotary_offset": rotary_offset, "interleaved": heads % 2 == 0}
    y = rope_ext.apply(x, cos, sin, norm=weight, eps=EPS, **keywords)
    assert_same_bits(y.detach(), reference.apply(x, cos, sin, norm=weight, eps=EPS, **keywords).detach())
    g = random(x.shape, dtype, 4)
    expected = formula(x.detach(), weight.detach(), g, "bshd", cos, sin, **keywords)
    for needs in ([0, 1], [1]):
        got = torch.autograd.grad(y, [(x, weight)[i] for i in needs], g, retain_graph=True)
        assert_same_bits(got, [expected[i] for i in needs])


@pytest.mark.devices("cpu")
def test_tokens_past_the_end_have_no_inverse_rms():
    x, weight = random((3, 2, 8), torch.float32), torch.ones(8)
    given = {"cu_seqlens": torch.tensor([0, 2]), "flags": reference.LAYOUTS.index("thd")}
    _, (inv_rms,) = torch.ops.rope_ext.norm_rotate([x], *torch.ones(2, 3, 4), **given, norm=[weight], eps=EPS)
    assert (inv_rms[0, :2] > 0).all() and not inv_rms[0, 2].any()
