"""Readers of functions that only one model of transformers has."""

from typing import Any

import torch
from torch import Tensor

from ._rotation import FLOAT32_INTERLEAVED, INTERLEAVED, INTERLEAVED_PER_PAIR, Read, Rotations
from ._transformers_rotation import INTERLEAVED_PER_PAIR_TO_HALVES, rotation_of


def mistral_large4(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Read:
    """k may be None; the result is then (rotated q, None)."""
    how: Any = {"halved": True, "joined": True}
    if k is None:
        return Rotations(
            [rotation_of(q, cos, sin, unsqueeze_dim, INTERLEAVED_PER_PAIR_TO_HALVES, **how)], lambda y: (y, None)
        )
    return rotation_of((q, k), cos, sin, unsqueeze_dim, INTERLEAVED_PER_PAIR_TO_HALVES, **how)


def qwen4_exp(q: Tensor, k: Tensor | None = None, cos: Any = None, sin: Any = None, unsqueeze_dim: int = 1) -> Read:
    """k may be None; the result is then one tensor."""
    return rotation_of(q if k is None else (q, k), cos, sin, unsqueeze_dim, partial="leading")


def last_rows(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Read:
    """Muse Glimmer's assistant: q holds the last tokens of k."""
    if unsqueeze_dim != 1 or cos.dim() != 3:
        return None
    length = q.shape[-2]
    if length == k.shape[-2]:
        return rotation_of((q, k), cos, sin, 1)
    last = rotation_of(q, cos[:, -length:], sin[:, -length:], 1)
    return Rotations([last, rotation_of(k, cos, sin, 1)], lambda q, k: (q, k))


def after_prefix(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **kwargs: object) -> Read:
    """DINOv3: the tokens before the patches are not rotated."""
    prefix = q.shape[-2] - sin.shape[-2]
    if prefix < 0 or q.shape[-2] != k.shape[-2]:
        return None
    patches = rotation_of((q[..., prefix:, :], k[..., prefix:, :]), cos, sin)
    return Rotations(
        [patches], lambda y: tuple(torch.cat((t[..., :prefix, :], rotated), dim=-2) for t, rotated in zip((q, k), y))
    )


def clvp(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor, unsqueeze_dim: int = 1
) -> Read:
    return rotation_of((q, k, v), cos[position_ids], sin[position_ids], unsqueeze_dim)


def conformer(self: Any, hidden_states: Tensor, relative_position_embeddings: Tensor) -> Read:
    """Wav2Vec2-BERT: rotates before the projections to q and k; tables (2, seqlen, 1, 1, head_dim)."""
    batch, seqlen, _ = hidden_states.shape
    x = hidden_states.view(batch, seqlen, self.num_heads, self.head_size)
    cos, sin = relative_position_embeddings[:, :seqlen].unbind()
    if cos.dim() != 4 or cos.shape[1:3] != (1, 1):
        return None
    heads = rotation_of(x, cos.transpose(0, 2)[0], sin.transpose(0, 2)[0], 2)
    return Rotations([heads], lambda y: y.reshape(batch, seqlen, -1))


def sin_first(tensor: Tensor, sin: Tensor, cos: Tensor) -> Read:
    """GPT-J, CodeGen: (batch, seqlen, heads, head_dim)."""
    return rotation_of(tensor, cos, sin, 2, INTERLEAVED_PER_PAIR)


def roformer(sinusoidal_pos: Tensor, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor | None = None) -> Read:
    sin, cos = sinusoidal_pos.chunk(2, dim=-1)
    states = (query_layer, key_layer) if value_layer is None else (query_layer, key_layer, value_layer)
    if sinusoidal_pos.dim() == 4 and sinusoidal_pos.shape[1] == 1:  # the form in the model
        return rotation_of(states, cos[:, 0], sin[:, 0], 1, INTERLEAVED_PER_PAIR)
    return rotation_of(states, cos, sin, None, INTERLEAVED_PER_PAIR)


def musicflamingo(hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Read:
    x = hidden_states.double()
    rotation = rotation_of(x, cos.to(x), sin.to(x), None, INTERLEAVED, partial="leading")
    return Rotations([rotation], lambda y: y.to(hidden_states.dtype))


def multidimensional(x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor, unsqueeze_dim: int = 2) -> Read:
    """Gemma 4's vision tower: one block of channels per axis, each paired in halves. Here blocks become tokens."""
    axes = position_ids.shape[-1]
    block = x.shape[-1] // axes
    if x.dim() != 4 or cos.dim() != 3 or unsqueeze_dim != 2:
        return None
    if not block * axes == x.shape[-1] == cos.shape[-1] or cos.shape[0] != x.shape[0]:
        return None
    batch, seqlen, heads, _ = x.shape
    blocks = x.reshape(batch * seqlen, heads, axes, block)
    cos, sin = (t.reshape(batch * seqlen, axes, block) for t in (cos, sin))
    return Rotations([rotation_of(blocks, cos, sin, 1)], lambda y: y.reshape(x.shape))


def vjepa2(x: Tensor, pos: Tensor) -> Read:
    """V-JEPA 2: angles in the dtype of x. Tables repeat halves but pairs are adjacent: no rotation, yet trained so."""
    omega = torch.arange(x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    omega /= x.shape[-1] / 2.0
    angles = pos.unsqueeze(-1) * (1.0 / 10000**omega)
    cos, sin = (t.repeat(1, 1, 1, 2) for t in (angles.cos(), angles.sin()))
    return rotation_of(x, cos, sin, None, INTERLEAVED)


def sam2(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, num_k_exclude_rope: int = 0, repeat_freqs_k: bool = False
) -> Read:
    """SAM 2, SAM 3: k may be longer. Its later frames use the tables of the first; its last tokens are not rotated."""
    length = k.shape[-2] - num_k_exclude_rope
    k, others = k[..., :length, :], k[..., length:, :]
    if length == q.shape[-2] and q.dim() == k.dim():
        both = rotation_of((q, k), cos, sin, None, FLOAT32_INTERLEAVED)
        return Rotations([both], lambda y: (y[0], torch.cat((y[1], others), dim=-2)))
    rotation = rotation_of(q, cos, sin, None, FLOAT32_INTERLEAVED)
    if not length:
        return Rotations([rotation], lambda q: (q, torch.cat((k, others), dim=-2)))
    if repeat_freqs_k:
        if length < 0:
            return None
        cos, sin = (t.repeat(1, 1, length // q.shape[-2], 1) for t in (cos, sin))
    rotation_of_k = rotation_of(k, cos, sin, None, FLOAT32_INTERLEAVED)
    return Rotations([rotation, rotation_of_k], lambda q, k: (q, torch.cat((k, others), dim=-2)))


def edgetam(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor,
    sin_k: Tensor,
    num_k_exclude_rope: int = 0,
    repeat_freqs_k: int = 1,
) -> Read:
    """EdgeTAM: k has groups of tokens. Of each group the last tokens rotate, as many as the table has rows."""
    rotation = rotation_of(q, cos, sin, None, FLOAT32_INTERLEAVED)
    length = k.shape[-2] - num_k_exclude_rope
    k, others = k[..., :length, :], k[..., length:, :]
    if length == 0:
        return Rotations([rotation], lambda q: (q, others))
    groups = torch.unflatten(k, -2, (repeat_freqs_k, -1))
    temporal = groups.shape[-2] - cos_k.shape[-2]
    cos_k, sin_k = (t.reshape(t.shape[-2:]) for t in (cos_k, sin_k))
    spatial = rotation_of(groups[..., temporal:, :], cos_k, sin_k, None, FLOAT32_INTERLEAVED)

    def finish(q: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        k = torch.cat((groups[..., :temporal, :], spatial), dim=-2).flatten(-3, -2)
        return q, torch.cat((k, others), dim=-2)

    return Rotations([rotation, spatial], finish)
