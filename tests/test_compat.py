"""rope_ext.compat: each function against the published definition in plain PyTorch, bit for bit, with gradients.

Against the originals: test_compat_originals.py. Errors and signatures: test_compat_errors.py.
"""

from functools import partial

import pytest
import torch

from rope_ext import compat
from tests.compat_cases import (
    BF16,
    BHSD,
    CU,
    F32,
    F64,
    HK,
    LENGTHS,
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
from tests.conftest import assert_same_bits, in_memory, random
from tests.pairwise import pairwise

# ---- the published definitions: x cos + rotate_half(x) sin, for the part of x and the rows that each library takes ----


def rotated(x, cos, sin, interleaved=False):
    """cos and sin broadcast to x, with one entry per channel or, half as wide, one per pair."""
    if cos.shape[-1] < x.shape[-1]:
        cos, sin = (t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1) for t in (cos, sin))
    if interleaved:
        partner = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    else:
        partner = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)
    return x * cos + partner * sin


def leading(x, cos, sin, rotary_dim, interleaved=False, start=0):
    end = start + rotary_dim
    return torch.cat((x[..., :start], rotated(x[..., start:end], cos, sin, interleaved), x[..., end:]), dim=-1)


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
        first = rotated(first, cos_h[:, row], sin_h[:, row])
        pixels.append(torch.cat((first, rotated(second, cos_w[:, column], sin_w[:, column])), dim=-1))
    return torch.stack(pixels, dim=1)


def both(function, q, k):
    return function(q), function(k)


