"""rope_ext.compat: each function against the published definition in plain PyTorch, bit for bit, with gradients; and
against the original wherever that can be imported."""

import ast
import importlib
import inspect
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_bits, random, random_integers
from pairwise import pairwise

from rope_ext import compat
from rope_ext.compat import (
    apex,
    flash_attn,
    liger,
    meta_llama,
    rotary_embedding_torch,
    timm,
    torchtitan,
    torchtune,
    transformer_engine,
    transformers,
    vllm,
    x_transformers,
)

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
B, S, H, HK, D, P, ROWS = 2, 5, 3, 2, 8, 4, 12


# ---- the published definitions: x cos + rotate_half(x) sin, for the part of x and the rows that each library takes ----


def turned(x, cos, sin, interleaved=False):
    """Tables that broadcast to x: one entry per channel, or half as wide, one per pair."""
    if cos.shape[-1] < x.shape[-1]:
        cos, sin = (t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1) for t in (cos, sin))
    if interleaved:
        partner = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    else:
        partner = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)
    return x * cos + partner * sin


def leading(x, cos, sin, rotary_dim, interleaved=False, start=0):
    end = start + rotary_dim
    return torch.cat((x[..., :start], turned(x[..., start:end], cos, sin, interleaved), x[..., end:]), dim=-1)


def in_rows(sequences, cos, sin, rotary_dim, positions, interleaved=False):
    """Each sequence (seqlen, heads, head_dim) with the rows `positions` of the tables."""
    return [
        leading(x, cos[rows][:, None], sin[rows][:, None], rotary_dim, interleaved)
        for x, rows in zip(sequences, positions)
    ]


def flash_definition(x, cos, sin, interleaved=False, offsets=None, lengths=None):
    sequences = x.unbind(0) if lengths is None else x.split(lengths)
    offsets = offsets or [0] * len(sequences)
    positions = [torch.arange(t.shape[0]) + offset for t, offset in zip(sequences, offsets)]
    done = in_rows(sequences, cos, sin, 2 * cos.shape[-1], positions, interleaved)
    return torch.stack(done) if lengths is None else torch.cat(done)


def te_definition(
    t, freqs, tensor_format="sbhd", starts=None, interleaved=False, lengths=None, cp_size=1, cp_rank=0, rounded=None
):
    sequences = t.split(lengths) if lengths else t.unbind(tensor_format.index("b"))
    positions = []
    for i, x in enumerate(sequences):
        pieces = torch.arange(x.shape[0] * cp_size).chunk(2 * cp_size)
        whole = torch.arange(x.shape[0]) if cp_size == 1 else torch.cat((pieces[cp_rank], pieces[-1 - cp_rank]))
        positions.append(whole + (0 if starts is None else starts[i]))
    cos, sin = (f(freqs)[:, 0, 0].to(rounded or freqs.dtype).to(t.dtype) for f in (torch.cos, torch.sin))
    done = in_rows(sequences, cos, sin, freqs.shape[-1], positions, interleaved)
    return torch.cat(done) if lengths else torch.stack(done, dim=tensor_format.index("b"))


def apex_2d_definition(t, img_h, img_w, cos_h, sin_h, cos_w, sin_w):
    pixels = []
    for s, x in enumerate(t.unbind(1)):
        row, column = divmod(s, img_w)
        first, second = x.chunk(2, dim=-1)
        first = turned(first, cos_h[:, row], sin_h[:, row])
        pixels.append(torch.cat((first, turned(second, cos_w[:, column], sin_w[:, column])), dim=-1))
    return torch.stack(pixels, dim=1)


def both(function, q, k):
    return function(q), function(k)


def module(cache):
    return SimpleNamespace(cache=cache)


CU = torch.tensor([0, 3, 3, 7, 12], dtype=torch.int32)
LENGTHS = [3, 0, 4, 5]
POSITIONS = random_integers(ROWS, (B, S))
START = torch.tensor([4, 0])

