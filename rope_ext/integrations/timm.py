"""Dialects: the rotary functions of timm (huggingface/pytorch-image-models 1.0.31)."""

import torch

from ._dialect import Dialect
from ._turn import adapter, examples, turn


def _apply_rot_embed(x, sin_emb, cos_emb, half=False):  # sin first
    return x, cos_emb, sin_emb, {"keep_dtype": True, "interleaved": not half}


def _apply_rot_embed_cat(x, emb, half=False):
    sin_emb, cos_emb = emb.chunk(2, -1)
    return _apply_rot_embed(x, sin_emb, cos_emb, half)


def _apply_rot_embed_list(original, rounding, x, sin_emb, cos_emb, half=False):
    states = [x] if isinstance(x, torch.Tensor) else x
    y = [turn(*(read := _apply_rot_embed(t, sin_emb, cos_emb, half))[:3], rounding, **read[3]) for t in states]
    return original(x, sin_emb, cos_emb, half) if any(t is None for t in y) else y


def _gemma4(x, cos, sin, unsqueeze_dim=2):
    return x, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), {}


def _gemma4_axes(original, rounding, x, cos, sin, ndim=2, unsqueeze_dim=2):  # each axis turns its part of the channels
    width = 2 * (x.shape[-1] // (2 * ndim))
    if width * ndim == x.shape[-1] == cos.shape[-1] == sin.shape[-1]:
        parts = zip(x.split(width, -1), cos.split(width, -1), sin.split(width, -1))
        y = [turn(t, c.unsqueeze(unsqueeze_dim), s.unsqueeze(unsqueeze_dim), rounding) for t, c, s in parts]
        if not any(t is None for t in y):
            return torch.cat(y, dim=-1)
    return original(x, cos, sin, ndim, unsqueeze_dim)


# ---- examples ----

B, H, S, D = 2, 3, 5, 8


def _tables(t):
    """Of tokens, of tokens and heads ("mixed"), of tokens of each sequence."""
    return t(S, D), t(H, S, D), t(B, 1, S, D)


def _separate(x, t):
    pairs = zip(_tables(t), _tables(t))
    return [((x(B, H, S, D), sin, cos, half), {}) for sin, cos in pairs for half in (False, True)] + [
        ((x(B, S, H, D).transpose(1, 2), t(S, D), t(S, D)), {})
    ]


def _cat(x, t):
    return [((args[0], torch.cat(args[1:3], -1), *args[3:]), {}) for args, _ in _separate(x, t)]


def _lists(x, t):
    calls = _separate(x, t)
    return calls + [
        (([args[0], args[0][..., :2, :] * 2], args[1][..., :1, :], args[2][..., :1, :]), {}) for args, _ in calls
    ]


def _axes(x, t):
    return [((x(B, S, H, D), t(n, S, D), t(n, S, D)), {}) for n in (1, B)] + [
        ((x(B, H, S, 3 * D), t(B, S, 3 * D), t(B, S, 3 * D)), {"ndim": 3, "unsqueeze_dim": 1})
    ]


DIALECTS = [
    Dialect("timm.apply_rot_embed", adapter(_apply_rot_embed), examples(_separate)),
    Dialect("timm.apply_rot_embed_cat", adapter(_apply_rot_embed_cat), examples(_cat)),
    Dialect("timm.apply_rot_embed_list", _apply_rot_embed_list, examples(_lists)),
    Dialect(
        "timm.gemma4",
        adapter(_gemma4),
        examples(
            lambda x, t: [(args, {k: v for k, v in kwargs.items() if k != "ndim"}) for args, kwargs in _axes(x, t)]
        ),
    ),
    Dialect("timm.gemma4_axes", _gemma4_axes, examples(_axes)),
]
