"""rope_ext.compat: names and defaults of arguments are those of the originals, and errors name them."""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch

from rope_ext import compat
from tests.compat_cases import (
    BF16,
    CU,
    F32,
    F64,
    START,
    B,
    D,
    H,
    P,
    S,
    module,
)
from tests.conftest import random

SIGNATURES = {
    compat.apex.fused_apply_rotary_pos_emb: "(t, freqs, transpose_output_memory=False, *, rounding='once')",
    compat.apex.fused_apply_rotary_pos_emb_2d: "(t, img_h, img_w, cos_h, sin_h, cos_w, sin_w, *, rounding='once')",
    compat.apex.fused_apply_rotary_pos_emb_cached: "(t, cos_, sin_, transpose_output_memory=False, *, rounding='once')",
    compat.apex.fused_apply_rotary_pos_emb_thd: "(t, cu_seqlens, freqs, *, rounding='once')",
    compat.flash_attn.apply_rotary_emb: "(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None)",
    compat.flash_attn.apply_rotary_emb_kv_: "(kv, cos, sin, interleaved=False, seqlen_offsets=0)",
    compat.flash_attn.apply_rotary_emb_qkv_: "(qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets=0, num_heads_q=None)",
    compat.liger.liger_rotary_pos_emb: "(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None, *, rounding='once')",
    compat.meta_llama.apply_rotary_emb: "(xq, xk, freqs_cis)",
    compat.rotary_embedding_torch.apply_rotary_emb: "(freqs, t, start_index=0, scale=1.0, seq_dim=-2, freqs_seq_dim=None)",
    compat.timm.apply_rot_embed: "(x, sin_emb, cos_emb, half=False)",
    compat.timm.apply_rot_embed_cat: "(x, emb, half=False)",
    compat.timm.apply_rot_embed_list: "(x, sin_emb, cos_emb, half=False)",
    compat.torchtitan.apply_rotary_emb_complex: "(query, key, rope_cache)",
    compat.torchtitan.apply_rotary_emb_cos_sin: "(query, key, rope_cache)",
    compat.torchtune.forward: "(self, x, *, input_pos=None)",
    compat.torchtune.forward_half: "(self, x, input_pos=None, *, rounding='once')",
    compat.transformer_engine.apply_rotary_pos_emb: "(t, freqs, tensor_format='sbhd', start_positions=None, interleaved=False, fused=False, cu_seqlens=None, cp_size=1, cp_rank=0)",
    compat.transformers.apply_rotary_pos_emb: "(q, k, cos, sin, unsqueeze_dim=1)",
    compat.vllm.rotary_embedding: "(positions, query, key, head_size, cos_sin_cache, is_neox, rope_dim_offset=0, inverse=False, *, rounding='once')",
    compat.x_transformers.apply_rotary_pos_emb: "(t, freqs, scale=1)",
}


def without_annotations(function):
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


def test_names_and_defaults():
    assert {f: without_annotations(f) for f in SIGNATURES} == SIGNATURES
    modules = [importlib.import_module(f"rope_ext.compat.{name}") for name in compat.__all__]
    public = {f for m in modules for f in vars(m).values() if getattr(f, "__module__", None) == m.__name__}
    rotates = {f for f in public if not f.__name__.startswith("_")} - {compat.vllm.register}
    assert rotates == set(SIGNATURES)


