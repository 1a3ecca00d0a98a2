"""rope_ext.compat against the originals, where they can be imported. Kernels in Triton run on a GPU, or on the CPU with
TRITON_INTERPRET=1."""

import inspect
import os

import pytest
import torch

from rope_ext import compat
from tests.compat_cases import (
    BF16,
    BHSD,
    CU,
    F32,
    HK,
    PAIRS,
    POSITIONS,
    QK,
    ROWS,
    START,
    VLLM,
    B,
    D,
    H,
    P,
    S,
    X,
    module,
    vllm_arguments,
)
from tests.conftest import assert_same_bits, random
from tests.pairwise import pairwise


def tables_of(shape, *more):
    return [random(s, F32, 5 + i) for i, s in enumerate((shape, *more))]


# compat function: (module, attribute, dtypes of x, bit-equal, shapes of x, tables, call). Kernels and complex products,
# which fuse a product and a sum, are not bit-equal.
BOTH_DTYPES = (F32, BF16)
ORIGINALS = [
    (
        compat.flash_attn.apply_rotary_emb,
        ("flash_attn.layers.rotary", "apply_rotary_emb", BOTH_DTYPES, False),
        (X, tables_of(*PAIRS)),
        lambda f, x, c, s: f(x, c, s, interleaved=True, seqlen_offsets=2),
    ),
    (
        compat.flash_attn.apply_rotary_emb,
        ("flash_attn.layers.rotary", "apply_rotary_emb", BOTH_DTYPES, False),
        ([(12, H, D)], tables_of((ROWS, 2), (ROWS, 2))),
        lambda f, x, c, s: f(
            x, c, s, seqlen_offsets=torch.tensor([1, 0, 2, 3]), cu_seqlens=CU.to(x.device), max_seqlen=5
        ),
    ),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        ("flash_attn.layers.rotary", "apply_rotary_emb_qkv_", BOTH_DTYPES, False),
        ([(B, S, 3, H, D)], tables_of(*PAIRS)),
        lambda f, x, c, s: f(x * 1, c, s, seqlen_offsets=START.to(x.device)),
    ),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        ("flash_attn.layers.rotary", "apply_rotary_emb_qkv_", BOTH_DTYPES, False),
        ([(B, S, H + 2 * HK, D)], tables_of(*PAIRS, *PAIRS)),
        lambda f, x, *tables: f(x * 1, *tables, interleaved=True, num_heads_q=H),
    ),
    (
        compat.flash_attn.apply_rotary_emb_kv_,
        ("flash_attn.layers.rotary", "apply_rotary_emb_kv_", BOTH_DTYPES, False),
        ([(B, S, 2, H, D)], tables_of(*PAIRS)),
        lambda f, x, c, s: f(x * 1, c, s, seqlen_offsets=3),
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        ("transformer_engine.pytorch.attention.rope", "apply_rotary_pos_emb", (F32,), True),
        ([(4, B, H, D)], tables_of((ROWS, 1, 1, 6))),
        lambda f, t, freqs: f(t, freqs, start_positions=START.to(t.device), interleaved=True),
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        ("transformer_engine.pytorch.attention.rope", "apply_rotary_pos_emb", (F32,), True),
        ([(B, 4, H, D)], tables_of((ROWS, 1, 1, 6))),
        lambda f, t, freqs: f(t, freqs, tensor_format="bshd", cp_size=3, cp_rank=1),
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        ("transformer_engine.pytorch.attention.rope", "apply_rotary_pos_emb", (F32,), True),
        ([(10, H, D)], tables_of((15, 1, 1, D))),
        lambda f, t, freqs: f(
            t,
            freqs,
            tensor_format="thd",
            start_positions=torch.tensor([3, 0, 2], device=t.device),
            cu_seqlens=torch.tensor([0, 8, 8, 20], dtype=torch.int32, device=t.device),
            cp_size=2,
            cp_rank=1,
        ),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb", BOTH_DTYPES, False),
        ([(S, B, H, D)], tables_of((S, 1, 1, 6))),
        lambda f, t, freqs: f(t, freqs),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_cached,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb_cached", BOTH_DTYPES, False),
        ([(S, B, H, D)], tables_of((S, 1, 1, 6), (S, 1, 1, 6))),
        lambda f, t, c, s: f(t, c, s),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_thd,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb_thd", BOTH_DTYPES, False),
        ([(12, H, D)], tables_of((S, 1, 1, 6))),
        lambda f, t, freqs: f(t, CU.to(t.device), freqs),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_2d,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb_2d", BOTH_DTYPES, False),
        ([(B, 6, H, D)], tables_of(*[(1, 4, 1, P)] * 4)),
        lambda f, t, *tables: f(t, 2, 3, *tables),
    ),
    (
        compat.liger.liger_rotary_pos_emb,
        ("liger_kernel.transformers.rope", "liger_rotary_pos_emb", BOTH_DTYPES, False),
        (BHSD, tables_of((B, S, 6), (B, S, 6))),
        lambda f, q, k, c, s: f(q * 1, k * 1, c, s),  # it overwrites q and k
    ),
    (
        compat.rotary_embedding_torch.apply_rotary_emb,
        ("rotary_embedding_torch.rotary_embedding_torch", "apply_rotary_emb", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((ROWS, 4))),
        lambda f, t, freqs: f(freqs, t, start_index=2),
    ),
    (
        compat.rotary_embedding_torch.apply_rotary_emb,
        ("rotary_embedding_torch.rotary_embedding_torch", "apply_rotary_emb", BOTH_DTYPES, True),
        ([(B, H, S, 3, D)], tables_of((S, 3, D))),
        lambda f, t, freqs: f(freqs, t),
    ),
    (
        compat.torchtitan.apply_rotary_emb_cos_sin,
        ("torchtitan.models.common.rope", "CosSinRoPE.apply_rotary_emb", BOTH_DTYPES, True),
        (QK, tables_of((1, S, 1, 2 * D))),
        lambda f, *tensors: f(*tensors),
    ),
    (
        compat.torchtitan.apply_rotary_emb_complex,
        ("torchtitan.models.common.rope", "ComplexRoPE.apply_rotary_emb", BOTH_DTYPES, False),
        (QK, tables_of((1, S, 1, P, 2))),
        lambda f, q, k, cache: f(q, k, torch.view_as_complex(cache)),
    ),
    (
        compat.torchtune.forward,
        ("torchtune.modules.position_embeddings", "RotaryPositionalEmbeddings.forward", BOTH_DTYPES, True),
        (X, tables_of((ROWS, P, 2))),
        lambda f, x, cache: f(module(cache), x, input_pos=POSITIONS.to(x.device)),
    ),
    (
        compat.torchtune.forward_half,
        ("torchtune.models.phi3._position_embeddings", "Phi3RotaryPositionalEmbeddings.forward", BOTH_DTYPES, True),
        (X, tables_of((ROWS, 2 * D))),
        lambda f, x, cache: f(module(cache), x),
    ),
    (
        compat.torchtune.forward_half,
        ("torchtune.models.qwen2._positional_embeddings", "Qwen2RotaryPositionalEmbeddings.forward", (F32,), True),
        (X, tables_of((ROWS, 2 * D))),
        lambda f, x, cache: f(module(cache), x, POSITIONS.to(x.device)),
    ),
    (
        compat.timm.apply_rot_embed_cat,
        ("timm.layers.pos_embed_sincos", "apply_rot_embed_cat", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((S, 2 * D))),
        lambda f, x, emb: f(x, emb),
    ),
    (
        compat.timm.apply_rot_embed,
        ("timm.layers.pos_embed_sincos", "apply_rot_embed", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((H, S, D), (H, S, D))),
        lambda f, x, s, c: f(x, s, c, half=True),
    ),
    (
        compat.timm.apply_rot_embed_list,
        ("timm.layers.pos_embed_sincos", "apply_rot_embed_list", BOTH_DTYPES, True),
        ([(B, H, S, D), (B, H, S, D)], tables_of((S, D), (S, D))),
        lambda f, q, k, s, c: f([q, k], s, c),
    ),
    (
        compat.transformers.apply_rotary_pos_emb,
        ("transformers.models.llama.modeling_llama", "apply_rotary_pos_emb", BOTH_DTYPES, True),
        (BHSD, tables_of((B, S, D), (B, S, D))),
        lambda f, q, k, c, s: f(q, k, c, s),
    ),
    (
        compat.x_transformers.apply_rotary_pos_emb,
        ("x_transformers.x_transformers", "apply_rotary_pos_emb", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((1, ROWS, 6))),
        lambda f, t, freqs: f(t, freqs),
    ),
]
ON_A_GPU = ("flash_attn", "apex", "liger_kernel")