# name: (shapes of the tensors, function of compat, published definition). Tables and angles are random, and so different
# within a pair wherever the original allows it.
X, QK = [(B, S, H, D)], [(B, S, H, D), (B, S, HK, D)]
BHSD = [(B, H, S, D), (B, HK, S, D)]
PAIRS, CHANNELS = [(ROWS, P)] * 2, [(ROWS, D)] * 2
CASES = {
    "flash_attn": (X + PAIRS, flash_attn.apply_rotary_emb, flash_definition),
    "flash_attn partial": ([*X, (S, 3), (S, 3)], flash_attn.apply_rotary_emb, flash_definition),
    "TE": (
        [(S, B, H, D), (ROWS, 1, 1, 6)],
        partial(transformer_engine.apply_rotary_pos_emb, fused=True),
        te_definition,
    ),
    "TE angles per sequence": (
        [*X, (ROWS, B, 1, 6)],
        partial(transformer_engine.apply_rotary_pos_emb, tensor_format="bshd", fused=True),
        lambda t, f: torch.stack([te_definition(t[i : i + 1], f[:, i : i + 1], "bshd")[0] for i in range(B)]),
    ),
    "apex": ([(S, B, H, D), (ROWS, 1, 1, 6)], apex.fused_apply_rotary_pos_emb, te_definition),
    "apex cached": (
        [(S, B, H, D), (ROWS, 1, 1, 6), (ROWS, 1, 1, 6)],
        apex.fused_apply_rotary_pos_emb_cached,
        lambda t, c, s: leading(t, c[:S], s[:S], 6),
    ),
    "apex thd": (
        [(ROWS, H, D), (ROWS, 1, 1, 6)],
        lambda t, f: apex.fused_apply_rotary_pos_emb_thd(t, CU, f),
        partial(te_definition, lengths=LENGTHS),
    ),
    "apex 2d": (
        [(B, 6, H, D), *[(1, 4, 1, P)] * 4],
        lambda t, *tables: apex.fused_apply_rotary_pos_emb_2d(t, 2, 3, *tables),
        lambda t, *tables: apex_2d_definition(t, 2, 3, *tables),
    ),
    "liger": (
        [*BHSD, (1, S, D), (1, S, D)],
        liger.liger_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: turned(x, c[:, None, :, :P], s[:, None, :, :P]), q, k),
    ),
    "liger partial, batch, 4 axes": (
        [*BHSD, (B, 1, S, 6), (B, 1, S, 6)],
        liger.liger_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: leading(x, c[..., :3], s[..., :3], 6), q, k),
    ),
    "liger rotary_dim": (
        [*BHSD, (S, P), (S, P)],
        partial(liger.liger_rotary_pos_emb, rotary_dim=D),
        lambda q, k, c, s: both(lambda x: turned(x, c, s), q, k),
    ),
    "torchtune": (
        [*X, (ROWS, P, 2)],
        lambda x, cache: torchtune.forward(module(cache), x),
        lambda x, cache: turned(x, cache[:S, None, :, 0], cache[:S, None, :, 1], True),
    ),
    "torchtune input_pos": (
        [*X, (ROWS, P, 2)],
        lambda x, cache: torchtune.forward(module(cache), x, input_pos=POSITIONS),
        lambda x, cache: turned(x, cache[POSITIONS][:, :, None, :, 0], cache[POSITIONS][:, :, None, :, 1], True),
    ),
    "torchtune half": (
        [*X, (ROWS, 2 * D)],
        lambda x, cache: torchtune.forward_half(module(cache), x, POSITIONS[:1]),
        lambda x, cache: turned(x, *cache[POSITIONS[:1]][:, :, None].chunk(2, -1)),
    ),
    "torchtitan cos sin": (
        [*QK, (B, S, 1, 2 * D)],
        torchtitan.apply_rotary_emb_cos_sin,
        lambda q, k, cache: both(lambda x: turned(x, *cache.chunk(2, -1)), q, k),
    ),
    "torchtitan complex": (
        [*QK, (1, S, 1, P, 2)],
        lambda q, k, cache: torchtitan.apply_rotary_emb_complex(q, k, torch.view_as_complex(cache)),
        lambda q, k, cache: both(lambda x: turned(x, *cache.unbind(-1), True), q, k),
    ),
    "meta_llama": (
        [*QK, (S, P, 2)],
        lambda q, k, f: meta_llama.apply_rotary_emb(q, k, torch.view_as_complex(f)),
        lambda q, k, f: both(lambda x: turned(x, f[:, None, :, 0], f[:, None, :, 1], True), q, k),
    ),
    "rotary_embedding_torch": (
        [(ROWS, 4), (B, H, S, D)],
        partial(rotary_embedding_torch.apply_rotary_emb, start_index=2),
        lambda f, t: leading(t, f[-S:].cos(), f[-S:].sin(), 4, True, 2),
    ),
    "rotary_embedding_torch bshd": (
        [(ROWS, 1, D), (B, S, H, D)],
        partial(rotary_embedding_torch.apply_rotary_emb, seq_dim=-3, freqs_seq_dim=0),
        lambda f, t: turned(t, f[-S:].cos(), f[-S:].sin(), True),
    ),
    "rotary_embedding_torch axial": (
        [(S, HK, D), (B, H, S, HK, D)],
        rotary_embedding_torch.apply_rotary_emb,
        lambda f, t: turned(t, f.cos(), f.sin(), True),
    ),
    "rotary_embedding_torch three axes": (
        [(ROWS, D), (B, S, D)],
        rotary_embedding_torch.apply_rotary_emb,
        lambda f, t: turned(t, f[-S:].cos(), f[-S:].sin(), True),
    ),
    "x_transformers": (
        [(B, H, S, D), (B, ROWS, 6)],
        x_transformers.apply_rotary_pos_emb,
        lambda t, f: leading(t, f[:, None, -S:].cos(), f[:, None, -S:].sin(), 6, True),
    ),
    "x_transformers three axes": (
        [(B, S, D), (1, ROWS, 6)],
        x_transformers.apply_rotary_pos_emb,
        lambda t, f: leading(t, f[:, -S:].cos(), f[:, -S:].sin(), 6, True),
    ),
    "timm": (
        [(B, H, S, D), (S, 2 * D)],
        timm.apply_rot_embed_cat,
        lambda x, emb: turned(x, emb[..., D:], emb[..., :D], True),
    ),
    "timm half, per head": (
        [(B, H, S, D), (B, H, S, 2 * D)],
        partial(timm.apply_rot_embed_cat, half=True),
        lambda x, emb: turned(x, emb[..., D:], emb[..., :D]),
    ),
    "timm one row for all": (
        [(B, H, S, D), (1, 2 * D)],
        timm.apply_rot_embed_cat,
        lambda x, emb: turned(x, emb[..., D:], emb[..., :D], True),
    ),
    "timm one token": ([(D,), (2 * D,)], timm.apply_rot_embed_cat, lambda x, emb: turned(x, emb[D:], emb[:D], True)),
    "transformers": (
        [*BHSD, (B, S, D), (B, S, D)],
        transformers.apply_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: turned(x, c[:, None], s[:, None]), q, k),
    ),
    "transformers one token": (
        [(B, H, 1, D), (B, HK, 1, D), (1, 1, D), (1, 1, D)],
        transformers.apply_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: turned(x, c[:, None], s[:, None]), q, k),
    ),
    "transformers bshd, one token": (
        [(B, 1, H, D), (B, 1, HK, D), (1, 1, D), (1, 1, D)],
        partial(transformers.apply_rotary_pos_emb, unsqueeze_dim=2),
        lambda q, k, c, s: both(lambda x: turned(x, c[:, None], s[:, None]), q, k),
    ),
    "transformers three axes": (
        [(S, H, D), (S, HK, D), (S, D), (S, D)],
        partial(transformers.apply_rotary_pos_emb, unsqueeze_dim=-2),
        lambda q, k, c, s: both(lambda x: turned(x, c[:, None], s[:, None]), q, k),
    ),
}


def tensors_of(name, dtype, table_dtype=None):
    """The arguments of a case: what is rotated in dtype, tables and angles in table_dtype."""
    shapes = CASES[name][0]
    dtypes = [dtype if is_rotated(name, i) else table_dtype or dtype for i in range(len(shapes))]
    return [random(shape, dtype, seed) for seed, (shape, dtype) in enumerate(zip(shapes, dtypes))]