def test_no_original_is_imported():
    for path in Path(compat.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        absolute = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
        absolute |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        assert {name.split(".")[0] for name in absolute} <= {"torch", *sys.stdlib_module_names}, path


def T(*shape, dtype=F32):
    return random(shape, dtype)


def of_two_ranks(boundaries, tokens=5, dtype=torch.int32, **options):
    t, cu_seqlens = T(tokens, H, D), torch.tensor(boundaries, dtype=dtype)
    compat.transformer_engine.apply_rotary_pos_emb(
        t, T(12, 1, 1, D), "thd", cu_seqlens=cu_seqlens, cp_size=2, **options
    )


COMPLEX = torch.complex(T(S, P), T(S, P))
ERRORS = {
    "flash: table of one row per token": (
        lambda: compat.flash_attn.apply_rotary_emb(T(B, S, H, D), T(B, S, P), T(B, S, P)),
        "cos must have shape (rows, rotary_dim / 2), got shape (2, 5, 4)",
    ),
    "flash: rows": (
        lambda: compat.flash_attn.apply_rotary_emb(T(B, S, H, D), T(S, P), T(S, P), seqlen_offsets=1),
        "seqlen_offsets must index rows 0 to 4 of the table, got row 5 for token 4 of batch 0",
    ),
    "flash: max_seqlen": (
        lambda: compat.flash_attn.apply_rotary_emb(T(12, H, D), T(S, P), T(S, P), cu_seqlens=CU),
        "max_seqlen must be given with cu_seqlens, got None",
    ),
    "flash: negative max_seqlen": (
        lambda: compat.flash_attn.apply_rotary_emb(T(12, H, D), T(S, P), T(S, P), cu_seqlens=CU, max_seqlen=-1),
        "max_seqlen must not be negative, got -1",
    ),
    "flash: offsets of packed": (
        lambda: compat.flash_attn.apply_rotary_emb(
            T(12, H, D), T(S, P), T(S, P), seqlen_offsets=START, cu_seqlens=CU, max_seqlen=5
        ),
        "seqlen_offsets must be an int or have shape (4,), got shape (2,)",
    ),
    "flash: rotary_dim": (
        lambda: compat.flash_attn.apply_rotary_emb(T(B, S, H, D), T(S, 5), T(S, 5)),
        "cos must have a width that fits head_dim 8, an entry per pair, got 5",
    ),
    "flash: qkv of 4 axes": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 7, D), T(S, P), T(S, P)),
        "num_heads_q must be given when qkv has 4 dimensions, got None",
    ),
    "flash: heads of qkv": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 7, D), T(S, P), T(S, P), num_heads_q=4),
        "num_heads_q must leave an even, positive number of the 7 heads for k and v, got 4",
    ),
    "flash: negative heads of qkv": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 2, D), T(S, P), T(S, P), num_heads_q=-2),
        "num_heads_q must leave an even, positive number of the 2 heads for k and v, got -2",
    ),
    "flash: tables of k": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 3, H, D), T(S, P), T(S, P), T(4, P), T(4, P)),
        "cos_k must have a row for each of the 5 tokens of qkv, got 4 rows",
    ),
    "flash: sin of k": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 3, H, D), T(S, P), T(S, P), sin_k=T(S, 3)),
        "sin_k must have the shape of cos_k, (5, 4), got (5, 3)",
    ),
    "flash: dtype of the tables of k": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 3, H, D), T(S, P), T(S, P), *[T(S, P, dtype=F64)] * 2),
        "cos_k must be float32 or the dtype of qkv, float32, got float64",
    ),
    "flash: packed tokens outside": (
        lambda: compat.flash_attn.apply_rotary_emb(
            T(13, H, D), T(9, P), T(9, P), seqlen_offsets=torch.zeros(4, dtype=torch.int64), cu_seqlens=CU, max_seqlen=5
        ),
        "cu_seqlens must end at 13, the number of tokens in all parts, got 12",
    ),
    "flash: three of qkv": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, 2, H, D), T(S, P), T(S, P)),
        "qkv must have size 3 on axis 2, got shape (2, 5, 2, 3, 8)",
    ),
    "flash: axes of qkv": (
        lambda: compat.flash_attn.apply_rotary_emb_qkv_(T(B, S, D), T(S, P), T(S, P)),
        "qkv must have 4 or 5 dimensions, got shape (2, 5, 8)",
    ),
    "flash: kv": (
        lambda: compat.flash_attn.apply_rotary_emb_kv_(T(B, S, 3, H, D), T(S, P), T(S, P)),
        "kv must have shape (batch, seqlen, 2, heads, head_dim), got shape (2, 5, 3, 3, 8)",
    ),
    "TE: tensor_format": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, 1, 1, D), tensor_format="bhsd"),
        "tensor_format must be one of sbhd, bshd, thd, got 'bhsd'",
    ),
    "TE: cu_seqlens": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, H, D), T(S, 1, 1, D), tensor_format="thd"),
        "cu_seqlens must be given with tensor_format 'thd', got None",
    ),
    "TE: axes of freqs": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, D)),
        "freqs must have shape (rows, 1, 1, rotary_dim), or (rows, batch, 1, rotary_dim) without start_positions, got shape (5, 8)",
    ),
    "TE: rows of freqs": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(4, 1, 1, D)),
        "freqs must have a row for each of the 5 tokens of t, got shape (4, 1, 1, 8)",
    ),
    "TE: start_positions": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(8, 1, 1, D), start_positions=START),
        "start_positions must index rows 0 to 7 of the table, got row 8 for token 4 of batch 0",
    ),
    "TE: width of freqs": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, 1, 1, 10)),
        "freqs must have a width that fits head_dim 8, got 10",
    ),
    "TE: odd width of freqs": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, 1, 1, 7)),
        "freqs must have an even width (channels rotate in pairs), got 7",
    ),
    "TE: freqs of width 0": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, 1, 1, 0)),
        "freqs must have a positive width, got 0",
    ),
    "TE: number of start_positions": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(
            T(S, B, H, D), T(8, 1, 1, D), start_positions=START.repeat(2)
        ),
        "start_positions must have shape (2,), got (4,)",
    ),
    "TE: cp_size": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(4, B, H, D), T(8, 1, 1, D), cp_size=0),
        "cp_size must be at least 1, got 0",
    ),
    "TE: odd seqlen": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(10, 1, 1, D), cp_size=2),
        "t must have an even seqlen when cp_size > 1, got 5",
    ),
    "TE: lengths": (
        lambda: of_two_ranks([0, 7, 10]),
        "cu_seqlens must hold lengths that are multiples of 2 * cp_size = 4, got 7 for sequence 0",
    ),
    "TE: last length": (
        lambda: of_two_ranks([0, 4, 10]),
        "cu_seqlens must hold lengths that are multiples of 2 * cp_size = 4, got 6 for sequence 1",
    ),
    "TE: boundaries": (lambda: of_two_ranks([0, 8, 4]), "cu_seqlens must ascend, got 4 after 8 at [2]"),
    "TE: first boundary": (lambda: of_two_ranks([4, 8]), "cu_seqlens must start at 0, got 4"),
    "TE: tokens": (
        lambda: of_two_ranks([0, 8], tokens=5),
        "cu_seqlens must end at 10, the number of tokens in all parts, got 8",
    ),
    "TE: dtype of boundaries": (
        lambda: of_two_ranks([0, 8], dtype=torch.int16),
        "cu_seqlens must be int32 or int64, got int16",
    ),
    "TE: start_positions of packed": (
        lambda: of_two_ranks([0, 8], tokens=4, start_positions=START),
        "start_positions must have shape (1,), got shape (2,)",
    ),
    "TE: rows of all ranks": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(4, B, H, D), T(7, B, 1, D), cp_size=2),
        "freqs must have a row for each of the 8 tokens of t, got shape (7, 2, 1, 8)",
    ),
    "TE: cp_rank": (
        lambda: compat.transformer_engine.apply_rotary_pos_emb(T(4, B, H, D), T(8, 1, 1, D), cp_size=2, cp_rank=2),
        "cp_rank must be at least 0 and less than cp_size 2, got 2",
    ),
    "apex: freqs": (
        lambda: compat.apex.fused_apply_rotary_pos_emb(T(S, B, H, D), T(S, D)),
        "freqs must have shape (rows, 1, 1, rotary_dim), got shape (5, 8)",
    ),
    "apex: rows": (
        lambda: compat.apex.fused_apply_rotary_pos_emb_cached(T(S, B, H, D), T(4, 1, 1, D), T(4, 1, 1, D)),
        "cos_ must have a row for each of the 5 tokens of t, got 4 rows",
    ),
    "apex: sin": (
        lambda: compat.apex.fused_apply_rotary_pos_emb_cached(T(S, B, H, D), T(S, 1, 1, D), T(S, 1, 1, 6)),
        "sin_ must have the shape of cos_, (5, 8), got (5, 6)",
    ),
    "apex: negative image": (
        lambda: compat.apex.fused_apply_rotary_pos_emb_2d(T(B, 6, H, D), -2, -3, *[T(1, 3, 1, P)] * 4),
        "img_h must not be negative, got -2",
    ),
    "apex: dtype of a table": (
        lambda: compat.apex.fused_apply_rotary_pos_emb_2d(
            T(B, 6, H, D), 2, 3, *[T(1, 3, 1, P)] * 2, *[T(1, 3, 1, P).double()] * 2
        ),
        "cos_w must be float32 or the dtype of t, float32, got float64",
    ),
    "apex: image": (
        lambda: compat.apex.fused_apply_rotary_pos_emb_2d(T(B, 5, H, D), 2, 3, *[T(1, 3, 1, P)] * 4),
        "t must have shape (batch, 2 * 3, heads, head_dim) with head_dim a multiple of 4, got shape (2, 5, 3, 8)",
    ),
    "apex: table of an image": (
        lambda: compat.apex.fused_apply_rotary_pos_emb_2d(T(B, 6, H, D), 2, 3, *[T(1, 2, 1, P)] * 4),
        "cos_w must have shape (1, 3 or more, 1, 4), got shape (1, 2, 1, 4)",
    ),
    "liger: cos": (
        lambda: compat.liger.liger_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(B, H, S, D), T(B, H, S, D)),
        "cos must have size 1 on axis 1, unsqueeze_dim, got shape (2, 3, 5, 8)",
    ),
    "liger: odd width": (
        lambda: compat.liger.liger_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(S, 7), T(S, 7)),
        "cos must have an even width (channels rotate in pairs), got 7",
    ),
    "liger: odd head_dim": (
        lambda: compat.liger.liger_rotary_pos_emb(T(B, H, S, 7), T(B, H, S, 7), T(S, D), T(S, D)),
        "q must have an even head_dim of at least 2, got shape (2, 3, 5, 7)",
    ),
    "liger: rotary_dim": (
        lambda: compat.liger.liger_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(S, D), T(S, D), rotary_dim=10),
        "rotary_dim must fit head_dim 8, got 10",
    ),
    "liger: width": (
        lambda: compat.liger.liger_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(S, 3), T(S, 3), rotary_dim=D),
        "cos must have at least 4 columns, got shape (1, 5, 3)",
    ),
    "vllm: query": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D + 1), None, D, T(S, D), True),
        "query must have the shape (5,) of positions followed by heads * head_size or heads, head_size, got shape (5, 25) with head_size 8",
    ),
    "vllm: key": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D), T(4, D), D, T(S, D), True),
        "key must have the shape (5,) of positions followed by heads * head_size or heads, head_size, got shape (4, 8) with head_size 8",
    ),
    "vllm: head_size": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, 0, T(S, D), True),
        "head_size must be positive, got 0",
    ),
    "vllm: odd cache": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, D, T(S, 1), True),
        "cos_sin_cache must have shape (max_position, rotary_dim), got shape (5, 1)",
    ),
    "vllm: dtype of key": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, D), T(S, D, dtype=BF16), D, T(S, D), True),
        "key must hold tensors of the dtype of the first, float32, got bfloat16",
    ),
    "vllm: device of key": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, D), T(S, D).to("meta"), D, T(S, D), True),
        "key must be on the device of query, cpu, got meta",
    ),
    "vllm: positions": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, D, T(4, D), True),
        "positions must index rows 0 to 3 of the table, got row 4 for token 4 of batch 0",
    ),
    "vllm: offset and width": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, D, T(S, D), True, rope_dim_offset=2),
        "cos_sin_cache must have a width that fits head_dim 8 from rope_dim_offset 2, got 8",
    ),
    "vllm: cache": (
        lambda: compat.vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, D, T(S, D, dtype=BF16), True),
        "cos_sin_cache must be float32 or the dtype of query, float32, got bfloat16",
    ),
    "meta: freqs_cis": (
        lambda: compat.meta_llama.apply_rotary_emb(T(B, S, H, D), T(B, S, H, D), T(S, P)),
        "freqs_cis must be complex, got torch.float32",
    ),
    "meta: rows": (
        lambda: compat.meta_llama.apply_rotary_emb(T(B, 4, H, D), T(B, 4, H, D), COMPLEX),
        "freqs_cis must have shape (seqlen, head_dim / 2) = (4, 4), got (5, 4)",
    ),
    "meta: float64": (
        lambda: compat.meta_llama.apply_rotary_emb(T(B, S, H, D, dtype=F64), T(B, S, H, D, dtype=F64), COMPLEX),
        "freqs_cis must be float64 for float64 xq and xk, got float32",
    ),
    "torchtitan: real": (
        lambda: compat.torchtitan.apply_rotary_emb_complex(T(B, S, H, D), T(B, S, H, D), T(1, S, 1, P)),
        "rope_cache must be complex, got torch.float32",
    ),
    "torchtitan: axes": (
        lambda: compat.torchtitan.apply_rotary_emb_cos_sin(T(B, S, H, D), T(B, S, H, D), T(S, 2 * D)),
        "rope_cache must have shape (1 or batch, seqlen, 1, 16), got shape (5, 16)",
    ),
    "torchtune: no cache": (
        lambda: compat.torchtune.forward(module(None), T(B, S, H, D)),
        "self.cache must be built: call self.rope_init(), got None",
    ),
    "torchtune: partial": (
        lambda: compat.torchtune.forward(module(T(S, 3, 2)), T(B, S, H, D)),
        "self.cache must have shape (max_seq_len, 4, 2), got shape (5, 3, 2)",
    ),
    "torchtune: input_pos": (
        lambda: compat.torchtune.forward(module(T(S, P, 2)), T(B, S, H, D), input_pos=torch.arange(-1, S - 1)),
        "input_pos must index rows 0 to 4 of the table, got row -1 for token 0 of batch 0",
    ),
    "rotary_embedding_torch: freqs": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(3, D), T(B, H, S, D)),
        "freqs must broadcast to t of shape (2, 3, 5, 8) on all axes except the last, got shape (3, 8)",
    ),
    "rotary_embedding_torch: start_index": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(S, D), T(B, H, S, D), start_index=2),
        "freqs must have a width that fits head_dim 8 from start_index 2, got 8",
    ),
    "x_transformers: freqs": (
        lambda: compat.x_transformers.apply_rotary_pos_emb(T(B, H, S, D), T(S, D)),
        "freqs must have 3 dimensions, got shape (5, 8)",
    ),
    "timm: per pair": (
        lambda: compat.timm.apply_rot_embed_cat(T(B, H, S, D), T(S, D)),
        "emb must have a last dimension of 16, twice the head_dim of x, got shape (5, 8)",
    ),
    "timm: sin": (
        lambda: compat.timm.apply_rot_embed(T(B, H, S, D), T(S, D), T(1, D)),
        "sin_emb must have the shape of cos_emb, (1, 8), got shape (5, 8)",
    ),
    "rotary_embedding_torch: seq_dim": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(S, D), T(B, H, S, D), seq_dim=4),
        "seq_dim must be an axis from -4 to 3, got 4",
    ),
    "rotary_embedding_torch: negative start_index": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(S, 4), T(B, H, S, D), start_index=-1),
        "start_index must be within the head, 0 to 7, got -1",
    ),
    "rotary_embedding_torch: scale": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(S, D), T(B, H, S, D), scale=T(4, D)),
        "scale must broadcast to angles of shape (5, 8), got shape (4, 8)",
    ),
    "rotary_embedding_torch: five axes": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(S, 4, D), T(B, H, S, 3, D)),
        "freqs must broadcast to t of shape (2, 3, 5, 3, 8) on all axes except the last, got shape (5, 4, 8)",
    ),
    "rotary_embedding_torch: more axes than t": (
        lambda: compat.rotary_embedding_torch.apply_rotary_emb(T(1, S, 1, D), T(S, D)),
        "freqs must broadcast to t of shape (5, 8) on all axes except the last, got shape (1, 5, 1, 8)",
    ),
    "transformers: partial": (
        lambda: compat.transformers.apply_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(B, S, P), T(B, S, P)),
        "cos must have a last dimension of 8, the head_dim of q, got shape (2, 5, 4)",
    ),
    "transformers: unsqueeze_dim": (
        lambda: compat.transformers.apply_rotary_pos_emb(
            T(B, H, S, D), T(B, H, S, D), T(B, S, D), T(B, S, D), unsqueeze_dim=17
        ),
        "unsqueeze_dim must be an axis from -4 to 3, got 17",
    ),
    "transformers: head_dim of k": (
        lambda: compat.transformers.apply_rotary_pos_emb(T(B, H, S, D), T(B, H, S, 6), T(B, S, D), T(B, S, D)),
        "k must have a last dimension of 8, the head_dim of q, got shape (2, 3, 5, 6)",
    ),
    "transformers: no Tensor": (
        lambda: compat.transformers.apply_rotary_pos_emb(T(B, H, S, D), "k", T(B, S, D), T(B, S, D)),
        "k must be a Tensor, got 'k'",
    ),
    "transformers: odd head_dim": (
        lambda: compat.transformers.apply_rotary_pos_emb(T(B, H, S, 7), T(B, H, S, 7), T(B, S, 7), T(B, S, 7)),
        "q must have an even head_dim of at least 2, got shape (2, 3, 5, 7)",
    ),
    "transformers: seqlen": (
        lambda: compat.transformers.apply_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(B, 4, D), T(B, 4, D)),
        "cos must broadcast to q and k of shape (2, 3, 5, 8) and (2, 3, 5, 8) on all axes except the last, got shape (2, 1, 4, 8)",
    ),
}