def original(module_name, path):
    found = pytest.importorskip(module_name, exc_type=ImportError)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found


@pytest.mark.parametrize("case", ORIGINALS, ids=lambda case: f"{case[1][0].split('.')[0]}.{case[1][1]}")
def test_against_the_original(case, device):
    """Bit for bit, or to one rounding of a sum of two products; gradients in x too."""
    function, (module_name, path, dtypes, exact), (shapes, tables), call = case
    theirs = original(module_name, path)
    if module_name.split(".")[0] in ON_A_GPU and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs on a GPU, or in Triton's interpreter")
    defaults = [
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values() if p.name != "rounding"]
        for f in (function, theirs)
    ]
    if path.startswith("liger"):  # releases before 0.8.5 have no rotary_dim
        defaults[0] = defaults[0][: len(defaults[1])]
    assert defaults[0] == defaults[1]
    for dtype in dtypes:
        x = [random(shape, dtype, i).requires_grad_() for i, shape in enumerate(shapes)]
        results = []
        for f in (function, theirs):
            y = call(f, *x, *(t.to(device) for t in tables))
            y = [y] if isinstance(y, torch.Tensor) else list(y)
            grads = torch.autograd.grad(y, x, [random(t.shape, t.dtype, 20 + i) for i, t in enumerate(y)])
            results.append((y, grads))
        (got, got_grads), (expected, expected_grads) = results
        if exact:
            assert_same_bits(got, expected)
        for a, b in zip((*got, *got_grads), (*expected, *expected_grads)):
            assert a.dtype == b.dtype and a.shape == b.shape
            # One rounding of numbers up to twice max |x| max |table|; gradients of 16-bit x are sums of two rounded terms.
            largest = max(t.abs().max().item() for t in x) * max(1, *(t.abs().max().item() for t in tables))
            assert (a - b).abs().max() <= 4 * torch.finfo(a.dtype).eps * largest


VLLM_ON_CPU = [
    {**case, "memory": memory, "positions": torch.int64}
    for case in pairwise({**{name: VLLM[name] for name in ("is_neox", "key", "dtype")}, "axes": ["tokens", "batch"]})
    for memory in ("contiguous", "slice of packed")[: 2 if case["axes"] == "tokens" else 1]
]


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("case", VLLM_ON_CPU, ids=str)
def test_against_vllm(case):
    """Equal to one rounding, since the CPU kernel of vLLM fuses a product and a sum. It takes only int64 positions, and
    x without an axis of heads and, with a batch, without gaps; it has neither rope_dim_offset nor inverse."""
    theirs = original("vllm._custom_ops", "rotary_embedding")
    results = []
    for f in (compat.vllm.rotary_embedding, theirs):
        positions, query, key, cache = vllm_arguments(case)
        f(positions, query, key, D, cache, case["is_neox"])
        results.append([x for x in (query, key) if x is not None])
    for a, b in zip(*results):
        assert (a - b).abs().max() <= torch.finfo(a.dtype).eps * a.abs().max()
