"""Frequencies: how far each pair of channels turns from one position to the next.

Pure functions. Each returns Frequencies(inv_freq, attention_scaling). rotary_dim: rotated channels, even. base: ratio
that sets the slowest frequency, "rope_theta" in configurations. dtype=torch.float64 is exact to its last bits;
dtype=torch.float32 does the operations of transformers 5.23 (modeling_rope_utils.py) in their order, for equal bits:
one text serves both. ValueError for sizes and values, TypeError for types.
"""

import math
from typing import NamedTuple

import torch

from . import _numbers
from ._float64 import may_lack_float64, widest
from ._numbers import shown
from .errors import ArgumentError, ArgumentTypeError


class Frequencies(NamedTuple):
    """inv_freq: (pairs,) or (axes, heads or 1, pairs) radians per position, on the CPU. Several axes: the angle is the
    sum over axes of positions[axis] * inv_freq[axis]. attention_scaling: the factor on cos and sin."""

    inv_freq: torch.Tensor
    attention_scaling: float


def default(rotary_dim, base=10000.0, *, dtype=torch.float64):
    """The original RoPE: inv_freq[i] = base ** (-2 i / rotary_dim), from 1 down to nearly 1 / base.

    Source: Su et al. 2021, RoFormer, section 3.3.2; base 10000 from Vaswani et al. 2017, section 3.5.
    """
    return Frequencies(1.0 / _wavelengths(rotary_dim, base, dtype), 1.0)


def linear(rotary_dim, base=10000.0, *, factor, dtype=torch.float64):
    """Position interpolation: every frequency divided by factor, which is dividing the positions.

    Source: Chen et al. 2023, Extending Context Window of Large Language Models via Positional Interpolation, eq. 4.
    """
    _numbers.positive(factor=factor)
    return Frequencies(1.0 / _wavelengths(rotary_dim, base, dtype) / factor, 1.0)


def ntk(rotary_dim, base=10000.0, *, alpha, dtype=torch.float64):
    """A larger base, alpha fixed: base' = base * alpha ** (rotary_dim / (rotary_dim - 2)).

    The exponent makes the slowest frequency, pair rotary_dim / 2 - 1, exactly alpha times slower; the first stays 1.
    Source: u/bloc97 2023, "NTK-aware scaled RoPE"; transformers hunyuan_v1_dense, compute_ntk_alpha_rope_parameters.
    """
    _numbers.positive(base=base, alpha=alpha)
    _numbers.channels(rotary_dim, at_least=4)
    try:
        base = base * alpha ** (rotary_dim / (rotary_dim - 2))
    except OverflowError:
        base = math.inf
    if not 0 < base < math.inf:
        raise ArgumentError("alpha", "keep the base positive and finite", alpha)
    return default(rotary_dim, base, dtype=dtype)


def dynamic_ntk(rotary_dim, base=10000.0, *, factor, max_position, seqlen=None, dtype=torch.float64):
    """`ntk` with an alpha that grows with seqlen: alpha = factor * seqlen / max_position - (factor - 1).

    max_position: positions of the training, up to which (and with seqlen=None) nothing changes. alpha starts at 1
    there, and is about seqlen / max_position times factor. Keys that were cached at another seqlen do not fit.
    Source: u/emozilla 2023, "Dynamically Scaled RoPE"; transformers _compute_dynamic_ntk_parameters.
    """
    _numbers.positive(base=base, factor=factor, max_position=max_position)
    _numbers.channels(rotary_dim, at_least=4)
    _numbers.seqlen(seqlen)
    if seqlen is None or seqlen <= max_position:
        return default(rotary_dim, base, dtype=dtype)
    # As a tensor: transformers takes seqlen from positions.max(), so its arithmetic here is float32.
    length = torch.tensor(seqlen, device="cpu").to(dtype)
    alpha = factor * length / max_position - (factor - 1)
    base = base * alpha ** (rotary_dim / (rotary_dim - 2))
    return Frequencies(1.0 / _wavelengths(rotary_dim, base, dtype), 1.0)


