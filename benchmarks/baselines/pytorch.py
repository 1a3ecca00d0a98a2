"""What PyTorch itself offers: a copy, which is the yardstick, and the formulas that models run.

All formulas are (q, k, tables) -> (q, k), with q and k (batch, heads, seqlen, head_dim).
"""

from functools import cache

import torch

from benchmarks.harness.variants import Step, Variant, of_tensors

# ---- the yardstick ----


def copy(case):
    """Reads and writes every byte once, between preallocated contiguous tensors. In place moves fewer bytes.

    On a GPU one launch copies q and k together, in each direction.
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


def eager_half(q, k, tables):
    return _rotate_half_formula(q, k, tables.channel_cos, tables.channel_sin)


def eager_interleaved(q, k, tables):
    cos, sin = tables.channel_cos, tables.channel_sin
    return q * cos + _rotate_every_two(q) * sin, k * cos + _rotate_every_two(k) * sin


def eager_complex(q, k, tables):
    """Meta's llama, apply_rotary_emb."""
    return _times(q, tables.unit), _times(k, tables.unit)


def compiled_half(q, k, tables):
    return _compiled(_rotate_half_formula)(q, k, tables.channel_cos, tables.channel_sin)


def compiled_interleaved(q, k, tables):
    return _compiled(_pairs_formula)(q, k, tables.token_cos, tables.token_sin)


def _rotate_half_formula(q, k, cos, sin):
    """Hugging Face, modeling_llama.py, apply_rotary_pos_emb."""
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


def _pairs_formula(q, k, cos, sin):
    return _rotate_pairs(q, cos, sin), _rotate_pairs(k, cos, sin)


def _rotate_pairs(x, cos, sin):
    x1, x2 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2).type_as(x)


@cache
def _compiled(formula):
    """The formula, compiled when first needed, as the compiler takes seconds to import.

    It takes tensors only: guards on a dataclass would cost time at each call.

    For interleaved pairs it is that of gpt-fast, written for torch.compile. Inductor generates no code for complex
    numbers: compiled, the formulas of Meta and GPT-J take 1.2 to 2.6 and 1.2 to 2.4 times as long (0.9 in the
    smallest case).
    """
    return torch.compile(formula, dynamic=False)


COPY = Variant("copy", "copy", copy, 0)
FORMULAS = [
    Variant("eager", "functional", of_tensors(eager_half), 3, "half"),
    Variant("eager", "functional", of_tensors(eager_interleaved), 3, "interleaved"),
    Variant("torch.compile", "functional", of_tensors(compiled_half), 3, "half"),
    Variant("torch.compile", "functional", of_tensors(compiled_interleaved), 1, "interleaved"),
    Variant("complex", "functional", of_tensors(eager_complex), 1, "interleaved"),
]
