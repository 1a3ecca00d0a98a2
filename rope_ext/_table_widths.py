"""The debug mode ROPE_EXT_CHECK_TABLES: refuses tables that fit rotary_dim but appear to be built for another one.

The width of cos determines how `apply` reads it: rotary_dim / 2 means one entry per pair, rotary_dim one entry per
channel. A table of width 32 therefore fits rotary_dim 64 and rotary_dim 32, and a wrong rotary_dim is not an error. The
debug mode inspects the values too, which synchronizes with a GPU. If `per_channel` states what is meant, the check is
skipped.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._torch.arguments import ORDINARY_TYPES, split
from ._torch.flags import FREQUENCIES, INTERLEAVED, OTHER_PAIRING, SAYS_WIDTH
from ._torch.private import functorch_is_active
from .errors import ArgumentError


def check(tensors: Sequence[Any], cos: Any, sin: Any, *rest: Any) -> None:
    """Refuse tables that appear to be misread, in the arguments of an op."""
    scalars, _ = split(rest)
    flags, rotary_dim = scalars.flags, scalars.rotary_dim
    if flags & (FREQUENCIES | SAYS_WIDTH) or not _can_look(tensors, cos, sin):
        return
    if rotary_dim is None:
        rotary_dim = tensors[0].shape[-1] - scalars.rotary_offset
    _check(cos, sin, rotary_dim, bool(flags & INTERLEAVED) != bool(flags & OTHER_PAIRING))


def _can_look(tensors: Sequence[object], cos: Tensor, sin: Tensor) -> bool:
    if torch.compiler.is_compiling() or functorch_is_active() or not tensors:
        return False
    if not all(map(_is_readable, (*tensors, cos, sin))):
        return False
    return cos.shape == sin.shape and cos.dim() > 1 and cos.numel() > 0


def _is_readable(t: object) -> bool:
    return (
        isinstance(t, Tensor)
        and type(t) in ORDINARY_TYPES
        and t.dim() > 0
        and t.layout == torch.strided
        and not t.is_meta
    )


def _check(cos: Tensor, sin: Tensor, rotary_dim: int, interleaved: bool) -> None:
    width = cos.shape[-1]
    if width == rotary_dim and width % 2 == 0 and not (_repeats(cos, interleaved) and _repeats(sin, interleaved)):
        raise _misread(
            f"cos of width {width}, read as one entry per channel, although the two entries of a pair differ",
            f"pass rotary_dim={2 * width} if it holds one entry per pair, or per_channel=True if intended",
        )
    is_uniform = bool((cos == cos[..., :1]).all() and (sin == sin[..., :1]).all())  # such as position 0
    if 2 * width == rotary_dim and width % 2 == 0 and not is_uniform:
        for neighbours in (False, True):
            if _repeats(cos, neighbours) and _repeats(sin, neighbours):
                raise _misread(
                    f"cos of width {width}, read as one entry per pair, although each entry occurs twice",
                    f"pass rotary_dim={width} if it holds one entry per channel, or per_channel=False if intended",
                )


def _repeats(table: Tensor, interleaved: bool) -> bool:
    """Whether the two entries of each pair are equal, in a table with an entry per channel."""
    first, second = (table[..., 0::2], table[..., 1::2]) if interleaved else table.chunk(2, dim=-1)
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def _misread(got: str, cure: str) -> ArgumentError:
    return ArgumentError("per_channel", "be given for a table that looks misread", got, cure)
