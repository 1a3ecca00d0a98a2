"""Determine the form of a packed tensor from the arguments of `apply_qkv`, and check that they agree."""

from typing import Any

import torch
from torch import Tensor

from . import _numbers
from ._numbers import as_int
from ._packing import Packing
from ._shown import converted, shown
from .errors import ArgumentError, ArgumentTypeError
from .reference import LAYOUTS

_AXES = {"bshd": 2, "sbhd": 2, "thd": 1, "shd": 1}  # layout -> the number of axes before the heads


def packing_of(qkv: Any, num_heads: Any, num_kv_heads: Any, grouped: Any, layout: Any) -> Packing:
    """The Packing of qkv. Raises if the arguments do not agree."""
    if not isinstance(qkv, Tensor):
        raise ArgumentTypeError("qkv", "be a Tensor", shown(qkv), converted("qkv", qkv))
    if qkv.is_nested or qkv.is_quantized or qkv.layout != torch.strided:
        kind = "a nested tensor" if qkv.is_nested else "a quantized tensor" if qkv.is_quantized else qkv.layout
        raise NotImplementedError(f"rope_ext: qkv must be an ordinary tensor, got {kind}")
    num_heads = _heads("num_heads", num_heads)
    num_kv_heads = num_heads if num_kv_heads is None else _heads("num_kv_heads", num_kv_heads)
    if num_heads % num_kv_heads:
        raise ArgumentError("num_kv_heads", f"divide num_heads, {num_heads}", num_kv_heads)
    _numbers.boolean(grouped=grouped)
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ArgumentError("layout", f"be one of {', '.join(_AXES)}", shown(layout))
    if layout not in _AXES:
        rule = f"be one of {', '.join(_AXES)} for a packed tensor, in which the heads of a token are adjacent"
        raise ArgumentError("layout", rule, shown(layout), "for 'bhsd' use q.transpose(1, 2) afterwards")
    packing = Packing(_AXES[layout], num_heads, num_kv_heads, grouped)
    _check_shape(qkv, packing, layout)
    return packing


def _heads(name: str, value: object) -> Any:
    heads = as_int(name, value)
    if heads < 1:
        raise ArgumentError(name, "be at least 1", heads)
    return heads


def _check_shape(qkv: Tensor, packing: Packing, layout: str) -> None:
    axis, heads, num_heads, num_kv_heads = packing.axis, packing.heads, packing.num_heads, packing.num_kv_heads
    shape = tuple(qkv.shape[axis:])
    if qkv.dim() - axis not in (1, 2, 3):
        raise _refused(qkv, f"have {axis + 1} to {axis + 3} dimensions for layout '{layout}'")
    if len(shape) == 1 and shape[0] % heads:
        rule = f"have a last axis of (num_heads + 2 * num_kv_heads) * head_dim, a multiple of {heads}"
        raise _refused(qkv, rule)
    if len(shape) == 2 and shape[0] != heads:
        is_parted = shape[0] == (num_kv_heads if packing.grouped else 3) and shape[0] * shape[1] % heads == 0
        rule = f"have {heads} heads, num_heads + 2 * num_kv_heads"
        raise _refused(qkv, rule, "qkv.flatten(-2) fits" if is_parted else "")
    if len(shape) == 3:
        of_groups = num_kv_heads, packing.q_of_group + 2
        parts = of_groups if packing.grouped else (3, num_heads)
        cure = "pass grouped=True for groups" if shape[:2] == of_groups else ""
        if not packing.grouped and num_kv_heads != num_heads and not cure:
            rule = f"equal num_heads, {num_heads}, if qkv has an axis for q, k and v"
            raise ArgumentError("num_kv_heads", rule, num_kv_heads)
        if shape[:2] != parts:
            raise _refused(qkv, f"have axes ({parts[0]}, {parts[1]}, head_dim) after those of the tokens", cure)


def _refused(qkv: Tensor, rule: str, cure: str = "") -> ArgumentError:
    return ArgumentError("qkv", rule, f"shape {tuple(qkv.shape)}", cure)
