"""Results of rope_ext.compat: empty where an axis of x is, heads without channels included, and contiguous where the
originals allocate them so, whatever the strides of x."""

import pytest
import torch

from rope_ext import compat
from tests.compat_cases import CU, F32, HK, ROWS, B, D, H, S
from tests.conftest import assert_same_bits, in_memory, random
from tests.test_compat import CASES, is_rotated, tensors_of

# Functions whose originals take heads without channels: (function, number of x, shapes of x and tables).
EMPTY = {
    "timm": (compat.timm.apply_rot_embed, 1, lambda b, s, h, d: [(b, h, s, d), (s, d), (s, d)]),
    "timm list": (
        lambda x, y, *tables: compat.timm.apply_rot_embed_list([x, y], *tables, half=True),
        2,
        lambda b, s, h, d: [(b, h, s, d), (h, s, d), (s, d), (s, d)],
    ),
    "timm cat": (compat.timm.apply_rot_embed_cat, 1, lambda b, s, h, d: [(b, h, s, HK, d), (s, HK, 2 * d)]),
    "transformers": (
        compat.transformers.apply_rotary_pos_emb,
        2,
        lambda b, s, h, d: [(b, h, s, d), (b, HK, s, d), (b, s, d), (b, s, d)],
    ),
    "rotary_embedding_torch": (
        lambda t, freqs: compat.rotary_embedding_torch.apply_rotary_emb(freqs, t),
        1,
        lambda b, s, h, d: [(b, h, s, d), (s, d)],
    ),
    "x_transformers": (compat.x_transformers.apply_rotary_pos_emb, 1, lambda b, s, h, d: [(b, h, s, d), (1, s, d)]),
    "torchtitan complex": (
        lambda q, k, cache: compat.torchtitan.apply_rotary_emb_complex(q, k, torch.view_as_complex(cache)),
        2,
        lambda b, s, h, d: [(b, s, h, d), (b, s, HK, d), (1, s, 1, d // 2, 2)],
    ),
    "torchtitan cos sin": (
        compat.torchtitan.apply_rotary_emb_cos_sin,
        2,
        lambda b, s, h, d: [(b, s, h, d), (b, s, HK, d), (b, s, 1, 2 * d)],
    ),
    "meta_llama": (
        lambda q, k, cache: compat.meta_llama.apply_rotary_emb(q, k, torch.view_as_complex(cache)),
        2,
        lambda b, s, h, d: [(b, s, h, d), (b, s, HK, d), (s, d // 2, 2)],
    ),
    "TE": (compat.transformer_engine.apply_rotary_pos_emb, 1, lambda b, s, h, d: [(s, b, h, d), (s, 1, 1, d)]),
    "apex": (compat.apex.fused_apply_rotary_pos_emb, 1, lambda b, s, h, d: [(s, b, h, d), (s, 1, 1, d)]),
    "apex 2d": (
        lambda t, *tables: compat.apex.fused_apply_rotary_pos_emb_2d(t, t.shape[1] // 2, 2, *tables),
        1,
        lambda b, s, h, d: [(b, 2 * s, h, d), *[(1, s + 2, 1, d // 2)] * 4],
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_axis_of_size_0(name):
    function, count, shapes = EMPTY[name]
    for axis in range(4):
        sizes = [B, S, H, D]
        sizes[axis] = 0
        tensors = [random(shape, F32, i).requires_grad_() for i, shape in enumerate(shapes(*sizes))]
        y = function(*tensors)
        y = [y] if isinstance(y, torch.Tensor) else y
        assert [(t.shape, t.dtype) for t in y] == [(x.shape, x.dtype) for x in tensors[:count]]
        grads = torch.autograd.grad([t.sum() for t in y], tensors)
        assert all(g.shape == t.shape for g, t in zip(grads, tensors))


def itself(t):
    return t


def of_heads_second(t):
    return t.transpose(1, 2)


# Cases of test_compat: the view of a result that is contiguous.
MEMORY = {
    name: itself for name in CASES if name.split()[0] in ("TE", "apex", "rotary_embedding_torch", "x_transformers")
}
MEMORY |= {name: of_heads_second for name in CASES if name.startswith("liger")}
MEMORY |= dict.fromkeys(("torchtune", "torchtune input_pos"), itself)


@pytest.mark.parametrize("recorded", [False, True], ids=["", "recorded"])
@pytest.mark.parametrize("name", MEMORY)
def test_contiguous_for_any_strides_of_x(name, recorded):
    function, tensors = CASES[name][1], tensors_of(name, F32)
    expected = function(*tensors)
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    for order in ("contiguous", "transposed", "sliced", "last stride 2", "reversed strides"):
        x = [in_memory(t, order).requires_grad_(recorded) if is_rotated(name, i) else t for i, t in enumerate(tensors)]
        y = function(*x)
        y = [y] if isinstance(y, torch.Tensor) else y
        assert_same_bits(y, expected)
        assert all(MEMORY[name](t).is_contiguous() for t in y), order


def test_contiguous_packed_sequences():
    t, freqs = random((12, H, D), F32).transpose(0, 1).contiguous().transpose(0, 1), random((ROWS, 1, 1, 6), F32, 1)
    for fused in (False, True):
        assert compat.transformer_engine.apply_rotary_pos_emb(
            t, freqs, "thd", fused=fused, cu_seqlens=CU
        ).is_contiguous()
