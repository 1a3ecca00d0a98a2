"""Dialects of the rotary functions of diffusers (huggingface/diffusers 0.42.1), ordered by the form of their tables.

Each reader has the arguments of the functions that it stands for. cosmos3, ideogram4 and the autoencoder of MiniMax-H3
write their rotation inside the attention instead of calling a function, and are therefore missing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from . import _diffusers_matrices as matrices
from ._dialect import Dialect, examples, fused
from ._diffusers_examples import CALLS
from ._rotation import (
    FLOAT32,
    FLOAT32_INTERLEAVED_PER_PAIR,
    FLOAT32_TERMS,
    INTERLEAVED_PER_PAIR,
    KEPT,
    TERMS_INTERLEAVED,
    Read,
    Reader,
    Rotation,
    Rotations,
)

KEPT_INTERLEAVED_PER_PAIR = KEPT._replace(interleaved=True, per_pair=True)
Tables = tuple[Tensor, Tensor]  # cos, sin


# ---- cos and sin, one entry per channel ----


def _embeddings(
    x: Tensor, freqs_cis: Any, use_real: bool = True, use_real_unbind_dim: int = -1, sequence_dim: int = 2
) -> Read:
    if x.dim() != 4:
        return None
    if not use_real:
        return None if freqs_cis.dim() != 3 else matrices.of_complex(x, freqs_cis.unsqueeze(2), may_fuse=True)
    cos, sin = freqs_cis
    if sequence_dim not in (1, 2) or use_real_unbind_dim not in (-1, -2) or cos.dim() != 2 or sin.dim() != 2:
        return None
    if sequence_dim == 1:
        cos, sin = cos[:, None], sin[:, None]
    convention = FLOAT32_TERMS._replace(interleaved=use_real_unbind_dim == -1)
    return Rotation(x, cos.to(x.device), sin.to(x.device), convention)


def _qwen(x: Tensor, freqs_cis: Any, use_real: bool = True, use_real_unbind_dim: int = -1) -> Read:
    if not use_real:
        return None if x.dim() != 4 or freqs_cis.dim() != 2 else matrices.of_complex(x, freqs_cis.unsqueeze(1))
    return _embeddings(x, freqs_cis, True, use_real_unbind_dim)


def _stable_audio(self: object, x: Tensor, freqs_cis: Tables) -> Read:
    cos, sin = (t.to(x.device) for t in freqs_cis)
    if x.dim() != 4 or cos.dim() != 2:
        return None
    return Rotation(x, cos, sin, FLOAT32_TERMS, rotary_dim=cos.shape[-1])


def _longcat_audio(hidden_states: Tensor, rope: Tables) -> Read:
    cos, sin = (t[:, None].to(hidden_states.device) for t in rope)
    return None if cos.dim() != 3 or hidden_states.dim() < 4 else Rotation(hidden_states, cos, sin, FLOAT32_TERMS)


def _joyimage(xq: Tensor, xk: Tensor, freqs_cis: Tables) -> Rotation:
    cos, sin = (t.view(xq.shape[1], *[1] * (xq.dim() - 3), xq.shape[-1]).to(xq.device) for t in freqs_cis)
    return Rotation((xq, xk), cos, sin, TERMS_INTERLEAVED)


def _joyimage_batched(xq: Tensor, xk: Tensor, freqs_cis: Tables) -> Rotation:
    cos, sin = (t.to(xq.device).unsqueeze(2) for t in freqs_cis)
    return Rotation((xq, xk), cos, sin, TERMS_INTERLEAVED)


def _ltx(x: Tensor, freqs: Tables) -> Read:
    """x: (batch, seqlen, heads * head_dim). Each head has its own frequencies."""
    cos, sin = freqs
    return None if x.dim() != 3 else Rotation(x, cos, sin, TERMS_INTERLEAVED)


def _anima(hidden_states: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Rotation:
    return Rotation(hidden_states, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))


def _minimax_h3(hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Rotation:
    cos, sin = (t.to(hidden_states.dtype)[None, :, None] for t in (cos, sin))
    return Rotation(hidden_states, cos, sin, rotary_dim=cos.shape[-1])


def _minimax_music3(hidden_states: Tensor, rotary_emb: Tables) -> Rotation:
    cos, sin = (t[:, None].to(hidden_states.dtype) for t in rotary_emb)
    return Rotation(hidden_states, cos, sin, rotary_dim=cos.shape[-1])


# ---- one entry per pair ----


def _wan(hidden_states: Tensor, freqs_cos: Tensor, freqs_sin: Tensor) -> Rotation:
    """The tables have one entry per channel; the function reads cos from even entries and sin from odd ones."""
    return Rotation(hidden_states, freqs_cos[..., 0::2], freqs_sin[..., 1::2], KEPT_INTERLEAVED_PER_PAIR)


def _helios(hidden_states: Tensor, freqs_cis: Tensor) -> Rotation:
    cos, sin = freqs_cis.unsqueeze(-2).chunk(2, dim=-1)
    return _wan(hidden_states, cos, sin)


def _mochi(x: Tensor, freqs_cos: Tensor, freqs_sin: Tensor) -> Rotation:
    """The tables are learned, one per head."""
    return Rotation(x, freqs_cos, freqs_sin, FLOAT32_INTERLEAVED_PER_PAIR)


def _kolors(x: Tensor, rope_cache: Tensor) -> Read:
    if x.dim() != 4 or rope_cache.shape[0] < x.shape[0]:
        return None
    pairs = rope_cache.shape[-2]
    cos, sin = rope_cache[: x.shape[0]].view(x.shape[0], -1, 1, pairs, 2).unbind(-1)
    return Rotation(x, cos, sin, INTERLEAVED_PER_PAIR, rotary_dim=2 * pairs)


# ---- angles ----


def _ernie(x_in: Tensor, freqs_cis: Tensor) -> Rotation:
    cos, sin = freqs_cis.cos().to(x_in.dtype), freqs_cis.sin().to(x_in.dtype)
    return Rotation(x_in, cos, sin, rotary_dim=freqs_cis.shape[-1])


def _stable_audio_3(t: Tensor, freqs: Tensor) -> Rotation:
    angles = freqs[-t.shape[-3] :].float().unsqueeze(1)
    return Rotation(t, angles.cos(), angles.sin(), FLOAT32, rotary_dim=freqs.shape[-1])


def _ltx2_decoder(self: object, x: Tensor, positions: Tensor, inv_freqs: Tensor, axis: int) -> Rotations:
    """x: (batch, t, h, w, heads, channels)."""
    angles = (positions[:, None] * inv_freqs).unsqueeze(1)
    before, tokens, after = (x.shape[:axis].numel(), x.shape[axis], x.shape[axis + 1 : -1].numel())
    x4 = x.reshape(before, tokens, after, x.shape[-1])
    return Rotations(
        [Rotation(x4, angles.cos(), angles.sin(), FLOAT32_INTERLEAVED_PER_PAIR)], lambda y: y.view(x.shape)
    )


# ---- others ----


def _ltx2_split(x: Tensor, freqs: Tables) -> Read:
    """x: (batch, seqlen, heads * head_dim) if only the tables have an axis of heads."""
    cos, sin = freqs
    convention = FLOAT32._replace(per_pair=True)
    if x.dim() == 4 or cos.dim() != 4:
        return Rotation(x, cos, sin, convention)
    heads = torch.unflatten(x, -1, (cos.shape[1], -1)).transpose(1, 2)
    return Rotations([Rotation(heads, cos, sin, convention)], lambda y: y.transpose(1, 2).flatten(2))


def _allegro(x: Tensor, freqs_cis: Sequence[Tables], positions: Sequence[Tensor]) -> Read:
    """Each of three axes rotates a third of the channels."""
    if x.dim() != 4 or not all(p.dim() == 2 for p in positions):
        return None
    tables = [[embedding(p, t)[:, None] for t in tables] for p, tables in zip(positions, freqs_cis)]
    parts = [Rotation(part, cos, sin, FLOAT32_TERMS) for part, (cos, sin) in zip(x.chunk(3, dim=-1), tables)]
    return Rotations(parts, lambda *y: torch.cat(y, dim=-1))


READERS: dict[str, Reader] = {
    "embeddings": _embeddings,
    "qwen": _qwen,
    "stable_audio": _stable_audio,
    "longcat_audio": _longcat_audio,
    "joyimage": _joyimage,
    "joyimage_batched": _joyimage_batched,
    "ltx": _ltx,
    "anima": _anima,
    "minimax_h3": _minimax_h3,
    "minimax_music3": _minimax_music3,
    "wan": _wan,
    "helios": _helios,
    "mochi": _mochi,
    "kolors": _kolors,
    "complex": matrices.complex_heads,
    "anyflow": matrices.anyflow,
    "sana_wm": matrices.sana_wm,
    "wan_animate_2": matrices.wan_animate_2,
    "hidream": matrices.hidream,
    "prx": matrices.prx,
    "kandinsky5": matrices.kandinsky5,
    "kandinsky6": matrices.kandinsky6,
    "ernie_image": _ernie,
    "stable_audio_3": _stable_audio_3,
    "ltx2_decoder": _ltx2_decoder,
    "ltx2_split": _ltx2_split,
    "allegro": _allegro,
}
# PyTorch may fuse a product and the sum in these functions.
BOUNDS = {name: fused(READERS[name]) for name in ("qwen", "complex", "anyflow", "sana_wm", "ltx2_split")}
BOUNDS["wan_animate_2"] = matrices.next_number
DIALECTS = [
    Dialect(f"diffusers.{name}", read, examples(CALLS[name]), BOUNDS.get(name)) for name, read in READERS.items()
]