@pytest.mark.devices("cpu")  # positions on a GPU are not checked
@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name):
    call, message = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == f"rope_ext: {message}"


@pytest.mark.devices("cpu")
@pytest.mark.parametrize(
    "make",
    [
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: torch.nested.nested_tensor([t]),
        lambda t: torch.nn.UninitializedParameter(),
    ],
)
def test_errors_name_the_argument_that_is_a_tensor_without_a_kernel(make):
    odd = make(T(B, S))
    for name, call in {
        "seqlen_offsets": lambda: compat.flash_attn.apply_rotary_emb(
            T(B, S, H, D), T(S, P), T(S, P), seqlen_offsets=odd
        ),
        "x": lambda: compat.flash_attn.apply_rotary_emb(odd, T(S, P), T(S, P)),
    }.items():
        with pytest.raises(NotImplementedError, match=f"^rope_ext: {name} must be an ordinary tensor, got an? "):
            call()


def test_nothing_is_written_when_the_tables_of_k_are_wrong():
    qkv = T(B, S, 3, H, D)
    before = qkv.clone()
    for cos_k, sin_k in ((T(4, P), T(4, P)), (T(S, P), T(S, 3)), (T(S, P, dtype=F64), None), ("cos", None)):
        with pytest.raises((TypeError, ValueError)):
            compat.flash_attn.apply_rotary_emb_qkv_(qkv, T(S, P), T(S, P), cos_k, sin_k)
        assert torch.equal(qkv, before)