def is_rotated(name, argument):
    if name.startswith("rotary_embedding_torch"):
        return argument == 1
    return argument < (2 if name.split()[0] in ("liger", "torchtitan", "meta_llama", "transformers") else 1)


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_the_published_definition(name, dtype):
    """For 16-bit x: as the definition in float32, rounded once. Tables and angles are float32 there."""
    _, function, definition = CASES[name]
    keeps = name.split()[0] == "transformers"  # the dtype of q * cos
    tensors = tensors_of(name, dtype, F32 if dtype == BF16 else dtype)
    wanted = definition(*(t.to(F32) if dtype == BF16 else t for t in tensors))
    wanted = [wanted] if isinstance(wanted, torch.Tensor) else wanted
    assert_same_bits(function(*tensors), [t if keeps else t.to(dtype) for t in wanted])


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_published_definition(name):
    """In x, and in tables and angles, which several of the originals leave without. 1e-13: sums of at most 200 terms."""
    _, function, definition = CASES[name]
    tensors = [t.requires_grad_() for t in tensors_of(name, F64)]
    results = []
    for f in (function, definition):
        y = f(*tensors)
        y = [y] if isinstance(y, torch.Tensor) else list(y)
        results.append(torch.autograd.grad(y, tensors, [random(t.shape, F64, 20 + i) for i, t in enumerate(y)]))
    for got, wanted in zip(*results):
        assert (got - wanted).abs().max() <= 1e-13 * max(1, wanted.abs().max())


# ---- options ----


FLASH = {
    "interleaved": [False, True],
    "inplace": [False, True],
    "offsets": [None, 3, [4, 0, 2, 1]],
    "packed": [False, True],
    "strides": ["contiguous", "gaps"],
}


@pytest.mark.parametrize("case", pairwise(FLASH), ids=str)
def test_flash_attn_options(case):
    packed, offsets = case["packed"], case["offsets"]
    lengths = LENGTHS if packed else None
    x = random((12, H, D) if packed else (B, S, H, D), F32)
    if case["strides"] == "gaps":
        x = torch.cat((x, x), dim=-1)[..., :D]
    cos, sin = random((ROWS, 3), F32, 1), random((ROWS, 3), F32, 2)
    per_sequence = [offsets] * 4 if isinstance(offsets, int) else offsets
    wanted = flash_definition(
        x, cos, sin, case["interleaved"], per_sequence and per_sequence[: 4 if packed else B], lengths
    )
    given = (
        torch.tensor(offsets[: 4 if packed else B], dtype=torch.int32) if isinstance(offsets, list) else offsets or 0
    )
    y = x if case["inplace"] else x.clone()
    got = flash_attn.apply_rotary_emb(
        y,
        cos,
        sin,
        interleaved=case["interleaved"],
        inplace=case["inplace"],
        seqlen_offsets=given,
        **({"cu_seqlens": CU, "max_seqlen": 5} if packed else {}),
    )
    assert_same_bits(got, wanted)
    assert (got is y) == case["inplace"]


TE = {
    "tensor_format": ["sbhd", "bshd", "thd"],
    "starts": [None, [4, 1]],
    "interleaved": [False, True],
    "fused": [False, True],
    "cp": [(1, 0), (2, 0), (2, 1), (3, 1)],
    "dtype": [F64, F32, BF16],
}


@pytest.mark.parametrize("case", pairwise(TE), ids=str)
def test_transformer_engine_options(case):
    """fused=False rounds cos and sin to the dtype of t; context parallel ranks hold a piece from either end."""
    (size, rank), dtype, starts = case["cp"], case["dtype"], case["starts"]
    packed = case["tensor_format"] == "thd"
    lengths = [4, 6] if packed else None
    t = random({"sbhd": (4, B, H, D), "bshd": (B, 4, H, D), "thd": (10, H, D)}[case["tensor_format"]], dtype)
    freqs = random((24, 1, 1, 6), F64 if dtype == F64 else F32, 1)
    wide = t.to(F32) if dtype == BF16 else t
    rounded = None if case["fused"] else dtype
    options = case["tensor_format"], starts, case["interleaved"], lengths, size, rank, rounded
    got = transformer_engine.apply_rotary_pos_emb(
        t,
        freqs,
        tensor_format=case["tensor_format"],
        start_positions=None if starts is None else torch.tensor(starts),
        interleaved=case["interleaved"],
        fused=case["fused"],
        cu_seqlens=torch.tensor([0, 4, 10], dtype=torch.int32) * size if packed else None,
        cp_size=size,
        cp_rank=rank,
    )
    assert_same_bits(got, te_definition(wide, freqs, *options).to(dtype))


def test_transformer_engine_angles_per_sequence_with_context_parallel():
    t, freqs = random((4, B, H, D), F32), random((8, B, 1, D), F32, 1)
    got = transformer_engine.apply_rotary_pos_emb(t, freqs, cp_size=2, cp_rank=1)
    one = [te_definition(t[:, i : i + 1], freqs[:, i : i + 1], cp_size=2, cp_rank=1) for i in range(B)]
    assert_same_bits(got, torch.cat(one, dim=1))


