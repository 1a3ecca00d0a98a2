"""What bench.py always measures: a copy, rope_ext in its three forms, and the PyTorch formulas that models run.

All formulas are (q, k, tables) -> (q, k), with q and k (batch, heads, seqlen, head_dim).
"""

from functools import cache, partial

import torch

import rope_ext
from benchmarks.harness.cases import NotOffered, Step, Variant, forward_only, of_tensors

# ---- the yardstick ----


def copy(case):
    """Reads and writes every byte once, between contiguous tensors that exist. In place moves fewer bytes than this.

    On a GPU one copy in each direction, of q and k together: as few launches as one can do with.
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
    return _turn_pairs(q, cos, sin), _turn_pairs(k, cos, sin)


def _turn_pairs(x, cos, sin):
    x1, x2 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2).type_as(x)


@cache
def _compiled(formula):
    """Of tensors only: guards on a dataclass would cost time at each call. Late: the compiler takes seconds to import.

    Interleaved: the formula of gpt-fast, written for torch.compile. Inductor makes no code for complex numbers, and
    compiled, those of Meta and GPT-J take 1.2 to 2.6 and 1.2 to 2.4 times as long as this one (0.9 in the smallest
    case).
    """
    return torch.compile(formula, dynamic=False)


# ---- ours ----


def _options(case):
    return {"layout": "bhsd", "interleaved": case.interleaved, "offset": case.shape.first_position}


def ours(case):
    options = _options(case)
    if not case.backward:  # no Python function of the benchmark in between: it would be a tenth of the shortest call
        return Step(partial(rope_ext.apply, case.inputs, case.tables.cos, case.tables.sin, **options))
    return of_tensors(lambda q, k, tables: rope_ext.apply((q, k), tables.cos, tables.sin, **options))(case)


def ours_out(case):
    out, options = case.outputs(), _options(case)
    return Step(partial(rope_ext.apply, case.inputs, case.tables.cos, case.tables.sin, out=out, **options))


def ours_in_place(case):
    return _in_place(case, case.tables.cos, case.tables.sin)


def ours_without_table(case):
    """cos and sin are made in the kernel, at each call again."""
    return _in_place(case, inv_freq=rope_ext.angles.turns(case.tables.inv_freq.to(case.device)))


def ours_rounding_products(case):
    """The bits of eager code, with its tables of 16 bits."""
    dtype = case.inputs[0].dtype
    if dtype == torch.float32:
        raise NotOffered("the same bits anyway")
    cos, sin = (t.to(dtype) for t in (case.tables.cos, case.tables.sin))
    return _in_place(case, cos, sin, rounding="eager")


def _in_place(case, *tables, **options):
    x = case.fresh_inputs()
    call = partial(rope_ext.apply_, x, *tables, **options, **_options(case))
    return Step(call, before=partial(refill, x, case.inputs))


def refill(targets, sources):
    """Before each sample: 16-bit tables change the norm a little, and 10,000 turns would end in infinities or zeros."""
    for target, source in zip(targets, sources):
        target.copy_(source)


def ours_pooled(case):
    """apply with its results in memory that rope_ext keeps. Off around every sample, so that no other row has it."""
    step, payload = ours(case), sum(x.nbytes for x in (*case.inputs, *case.grads))

    def fill():
        rope_ext.set_output_pool(4 * payload)
        step.call()

    return Step(step.call, before=fill, after=partial(rope_ext.set_output_pool, 0))


VARIANTS = [
    Variant("copy", "copy", copy, 0),
    Variant("rope_ext", "functional", ours, 1, ours=True),
    Variant("rope_ext out=", "out=", forward_only(ours_out), 1, ours=True),
    Variant("rope_ext in place", "in place", forward_only(ours_in_place), 1, ours=True),
    Variant("rope_ext without table", "in place", forward_only(ours_without_table), 1, ours=True),
    Variant("rope_ext eager bits", "in place", forward_only(ours_rounding_products), 3, ours=True),
    Variant("eager", "functional", of_tensors(eager_half), 3, "half"),
    Variant("eager", "functional", of_tensors(eager_interleaved), 3, "interleaved"),
    Variant("torch.compile", "functional", of_tensors(compiled_half), 3, "half"),
    Variant("torch.compile", "functional", of_tensors(compiled_interleaved), 1, "interleaved"),
    Variant("complex", "functional", of_tensors(eager_complex), 1, "interleaved"),
]
POOLED = Variant("rope_ext (pool)", "functional", ours_pooled, 1, ours=True)
