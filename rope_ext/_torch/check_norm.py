"""The checks of norm and eps for composed_norm.py, with the sentences of csrc/bindings/check_norm.cpp.

composed_norm.py serves weights that cannot be passed to an op: neither the unwrapping of torch.func's tensors nor
torch.jit.trace looks into an optional list of tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shown import name_of
from ..errors import ArgumentError, ArgumentTypeError
from ..reference import DTYPE_NAMES, DTYPES, Layout


def check_norm(x: Sequence[Tensor], norm: Sequence[Tensor | None], eps: float, layout: Layout) -> None:
    """Checks norm and eps; the op `check` has checked x before."""
    for t, weight in zip(x, norm):
        if weight is None:
            continue
        if weight.device != t.device:
            raise ArgumentError("norm", f"be on the device of x, {t.device}", weight.device)
        if weight.dtype not in DTYPES:
            raise ArgumentTypeError("norm", f"be {DTYPE_NAMES}", name_of(weight.dtype))
        if weight.shape != t.shape[-1:]:
            rule = f"have shape ({int(t.shape[-1])},), one weight per channel of a head"
            raise ArgumentError("norm", rule, _shape_of(weight), _cure(t, weight, layout))
    largest = torch.finfo(torch.float64 if x[0].dtype == torch.float64 else torch.float32).max
    if not 0 <= eps <= largest:
        raise ArgumentError("eps", "be a finite number, 0 or more", f"{eps:g}")


def _shape_of(t: Tensor) -> str:
    return str(tuple(map(int, t.shape)))  # int: under torch.jit.trace sizes are tensors


def _cure(x: Tensor, weight: Tensor, layout: Layout) -> str:
    heads, head_dim = x.shape[layout.index("h")], x.shape[-1]
    if heads > 1 and weight.numel() == heads * head_dim:
        return "to normalize across all heads, call torch.nn.functional.rms_norm before apply"
    return "its flatten() fits" if weight.numel() == head_dim else ""