def test_apex_results_in_transposed_memory():
    t, freqs = random((S, B, H, D), F32), random((S, 1, 1, D), F32, 1)
    for function, tables in (
        (apex.fused_apply_rotary_pos_emb, (freqs,)),
        (apex.fused_apply_rotary_pos_emb_cached, (freqs.cos(), freqs.sin())),
    ):
        plain, transposed = function(t, *tables), function(t, *tables, transpose_output_memory=True)
        assert_same_bits(plain, transposed)
        assert plain.is_contiguous() and transposed.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("dtype", [F64, F32], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("scale", [0.5, 1.3, "tensor"])
def test_scale_of_xpos(scale, dtype):
    """t * (cos * scale) here, (t * cos) * scale there: two roundings each, of terms of at most |t| * scale."""
    t, freqs = random((B, H, S, D), dtype), random((S, D), dtype, 1)
    scale = random((S, D), dtype, 2).abs() if scale == "tensor" else scale
    wanted = t * freqs.cos() * scale + turned(t, 0 * freqs, freqs.sin(), True) * scale
    bound = 6 * torch.finfo(dtype).eps * t.abs().max() * (scale.max() if isinstance(scale, torch.Tensor) else scale)
    in_3d = scale[None] if isinstance(scale, torch.Tensor) else scale
    for got in (
        rotary_embedding_torch.apply_rotary_emb(freqs, t, scale=scale),
        x_transformers.apply_rotary_pos_emb(t, freqs[None], scale=in_3d),
    ):
        assert (got - wanted).abs().max() <= bound


@pytest.mark.parametrize(
    "x, table", [(BF16, F32), (F32, BF16), (BF16, torch.float16), (F32, F64), (F64, F32), (BF16, BF16)]
)
def test_dtypes_are_promoted_as_in_eager_code(x, table):
    """The result of transformers has the dtype of q * cos; those of timm and lucidrains that of x."""
    q, cos, sin = random((B, H, S, D), x), random((S, D), table, 1), random((S, D), table, 2)
    work = torch.promote_types(x, table)
    wanted = turned(*(t.to(torch.promote_types(work, F32)) for t in (q, cos, sin)))
    got, _ = transformers.apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=0)
    assert_same_bits(got, wanted.to(work))
    assert_same_bits(timm.apply_rot_embed(q, sin, cos, half=True), wanted.to(x))


def test_q_and_k_of_different_dtypes():
    q, k, cos, sin = (
        random((B, H, S, D), F32),
        random((B, HK, S, D), BF16),
        random((S, D), F32, 1),
        random((S, D), F32, 2),
    )
    got = transformers.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=0)
    assert_same_bits(got, (turned(q, cos, sin), turned(k.float(), cos, sin)))


def test_timm_list():
    x, tables = [random((B, H, S, D), F32, i) for i in range(3)], (random((S, D), F32, 4), random((S, D), F32, 5))
    assert_same_bits(timm.apply_rot_embed_list(x, *tables), [timm.apply_rot_embed(t, *tables) for t in x])
    assert_same_bits(timm.apply_rot_embed_list(x[0], *tables), [timm.apply_rot_embed(x[0], *tables)])


# ---- in place ----


def packed_qkv(form):
    """(packed, its q and k heads, options): heads on one axis, or three on an axis of their own."""
    if form == "5 axes":
        return random((B, S, 3, H, D), F64), lambda t: (t[:, :, 0], t[:, :, 1]), {}
    if form == "5 axes, transposed":
        qkv = random((S, B, 3, H, D), F64).transpose(0, 1)
        return qkv, lambda t: (t[:, :, 0], t[:, :, 1]), {}
    return random((B, S, H + 2 * HK, D), F64), lambda t: (t[:, :, :H], t[:, :, H : H + HK]), {"num_heads_q": H}


@pytest.mark.parametrize("with_gradient", [False, True], ids=["values", "gradient"])
@pytest.mark.parametrize("other_tables_of_k", [False, True], ids=["one table", "table of k"])
@pytest.mark.parametrize("form", ["5 axes", "5 axes, transposed", "4 axes"])
def test_flash_attn_qkv_in_place(form, other_tables_of_k, with_gradient):
    leaf, parts, options = packed_qkv(form)
    tables = [random((ROWS, 3), F64, seed) for seed in range(1, 5)]
    cos_k, sin_k = tables[2:] if other_tables_of_k else tables[:2]
    leaf.requires_grad_(with_gradient)
    qkv = leaf * 1  # not a leaf
    got = flash_attn.apply_rotary_emb_qkv_(
        qkv, *tables[:2], *(tables[2:] if other_tables_of_k else ()), interleaved=True, seqlen_offsets=START, **options
    )
    assert got is qkv
    q, k = parts(leaf)
    q = flash_definition(q, *tables[:2], True, START.tolist())
    k = flash_definition(k, cos_k, sin_k, True, START.tolist())
    rest = leaf[:, :, 2:] if leaf.dim() == 5 else leaf[:, :, H + HK :]
    wanted = torch.cat((*((q[:, :, None], k[:, :, None]) if leaf.dim() == 5 else (q, k)), rest), dim=2)
    assert_same_bits(got, wanted)
    if with_gradient:
        g = random(leaf.shape, F64, 9)
        assert_same_bits(torch.autograd.grad(got, leaf, g), torch.autograd.grad(wanted, leaf, g))


def test_flash_attn_kv_in_place():
    leaf, cos, sin = random((B, S, 2, H, D), F64).requires_grad_(), random((ROWS, P), F64, 1), random((ROWS, P), F64, 2)
    kv = leaf * 1
    got = flash_attn.apply_rotary_emb_kv_(kv, cos, sin, seqlen_offsets=4)
    wanted = torch.stack((flash_definition(leaf[:, :, 0], cos, sin, False, [4, 4]), leaf[:, :, 1]), dim=2)
    assert got is kv
    assert_same_bits(got, wanted)
    g = random(leaf.shape, F64, 9)
    assert_same_bits(torch.autograd.grad(got, leaf, g), torch.autograd.grad(wanted, leaf, g))


VLLM = {
    "is_neox": [True, False],
    "axes": ["tokens", "tokens, heads", "batch", "batch, heads"],
    "memory": ["contiguous", "slice of packed"],
    "key": [True, False],
    "dtype": [F32, BF16],
    "rope_dim_offset": [0, 2],
    "inverse": [False, True],
    "positions": [torch.int64, torch.int32],
}


def vllm_arguments(case):
    """(positions, query, key, cache) and the query and key with axes of heads."""
    batched, heads_apart = case["axes"].startswith("batch"), case["axes"].endswith("heads")
    shape = (B, S) if batched else (B * S,)
    positions = random_integers(ROWS, shape).to(case["positions"])
    packed = random((*shape, (H + HK) * D), case["dtype"])
    query, key = packed.split([H * D, HK * D], dim=-1)
    if case["memory"] == "contiguous":
        query, key = query.clone(), key.clone()
    if heads_apart:
        query, key = query.unflatten(-1, (H, D)), key.unflatten(-1, (HK, D))
    cache = random((ROWS, 6), case["dtype"], 1)
    return positions, query, key if case["key"] else None, cache


