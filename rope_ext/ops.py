"""The public functions: from the user's words to the arguments of the ops."""

import torch

from . import _autograd
from .reference import LAYOUTS

_rotate = torch.ops.rope_ext.rotate.default
_rotate_ = torch.ops.rope_ext.rotate_.default
_rotate_out = torch.ops.rope_ext.rotate_out.default
_LAYOUT_INDEX = {name: index for index, name in enumerate(LAYOUTS)}


def apply(x, cos, sin, *, layout="bshd", interleaved=False, rotary_dim=None, rotary_offset=0, positions=None, offset=0,
          cu_seqlens=None, inverse=False, out=None):
    """TODO docstring"""
    arguments = _arguments(x, cos, sin, layout, interleaved, rotary_dim, rotary_offset, positions, offset, cu_seqlens, inverse)
    if out is None:
        y = _call(_rotate, arguments)
    else:
        y = [out] if isinstance(out, torch.Tensor) else list(out)
        _call(_rotate_out, (*arguments, y))
    return y[0] if isinstance(x, torch.Tensor) else tuple(y) if isinstance(x, tuple) else y


def apply_(x, cos, sin, *, layout="bshd", interleaved=False, rotary_dim=None, rotary_offset=0, positions=None, offset=0,
           cu_seqlens=None, inverse=False):
    """`apply` in place: the rotated tensors replace x; returns x."""
    _call(_rotate_, _arguments(x, cos, sin, layout, interleaved, rotary_dim, rotary_offset, positions, offset, cu_seqlens, inverse))
    return x


def _arguments(x, cos, sin, layout, interleaved, rotary_dim, rotary_offset, positions, offset, cu_seqlens, inverse):
    """The arguments that all ops share, in the order of csrc/bindings/schema.cpp."""
    if layout not in _LAYOUT_INDEX:
        raise ValueError(f"rope_ext: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    offsets = None
    if isinstance(offset, torch.Tensor):
        offset, offsets = 0, offset
    return (
        [x] if isinstance(x, torch.Tensor) else list(x), cos, sin, positions, offsets, cu_seqlens, offset,
        _LAYOUT_INDEX[layout], interleaved, rotary_dim, rotary_offset, inverse, False,
    )


def _call(op, arguments, written=()):
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return _autograd.call(op, arguments, written)
    except NotImplementedError as error:  # the dispatcher's: no kernel for this device
        device = arguments[0][0].device.type
        raise NotImplementedError(f"rope_ext: x must be on a device that this build has kernels for (cpu), got {device}") from error
    except RuntimeError as error:
        message = str(error)
        if message.startswith("rope_ext: "):  # csrc/bindings/check.cpp: C++ has no exception that becomes a TypeError
            raise TypeError(message) from None
        raise
