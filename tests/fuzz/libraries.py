"""Calls of rope_ext.compat, in float32: as the libraries make them, and with an argument or two wrong or odd.

`rope_ext.reference` gives the expected result, with the arguments translated to those of `apply`. Of calls with a
changed argument only the errors and the memory are checked.
"""

from types import SimpleNamespace

import torch
from calls import Call, Made, Unknown, drawn_in, mutate
from memory import Drawn, any_strides, dense
from rotations import index

from rope_ext import compat, reference

B, S, H, HK, D, ROWS = 2, 5, 3, 2, 8, 12


def draw_compat(r, memory):
    function, example, expected, writes = r.choice(LIBRARIES)
    keywords = example(Arguments(r, memory))
    changes = r.choice([0, 0, 1, 1, 2])
    for _ in range(changes):
        mutate(r, memory, keywords)
    name = f"rope_ext.compat.{function.__module__.rpartition('.')[2]}.{function.__name__}"
    call = LibraryCall(name, function, keywords)
    call.changed, call.by_reference, call.writes = changes > 0, expected, writes
    return call


class Arguments:
    def __init__(self, r, memory):
        self._r, self._memory, self.choice = r, memory, r.choice

    def flip(self):
        return self._r.random() < 0.5

    def floats(self, *shape, expanded=True):
        strides = any_strides(self._r, shape, may_expand=expanded)
        return Drawn(self._memory, self._r, torch.float32, shape, strides)

    def rows(self, *shape, end=ROWS):
        values = [self._r.randrange(end) for _ in range(torch.Size(shape).numel())]
        return index(self._memory, self._r, shape, values, torch.int64)

    def boundaries(self):
        return index(self._memory, self._r, [4], [0, 3, 3, 10], torch.int32)


class LibraryCall(Call):
    def is_valid(self):
        return None if self.changed else True

    def expected(self, a):
        if self.changed:
            raise Unknown
        return self.by_reference(SimpleNamespace(**a))

    def written(self):
        """Every Drawn that the call may write, also where an argument was changed."""
        names = {"x"} if self.keywords.get("inplace") else set(self.writes)
        return [d for name in names for d in drawn_in(self.keywords.get(name))]


def complex_of(t):
    return Made("torch.view_as_complex", torch.view_as_complex, t)


def contiguous_pairs(d, *shape):
    """Real and imaginary parts that view_as_complex takes."""
    t = d.floats(*shape, expanded=False)
    t.strides[:] = dense(shape)
    t.at = 0
    return t


def cache_of(t):
    return Made("types.SimpleNamespace", lambda cache: SimpleNamespace(cache=cache), t)


def rotated(x, cos, sin, **options):
    return reference.apply(x, cos, sin, rotary_dim=options.pop("rotary_dim", None), **options)


def written(whole, parts, cos, sin, **options):
    for part in parts:
        part.copy_(rotated(part, cos, sin, **options))
    return whole


def of_angles(x, freqs, **options):
    return rotated(x, freqs.cos(), freqs.sin(), rotary_dim=freqs.shape[-1], **options)


def _flash(a):
    y = rotated(a.x, a.cos, a.sin, interleaved=a.interleaved, rotary_dim=2 * a.cos.shape[-1], offset=a.seqlen_offsets)
    return a.x.copy_(y) if a.inplace else y


