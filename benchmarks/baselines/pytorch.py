"""PyTorch's own ops: a copy, which is the yardstick, and the formulas that models run.

All formulas are (q, k, tables) -> (q, k), with q and k (batch, heads, seqlen, head_dim). Formulas with a norm accept
the weights of q and k too.
"""

from functools import cache

import torch

import rope_ext
from benchmarks.harness.cases import EPS
from benchmarks.harness.variants import NotOffered, Step, Variant, of_tensors

# ---- the yardstick ----


def copy(case):
    """Read and write every byte once, between preallocated contiguous tensors. In-place calls move fewer bytes.

    On a GPU, one launch per direction copies q and k together.
    """
    groups = [group for group in (case.inputs, case.grads) if group]
    if case.device == "cpu":
        groups = [(x,) for group in groups for x in group]
    sources = [torch.cat([x.flatten() for x in group]) for group in groups]
    targets = [torch.zeros_like(x) for x in sources]

    def fetch(results):
        parts = [y.split([x.numel() for x in group]) for y, group in zip(results, groups)]
        return [y.view(x.shape) for ys, group in zip(parts, groups) for y, x in zip(ys, group)]

    return Step(lambda: [y.copy_(x) for x, y in zip(sources, targets)], fetch=fetch)


# ---- what models run ----


def eager_half(q, k, tables, *weights):
    return _rotate_half_formula(q, k, tables.channel_cos, tables.channel_sin, *weights)


def eager_interleaved(q, k, tables, *weights):
    q, k = _normalized(q, k, weights, _hugging_face_norm)
    cos, sin = tables.channel_cos, tables.channel_sin
    return q * cos + _rotate_every_two(q) * sin, k * cos + _rotate_every_two(k) * sin


def eager_complex(q, k, tables):
    """Meta, llama, apply_rotary_emb."""
    return _times(q, tables.unit), _times(k, tables.unit)


def compiled_half(q, k, tables, *weights):
    return _compiled(_rotate_half_formula)(q, k, tables.channel_cos, tables.channel_sin, *weights)


def compiled_interleaved(q, k, tables, *weights):
    return _compiled(_pairs_formula)(q, k, tables.token_cos, tables.token_sin, *weights)


def norm_then_apply(q, k, tables, *weights):
    """torch's own RMSNorm, then the rotation by rope_ext."""
    return rope_ext.apply(_normalized(q, k, weights, _rms_norm), tables.token_cos, tables.token_sin, layout="bhsd")


def _normalized(q, k, weights, norm):
    return tuple(norm(x, weight) for x, weight in zip((q, k), weights)) if weights else (q, k)


def _rms_norm(x, weight):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, EPS)


def _hugging_face_norm(x, weight):
    """Hugging Face, modeling_qwen3.py, Qwen3RMSNorm."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def _rotate_half_formula(q, k, cos, sin, *weights):
    """Hugging Face, modeling_llama.py, apply_rotary_pos_emb."""
    q, k = _normalized(q, k, weights, _hugging_face_norm)
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def _rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _rotate_every_two(x):
    """Hugging Face, modeling_gptj.py."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def _times(x, unit):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * unit).flatten(3).type_as(x)


def _pairs_formula(q, k, cos, sin, *weights):
    q, k = _normalized(q, k, weights, _hugging_face_norm)
    return _rotate_pairs(q, cos, sin), _rotate_pairs(k, cos, sin)


def _rotate_pairs(x, cos, sin):
    x1, x2 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2).type_as(x)


@cache
def _compiled(formula):
    """The formula, compiled when first needed, since the compiler takes seconds to import.

    The arguments are tensors only: guards on a dataclass would cost time at each call.

    The formula for interleaved pairs is that of gpt-fast, which was written for torch.compile. Inductor generates no
    code for complex numbers: compiled, the formulas of Meta and GPT-J take 1.2 to 2.6 and 1.2 to 2.4 times as long
    (0.9 times in the smallest case).
    """
    return torch.compile(formula, dynamic=False)


COPY = Variant("copy", "copy", copy, 0)


def only_with_norm(build):
    def checked(case):
        if not case.norm:
            raise NotOffered("no norm")
        return build(case)

    return checked


def _formula(name, call, roundings, pairing):
    return Variant(name, "functional", of_tensors(call, normalizes=True), roundings, pairing)


FORMULAS = [
    _formula("eager", eager_half, 3, "half"),
    _formula("eager", eager_interleaved, 3, "interleaved"),
    _formula("torch.compile", compiled_half, 3, "half"),
    _formula("torch.compile", compiled_interleaved, 1, "interleaved"),
    Variant("complex", "functional", of_tensors(eager_complex), 1, "interleaved"),
    Variant("rms_norm + apply", "functional", only_with_norm(of_tensors(norm_then_apply, normalizes=True)), 2, "half"),
]
