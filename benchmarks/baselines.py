"""The implementations that bench.py measures, and how far each may be from the exact result.

All are (q, k, tables) -> (q, k), with q and k (batch, heads, seqlen, head_dim), seen through transpose(1, 2) in (batch,
seqlen, heads, head_dim) memory, as models make them.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

import rope_ext


@dataclass
class Tables:
    """What is made once per model or per step, before the clock starts: each implementation's form of the angles.

    All forms come from the same float64 angles. Models multiply position and frequency in float32, which changes
    accuracy and not time; here it would hide errors of the rotation.
    """

    interleaved: bool
    angles: torch.Tensor  # (seqlen, head_dim / 2) float64, radians
    cos: torch.Tensor  # (first_position + seqlen, head_dim / 2) float32
    sin: torch.Tensor
    first_position: int
    channel_cos: torch.Tensor  # (1, 1, seqlen, head_dim) in the dtype of x: one entry per channel
    channel_sin: torch.Tensor
    unit: torch.Tensor  # (seqlen, head_dim / 2) complex64
    out: tuple  # two preallocated outputs


def make_tables(shape, dtype, interleaved, out):
    rope = rope_ext.RotaryEmbedding(shape.head_dim)
    cos, sin = rope.tables(shape.first_position + shape.seqlen)
    rows = slice(shape.first_position, None)

    def per_channel(t):
        wide = t[rows].repeat_interleave(2, dim=-1) if interleaved else torch.cat((t[rows], t[rows]), dim=-1)
        return wide.to(dtype)[None, None]

    positions = torch.arange(shape.first_position, shape.first_position + shape.seqlen, dtype=torch.float64)
    angles, unit = torch.outer(positions, rope.inv_freq), torch.complex(cos[rows], sin[rows])
    both = per_channel(cos), per_channel(sin)
    return Tables(interleaved, angles, cos, sin, shape.first_position, *both, unit, out)


# ---- the yardstick ----


def copy(q, k, tables):
    """Reads and writes every byte once. In place moves fewer bytes than this, so it may be above 100 % of it."""
    return tables.out[0].copy_(q), tables.out[1].copy_(k)


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
    return _compiled_half(q, k, tables.channel_cos, tables.channel_sin)


def compiled_interleaved(q, k, tables):
    return _compiled_interleaved(q, k, tables.cos[tables.first_position :], tables.sin[tables.first_position :])


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


# Of tensors only: guards on a dataclass would cost time at each call. Interleaved: the formula of gpt-fast, written for
# torch.compile. Inductor makes no code for complex numbers, and compiled, those of Meta and GPT-J take 1.2 to 2.6 and
# 1.2 to 2.4 times as long as this one (0.9 in the smallest case).
_compiled_half = torch.compile(_rotate_half_formula, dynamic=False)
_compiled_interleaved = torch.compile(_pairs_formula, dynamic=False)


# ---- ours ----


def ours(q, k, tables):
    return rope_ext.apply(
        (q, k), tables.cos, tables.sin, layout="bhsd", interleaved=tables.interleaved, offset=tables.first_position
    )


def ours_out(q, k, tables):
    options = {"layout": "bhsd", "interleaved": tables.interleaved, "offset": tables.first_position}
    return rope_ext.apply((q, k), tables.cos, tables.sin, out=tables.out, **options)


def ours_in_place(q, k, tables):
    options = {"layout": "bhsd", "interleaved": tables.interleaved, "offset": tables.first_position}
    return rope_ext.apply_((q, k), tables.cos, tables.sin, **options)


# ---- the list, and the errors allowed ----


@dataclass(frozen=True)
class Variant:
    """roundings: to the dtype of x, on the way from x and exact angles to a result."""

    name: str
    call: Callable
    roundings: int


def variants(interleaved, backward):
    """The implementations of one pairing; for forward and backward those that PyTorch differentiates."""
    found = [Variant("copy", copy, 0), Variant("rope_ext", ours, 1)]
    if not backward:
        found += [Variant("rope_ext out=", ours_out, 1), Variant("rope_ext in place", ours_in_place, 1)]
    if not interleaved:
        return [*found, Variant("eager", eager_half, 3), Variant("torch.compile", compiled_half, 3)]
    found += [Variant("eager", eager_interleaved, 3), Variant("torch.compile", compiled_interleaved, 1)]
    return [*found, Variant("complex", eager_complex, 1)]


def prepare(shape, dtype, interleaved, backward):
    """({variant: function without arguments that returns the results}, {variant: [(exact, bound) of each result]})."""

    def random(heads):
        return torch.randn(shape.batch, shape.seqlen, heads, shape.head_dim).to(dtype).transpose(1, 2)

    def allocate():  # written now, so that no page is new to the clock; NaN, which the check finds where it stays
        return tuple(torch.full_like(x, math.nan) for x in inputs)

    torch.manual_seed(0)
    inputs, grads = [(random(shape.heads_q), random(shape.heads_k)) for _ in range(2)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    own = [x.clone() for x in inputs]
    tables = make_tables(shape, dtype, interleaved, allocate())
    backward_tables = dataclasses.replace(tables, out=allocate())

    def step(call):
        if call is ours_in_place:  # on and on, which keeps the norm
            return lambda: call(*own, tables)
        if not backward:
            return lambda: call(*inputs, tables)
        if call is copy:
            return lambda: (*copy(*inputs, tables), *copy(*grads, backward_tables))

        def forward_backward():  # autograd.grad of given gradients: nothing is accumulated, no loss is computed
            y = call(*leaves, tables)
            return *y, *torch.autograd.grad(y, leaves, grads)

        return forward_backward

    found, sources = variants(interleaved, backward), (*inputs, *grads) if backward else inputs
    rotated = [exact(x, tables, inverse=i >= 2) for i, x in enumerate(sources)]
    largest = [x.abs().max().item() for x in sources]
    expected = {v.name: [(y, error_bound(v, dtype, x)) for x, y in zip(largest, rotated)] for v in found}
    expected["copy"] = [(x, 0.0) for x in sources]
    return {v.name: step(v.call) for v in found}, expected


def check(name, step, expected):
    """(largest error, its bound); beyond it the program ends. It is the first call: compiles what is to be compiled."""
    errors = [((y.detach() - right).abs_().max().item(), bound) for y, (right, bound) in zip(step(), expected)]
    if not all(error <= bound for error, bound in errors):  # NaN is not
        raise SystemExit(f"{name}: an error exceeds its bound, (error, bound) of q, k and their gradients: {errors}")
    return max(errors)


def exact(x, tables, inverse=False):
    """The rotation in float64, by complex multiplication; inverse: of a gradient. Shares no code with rope_ext."""
    unit = torch.polar(torch.ones_like(tables.angles), -tables.angles if inverse else tables.angles)
    if tables.interleaved:
        y = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * unit
        return torch.view_as_real(y).flatten(-2)
    y = torch.complex(*x.double().chunk(2, dim=-1)) * unit
    return torch.cat((y.real, y.imag), dim=-1)


def error_bound(variant, dtype, largest):
    """Distance from the exact result that no element exceeds. dtype: of x; largest: max|x|.

    A channel is x1 cos - x2 sin. Table, products and sum are rounded once each, by a factor of at most 1 + u, so in a
    pair of norm r it is off by at most r ((1 + u)^3 - 1), as |x1 cos| + |x2 sin| <= r <= sqrt(2) max|x|. In bfloat16
    and float16, with their u of 2^-8 and 2^-11,
    * rope_ext, complex and the pairs formula do that in float32 and round the result: 1 more, to the dtype of x;
    * the formulas of Hugging Face store table, products and sum in the dtype of x: 3 roundings to it (compiled: up to
      3). They may be 3 times as far off; that is the formula, not an error.
    The last term is for float16 below its normal range, where two table entries or products are off by a constant.
    """
    of_x, single = torch.finfo(dtype), torch.finfo(torch.float32)
    coarse = 1.0 if dtype == torch.float32 else (1 + of_x.eps / 2) ** variant.roundings
    relative = coarse * (1 + single.eps / 2) ** 3 - 1
    return math.sqrt(2) * largest * relative + 2 * (1 + largest) * of_x.smallest_normal * of_x.eps / 2