def _image(a):
    rows, columns = torch.arange(6) // 3, torch.arange(6) % 3
    y = rotated(a.t, a.cos_h[:, rows, 0], a.sin_h[:, rows, 0], rotary_dim=D // 2)
    return rotated(y, a.cos_w[:, columns, 0], a.sin_w[:, columns, 0], rotary_dim=D // 2, rotary_offset=D // 2)


def _vllm(a):
    cos, sin = a.cos_sin_cache.chunk(2, -1)
    for t in (a.query, a.key):
        x = t.view(*a.positions.shape, -1, a.head_size)
        x.copy_(rotated(x, cos, sin, layout="shd", interleaved=not a.is_neox, positions=a.positions, rotary_dim=6))


# function, example(Arguments) -> keywords, its result by the reference, names of what it writes
LIBRARIES = [
    (
        compat.flash_attn.apply_rotary_emb,
        lambda d: {
            "x": d.floats(B, S, H, D, expanded=False),
            "cos": d.floats(ROWS, 3),
            "sin": d.floats(ROWS, 3),
            "interleaved": d.flip(),
            "inplace": d.flip(),
            "seqlen_offsets": d.choice([0, 2, d.rows(B, end=7)]),
        },
        _flash,
        (),
    ),
    (
        compat.flash_attn.apply_rotary_emb,
        lambda d: {
            "x": d.floats(12, H, D),
            "cos": d.floats(ROWS, 3),
            "sin": d.floats(ROWS, 3),
            "seqlen_offsets": 2,
            "cu_seqlens": d.boundaries(),
            "max_seqlen": 7,
        },
        lambda a: rotated(a.x, a.cos, a.sin, layout="thd", rotary_dim=6, offset=2, cu_seqlens=a.cu_seqlens),
        (),
    ),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        lambda d: {"qkv": d.floats(B, S, 3, H, D, expanded=False), "cos": d.floats(ROWS, 4), "sin": d.floats(ROWS, 4)},
        lambda a: written(a.qkv, a.qkv.unbind(2)[:2], cos=a.cos, sin=a.sin),
        ("qkv",),
    ),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        lambda d: {
            "qkv": d.floats(B, S, H + 2 * HK, D, expanded=False),
            "cos": d.floats(ROWS, 4),
            "sin": d.floats(ROWS, 4),
            "num_heads_q": H,
            "seqlen_offsets": d.rows(B, end=7),
        },
        lambda a: written(a.qkv, a.qkv.split([H, HK, HK], 2)[:2], cos=a.cos, sin=a.sin, offset=a.seqlen_offsets),
        ("qkv",),
    ),
    (
        compat.flash_attn.apply_rotary_emb_kv_,
        lambda d: {"kv": d.floats(B, S, 2, H, D, expanded=False), "cos": d.floats(ROWS, 4), "sin": d.floats(ROWS, 4)},
        lambda a: written(a.kv, a.kv.unbind(2)[:1], cos=a.cos, sin=a.sin),
        ("kv",),
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda d: {
            "t": d.floats(S, B, H, D),
            "freqs": d.floats(ROWS, 1, 1, 6),
            "tensor_format": "sbhd",
            "start_positions": d.choice([None, d.rows(B, end=7)]),
            "fused": d.flip(),
        },
        lambda a: of_angles(
            a.t, a.freqs[:, 0, 0], layout="sbhd", offset=0 if a.start_positions is None else a.start_positions
        ),
        (),
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda d: {
            "t": d.floats(12, H, D),
            "freqs": d.floats(ROWS, 1, 1, 6),
            "tensor_format": "thd",
            "cu_seqlens": d.boundaries(),
            "cp_size": 1,
            "cp_rank": 0,
        },
        lambda a: of_angles(a.t, a.freqs[:, 0, 0], layout="thd", cu_seqlens=a.cu_seqlens),
        (),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb,
        lambda d: {
            "t": d.floats(S, B, H, D),
            "freqs": d.floats(S, 1, 1, 6),
            "transpose_output_memory": d.flip(),
        },
        lambda a: of_angles(a.t, a.freqs[:, 0, 0], layout="sbhd"),
        (),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_cached,
        lambda d: {"t": d.floats(S, B, H, D), "cos_": d.floats(S, 1, 1, 6), "sin_": d.floats(S, 1, 1, 6)},
        lambda a: rotated(a.t, a.cos_[:, 0, 0], a.sin_[:, 0, 0], layout="sbhd", rotary_dim=6),
        (),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_thd,
        lambda d: {
            "t": d.floats(12, H, D),
            "cu_seqlens": d.boundaries(),
            "freqs": d.floats(ROWS, 1, 1, 6),
        },
        lambda a: of_angles(a.t, a.freqs[:, 0, 0], layout="thd", cu_seqlens=a.cu_seqlens),
        (),
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_2d,
        lambda d: {
            "t": d.floats(B, 6, H, D),
            "img_h": 2,
            "img_w": 3,
            **{name: d.floats(1, 4, 1, D // 2) for name in ("cos_h", "sin_h", "cos_w", "sin_w")},
        },
        _image,
        (),
    ),
    (
        compat.liger.liger_rotary_pos_emb,
        lambda d: {
            "q": d.floats(B, H, S, D),
            "k": d.floats(B, HK, S, D),
            "cos": d.floats(1, S, D),
            "sin": d.floats(1, S, D),
        },
        lambda a: rotated((a.q, a.k), a.cos[..., : D // 2], a.sin[..., : D // 2], layout="bhsd"),
        (),
    ),
    (
        compat.meta_llama.apply_rotary_emb,
        lambda d: {
            "xq": d.floats(B, S, H, D),
            "xk": d.floats(B, S, HK, D),
            "freqs_cis": complex_of(contiguous_pairs(d, S, D // 2, 2)),
        },
        lambda a: rotated((a.xq, a.xk), a.freqs_cis.real, a.freqs_cis.imag, interleaved=True),
        (),
    ),
    (
        compat.rotary_embedding_torch.apply_rotary_emb,
        lambda d: {"freqs": d.floats(ROWS, 4), "t": d.floats(B, H, S, D), "start_index": d.choice([0, 2])},
        lambda a: of_angles(a.t, a.freqs[-S:], layout="bhsd", interleaved=True, rotary_offset=a.start_index),
        (),
    ),
    (
        compat.x_transformers.apply_rotary_pos_emb,
        lambda d: {"t": d.floats(B, H, S, D), "freqs": d.floats(B, ROWS, 6)},
        lambda a: of_angles(a.t, a.freqs[:, -S:], layout="bhsd", interleaved=True),
        (),
    ),
    (
        compat.timm.apply_rot_embed,
        lambda d: {"x": d.floats(B, H, S, D), "sin_emb": d.floats(S, D), "cos_emb": d.floats(S, D), "half": d.flip()},
        lambda a: rotated(a.x, a.cos_emb, a.sin_emb, layout="bhsd", interleaved=not a.half),
        (),
    ),
    (
        compat.timm.apply_rot_embed_cat,
        lambda d: {"x": d.floats(B, H, S, D), "emb": d.floats(S, 2 * D)},
        lambda a: rotated(a.x, a.emb[:, D:], a.emb[:, :D], layout="bhsd", interleaved=True),
        (),
    ),
    (
        compat.timm.apply_rot_embed_list,
        lambda d: {
            "x": [d.floats(B, H, S, D), d.floats(B, HK, S, D)],
            "sin_emb": d.floats(S, D),
            "cos_emb": d.floats(S, D),
        },
        lambda a: rotated(a.x, a.cos_emb, a.sin_emb, layout="bhsd", interleaved=True),
        (),
    ),
    (
        compat.torchtitan.apply_rotary_emb_cos_sin,
        lambda d: {"query": d.floats(B, S, H, D), "key": d.floats(B, S, HK, D), "rope_cache": d.floats(B, S, 1, 2 * D)},
        lambda a: rotated((a.query, a.key), *a.rope_cache.chunk(2, -1)),
        (),
    ),
    (
        compat.torchtitan.apply_rotary_emb_complex,
        lambda d: {
            "query": d.floats(B, S, H, D),
            "key": d.floats(B, S, HK, D),
            "rope_cache": complex_of(contiguous_pairs(d, 1, S, 1, D // 2, 2)),
        },
        lambda a: rotated((a.query, a.key), a.rope_cache.real, a.rope_cache.imag, interleaved=True),
        (),
    ),
    (
        compat.torchtune.forward,
        lambda d: {
            "self": cache_of(d.floats(ROWS, D // 2, 2)),
            "x": d.floats(B, S, H, D),
            "input_pos": d.choice([None, d.rows(B, S)]),
        },
        lambda a: rotated(a.x, *a.self.cache.unbind(-1), interleaved=True, positions=a.input_pos),
        (),
    ),
    (
        compat.torchtune.forward_half,
        lambda d: {
            "self": cache_of(d.floats(ROWS, 2 * D)),
            "x": d.floats(B, S, H, D),
            "input_pos": d.choice([None, d.rows(B, S)]),
        },
        lambda a: rotated(a.x, *a.self.cache.chunk(2, -1), positions=a.input_pos),
        (),
    ),
    (
        compat.transformers.apply_rotary_pos_emb,
        lambda d: {
            "q": d.floats(B, H, S, D),
            "k": d.floats(B, HK, S, D),
            "cos": d.floats(B, S, D),
            "sin": d.floats(B, S, D),
        },
        lambda a: rotated((a.q, a.k), a.cos, a.sin, layout="bhsd"),
        (),
    ),
    (
        compat.vllm.rotary_embedding,
        lambda d: {
            "positions": d.rows(7),
            "query": d.floats(7, H * D, expanded=False),
            "key": d.floats(7, HK * D, expanded=False),
            "head_size": D,
            "cos_sin_cache": d.floats(ROWS, 6),
            "is_neox": d.flip(),
        },
        _vllm,
        ("query", "key"),
    ),
]
