"""The keywords norm and eps of `apply`, in the form of the ops: one weight or None per tensor of x, and a float."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _numbers
from ._shown import converted, shown
from ._torch.arguments import ORDINARY_TYPES
from .errors import ArgumentError, ArgumentTypeError

_WEIGHTS = "a Tensor, or a tuple or list with a Tensor or None for each tensor of x"


def with_norm(arguments: tuple[Any, ...], norm: Any, eps: Any) -> tuple[Any, ...]:
    """The arguments of the op, extended by norm and eps."""
    if norm is None:
        raise ArgumentError("eps", "be given only with norm", shown(eps))
    if eps is None:
        cure = "there is no default, since models differ: 1e-6 and 1e-5 are common"
        raise ArgumentError("eps", "be given with norm", "None", cure)
    if type(eps) is not float and not isinstance(eps, torch.SymFloat):
        _numbers.real(eps=eps)
        eps = float(eps)
    # The defaults of csrc/bindings/schema.cpp; torch.compile treats them as constants only if they are written here.
    defaults = (0, 0, None, 0, 1.0, None, None, None)[len(arguments) - 3 :]
    return *arguments, *defaults, _weights(norm, arguments[0]), eps


def _weights(norm: Any, x: Any) -> Sequence[Tensor | None]:
    weights = (norm,) * len(x) if isinstance(norm, Tensor) else norm
    if not isinstance(weights, (tuple, list)):
        raise ArgumentTypeError("norm", f"be {_WEIGHTS}", shown(norm), _cure(norm))
    in_graph, is_lazy = is_compiling(), False
    for weight in weights:
        if weight is None:
            continue
        if not isinstance(weight, Tensor):
            raise ArgumentTypeError("norm", f"be {_WEIGHTS}", f"an entry {shown(weight)}", _cure(weight))
        if not in_graph and type(weight) in ORDINARY_TYPES and weight.is_neg():
            is_lazy = True
    if len(weights) != len(x):
        raise ArgumentError("norm", f"hold {len(x)} entries, a weight or None for each tensor of x", len(weights))
    if is_lazy:  # the dispatcher resolves lazy negations, but not those in a list of optional tensors
        return [weight if weight is None else weight.resolve_neg() for weight in weights]
    return weights


def _cure(value: object) -> str:
    """What to write instead of a value that is not a weight."""
    if isinstance(value, torch.nn.Module):
        return "pass its weight"
    if isinstance(value, (bool, int, float)):
        return "for a norm without a weight pass torch.ones(head_dim)"
    return converted("norm", value)
