"""Which tensors may be written by the rules of autograd and torch.func, checked before the first write."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled

from ..errors import ArgumentError
from .private import DEFAULT_VIEW, creation_meta, level_of

# {name of a torch._C._autograd.CreationMeta whose views autograd refuses to write: what x must not be, with a cure}
_RESTRICTED_VIEWS = {
    "MULTI_OUTPUT_NODE": "one of several views that an op returned (split, unbind, chunk; slices are accepted)",
    "IN_CUSTOM_FUNCTION": "a view that a custom autograd.Function returned (its clone() is accepted)",
    "NO_GRAD_MODE": "a view created under torch.no_grad (create and write it both inside, or both outside)",
    "INFERENCE_MODE": "a view created in inference mode (create and write it both inside, or both outside)",
}


def check_writable(tensors: Iterable[Tensor], recorded: bool = False, at_x: int = 0) -> None:
    """Raises what autograd would for a write. recorded: a derivative is recorded even if no tensor requires grad."""
    inference, grad = is_inference_mode_enabled(), is_grad_enabled()
    for t in tensors:
        if not inference and t.is_inference():
            raise _not_written("not be an inference tensor outside inference mode", t, at_x)
        if not grad:
            continue
        base = t._base  # None: t is not a view
        if base is not None and (recorded or t.requires_grad) and (restriction := _restriction(t)):
            raise _not_written(restriction, t, at_x)
        owner = t if base is None else base
        if owner.requires_grad and owner.is_leaf:
            raise _not_written("not be a leaf that requires grad, or a view of one,", t, at_x)


def check_saved(arguments: Iterable[Any]) -> None:
    """Raises what autograd would when it saves the tensors among the arguments, which happens after x is written."""
    if any(isinstance(t, Tensor) and t.is_inference() for t in arguments):
        raise RuntimeError("an inference tensor cannot be saved for a derivative")  # _call_errors.py translates it


def check_captured(written: Iterable[Tensor], others: Sequence[Any], at_x: int = 0) -> None:
    """Refuses to write tensors from outside a transform, which records nothing for them: derivatives would be zero."""
    level = max(level_of(t) for t in others if isinstance(t, Tensor))
    for t in written:
        if level_of(t) < level or _is_view_of_captured(t):
            rule = "be inside every transform that cos, sin or the positions are inside"
            raise _not_written(rule, t, at_x, " from outside")


def _is_view_of_captured(t: Tensor) -> bool:
    """Whether torch.func refuses a write of no elements of t, as it does for views of tensors from outside."""
    try:
        with torch.no_grad():
            t[..., :0].zero_()
    except RuntimeError as error:
        return "captured Tensor" in str(error)
    return False


def _restriction(view: Tensor) -> str | None:
    made = creation_meta(view)
    if made == DEFAULT_VIEW:
        return None
    return f"not be {_RESTRICTED_VIEWS.get(made.name, f'a view that autograd does not write ({made.name})')}"


def _not_written(rule: str, t: Tensor, at_x: int, place: str = "") -> ArgumentError:
    """The error for a tensor of x or, if an argument precedes x (at_x > 0), of out."""
    name = "out" if at_x else "x"
    return ArgumentError(name, f"{rule} when it is written", f"one of shape {tuple(t.shape)}{place}")
