"""The op `revolutions`, and PyTorch's own ops in its place if a derivative is recorded.

Both are bit-identical (rope_ext/_reference_angles.py, csrc/core/revolutions.h). The op replaces ten small ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from .. import _reference_angles
from .arguments import ORDINARY_TYPES
from .errors import raises_typed, typed
from .library import NAMESPACE
from .library import torch_ops as _ops
from .private import below_autograd, dispatch_modes, forward_ad, function_of, functorch_is_active, is_tracing
from .recording import have_tangents, needs_derivative

_HighLow = tuple[Tensor, Tensor]

_library = torch.library.Library(NAMESPACE, "IMPL")
# For by_op alone, which calls it outside of modes: the overload has no fake kernel.
_unrecorded: Callable[[Tensor, bool], _HighLow] = function_of(_ops.revolutions.unrecorded)


def by_op(inv_freq: Any, is_64: bool) -> _HighLow | None:
    """The result of the op; None if PyTorch's ops must serve, or if an argument is wrong."""
    if (
        is_compiling()  # Inductor fuses PyTorch's ops
        or type(inv_freq) not in ORDINARY_TYPES
        or (inv_freq.requires_grad and is_grad_enabled())
        or forward_ad._current_level >= 0
        or functorch_is_active()
        or dispatch_modes()
        or is_tracing()
    ):
        return None
    try:
        return _unrecorded(inv_freq, is_64)
    except (RuntimeError, ValueError) as error:  # no kernel for the device or dtype, a wrong shape, out of memory
        typed(error)  # clears the recorded type
        return None


def _recorded(inv_freq: Tensor, is_64: bool) -> _HighLow:
    if needs_derivative((), inv_freq, inv_freq) or have_tangents((inv_freq,)):
        return _reference_angles.revolutions(inv_freq, torch.float64 if is_64 else torch.float32)
    with below_autograd():
        high, low = _ops.revolutions(inv_freq, is_64)
        return high, low


_library.impl("revolutions", raises_typed("revolutions", _recorded), "Autograd")
_library.impl("revolutions.unrecorded", torch.library.fallthrough_kernel, "Autograd")
