"""Declarations of the arguments of the functions of other libraries.

For example::

    @called(t=tensor("x"), freqs=tensor("cos", "sin", ranks=4), fused=flag())
    def apply_rotary_pos_emb(t, freqs, fused=False):

Each declaration says which values an argument accepts, and which arguments of `rope_ext.apply` it stands for. The
decorator is in _called.py.
"""

import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..reference import ROUNDINGS
from ._errors import refused, refused_type

MAX_RANK = 64  # PyTorch's limit on the axes of a Tensor


class Argument(NamedTuple):
    types: tuple[type, ...]  # exact types, compared first
    accepted: tuple[type, ...]  # types accepted by isinstance
    rule: str
    ranks: range
    stands_for: tuple[str, ...]  # arguments of rope_ext.apply
    shown: str | None  # its name in errors, where that differs
    choices: tuple[str, ...] = ()  # the accepted strings, if any

    def is_plain(self) -> bool:
        """Whether the argument is a plain Python value: bool, int or str."""
        return bool(self.choices) or not {bool, int, str}.isdisjoint(self.types)

    def refusal(self, name: str, value: Any) -> ArgumentError | ArgumentTypeError | None:
        """The error for a value of a wrong type or outside the choices, else None. name: of the argument."""
        if self.choices and isinstance(value, str):
            return None if value in self.choices else refused(name, self.rule, repr(value))
        if type(value) in self.types or (isinstance(value, self.accepted) and not isinstance(value, bool)):
            return None
        got = f"a Tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if value is None or isinstance(value, (str, bool, float)):
            got = repr(value)
        return refused_type(name, self.rule, got)


_KINDS: dict[Any, tuple[tuple[type, ...], tuple[type, ...], str]] = {
    Tensor: ((Tensor, torch.nn.Parameter), (Tensor,), "a Tensor"),
    int: ((int,), (numbers.Integral, torch.SymInt), "an int"),
    float: ((float, int), (numbers.Real, torch.SymFloat, torch.SymInt), "a number"),
    bool: ((bool,), (bool, torch.SymBool), "True or False"),
    str: ((str,), (str,), "a str"),
    None: ((type(None),), (type(None),), "None"),
}


def at_least(rank: int) -> range:
    """The ranks of an argument with at least this many axes."""
    return range(rank, MAX_RANK + 1)


_ANY_RANK = at_least(0)


def argument(
    *kinds: type | None, stands_for: tuple[str, ...] = (), ranks: int | range = _ANY_RANK, shown: str | None = None
) -> Argument:
    """An argument of one of the kinds Tensor, int, float (accepts ints), bool, str and None."""
    ranks = range(ranks, ranks + 1) if isinstance(ranks, int) else ranks
    types, accepted, words = zip(*(_KINDS[kind] for kind in kinds))
    rule = "be " + (" or ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + " or " + words[-1])
    return Argument(sum(types, ()), sum(accepted, ()), rule, ranks, stands_for, shown)


def tensor(
    *stands_for: str, ranks: int | range = _ANY_RANK, optional: bool = False, shown: str | None = None
) -> Argument:
    """A Tensor, or None where it is optional. ranks: int or range of ints. shown: its name in errors."""
    kinds = (Tensor, None) if optional else (Tensor,)
    return argument(*kinds, stands_for=stands_for, ranks=ranks, shown=shown)


def flag(*stands_for: str) -> Argument:
    """True or False."""
    return argument(bool, stands_for=stands_for)


def rounding() -> Argument:
    """The argument `rounding` of `rope_ext.apply`: "once" or "eager"."""
    return Argument((), (), f"be {' or '.join(map(repr, ROUNDINGS))}", _ANY_RANK, (), None, ROUNDINGS)


def integer(*stands_for: str, optional: bool = False) -> Argument:
    """An int, or None where it is optional."""
    return argument(*((int, None) if optional else (int,)), stands_for=stands_for)
