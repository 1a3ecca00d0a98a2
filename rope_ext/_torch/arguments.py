"""Names for the arguments that all ops share (csrc/bindings/schema.cpp): x, cos, sin, scalars, lookup, norm and eps.

`rest` is the sequence of the arguments after sin. The dispatcher drops trailing arguments that equal their defaults
when it calls a Python kernel, so `rest` may end early.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.nn import Parameter

from ..reference import LAYOUTS, Layout
from .flags import FREQUENCIES, INTERLEAVED, LAYOUT_MASK, OTHER_PAIRING, TRANSPOSED

Rest: TypeAlias = Sequence[Any]
ORDINARY_TYPES = frozenset((Tensor, Parameter))  # exact types: no tensor subclass that could intercept the op


class Scalars(NamedTuple):
    """The numbers among the arguments of an op. All ints but flags may be SymInts while torch.compile traces."""

    offset: int = 0
    flags: int = 0
    rotary_dim: int | None = None
    rotary_offset: int = 0
    attention_scaling: float = 1.0

    def transposed(self) -> "Scalars":
        """The scalars of the transposed op, which maps the gradient of the result to that of x."""
        offset, flags, rotary_dim, rotary_offset, attention_scaling = self
        return Scalars(  # _replace would cost 1 us
            offset, transposed_flags(flags), rotary_dim, rotary_offset, attention_scaling
        )


class Lookup(NamedTuple):
    """The tensors that give the position of each token, which selects its table row or multiplies its frequencies."""

    positions: Tensor | None = None
    offsets: Tensor | None = None
    cu_seqlens: Tensor | None = None


SCALARS = len(Scalars._fields)
PLAIN = 5  # number of arguments of the overloads `plain`: x, cos, sin, offset and flags
POSITIONS = 3 + SCALARS  # index of positions among all arguments; x, cos and sin are the first three
NORM = POSITIONS + len(Lookup._fields)  # index of norm among all arguments; eps follows and is the last
LOOKUP_END = NORM - 3  # length of rest without norm and eps


def split(rest: Rest) -> tuple[Scalars, Lookup]:
    return Scalars(*rest[:SCALARS]), lookup_of(rest)


def lookup_of(rest: Rest) -> Lookup:
    return Lookup(*rest[SCALARS:LOOKUP_END])


def norm_of(rest: Rest) -> Sequence[Tensor | None]:
    """The weight of each tensor of x, None for a tensor without a norm; empty for a call without norm."""
    return () if len(rest) <= LOOKUP_END or rest[LOOKUP_END] is None else rest[LOOKUP_END]


def weights_of(rest: Rest) -> list[Tensor]:
    return [weight for weight in norm_of(rest) if weight is not None]


def eps_of(rest: Rest) -> float:
    eps: float = rest[LOOKUP_END + 1] if len(rest) > LOOKUP_END + 1 else 0.0
    return eps


def positions_of(rest: Rest) -> Tensor | None:
    return rest[SCALARS] if len(rest) > SCALARS else None


def flags_of(rest: Rest) -> int:
    return rest[1] if len(rest) > 1 else 0


def names_of_tables(flags: int) -> tuple[str, str]:
    """The names that errors use for the arguments cos and sin."""
    return ("inv_freq", "inv_freq") if flags & FREQUENCIES else ("cos", "sin")


def transposed_flags(flags: int) -> int:
    flags ^= TRANSPOSED
    return flags ^ INTERLEAVED if flags & OTHER_PAIRING else flags  # x and the result swap their pairings


def layout_of(flags: int) -> Layout:
    return LAYOUTS[flags & LAYOUT_MASK]