@pytest.mark.parametrize("case", pairwise(VLLM), ids=str)
def test_vllm_in_place(case):
    positions, query, key, cache = vllm_arguments(case)
    wanted = []
    for x in (query, key):
        if x is not None:
            cos, sin = (t[positions][..., None, :].to(F32) for t in cache.chunk(2, -1))
            heads = x.reshape(*positions.shape, -1, D).to(F32)
            sign = -1 if case["inverse"] else 1
            y = leading(heads, cos, sign * sin, 6, not case["is_neox"], case["rope_dim_offset"])
            wanted.append(y.reshape(x.shape).to(x.dtype))
    extra = case["rope_dim_offset"], case["inverse"]
    assert vllm.rotary_embedding(positions, query, key, D, cache, case["is_neox"], *extra) is None
    assert_same_bits([x for x in (query, key) if x is not None], wanted)


@pytest.mark.parametrize(
    "name", ["flash_attn", "TE", "apex 2d", "liger", "meta_llama", "timm half, per head", "transformers"]
)
def test_in_one_graph(name):
    """torch.compile sees through the decorators and checks."""
    torch._dynamo.reset()
    tensors = tensors_of(name, F32)
    compiled = torch.compile(CASES[name][1], backend="eager", fullgraph=True)
    assert_same_bits(compiled(*tensors), CASES[name][1](*tensors))


# ---- signatures and errors ----

SIGNATURES = {
    apex.fused_apply_rotary_pos_emb: "(t, freqs, transpose_output_memory=False)",
    apex.fused_apply_rotary_pos_emb_2d: "(t, img_h, img_w, cos_h, sin_h, cos_w, sin_w)",
    apex.fused_apply_rotary_pos_emb_cached: "(t, cos_, sin_, transpose_output_memory=False)",
    apex.fused_apply_rotary_pos_emb_thd: "(t, cu_seqlens, freqs)",
    flash_attn.apply_rotary_emb: "(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None)",
    flash_attn.apply_rotary_emb_kv_: "(kv, cos, sin, interleaved=False, seqlen_offsets=0)",
    flash_attn.apply_rotary_emb_qkv_: "(qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets=0, num_heads_q=None)",
    liger.liger_rotary_pos_emb: "(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None)",
    meta_llama.apply_rotary_emb: "(xq, xk, freqs_cis)",
    rotary_embedding_torch.apply_rotary_emb: "(freqs, t, start_index=0, scale=1.0, seq_dim=-2, freqs_seq_dim=None)",
    timm.apply_rot_embed: "(x, sin_emb, cos_emb, half=False)",
    timm.apply_rot_embed_cat: "(x, emb, half=False)",
    timm.apply_rot_embed_list: "(x, sin_emb, cos_emb, half=False)",
    torchtitan.apply_rotary_emb_complex: "(query, key, rope_cache)",
    torchtitan.apply_rotary_emb_cos_sin: "(query, key, rope_cache)",
    torchtune.forward: "(self, x, *, input_pos=None)",
    torchtune.forward_half: "(self, x, input_pos=None)",
    transformer_engine.apply_rotary_pos_emb: "(t, freqs, tensor_format='sbhd', start_positions=None, interleaved=False, fused=False, cu_seqlens=None, cp_size=1, cp_rank=0)",
    transformers.apply_rotary_pos_emb: "(q, k, cos, sin, unsqueeze_dim=1)",
    vllm.rotary_embedding: "(positions, query, key, head_size, cos_sin_cache, is_neox, rope_dim_offset=0, inverse=False)",
    x_transformers.apply_rotary_pos_emb: "(t, freqs, scale=1)",
}


def test_names_and_defaults():
    assert {f: str(inspect.signature(f)) for f in SIGNATURES} == SIGNATURES
    modules = [importlib.import_module(f"rope_ext.compat.{name}") for name in compat.__all__]
    public = {f for m in modules for f in vars(m).values() if getattr(f, "__module__", None) == m.__name__}
    assert {f for f in public if not f.__name__.startswith("_")} - {transformer_engine.turn} == set(SIGNATURES)