def inference(t):
    with torch.inference_mode():
        return t.clone()


def test_errors_name_the_cache_that_holds_cos_and_sin():
    query, cache = T(S, H * D), T(2, S, D)
    with pytest.raises(ValueError, match=r"that cos_sin_cache or the positions are inside"):
        torch.func.vmap(lambda c: compat.vllm.rotary_embedding(torch.arange(S), query, None, D, c, True))(cache)


REFUSED_FOR_K = {  # (qkv -> what is written, cos_k), cos for q, and what the error says of them
    "tables in k": (lambda qkv: (qkv, qkv[0, :, 1, 0, :P]), T(S, P), "qkv must not overlap cos_k"),
    "tables in q": (lambda qkv: (qkv, qkv[0, :, 0, 0, :P]), T(S, P), "qkv must not overlap cos_k"),
    "part of a split": (
        lambda qkv: (qkv.split(S)[0], T(S, P).requires_grad_()),
        T(S, P),
        "qkv must not be one of several views",
    ),
    "saved inference tensor": (
        lambda qkv: (qkv.requires_grad_().mul(1), inference(T(S, P))),
        T(S, P),
        "cos_k must not be an inference tensor",
    ),
    "inference tensor saved after q is written": (
        lambda qkv: (qkv, inference(T(S, P))),
        T(S, P).requires_grad_(),
        "cos_k must not be an inference tensor",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FOR_K)
def test_nothing_is_written_when_k_cannot_be_written(name):
    make, cos, message = REFUSED_FOR_K[name]
    qkv, cos_k = make(T(B, S, 3, H, D))
    before = qkv.detach().clone()
    with pytest.raises(ValueError, match=f"^rope_ext: {message}"):
        compat.flash_attn.apply_rotary_emb_qkv_(qkv, cos, T(S, P), cos_k, T(S, P))
    assert torch.equal(qkv.detach(), before)


def test_nothing_is_written_when_k_is_outside_a_transform():
    qkv, cos = T(B, S, 3, H, D), T(S, P)
    before = qkv.clone()
    with pytest.raises(ValueError, match=r"^rope_ext: qkv must be inside every transform"):
        torch.func.vmap(lambda cos_k: compat.flash_attn.apply_rotary_emb_qkv_(qkv, cos, cos, cos_k))(T(2, S, P))
    assert torch.equal(qkv, before)


def test_flash_attn_in_place_refuses_a_leaf():
    """flash_attn overwrites the leaf and gives it the gradient of the result; rope_ext refuses."""
    with pytest.raises(ValueError, match="x must not be a leaf that requires grad"):
        compat.flash_attn.apply_rotary_emb(T(B, S, H, D).requires_grad_(), T(S, P), T(S, P), inplace=True)
