"""Frequencies for positions with several axes: images, video, multimodal text."""

from collections.abc import Iterable

import torch

from .. import _numbers
from .._shown import shown
from ..errors import ArgumentError
from ._default import Frequencies, default


def axial(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    axes: int = 2,
    alternate: bool = False,
    divide: bool = False,
    axis_order: Iterable[int] | torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Frequencies:
    """Compute frequencies for image and video towers, where each pair follows one axis of the positions.

    Args:
        rotary_dim: number of rotated channels, a multiple of 2 * axes. Each axis has n = rotary_dim / (2 * axes) pairs.
        base: as in `default`.
        axes: number of axes, 1 to 64. Default: 2.
        alternate: False (default): blocks, first the n pairs of one axis, then those of the next. True: pair p follows
            axis p % axes.
        divide: False (default): each axis has all frequencies of default(rotary_dim / axes). True: the axes share
            default(rotary_dim), axis a having every axes-th frequency from a on.
        axis_order: the row of positions for the first, second, ... axis. Default: 0, 1, ... With (row, column)
            positions, (1, 0) puts columns first.
        dtype: as in `default`.

    Returns:
        Frequencies with inv_freq of shape (axes, 1, rotary_dim / 2), 0 where a pair does not follow an axis, and
        attention_scaling 1.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to, for the defaults::

        n = rotary_dim // 4
        per_axis(default(rotary_dim // 2, base).inv_freq.repeat(2), [0] * n + [1] * n)

    Source: Heo et al. 2024, Rotary Position Embedding for Vision Transformer, section 3.2. Blocks: the vision tower of
    Qwen2-VL and 26 others in transformers (compute_axial_rope_parameters); alternating: the vision tower of Kimi K2.5;
    divided blocks: Pixtral; divided and alternating: NeoMME.
    """
    _numbers.channels(rotary_dim)
    _numbers.integer(axes=axes)
    _numbers.boolean(alternate=alternate, divide=divide)
    if not 1 <= axes <= _numbers.MAX_AXES:
        raise ArgumentError("axes", f"be in 1 to {_numbers.MAX_AXES}", shown(axes))
    if rotary_dim % (2 * axes):
        raise ArgumentError("rotary_dim", f"be a multiple of 2 * axes = {2 * axes}", rotary_dim)
    order: tuple[int, ...] = tuple(range(axes)) if axis_order is None else _numbers.axes_of("axis_order", axis_order)
    if sorted(order) != list(range(axes)):
        raise ArgumentError("axis_order", f"hold each of 0 to axes - 1 = {axes - 1} once", shown(order))
    n = rotary_dim // (2 * axes)
    if divide:
        by_axis = default(rotary_dim, base, dtype=dtype).inv_freq.view(n, axes).T
    else:
        by_axis = default(rotary_dim // axes, base, dtype=dtype).inv_freq.expand(axes, n)
    inv_freq = by_axis.T.flatten() if alternate else by_axis.flatten()
    pair_axis = order * n if alternate else [axis for axis in order for _ in range(n)]
    return Frequencies(per_axis(inv_freq, pair_axis, axes=axes), 1.0)


def per_axis(
    inv_freq: torch.Tensor, pair_axis: Iterable[int] | torch.Tensor, *, axes: int | None = None
) -> torch.Tensor:
    """Expand frequencies to several axes: inv_freq where a pair follows an axis, else 0.

    Args:
        inv_freq: (pairs,) or (heads, pairs), any dtype and device.
        pair_axis: the axis that each pair follows, one int per pair.
        axes: number of axes, at most 64. Default: the largest entry of pair_axis, plus 1.

    Returns:
        Tensor (axes, heads or 1, pairs), with the dtype and on the device of inv_freq.

    Raises:
        ArgumentError: a size or a value is wrong.
        ArgumentTypeError: a type is wrong.

    Equivalent to, for inv_freq of shape (pairs,)::

        torch.stack([torch.where(torch.tensor(pair_axis) == axis, inv_freq, 0) for axis in range(axes)])[:, None]
    """
    followed: tuple[int, ...] = _numbers.axes_of("pair_axis", pair_axis)
    _numbers.tensor(inv_freq=inv_freq)
    if inv_freq.dim() not in (1, 2):
        raise ArgumentError("inv_freq", "be (pairs,) or (heads, pairs)", tuple(inv_freq.shape))
    if len(followed) != inv_freq.shape[-1]:
        raise ArgumentError("pair_axis", f"have {inv_freq.shape[-1]} entries", len(followed))
    axes = max(followed, default=0) + 1 if axes is None else axes
    _numbers.integer(axes=axes)
    if axes > _numbers.MAX_AXES:
        raise ArgumentError("axes", f"be at most {_numbers.MAX_AXES}", shown(axes))
    if not all(0 <= axis < axes for axis in followed):
        raise ArgumentError("pair_axis", f"be in 0 to axes - 1 = {axes - 1}", shown(followed))
    follows = torch.tensor(followed, device=inv_freq.device) == torch.arange(axes, device=inv_freq.device)[:, None]
    return torch.where(follows[:, None], inv_freq.reshape(1, -1, inv_freq.shape[-1]), 0)


def mrope_pair_axis(sections: Iterable[int] | torch.Tensor, interleaved: bool = False) -> tuple[int, ...]:
    """Convert the "mrope_section" of a configuration, which counts the pairs of time, height and width, to a pair_axis.

    Args:
        sections: the number of pairs for each axis.
        interleaved: False (default): blocks, where section i follows axis i % 3, as in Qwen2-VL and GLM-4V. True:
            height has the pairs p % 3 == 1 below 3 * sections[1], width those with p % 3 == 2 below 3 * sections[2],
            and time all others, as in Qwen3-VL; sections then has 3 entries.

    Returns:
        The axis of each pair, a tuple of ints.

    Raises:
        ArgumentError: sections has a negative entry, no entries, or the wrong number of them.
        ArgumentTypeError: an entry is not an int.

    Equivalent to, for three blocks::

        (0,) * sections[0] + (1,) * sections[1] + (2,) * sections[2]

    Source: transformers, recomposition_frequencies of Qwen2VLRotaryEmbedding and Qwen3VLTextRotaryEmbedding.
    """
    counts: tuple[int, ...] = _numbers.as_tuple("mrope_section", sections, of="ints")
    _numbers.integers("mrope_section", counts)
    if not counts or min(counts) < 0 or sum(counts) > _numbers.MAX_CHANNELS:
        raise ArgumentError("mrope_section", "be numbers of pairs", shown(list(counts)))
    if not interleaved:
        return tuple(i % 3 for i, n in enumerate(counts) for _ in range(n))
    if len(counts) != 3:
        raise ArgumentError("mrope_section", "have 3 entries when it is interleaved", shown(list(counts)))
    return tuple(p % 3 if p < 3 * counts[p % 3] else 0 for p in range(sum(counts)))
