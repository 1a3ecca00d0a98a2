"""Predicates: must a call of an op record a derivative?"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, is_grad_enabled, is_inference_mode_enabled

from .arguments import ORDINARY_TYPES, POSITIONS, Rest, positions_of
from .private import dispatch_modes, forward_ad, function_modes, functorch_is_active, unpack_dual

ORDINARY_OR_ABSENT = ORDINARY_TYPES | {type(None)}


def needs_derivative(x: Iterable[Tensor], cos: Tensor, sin: Tensor) -> bool:
    """Whether an op on these tensors must record a derivative, outside of transforms."""
    if forward_ad._current_level >= 0:
        return True
    if not is_grad_enabled():
        return False
    for t in x:  # not any(): its generator would cost as much as the rest of this function
        if t.requires_grad:
            return True
    return cos.requires_grad or sin.requires_grad


def positions_require_grad(positions: Tensor | None) -> bool:
    return positions is not None and positions.requires_grad


def is_ordinary(arguments: Sequence[Any]) -> bool:
    """Whether RotateX may record this call: no mode or Tensor subclass has to see the op, and inference mode is off.

    A __torch_function__ would handle the op inside the Function, where autograd does not see the result of the handler.
    """
    if function_modes() or dispatch_modes() or is_inference_mode_enabled():
        return False
    tensors = *arguments[0], *arguments[1:3], *arguments[POSITIONS:]
    return ORDINARY_OR_ABSENT.issuperset(map(type, tensors))


def tables_need_derivative(cos: Tensor, sin: Tensor, rest: Rest) -> bool:
    """Whether a derivative with respect to cos, sin or floating-point positions must be recorded."""
    positions = positions_of(rest)
    sources = (cos, sin) if positions is None else (cos, sin, positions)
    return (is_grad_enabled() and any(t.requires_grad for t in sources)) or have_tangents(sources)


def kernel_needs_derivative(x: Iterable[Tensor], cos: Tensor, sin: Tensor, rest: Rest) -> bool:
    """Whether a kernel at the Autograd key, which transforms reach too, must record a derivative."""
    return needs_derivative(x, cos, sin) or tables_need_derivative(cos, sin, rest) or have_tangents(x)


def may_be_forward_mode() -> bool:
    """Whether forward mode may be on. torch.func.jvp in a compiled graph opens a level that _current_level misses."""
    return forward_ad._current_level >= 0 or functorch_is_active()


def have_tangents(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors may have a tangent."""
    if forward_ad._current_level >= 0:
        return True
    return functorch_is_active() and any(unpack_dual(t, level=0)[1] is not None for t in tensors)