def test_no_original_is_imported():
    for path in Path(compat.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        absolute = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
        absolute |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        assert absolute <= {"torch", "math", "functools"}, path


def T(*shape, dtype=F32):
    return random(shape, dtype)


COMPLEX = torch.complex(T(S, P), T(S, P))
ERRORS = {
    "flash: table of one row per token": (
        lambda: flash_attn.apply_rotary_emb(T(B, S, H, D), T(B, S, P), T(B, S, P)),
        "cos must have shape (rows, rotary_dim / 2), got shape (2, 5, 4)",
    ),
    "flash: rows": (
        lambda: flash_attn.apply_rotary_emb(T(B, S, H, D), T(S, P), T(S, P), seqlen_offsets=1),
        "seqlen_offsets must lead to a row of the table, 0 to 4, got row 5 for token 4 of batch 0",
    ),
    "flash: max_seqlen": (
        lambda: flash_attn.apply_rotary_emb(T(12, H, D), T(S, P), T(S, P), cu_seqlens=CU),
        "max_seqlen must be given with cu_seqlens, got None",
    ),
    "flash: offsets of packed": (
        lambda: flash_attn.apply_rotary_emb(
            T(12, H, D), T(S, P), T(S, P), seqlen_offsets=START, cu_seqlens=CU, max_seqlen=5
        ),
        "seqlen_offsets must be an int or have shape (4,), got shape (2,)",
    ),
    "flash: rotary_dim": (
        lambda: flash_attn.apply_rotary_emb(T(B, S, H, D), T(S, 5), T(S, 5)),
        "cos must fit head_dim 8 from rotary_offset 0, got 10",
    ),
    "flash: qkv of 4 axes": (
        lambda: flash_attn.apply_rotary_emb_qkv_(T(B, S, 7, D), T(S, P), T(S, P)),
        "num_heads_q must be given for qkv of 4 dimensions, got None",
    ),
    "flash: heads of qkv": (
        lambda: flash_attn.apply_rotary_emb_qkv_(T(B, S, 7, D), T(S, P), T(S, P), num_heads_q=4),
        "num_heads_q must leave as many heads for k as for v of 7, got 4",
    ),
    "flash: three of qkv": (
        lambda: flash_attn.apply_rotary_emb_qkv_(T(B, S, 2, H, D), T(S, P), T(S, P)),
        "qkv must have 3 on axis 2, got shape (2, 5, 2, 3, 8)",
    ),
    "flash: axes of qkv": (
        lambda: flash_attn.apply_rotary_emb_qkv_(T(B, S, D), T(S, P), T(S, P)),
        "qkv must have 4 or 5 dimensions, got shape (2, 5, 8)",
    ),
    "flash: kv": (
        lambda: flash_attn.apply_rotary_emb_kv_(T(B, S, 3, H, D), T(S, P), T(S, P)),
        "kv must have shape (batch, seqlen, 2, heads, head_dim), got shape (2, 5, 3, 3, 8)",
    ),
    "TE: tensor_format": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, 1, 1, D), tensor_format="bhsd"),
        "tensor_format must be one of sbhd, bshd, thd, got 'bhsd'",
    ),
    "TE: cu_seqlens": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, H, D), T(S, 1, 1, D), tensor_format="thd"),
        "cu_seqlens must be given for tensor_format 'thd', got None",
    ),
    "TE: axes of freqs": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, D)),
        "freqs must have shape (rows, 1, 1, rotary_dim), or (rows, batch, 1, rotary_dim) without start_positions, got shape (5, 8)",
    ),
    "TE: rows of freqs": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(4, 1, 1, D)),
        "freqs must have a row for each of the 5 tokens of t, got shape (4, 1, 1, 8)",
    ),
    "TE: start_positions": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(8, 1, 1, D), start_positions=START),
        "start_positions must lead to a row of the table, 0 to 7, got row 8 for token 4 of batch 0",
    ),
    "TE: width of freqs": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(S, 1, 1, 10)),
        "freqs must fit head_dim 8 from rotary_offset 0, got 10",
    ),
    "TE: odd seqlen": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(S, B, H, D), T(10, 1, 1, D), cp_size=2),
        "t must have an even seqlen where cp_size > 1, got 5",
    ),
    "TE: cp_rank": (
        lambda: transformer_engine.apply_rotary_pos_emb(T(4, B, H, D), T(8, 1, 1, D), cp_size=2, cp_rank=2),
        "cp_rank must be in 0 to cp_size - 1 = 1, got 2",
    ),
    "apex: freqs": (
        lambda: apex.fused_apply_rotary_pos_emb(T(S, B, H, D), T(S, D)),
        "freqs must have shape (rows, 1, 1, rotary_dim), got shape (5, 8)",
    ),
    "apex: rows": (
        lambda: apex.fused_apply_rotary_pos_emb_cached(T(S, B, H, D), T(4, 1, 1, D), T(4, 1, 1, D)),
        "cos_ must lead to a row of the table, 0 to 3, got row 4 for token 4 of batch 0",
    ),
    "apex: sin": (
        lambda: apex.fused_apply_rotary_pos_emb_cached(T(S, B, H, D), T(S, 1, 1, D), T(S, 1, 1, 6)),
        "sin_ must have the shape of cos, (5, 8), got (5, 6)",
    ),
    "apex: image": (
        lambda: apex.fused_apply_rotary_pos_emb_2d(T(B, 5, H, D), 2, 3, *[T(1, 3, 1, P)] * 4),
        "t must have shape (batch, 2 * 3, heads, head_dim) with head_dim a multiple of 4, got shape (2, 5, 3, 8)",
    ),
    "apex: table of an image": (
        lambda: apex.fused_apply_rotary_pos_emb_2d(T(B, 6, H, D), 2, 3, *[T(1, 2, 1, P)] * 4),
        "cos_w must have shape (1, 3 or more, 1, 4), got shape (1, 2, 1, 4)",
    ),
    "liger: cos": (
        lambda: liger.liger_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(B, H, S, D), T(B, H, S, D)),
        "cos must have an axis of size 1 at unsqueeze_dim 1, got shape (2, 3, 5, 8)",
    ),
    "liger: width": (
        lambda: liger.liger_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(S, 3), T(S, 3), rotary_dim=D),
        "cos must have at least 4 columns, got shape (1, 5, 3)",
    ),
    "vllm: query": (
        lambda: vllm.rotary_embedding(torch.arange(S), T(S, H * D + 1), None, D, T(S, D), True),
        "query must have the axes (5,) of positions and then heads * head_size or heads, head_size, got shape (5, 25) with head_size 8",
    ),
    "vllm: key": (
        lambda: vllm.rotary_embedding(torch.arange(S), T(S, H * D), T(4, D), D, T(S, D), True),
        "key must have the axes (5,) of positions and then heads * head_size or heads, head_size, got shape (4, 8) with head_size 8",
    ),
    "vllm: positions": (
        lambda: vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, D, T(4, D), True),
        "positions must lead to a row of the table, 0 to 3, got row 4 for token 4 of batch 0",
    ),
    "vllm: cache": (
        lambda: vllm.rotary_embedding(torch.arange(S), T(S, H * D), None, D, T(S, D, dtype=BF16), True),
        "cos_sin_cache must be float32 or the dtype of x, float32, got bfloat16",
    ),
    "meta: freqs_cis": (
        lambda: meta_llama.apply_rotary_emb(T(B, S, H, D), T(B, S, H, D), T(S, P)),
        "freqs_cis must be complex, got torch.float32",
    ),
    "meta: rows": (
        lambda: meta_llama.apply_rotary_emb(T(B, 4, H, D), T(B, 4, H, D), COMPLEX),
        "freqs_cis must have shape (seqlen, head_dim / 2), (4, 4), got (5, 4)",
    ),
    "meta: float64": (
        lambda: meta_llama.apply_rotary_emb(T(B, S, H, D, dtype=F64), T(B, S, H, D, dtype=F64), COMPLEX),
        "freqs_cis must be float64 for float64 x, got float32",
    ),
    "torchtitan: real": (
        lambda: torchtitan.apply_rotary_emb_complex(T(B, S, H, D), T(B, S, H, D), T(1, S, 1, P)),
        "rope_cache must be complex, got torch.float32",
    ),
    "torchtitan: axes": (
        lambda: torchtitan.apply_rotary_emb_cos_sin(T(B, S, H, D), T(B, S, H, D), T(S, 2 * D)),
        "rope_cache must have shape (1 or batch, seqlen, 1, 16), got shape (5, 16)",
    ),
    "torchtune: no cache": (
        lambda: torchtune.forward(module(None), T(B, S, H, D)),
        "self.cache must be built: call self.rope_init(), got None",
    ),
    "torchtune: partial": (
        lambda: torchtune.forward(module(T(S, 3, 2)), T(B, S, H, D)),
        "self.cache must have shape (max_seq_len, 4, 2), got shape (5, 3, 2)",
    ),
    "torchtune: input_pos": (
        lambda: torchtune.forward(module(T(S, P, 2)), T(B, S, H, D), input_pos=torch.arange(-1, S - 1)),
        "input_pos must lead to a row of the table, 0 to 4, got row -1 for token 0 of batch 0",
    ),
    "rotary_embedding_torch: freqs": (
        lambda: rotary_embedding_torch.apply_rotary_emb(T(3, D), T(B, H, S, D)),
        "freqs must broadcast to x of shape (2, 3, 5, 8) on all axes but the last, got shape (3, 8)",
    ),
    "rotary_embedding_torch: start_index": (
        lambda: rotary_embedding_torch.apply_rotary_emb(T(S, D), T(B, H, S, D), start_index=2),
        "freqs must fit head_dim 8 from rotary_offset 2, got 8",
    ),
    "x_transformers: freqs": (
        lambda: x_transformers.apply_rotary_pos_emb(T(B, H, S, D), T(S, D)),
        "freqs must have 3 dimensions, got shape (5, 8)",
    ),
    "timm: per pair": (
        lambda: timm.apply_rot_embed_cat(T(B, H, S, D), T(S, D)),
        "cos_emb must have the head_dim 8 of x last, got shape (5, 4)",
    ),
    "timm: sin": (
        lambda: timm.apply_rot_embed(T(B, H, S, D), T(S, D), T(1, D)),
        "sin_emb must have the shape of cos, (1, 8), got shape (5, 8)",
    ),
    "rotary_embedding_torch: five axes": (
        lambda: rotary_embedding_torch.apply_rotary_emb(T(S, 4, D), T(B, H, S, 3, D)),
        "freqs must broadcast to x of shape (2, 3, 5, 3, 8) on all axes but the last, got shape (5, 4, 8)",
    ),
    "rotary_embedding_torch: more axes than t": (
        lambda: rotary_embedding_torch.apply_rotary_emb(T(1, S, 1, D), T(S, D)),
        "freqs must broadcast to x of shape (5, 8) on all axes but the last, got shape (1, 5, 1, 8)",
    ),
    "transformers: partial": (
        lambda: transformers.apply_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(B, S, P), T(B, S, P)),
        "cos must have the head_dim 8 of q last, got shape (2, 5, 4)",
    ),
    "transformers: seqlen": (
        lambda: transformers.apply_rotary_pos_emb(T(B, H, S, D), T(B, H, S, D), T(B, 4, D), T(B, 4, D)),
        "cos must broadcast to x of shape (2, 3, 5, 8) and (2, 3, 5, 8) on all axes but the last, got shape (2, 1, 4, 8)",
    ),
}