# name: (shapes of the tensors, function of compat, published definition). Tables and angles are random, and so different
# within a pair wherever the original allows it.
CASES = {
    "flash_attn": (X + PAIRS, compat.flash_attn.apply_rotary_emb, flash_definition),
    "flash_attn partial": ([*X, (S, 3), (S, 3)], compat.flash_attn.apply_rotary_emb, flash_definition),
    "TE": (
        [(S, B, H, D), (ROWS, 1, 1, 6)],
        partial(compat.transformer_engine.apply_rotary_pos_emb, fused=True),
        te_definition,
    ),
    "TE angles per sequence": (
        [*X, (ROWS, B, 1, 6)],
        partial(compat.transformer_engine.apply_rotary_pos_emb, tensor_format="bshd", fused=True),
        lambda t, f: torch.stack([te_definition(t[i : i + 1], f[:, i : i + 1], "bshd")[0] for i in range(B)]),
    ),
    "apex": ([(S, B, H, D), (ROWS, 1, 1, 6)], compat.apex.fused_apply_rotary_pos_emb, te_definition),
    "apex cached": (
        [(S, B, H, D), (ROWS, 1, 1, 6), (ROWS, 1, 1, 6)],
        compat.apex.fused_apply_rotary_pos_emb_cached,
        lambda t, c, s: leading(t, c[:S], s[:S], 6),
    ),
    "apex thd": (
        [(ROWS, H, D), (ROWS, 1, 1, 6)],
        lambda t, f: compat.apex.fused_apply_rotary_pos_emb_thd(t, CU, f),
        partial(te_definition, lengths=LENGTHS),
    ),
    "apex 2d": (
        [(B, 6, H, D), *[(1, 4, 1, P)] * 4],
        lambda t, *tables: compat.apex.fused_apply_rotary_pos_emb_2d(t, 2, 3, *tables),
        lambda t, *tables: apex_2d_definition(t, 2, 3, *tables),
    ),
    "liger": (
        [*BHSD, (1, S, D), (1, S, D)],
        compat.liger.liger_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: rotated(x, c[:, None, :, :P], s[:, None, :, :P]), q, k),
    ),
    "liger partial, batch, 4 axes": (
        [*BHSD, (B, 1, S, 6), (B, 1, S, 6)],
        compat.liger.liger_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: leading(x, c[..., :3], s[..., :3], 6), q, k),
    ),
    "liger rotary_dim": (
        [*BHSD, (S, P), (S, P)],
        partial(compat.liger.liger_rotary_pos_emb, rotary_dim=D),
        lambda q, k, c, s: both(lambda x: rotated(x, c, s), q, k),
    ),
    "torchtune": (
        [*X, (ROWS, P, 2)],
        lambda x, cache: compat.torchtune.forward(module(cache), x),
        lambda x, cache: rotated(x, cache[:S, None, :, 0], cache[:S, None, :, 1], True),
    ),
    "torchtune input_pos": (
        [*X, (ROWS, P, 2)],
        lambda x, cache: compat.torchtune.forward(module(cache), x, input_pos=POSITIONS),
        lambda x, cache: rotated(x, cache[POSITIONS][:, :, None, :, 0], cache[POSITIONS][:, :, None, :, 1], True),
    ),
    "torchtune half": (
        [*X, (ROWS, 2 * D)],
        lambda x, cache: compat.torchtune.forward_half(module(cache), x, POSITIONS[:1]),
        lambda x, cache: rotated(x, *cache[POSITIONS[:1]][:, :, None].chunk(2, -1)),
    ),
    "torchtitan cos sin": (
        [*QK, (B, S, 1, 2 * D)],
        compat.torchtitan.apply_rotary_emb_cos_sin,
        lambda q, k, cache: both(lambda x: rotated(x, *cache.chunk(2, -1)), q, k),
    ),
    "torchtitan complex": (
        [*QK, (1, S, 1, P, 2)],
        lambda q, k, cache: compat.torchtitan.apply_rotary_emb_complex(q, k, torch.view_as_complex(cache)),
        lambda q, k, cache: both(lambda x: rotated(x, *cache.unbind(-1), True), q, k),
    ),
    "meta_llama": (
        [*QK, (S, P, 2)],
        lambda q, k, f: compat.meta_llama.apply_rotary_emb(q, k, torch.view_as_complex(f)),
        lambda q, k, f: both(lambda x: rotated(x, f[:, None, :, 0], f[:, None, :, 1], True), q, k),
    ),
    "rotary_embedding_torch": (
        [(ROWS, 4), (B, H, S, D)],
        partial(compat.rotary_embedding_torch.apply_rotary_emb, start_index=2),
        lambda f, t: leading(t, f[-S:].cos(), f[-S:].sin(), 4, True, 2),
    ),
    "rotary_embedding_torch bshd": (
        [(ROWS, 1, D), (B, S, H, D)],
        partial(compat.rotary_embedding_torch.apply_rotary_emb, seq_dim=-3, freqs_seq_dim=0),
        lambda f, t: rotated(t, f[-S:].cos(), f[-S:].sin(), True),
    ),
    "rotary_embedding_torch axial": (
        [(S, HK, D), (B, H, S, HK, D)],
        compat.rotary_embedding_torch.apply_rotary_emb,
        lambda f, t: rotated(t, f.cos(), f.sin(), True),
    ),
    "rotary_embedding_torch three axes": (
        [(ROWS, D), (B, S, D)],
        compat.rotary_embedding_torch.apply_rotary_emb,
        lambda f, t: rotated(t, f[-S:].cos(), f[-S:].sin(), True),
    ),
    "x_transformers": (
        [(B, H, S, D), (B, ROWS, 6)],
        compat.x_transformers.apply_rotary_pos_emb,
        lambda t, f: leading(t, f[:, None, -S:].cos(), f[:, None, -S:].sin(), 6, True),
    ),
    "x_transformers three axes": (
        [(B, S, D), (1, ROWS, 6)],
        compat.x_transformers.apply_rotary_pos_emb,
        lambda t, f: leading(t, f[:, -S:].cos(), f[:, -S:].sin(), 6, True),
    ),
    "timm": (
        [(B, H, S, D), (S, 2 * D)],
        compat.timm.apply_rot_embed_cat,
        lambda x, emb: rotated(x, emb[..., D:], emb[..., :D], True),
    ),
    "timm half, per head": (
        [(B, H, S, D), (B, H, S, 2 * D)],
        partial(compat.timm.apply_rot_embed_cat, half=True),
        lambda x, emb: rotated(x, emb[..., D:], emb[..., :D]),
    ),
    "timm one row for all": (
        [(B, H, S, D), (1, 2 * D)],
        compat.timm.apply_rot_embed_cat,
        lambda x, emb: rotated(x, emb[..., D:], emb[..., :D], True),
    ),
    "timm one token": (
        [(D,), (2 * D,)],
        compat.timm.apply_rot_embed_cat,
        lambda x, emb: rotated(x, emb[D:], emb[:D], True),
    ),
    "transformers": (
        [*BHSD, (B, S, D), (B, S, D)],
        compat.transformers.apply_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: rotated(x, c[:, None], s[:, None]), q, k),
    ),
    "transformers one token": (
        [(B, H, 1, D), (B, HK, 1, D), (1, 1, D), (1, 1, D)],
        compat.transformers.apply_rotary_pos_emb,
        lambda q, k, c, s: both(lambda x: rotated(x, c[:, None], s[:, None]), q, k),
    ),
    "transformers bshd, one token": (
        [(B, 1, H, D), (B, 1, HK, D), (1, 1, D), (1, 1, D)],
        partial(compat.transformers.apply_rotary_pos_emb, unsqueeze_dim=2),
        lambda q, k, c, s: both(lambda x: rotated(x, c[:, None], s[:, None]), q, k),
    ),
    "transformers three axes": (
        [(S, H, D), (S, HK, D), (S, D), (S, D)],
        partial(compat.transformers.apply_rotary_pos_emb, unsqueeze_dim=-2),
        lambda q, k, c, s: both(lambda x: rotated(x, c[:, None], s[:, None]), q, k),
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
    """With 16-bit x, float32 tables and angles: bit-identical to the float32 definition, rounded once."""
    _, function, definition = CASES[name]
    keeps = name.split()[0] == "transformers"  # the dtype of q * cos
    tensors = tensors_of(name, dtype, F32 if dtype == BF16 else dtype)
    expected = definition(*(t.to(F32) if dtype == BF16 else t for t in tensors))
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    assert_same_bits(function(*tensors), [t if keeps else t.to(dtype) for t in expected])


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_published_definition(name):
    """Gradients of x, and of tables and angles, which several originals lack. 1e-13 bounds sums of up to 200 terms."""
    _, function, definition = CASES[name]
    tensors = [t.requires_grad_() for t in tensors_of(name, F64)]
    results = []
    for f in (function, definition):
        y = f(*tensors)
        y = [y] if isinstance(y, torch.Tensor) else list(y)
        results.append(torch.autograd.grad(y, tensors, [random(t.shape, F64, 20 + i) for i, t in enumerate(y)]))
    for got, expected in zip(*results):
        assert (got - expected).abs().max() <= 1e-13 * max(1, expected.abs().max())


# ---- options ----


FLASH = {
    "interleaved": [False, True],
    "inplace": [False, True],
    "offsets": [None, 3, [4, 0, 2, 1]],
    "packed": [False, True],
    "strides": ["contiguous", "gaps"],
}


@pytest.mark.parametrize("case", pairwise(FLASH), ids=str)
def test_flash_attn_options_have_the_bits_of_the_definition(case):
    packed, offsets = case["packed"], case["offsets"]
    lengths = LENGTHS if packed else None
    x = random((12, H, D) if packed else (B, S, H, D), F32)
    if case["strides"] == "gaps":
        x = torch.cat((x, x), dim=-1)[..., :D]
    cos, sin = random((ROWS, 3), F32, 1), random((ROWS, 3), F32, 2)
    per_sequence = [offsets] * 4 if isinstance(offsets, int) else offsets
    expected = flash_definition(
        x, cos, sin, case["interleaved"], per_sequence and per_sequence[: 4 if packed else B], lengths
    )
    given = (
        torch.tensor(offsets[: 4 if packed else B], dtype=torch.int32) if isinstance(offsets, list) else offsets or 0
    )
    y = x if case["inplace"] else x.clone()
    got = compat.flash_attn.apply_rotary_emb(
        y,
        cos,
        sin,
        interleaved=case["interleaved"],
        inplace=case["inplace"],
        seqlen_offsets=given,
        **({"cu_seqlens": CU, "max_seqlen": 5} if packed else {}),
    )
    assert_same_bits(got, expected)
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
def test_transformer_engine_options_have_the_bits_of_the_definition(case):
    """fused=False rounds cos, sin and products to the dtype of t; context parallel ranks hold a piece from either end."""
    (size, rank), dtype, starts = case["cp"], case["dtype"], case["starts"]
    packed = case["tensor_format"] == "thd"
    lengths = [4, 6] if packed else None
    t = random({"sbhd": (4, B, H, D), "bshd": (B, 4, H, D), "thd": (10, H, D)}[case["tensor_format"]], dtype)
    freqs = random((24, 1, 1, 6), F64 if dtype == F64 else F32, 1)
    wide = t.to(F32) if dtype == BF16 and case["fused"] else t
    rounded = None if case["fused"] else dtype
    options = case["tensor_format"], starts, case["interleaved"], lengths, size, rank, rounded
    got = compat.transformer_engine.apply_rotary_pos_emb(
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
    got = compat.transformer_engine.apply_rotary_pos_emb(t, freqs, cp_size=2, cp_rank=1)
    one = [te_definition(t[:, i : i + 1], freqs[:, i : i + 1], cp_size=2, cp_rank=1) for i in range(B)]
    assert_same_bits(got, torch.cat(one, dim=1))


def test_boundaries_that_are_not_checked_give_no_rows(monkeypatch):
    """Checking them would wait for the GPU. A sequence whose length is no multiple of 2 * parts gets no rows."""
    monkeypatch.setattr(compat._sequences, "_check_boundaries", lambda *_: False)
    boundaries = torch.tensor([0, 8, 15, 24, 28], dtype=torch.int32)
    whole = [compat._sequences.in_sequences(15, boundaries, None, 2, part).tolist() for part in (0, 1)]
    assert whole == [[0, 1, 6, 7, *[-1] * 8, 0, 3, -1], [2, 3, 4, 5, *[-1] * 8, 1, 2, -1]]
    shifted = compat._sequences.in_sequences(5, torch.tensor([1, 3], dtype=torch.int32), torch.tensor([4]))
    assert shifted.tolist() == [-1, 4, 5, -1, -1]


@pytest.mark.devices("cuda")
def test_sequences_that_cannot_be_cut_become_nan_on_a_gpu():
    t, freqs = random((10, H, D), F32), random((24, 1, 1, D), F32, 1)
    boundaries = torch.tensor([0, 8, 15, 20], dtype=torch.int32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = compat.transformer_engine.apply_rotary_pos_emb(
            t, freqs, "thd", cu_seqlens=boundaries, cp_size=2, cp_rank=1
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(got[:4], te_definition(t[:4], freqs, lengths=[4], cp_size=2, cp_rank=1))
    assert got[4:].isnan().all()


def test_apex_results_in_transposed_memory():
    t, freqs = random((S, B, H, D), F32), random((S, 1, 1, D), F32, 1)
    for function, tables in (
        (compat.apex.fused_apply_rotary_pos_emb, (freqs,)),
        (compat.apex.fused_apply_rotary_pos_emb_cached, (freqs.cos(), freqs.sin())),
    ):
        for order in ("contiguous", "transposed", "reversed strides"):
            x = in_memory(t, order)
            plain, transposed = function(x, *tables), function(x, *tables, transpose_output_memory=True)
            assert_same_bits(plain, transposed)
            assert plain.is_contiguous() and transposed.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("dtype", [F64, F32], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("scale", [0.5, 1.3, "tensor"])
def test_scale_of_xpos(scale, dtype):
    """t * (cos * scale) here, (t * cos) * scale there: two roundings each, of terms of at most |t| * scale."""
    t, freqs = random((B, H, S, D), dtype), random((S, D), dtype, 1)
    scale = random((S, D), dtype, 2).abs() if scale == "tensor" else scale
    expected = t * freqs.cos() * scale + rotated(t, 0 * freqs, freqs.sin(), True) * scale
    bound = 6 * torch.finfo(dtype).eps * t.abs().max() * (scale.max() if isinstance(scale, torch.Tensor) else scale)
    in_3d = scale[None] if isinstance(scale, torch.Tensor) else scale
    for got in (
        compat.rotary_embedding_torch.apply_rotary_emb(freqs, t, scale=scale),
        compat.x_transformers.apply_rotary_pos_emb(t, freqs[None], scale=in_3d),
    ):
        assert (got - expected).abs().max() <= bound


@pytest.mark.parametrize(
    "x, table", [(BF16, F32), (F32, BF16), (BF16, torch.float16), (F32, F64), (F64, F32), (BF16, BF16)]
)
def test_dtypes_are_promoted_as_in_eager_code(x, table):
    """The result of transformers has the dtype of q * cos; those of timm and lucidrains that of x."""
    q, cos, sin = random((B, H, S, D), x), random((S, D), table, 1), random((S, D), table, 2)
    expected = rotated(q, cos, sin)
    got, _ = compat.transformers.apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=0)
    assert_same_bits(got, expected)
    assert_same_bits(compat.timm.apply_rot_embed(q, sin, cos, half=True), expected.to(x))


def test_q_and_k_of_different_dtypes():
    q, k, cos, sin = (
        random((B, H, S, D), F32),
        random((B, HK, S, D), BF16),
        random((S, D), F32, 1),
        random((S, D), F32, 2),
    )
    got = compat.transformers.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=0)
    assert_same_bits(got, (rotated(q, cos, sin), rotated(k.float(), cos, sin)))


def test_timm_rotates_lists():
    x, tables = [random((B, H, S, D), F32, i) for i in range(3)], (random((S, D), F32, 4), random((S, D), F32, 5))
    assert_same_bits(compat.timm.apply_rot_embed_list(x, *tables), [compat.timm.apply_rot_embed(t, *tables) for t in x])
    assert_same_bits(compat.timm.apply_rot_embed_list(x[0], *tables), [compat.timm.apply_rot_embed(x[0], *tables)])


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
    got = compat.flash_attn.apply_rotary_emb_qkv_(
        qkv, *tables[:2], *(tables[2:] if other_tables_of_k else ()), interleaved=True, seqlen_offsets=START, **options
    )
    assert got is qkv
    q, k = parts(leaf)
    q = flash_definition(q, *tables[:2], True, START.tolist())
    k = flash_definition(k, cos_k, sin_k, True, START.tolist())
    rest = leaf[:, :, 2:] if leaf.dim() == 5 else leaf[:, :, H + HK :]
    expected = torch.cat((*((q[:, :, None], k[:, :, None]) if leaf.dim() == 5 else (q, k)), rest), dim=2)
    assert_same_bits(got, expected)
    if with_gradient:
        g = random(leaf.shape, F64, 9)
        assert_same_bits(torch.autograd.grad(got, leaf, g), torch.autograd.grad(expected, leaf, g))


def test_flash_attn_kv_in_place():
    leaf, cos, sin = random((B, S, 2, H, D), F64).requires_grad_(), random((ROWS, P), F64, 1), random((ROWS, P), F64, 2)
    kv = leaf * 1
    got = compat.flash_attn.apply_rotary_emb_kv_(kv, cos, sin, seqlen_offsets=4)
    expected = torch.stack((flash_definition(leaf[:, :, 0], cos, sin, False, [4, 4]), leaf[:, :, 1]), dim=2)
    assert got is kv
    assert_same_bits(got, expected)
    g = random(leaf.shape, F64, 9)
    assert_same_bits(torch.autograd.grad(got, leaf, g), torch.autograd.grad(expected, leaf, g))


@pytest.mark.parametrize("case", pairwise(VLLM), ids=str)
def test_vllm_in_place(case):
    positions, query, key, cache = vllm_arguments(case)
    expected = []
    for x in (query, key):
        if x is not None:
            cos, sin = (t[positions][..., None, :].to(F32) for t in cache.chunk(2, -1))
            heads = x.reshape(*positions.shape, -1, D).to(F32)
            sign = -1 if case["inverse"] else 1
            y = leading(heads, cos, sign * sin, 6, not case["is_neox"], case["rope_dim_offset"])
            expected.append(y.reshape(x.shape).to(x.dtype))
    extra = case["rope_dim_offset"], case["inverse"]
    assert compat.vllm.rotary_embedding(positions, query, key, D, cache, case["is_neox"], *extra) is None
    assert_same_bits([x for x in (query, key) if x is not None], expected)


def test_vllm_without_tokens():
    query = random((0, H * D), F32)
    compat.vllm.rotary_embedding(torch.arange(0), query, query.clone(), D, random((ROWS, 6), F32), True)


@pytest.mark.parametrize(
    "name", ["flash_attn", "TE", "apex 2d", "liger", "meta_llama", "timm half, per head", "transformers"]
)
def test_in_one_graph(name):
    """torch.compile sees through the decorators and checks."""
    torch._dynamo.reset()
    tensors = tensors_of(name, F32)
    compiled = torch.compile(CASES[name][1], backend="eager", fullgraph=True)
    assert_same_bits(compiled(*tensors), CASES[name][1](*tensors))
