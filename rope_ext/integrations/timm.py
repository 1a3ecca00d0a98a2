"""Dialects of the rotary functions of timm (huggingface/pytorch-image-models 1.0.31)."""

from typing import Any

import torch
from torch import Tensor

from ._dialect import Call, Dialect, Draw, examples
from ._rotation import KEPT, Read, Rotation, Rotations


def _apply_rot_embed(x: Tensor, sin_emb: Tensor, cos_emb: Tensor, half: bool = False) -> Rotation:  # sin first
    return Rotation(x, cos_emb, sin_emb, KEPT._replace(interleaved=not half))


def _apply_rot_embed_cat(x: Tensor, emb: Tensor, half: bool = False) -> Rotation:
    sin_emb, cos_emb = emb.chunk(2, -1)
    return _apply_rot_embed(x, sin_emb, cos_emb, half)


def _apply_rot_embed_list(x: Any, sin_emb: Tensor, cos_emb: Tensor, half: bool = False) -> Rotations:
    states = [x] if isinstance(x, Tensor) else x
    return Rotations([_apply_rot_embed(t, sin_emb, cos_emb, half) for t in states], lambda *y: list(y))


def _gemma4(x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 2) -> Rotation:
    return Rotation(x, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))


def _gemma4_axes(x: Tensor, cos: Tensor, sin: Tensor, ndim: int = 2, unsqueeze_dim: int = 2) -> Read:
    """Each axis of positions rotates its own part of the channels."""
    width = 2 * (x.shape[-1] // (2 * ndim))
    if not width * ndim == x.shape[-1] == cos.shape[-1] == sin.shape[-1]:
        return None
    parts = zip(torch.split(x, width, -1), torch.split(cos, width, -1), torch.split(sin, width, -1))
    return Rotations([_gemma4(t, c, s, unsqueeze_dim) for t, c, s in parts], lambda *y: torch.cat(y, dim=-1))


# ---- examples ----

B, H, S, D = 2, 3, 5, 8


def _tables(t: Draw) -> tuple[Tensor, ...]:
    """Tables with one row per token, per head and token ("mixed"), and per token of each sequence."""
    return t(S, D), t(H, S, D), t(B, 1, S, D)


def _separate(x: Draw, t: Draw) -> list[Call]:
    pairs = zip(_tables(t), _tables(t))
    calls: list[Call] = [((x(B, H, S, D), sin, cos, half), {}) for sin, cos in pairs for half in (False, True)]
    return [*calls, ((x(B, S, H, D).transpose(1, 2), t(S, D), t(S, D)), {})]


def _cat(x: Draw, t: Draw) -> list[Call]:
    return [((args[0], torch.cat(args[1:3], -1), *args[3:]), {}) for args, _ in _separate(x, t)]


def _lists(x: Draw, t: Draw) -> list[Call]:
    calls = _separate(x, t)
    return calls + [
        (([args[0], args[0][..., :2, :] * 2], args[1][..., :1, :], args[2][..., :1, :]), {}) for args, _ in calls
    ]


def _axes(x: Draw, t: Draw) -> list[Call]:
    calls: list[Call] = [((x(B, S, H, D), t(n, S, D), t(n, S, D)), {}) for n in (1, B)]
    wide = x(B, H, S, 3 * D), t(B, S, 3 * D), t(B, S, 3 * D)
    return [*calls, (wide, {"ndim": 3, "unsqueeze_dim": 1})]


def _one_axis(x: Draw, t: Draw) -> list[Call]:
    return [(args, {k: v for k, v in kwargs.items() if k != "ndim"}) for args, kwargs in _axes(x, t)]


DIALECTS = [
    Dialect("timm.apply_rot_embed", _apply_rot_embed, examples(_separate)),
    Dialect("timm.apply_rot_embed_cat", _apply_rot_embed_cat, examples(_cat)),
    Dialect("timm.apply_rot_embed_list", _apply_rot_embed_list, examples(_lists)),
    Dialect("timm.gemma4", _gemma4, examples(_one_axis)),
    Dialect("timm.gemma4_axes", _gemma4_axes, examples(_axes)),
]