@pytest.mark.devices("cpu")  # a GPU's positions are not looked at
@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name):
    call, message = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == f"rope_ext: {message}"


def test_flash_attn_in_place_on_a_leaf():
    """There it is overwritten, and its gradient is that of the result."""
    with pytest.raises(ValueError, match="x must not be a leaf that requires grad"):
        flash_attn.apply_rotary_emb(T(B, S, H, D).requires_grad_(), T(S, P), T(S, P), inplace=True)


# ---- against the originals ----


def tables_of(shape, *more):
    return [random(s, F32, 5 + i) for i, s in enumerate((shape, *more))]


# compat function: (module, attribute, dtypes of x, bit-equal, shapes of x, tables, call). Not bit-equal are kernels and
# complex products, which fuse a product and a sum.
BOTH_DTYPES = (F32, BF16)
ORIGINALS = [
    (
        flash_attn.apply_rotary_emb,
        ("flash_attn.layers.rotary", "apply_rotary_emb", BOTH_DTYPES, False),
        (X, tables_of(*PAIRS)),
        lambda f, x, c, s: f(x, c, s, interleaved=True, seqlen_offsets=2),
    ),
    (
        flash_attn.apply_rotary_emb,
        ("flash_attn.layers.rotary", "apply_rotary_emb", BOTH_DTYPES, False),
        ([(12, H, D)], tables_of((ROWS, 2), (ROWS, 2))),
        lambda f, x, c, s: f(
            x, c, s, seqlen_offsets=torch.tensor([1, 0, 2, 3]), cu_seqlens=CU.to(x.device), max_seqlen=5
        ),
    ),
    (
        flash_attn.apply_rotary_emb_qkv_,
        ("flash_attn.layers.rotary", "apply_rotary_emb_qkv_", BOTH_DTYPES, False),
        ([(B, S, 3, H, D)], tables_of(*PAIRS)),
        lambda f, x, c, s: f(x * 1, c, s, seqlen_offsets=START.to(x.device)),
    ),
    (
        flash_attn.apply_rotary_emb_qkv_,
        ("flash_attn.layers.rotary", "apply_rotary_emb_qkv_", BOTH_DTYPES, False),
        ([(B, S, H + 2 * HK, D)], tables_of(*PAIRS, *PAIRS)),
        lambda f, x, *tables: f(x * 1, *tables, interleaved=True, num_heads_q=H),
    ),
    (
        flash_attn.apply_rotary_emb_kv_,
        ("flash_attn.layers.rotary", "apply_rotary_emb_kv_", BOTH_DTYPES, False),
        ([(B, S, 2, H, D)], tables_of(*PAIRS)),
        lambda f, x, c, s: f(x * 1, c, s, seqlen_offsets=3),
    ),
    (
        transformer_engine.apply_rotary_pos_emb,
        ("transformer_engine.pytorch.attention.rope", "apply_rotary_pos_emb", (F32,), True),
        ([(4, B, H, D)], tables_of((ROWS, 1, 1, 6))),
        lambda f, t, freqs: f(t, freqs, start_positions=START.to(t.device), interleaved=True),
    ),
    (
        transformer_engine.apply_rotary_pos_emb,
        ("transformer_engine.pytorch.attention.rope", "apply_rotary_pos_emb", (F32,), True),
        ([(B, 4, H, D)], tables_of((ROWS, 1, 1, 6))),
        lambda f, t, freqs: f(t, freqs, tensor_format="bshd", cp_size=3, cp_rank=1),
    ),
    (
        transformer_engine.apply_rotary_pos_emb,
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
        apex.fused_apply_rotary_pos_emb,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb", BOTH_DTYPES, False),
        ([(S, B, H, D)], tables_of((S, 1, 1, 6))),
        lambda f, t, freqs: f(t, freqs),
    ),
    (
        apex.fused_apply_rotary_pos_emb_cached,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb_cached", BOTH_DTYPES, False),
        ([(S, B, H, D)], tables_of((S, 1, 1, 6), (S, 1, 1, 6))),
        lambda f, t, c, s: f(t, c, s),
    ),
    (
        apex.fused_apply_rotary_pos_emb_thd,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb_thd", BOTH_DTYPES, False),
        ([(12, H, D)], tables_of((S, 1, 1, 6))),
        lambda f, t, freqs: f(t, CU.to(t.device), freqs),
    ),
    (
        apex.fused_apply_rotary_pos_emb_2d,
        ("apex.transformer.functional", "fused_apply_rotary_pos_emb_2d", BOTH_DTYPES, False),
        ([(B, 6, H, D)], tables_of(*[(1, 4, 1, P)] * 4)),
        lambda f, t, *tables: f(t, 2, 3, *tables),
    ),
    (
        liger.liger_rotary_pos_emb,
        ("liger_kernel.transformers.rope", "liger_rotary_pos_emb", BOTH_DTYPES, False),
        (BHSD, tables_of((B, S, 6), (B, S, 6))),
        lambda f, q, k, c, s: f(q * 1, k * 1, c, s),  # it overwrites them
    ),
    (
        rotary_embedding_torch.apply_rotary_emb,
        ("rotary_embedding_torch.rotary_embedding_torch", "apply_rotary_emb", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((ROWS, 4))),
        lambda f, t, freqs: f(freqs, t, start_index=2),
    ),
    (
        rotary_embedding_torch.apply_rotary_emb,
        ("rotary_embedding_torch.rotary_embedding_torch", "apply_rotary_emb", BOTH_DTYPES, True),
        ([(B, H, S, 3, D)], tables_of((S, 3, D))),
        lambda f, t, freqs: f(freqs, t),
    ),
    (
        torchtitan.apply_rotary_emb_cos_sin,
        ("torchtitan.models.common.rope", "CosSinRoPE.apply_rotary_emb", BOTH_DTYPES, True),
        (QK, tables_of((1, S, 1, 2 * D))),
        lambda f, *tensors: f(*tensors),
    ),
    (
        torchtitan.apply_rotary_emb_complex,
        ("torchtitan.models.common.rope", "ComplexRoPE.apply_rotary_emb", BOTH_DTYPES, False),
        (QK, tables_of((1, S, 1, P, 2))),
        lambda f, q, k, cache: f(q, k, torch.view_as_complex(cache)),
    ),
    (
        torchtune.forward,
        ("torchtune.modules.position_embeddings", "RotaryPositionalEmbeddings.forward", BOTH_DTYPES, True),
        (X, tables_of((ROWS, P, 2))),
        lambda f, x, cache: f(module(cache), x, input_pos=POSITIONS.to(x.device)),
    ),
    (
        torchtune.forward_half,
        ("torchtune.models.phi3._position_embeddings", "Phi3RotaryPositionalEmbeddings.forward", BOTH_DTYPES, True),
        (X, tables_of((ROWS, 2 * D))),
        lambda f, x, cache: f(module(cache), x),
    ),
    (
        torchtune.forward_half,
        ("torchtune.models.qwen2._positional_embeddings", "Qwen2RotaryPositionalEmbeddings.forward", (F32,), True),
        (X, tables_of((ROWS, 2 * D))),
        lambda f, x, cache: f(module(cache), x, POSITIONS.to(x.device)),
    ),
    (
        timm.apply_rot_embed_cat,
        ("timm.layers.pos_embed_sincos", "apply_rot_embed_cat", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((S, 2 * D))),
        lambda f, x, emb: f(x, emb),
    ),
    (
        timm.apply_rot_embed,
        ("timm.layers.pos_embed_sincos", "apply_rot_embed", BOTH_DTYPES, True),
        ([(B, H, S, D)], tables_of((H, S, D), (H, S, D))),
        lambda f, x, s, c: f(x, s, c, half=True),
    ),
    (
        timm.apply_rot_embed_list,
        ("timm.layers.pos_embed_sincos", "apply_rot_embed_list", BOTH_DTYPES, True),
        ([(B, H, S, D), (B, H, S, D)], tables_of((S, D), (S, D))),
        lambda f, q, k, s, c: f([q, k], s, c),
    ),
    (
        transformers.apply_rotary_pos_emb,
        ("transformers.models.llama.modeling_llama", "apply_rotary_pos_emb", BOTH_DTYPES, True),
        (BHSD, tables_of((B, S, D), (B, S, D))),
        lambda f, q, k, c, s: f(q, k, c, s),
    ),
    (
        x_transformers.apply_rotary_pos_emb,
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
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (function, theirs)
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
        (got, got_grads), (wanted, wanted_grads) = results
        if exact:
            assert_same_bits(got, wanted)
        for a, b in zip((*got, *got_grads), (*wanted, *wanted_grads)):
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
    """To one rounding: its CPU kernel fuses a product and a sum. It wants int64 positions, no axis for heads and, with a
    batch, no gaps, and has neither rope_dim_offset nor inverse."""
    theirs = original("vllm._custom_ops", "rotary_embedding")
    results = []
    for f in (vllm.rotary_embedding, theirs):
        positions, query, key, cache = vllm_arguments(case)
        f(positions, query, key, D, cache, case["is_neox"])
        results.append([x for x in (query, key) if x is not None])
    for a, b in zip(*results):
        assert (a - b).abs().max() <= torch.finfo(a.dtype).eps * a.abs().max()