def yarn(
    rotary_dim,
    base=10000.0,
    *,
    original_max_position,
    factor=None,
    max_position=None,
    beta_fast=32,
    beta_slow=1,
    truncate=True,
    mscale=None,
    mscale_all_dim=None,
    attention_factor=None,
    dtype=torch.float64,
):
    """Fast pairs as they are, slow pairs divided by factor, and a ramp over the pairs between.

    original_max_position: positions of the training. factor: how many times longer the context gets; default
    max_position / original_max_position. A pair that turns r times in the training has (real) index
    d(r) = rotary_dim * ln(original_max_position / (2 pi r)) / (2 ln(base)). The ramp goes from d(beta_fast) to
    d(beta_slow), rounded outwards to whole pairs unless truncate=False (gpt-oss):
        ramp = clamp((i - low) / (high - low), 0, 1);  inv_freq = default / factor * ramp + default * (1 - ramp)
    attention_scaling: attention_factor; default m(mscale) / m(mscale_all_dim) where both are given and not 0, else
    m(1), with m(k) = 0.1 * k * ln(factor) + 1, and 1 for factor <= 1. DeepSeek gives equal mscales, so that cos and sin
    stay unscaled, and multiplies the softmax scale by m(mscale_all_dim) ** 2 instead; that part is the caller's.
    Source: Peng et al. 2023, YaRN, eq. 13 to 15, 21 and 22; beta_fast 32 (alpha = 1, beta = 32 there) from its section
    3.2 for Llama; mscale from DeepSeek-V2, yarn_get_mscale; transformers _compute_yarn_parameters.
    """
    factor = _needed_ratio(factor, max_position, original_max_position)
    _numbers.positive(beta_fast=beta_fast, beta_slow=beta_slow)
    _numbers.boolean(truncate=truncate)
    for name, value in (("mscale", mscale), ("mscale_all_dim", mscale_all_dim)):
        if value is not None:
            _numbers.not_negative(**{name: value})
    if attention_factor is not None:
        _numbers.positive(attention_factor=attention_factor)
    if beta_fast < beta_slow:
        raise ArgumentError("beta_fast", f"be at least beta_slow {beta_slow}", beta_fast)
    wavelengths = _wavelengths(rotary_dim, base, dtype)
    if base <= 1:
        raise ArgumentError("base", "be above 1 for yarn", base)

    def pair_that_turns(times):
        revolutions = original_max_position / (times * 2 * math.pi)
        if not 0 < revolutions < math.inf:
            rule = f"be a number of positions in which {times} revolutions fit"
            raise ArgumentError("original_max_position", rule, original_max_position)
        return rotary_dim * math.log(revolutions) / (2 * math.log(base))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # as the paper's code: a step, not a division by zero
    ramp = ((torch.arange(rotary_dim // 2, dtype=dtype, device="cpu") - low) / (high - low)).clamp(0, 1)
    extrapolated = 1 - ramp
    inv_freq = 1.0 / (factor * wavelengths) * (1 - extrapolated) + 1.0 / wavelengths * extrapolated

    def attention(scale):
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = attention(mscale) / attention(mscale_all_dim) if both else attention(1)
    return Frequencies(inv_freq, float(attention_factor))


def longrope(
    rotary_dim,
    base=10000.0,
    *,
    short_factor,
    long_factor,
    original_max_position,
    factor=None,
    max_position=None,
    attention_factor=None,
    seqlen=None,
    dtype=torch.float64,
):
    """One searched divisor per pair: short_factor up to original_max_position, long_factor where seqlen is larger.

    short_factor, long_factor: rotary_dim / 2 numbers each. With seqlen=None the short ones. All positions of a sequence
    take the same ones, so keys cached before the change do not fit after it.
    attention_scaling: attention_factor, one number, or two for (short, long) as Phi-3.5-MoE has; default
    sqrt(1 + ln(factor) / ln(original_max_position)), 1 for factor <= 1, for short and long alike. factor: default
    max_position / original_max_position.
    Source: Ding et al. 2024, LongRoPE, eq. 3; the scaling: Phi-3's own code; transformers _compute_longrope_parameters.
    """
    wavelengths = _wavelengths(rotary_dim, base, dtype)
    _numbers.seqlen(seqlen)
    _ratio(factor, max_position, original_max_position)  # raises, whether it is needed or not
    short_factor = _numbers.as_tuple("short_factor", short_factor)
    long_factor = _numbers.as_tuple("long_factor", long_factor)
    for name, divisors in (("short_factor", short_factor), ("long_factor", long_factor)):
        if len(divisors) != rotary_dim // 2:
            raise ArgumentError(name, f"have rotary_dim / 2 = {rotary_dim // 2} numbers", len(divisors))
        _numbers.all_positive(**{name: divisors})
    is_long = seqlen is not None and seqlen > original_max_position
    divisors = torch.tensor(long_factor if is_long else short_factor, dtype=dtype, device="cpu")
    if attention_factor is None:
        factor = _needed_ratio(factor, max_position, original_max_position)
        if factor > 1 and not original_max_position > 1:
            raise ArgumentError("original_max_position", "be above 1", original_max_position)
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_position))
    elif isinstance(attention_factor, (list, tuple)):
        _numbers.all_positive(attention_factor=attention_factor)
        if len(attention_factor) != 2:
            raise ArgumentError("attention_factor", "be one number or two", len(attention_factor))
        attention_factor = attention_factor[is_long]
    else:
        _numbers.positive(attention_factor=attention_factor)
    return Frequencies(1.0 / (divisors * wavelengths), float(attention_factor))


def llama3(
    rotary_dim,
    base=10000.0,
    *,
    factor,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position=8192,
    dtype=torch.float64,
):
    """By wavelength, 2 pi / inv_freq: long ones are divided by factor, short ones stay, and a blend between.

    Long: above original_max_position / low_freq_factor; short: below original_max_position / high_freq_factor; between
        s = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
        inv_freq = (1 - s) * default / factor + s * default
    Source: meta-llama/llama-models, apply_scaling, whose constants are 8 (factor), 1, 4 and 8192; transformers
    _compute_llama3_parameters.
    """
    _numbers.positive(factor=factor, low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor)
    _numbers.positive(original_max_position=original_max_position)
    if not high_freq_factor > low_freq_factor:
        raise ArgumentError("high_freq_factor", f"be above low_freq_factor {low_freq_factor}", high_freq_factor)
    inv_freq = 1.0 / _wavelengths(rotary_dim, base, dtype)
    wavelength = 2 * math.pi / inv_freq
    is_low, is_high = (
        wavelength > original_max_position / low_freq_factor,
        wavelength < original_max_position / high_freq_factor,
    )
    smooth = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    return Frequencies(torch.where(is_low, inv_freq / factor, torch.where(is_high, inv_freq, between)), 1.0)


def proportional(rotary_dim, base=10000.0, *, partial_rotary_factor, factor=1.0, dtype=torch.float64):
    """Pruned RoPE: the first n = floor(partial_rotary_factor * rotary_dim / 2) frequencies of `default`, then zeros.

    Divided by factor. rotary_dim is the whole head, in the exponent too, and a pair of angle 0 is copied: with halves
    as pairs the channels that turn are 0 to n - 1 and rotary_dim / 2 to rotary_dim / 2 + n - 1, not a prefix.
    Source: Barbero et al. 2024, Round and Round We Go, section 6 (p-RoPE); Gemma 4 (a quarter, base 1e6, its global
    layers); transformers _compute_proportional_rope_parameters.
    """
    _numbers.channels(rotary_dim)
    _numbers.positive(factor=factor)
    _numbers.fraction(partial_rotary_factor=partial_rotary_factor)
    turning = int(partial_rotary_factor * rotary_dim // 2)
    inv_freq = 1.0 / _wavelengths(rotary_dim, base, dtype, pairs=turning)
    zeros = torch.zeros(rotary_dim // 2 - turning, dtype=dtype, device="cpu")
    return Frequencies(torch.cat((inv_freq, zeros)) / factor, 1.0)


def warped(rotary_dim, base=10000.0, *, factor, dtype=torch.float64):
    """Bilinear warp of the frequency axis: inv_freq' = 2 atan(tan(inv_freq / 2) / factor).

    Slow pairs turn factor times slower, as in `linear`; half a turn per position, the fastest rotation that integer
    positions can tell apart, stays what it is, and the frequencies between bend smoothly. Derivation: a rotation by w
    per position is the value of z^-1 at z = e^(iw). Replace the delay by an allpass of first order,
        z^-1 -> (z^-1 - a) / (1 - a z^-1),   a real, |a| < 1.
    It maps the unit circle onto itself, so a frequency w goes to another one, w', with
        e^-iw' = (e^-iw - a) / (1 - a e^-iw).
    From e^-iw = (1 - i t) / (1 + i t), t = tan(w / 2), and the same for w' and t':
        (1 - i t') / (1 + i t') = ((1 - a) - i t (1 + a)) / ((1 - a) + i t (1 + a)),   so   t' = t (1 + a) / (1 - a),
    tan(w' / 2) = (1 + a) / (1 - a) tan(w / 2). With factor = (1 - a) / (1 + a) that is the formula above; for small w
    it is w' = w / factor, and w = pi, t infinite, is a fixed point. Two warps in a row multiply their factors.
    Source: the allpass transformation of Constantinides 1970, Spectral transformations for digital filters; the warped
    frequency axis of Oppenheim and Johnson 1972. No released model is known to use it.
    """
    _numbers.positive(factor=factor)
    inv_freq = 1.0 / _wavelengths(rotary_dim, base, dtype)
    if base < 1:
        raise ArgumentError("base", "be at least 1 for warped", base)
    return Frequencies(2 * torch.atan(torch.tan(inv_freq / 2) / factor), 1.0)


def axial(
    rotary_dim,
    base=10000.0,
    *,
    axes=2,
    alternate=False,
    divide=False,
    axis_order=None,
    dtype=torch.float64,
):
    """Image and video towers: each pair follows one axis of the positions. inv_freq: (axes, 1, rotary_dim / 2), 0 where
    a pair does not follow an axis.

    rotary_dim: a multiple of 2 * axes. n = rotary_dim / (2 * axes) pairs follow each axis.
    alternate=False: blocks, first the n pairs of one axis, then of the next; True: pair p follows axis p % axes.
    divide=False: each axis has all of default(rotary_dim / axes); True: the axes share out default(rotary_dim), axis a
    takes every axes-th from a on.
    axis_order: which row of positions the first, second, ... axis is; default 0, 1, ... With (row, column) positions
    (1, 0) lets columns come first.
    Source: Heo et al. 2024, Rotary Position Embedding for Vision Transformer, section 3.2; blocks: Qwen2-VL's vision
    tower and 26 others of transformers (compute_axial_rope_parameters), alternating: Kimi K2.5's vision tower,
    divided blocks: Pixtral, divided and alternating: NeoMME.
    """
    _numbers.channels(rotary_dim)
    _numbers.integer(axes=axes)
    _numbers.boolean(alternate=alternate, divide=divide)
    if not 1 <= axes <= _numbers.MAX_AXES:
        raise ArgumentError("axes", f"be in 1 to {_numbers.MAX_AXES}", shown(axes))
    if rotary_dim % (2 * axes):
        raise ArgumentError("rotary_dim", f"be a multiple of 2 * axes = {2 * axes}", rotary_dim)
    order = tuple(range(axes)) if axis_order is None else _numbers.axes_of("axis_order", axis_order)
    if sorted(order) != list(range(axes)):
        raise ArgumentError("axis_order", f"hold each of 0 to axes - 1 = {axes - 1} once", shown(order))
    n = rotary_dim // (2 * axes)
    if divide:
        natural = default(rotary_dim, base, dtype=dtype).inv_freq
        by_axis = natural.unflatten(0, (n, axes)).T
    else:
        by_axis = default(rotary_dim // axes, base, dtype=dtype).inv_freq.expand(axes, n)
    inv_freq = by_axis.T.flatten() if alternate else by_axis.flatten()
    pair_axis = order * n if alternate else [axis for axis in order for _ in range(n)]
    return Frequencies(per_axis(inv_freq, pair_axis, axes=axes), 1.0)


def per_axis(inv_freq, pair_axis, *, axes=None):
    """The general form for several axes: (axes, heads or 1, pairs), inv_freq where the pair follows the axis, else 0.

    inv_freq: (pairs,) or (heads, pairs). pair_axis: pairs ints, the axis that each pair follows. axes: how many there
    are; default the largest of pair_axis, plus 1.
    Equivalent to: torch.stack([torch.where(torch.tensor(pair_axis) == axis, inv_freq, 0) for axis in range(axes)])
    """
    pair_axis = _numbers.axes_of("pair_axis", pair_axis)
    _numbers.tensor(inv_freq=inv_freq)
    if inv_freq.dim() not in (1, 2):
        raise ArgumentError("inv_freq", "be (pairs,) or (heads, pairs)", tuple(inv_freq.shape))
    if len(pair_axis) != inv_freq.shape[-1]:
        raise ArgumentError("pair_axis", f"have {inv_freq.shape[-1]} entries", len(pair_axis))
    axes = max(pair_axis, default=0) + 1 if axes is None else axes
    _numbers.integer(axes=axes)
    if axes > _numbers.MAX_AXES:
        raise ArgumentError("axes", f"be at most {_numbers.MAX_AXES}", shown(axes))
    if not all(0 <= axis < axes for axis in pair_axis):
        raise ArgumentError("pair_axis", f"be in 0 to axes - 1 = {axes - 1}", shown(pair_axis))
    follows = torch.tensor(pair_axis, device=inv_freq.device) == torch.arange(axes, device=inv_freq.device)[:, None]
    return torch.where(follows[:, None], inv_freq.reshape(1, -1, inv_freq.shape[-1]), 0)


def mrope_pair_axis(sections, interleaved=False):
    """pair_axis, a tuple of ints, of a "mrope_section" of a configuration: how many pairs follow time, height, width.

    interleaved=False: blocks, section i follows axis i % 3 (Qwen2-VL, GLM-4V). interleaved=True: height has the pairs
    p % 3 == 1 below 3 * sections[1], width p % 3 == 2 below 3 * sections[2], time all others (Qwen3-VL).
    Source: transformers, recomposition_frequencies of Qwen2VLRotaryEmbedding and Qwen3VLTextRotaryEmbedding.
    """
    sections = _numbers.as_tuple("mrope_section", sections, of="ints")
    _numbers.integers("mrope_section", sections)
    if not sections or min(sections) < 0 or sum(sections) > _numbers.MAX_CHANNELS:
        raise ArgumentError("mrope_section", "be numbers of pairs", shown(list(sections)))
    if not interleaved:
        return tuple(i % 3 for i, n in enumerate(sections) for _ in range(n))
    if len(sections) != 3:
        raise ArgumentError("mrope_section", "have 3 entries where it is interleaved", shown(list(sections)))
    return tuple(p % 3 if p < 3 * sections[p % 3] else 0 for p in range(sum(sections)))


def xpos_scale(positions, rotary_dim, *, scale_base=512, gamma=0.4, center=0, dtype=torch.float32):
    """The decay of xPos: multiply cos and sin of q by it, and divide those of k. (*positions.shape, rotary_dim / 2).

        zeta[i] = (2 i / rotary_dim + gamma) / (1 + gamma);   scale = zeta ** ((positions - center) / scale_base)
    The score of q at m and k at n gets the factor zeta ** ((m - n) / scale_base) per pair: a decay for keys in the
    past, and growth for keys in the future, so causal attention only. center: any position, the factors of q and k
    cancel it; half the length keeps both in range. Computed in float64, rounded once to dtype, where positions are.
    Source: Sun et al. 2022, A Length-Extrapolatable Transformer, eq. 13 and algorithm 1 (gamma 0.4); scale_base 512:
    microsoft/torchscale, XPOS.
    """
    _numbers.tensor(positions=positions)
    _numbers.channels(rotary_dim)
    _numbers.positive(scale_base=scale_base, gamma=gamma)
    if not isinstance(center, torch.Tensor):
        _numbers.real(center=center)
    _numbers.floating_point(dtype)
    if may_lack_float64(device := positions.device):
        center = center.cpu() if isinstance(center, torch.Tensor) else center
        keywords = {"scale_base": scale_base, "gamma": gamma, "center": center, "dtype": dtype}
        return xpos_scale(positions.cpu(), rotary_dim, **keywords).to(device)
    pairs = torch.arange(0, rotary_dim, 2, dtype=widest(device), device=device)
    zeta = (pairs / rotary_dim + gamma) / (1 + gamma)
    return (zeta ** ((positions.to(widest(device)) - center) / scale_base).unsqueeze(-1)).to(dtype)


def _wavelengths(rotary_dim, base, dtype, pairs=None):
    """base ** (2 i / rotary_dim): positions per radian."""
    _numbers.channels(rotary_dim)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float64, torch.float32):
        raise ArgumentTypeError("dtype", "be torch.float64 or torch.float32", shown(dtype))
    if not (isinstance(base, torch.Tensor) and base.numel() == 1):
        _numbers.positive(base=base)
    # Integers first, as transformers has it; "cpu" for the same bits wherever torch's default device is.
    pairs = rotary_dim // 2 if pairs is None else pairs
    return base ** (torch.arange(0, 2 * pairs, 2, device="cpu").to(dtype) / rotary_dim)


def _ratio(factor, max_position, original_max_position):
    """factor, or where it is None max_position / original_max_position; None where neither is given."""
    _numbers.positive(original_max_position=original_max_position)
    for name, value in (("factor", factor), ("max_position", max_position)):
        if value is not None:
            _numbers.positive(**{name: value})
    return max_position / original_max_position if factor is None and max_position is not None else factor


def _needed_ratio(*arguments):
    if (ratio := _ratio(*arguments)) is None:
        raise ArgumentError("factor", "be given where max_position is not", "None")
    return ratio
