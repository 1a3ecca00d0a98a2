"""The fake kernels of the ops, for FakeTensorMode and meta tensors: shapes, strides, dtypes and devices.

On real tensors these functions allocate what the op allocates, and fail with torch's own errors: errors.py calls them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..reference import as_bshd
from . import errors
from .arguments import flags_of, layout_of, names_of_tables, norm_of
from .library import NAMESPACE
from .onnx_export import check_translated, is_onnx_export
from .traced_sizes import check_sizes

# Names of the arguments after sin, for errors about devices. Numbers have no device, so their names do not matter.
_NAMES = ("offset", "flags", *["number"] * 3, "positions", "offset", "cu_seqlens")


def _same_device(x: Sequence[Tensor], *rest: Any, out: Sequence[Tensor] = (), **named: Any) -> None:
    check_translated()
    if not x:
        raise ArgumentError("x", "hold 1 to 8 tensors", "0")
    names = *names_of_tables(flags_of(rest[2:])), *_NAMES
    given = [*(("every tensor of x", t) for t in x), *(("out", t) for t in out), *zip(names, rest), *named.items()]
    given += (("norm", weight) for weight in norm_of(rest[2:]))
    for name, t in given:
        if isinstance(t, Tensor) and t.device != x[0].device:
            raise ArgumentError(name, f"be on the device of x, {x[0].device}", t.device)


def _fake_rotate(x: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    _same_device(x, *rest)
    if is_onnx_export():
        check_sizes(x, *rest)
    return [torch.empty_like(t) for t in x]


def batch_and_seqlen(
    x: Sequence[Tensor],
    offset: int = 0,
    flags: int = 0,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    attention_scaling: float = 1.0,
    positions: Tensor | None = None,
    offsets: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[int, int]:
    """(batch, seqlen) of the results with one row or position per token; batch is 1 if all sequences share them."""
    axes = layout_of(flags)
    seqlen = x[0].shape[axes.index("t" if "t" in axes else "s")]
    if "b" in axes and positions is not None and positions.dim() > 1 and positions.shape[-2] != 1:
        return x[0].shape[axes.index("b")], seqlen
    return (offsets.shape[0] if offsets is not None and offsets.dim() else 1), seqlen


def _fake_rows(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Tensor:
    _same_device(x, cos, sin, *rest, **named)
    return cos.new_empty(batch_and_seqlen(x, *rest, **named), dtype=torch.int64)


def _fake_cos_sin(
    x: Sequence[Tensor], high: Tensor, low: Tensor, *rest: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _same_device(x, high, low, *rest, **named)
    sizes = batch_and_seqlen(x, *rest, **named)
    cos, sin = (high.new_empty((*sizes, *high.shape[1:])) for _ in range(2))
    return cos, sin, high.new_empty((high.shape[0], *sizes))


def _fake_rotate_out(out: Sequence[Tensor], x: Sequence[Tensor], *rest: Any) -> None:
    _same_device(x, *rest, out=out)


def _fake_table_grad(grad: Sequence[Tensor], x: Sequence[Tensor], cos: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(cos), torch.empty_like(cos)


def _fake_norm_rotate(x: Sequence[Tensor], *rest: Any) -> tuple[list[Tensor], list[Tensor]]:
    layout = layout_of(flags_of(rest[2:]))
    inv_rms = [
        _of_arithmetic(t, (0,) if weight is None else as_bshd(t, layout).shape[:3])
        for t, weight in zip(x, norm_of(rest[2:]))
    ]
    return _fake_rotate(x, *rest), inv_rms


def _of_arithmetic(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return x.new_empty(sizes, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _fake_norm_grad(
    input: Sequence[Tensor], inv_rms: Sequence[Tensor], wanted: int, x: Sequence[Tensor], *rest: Any
) -> tuple[list[Tensor], list[Tensor]]:
    _same_device(x, *rest)
    grad_input = [torch.empty_like(t) if wanted >> i & 1 else t.new_empty(0) for i, t in enumerate(input)]
    return grad_input, _fake_weight_gradients(wanted, x)


def _fake_norm_grad_out(
    out: Sequence[Tensor],
    _input: Sequence[Tensor],
    _inv_rms: Sequence[Tensor],
    wanted: int,
    x: Sequence[Tensor],
    *rest: Any,
) -> list[Tensor]:
    _same_device(x, *rest, out=out)
    return _fake_weight_gradients(wanted, x)


def _fake_weight_gradients(wanted: int, x: Sequence[Tensor]) -> list[Tensor]:
    return [_of_arithmetic(t, (t.shape[-1] if wanted >> (8 + i) & 1 else 0,)) for i, t in enumerate(x)]


def _fake_revolutions(inv_freq: Tensor, is_64: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if is_64 else torch.float32
    shape = (1,) * (3 - inv_freq.dim()) + tuple(inv_freq.shape)
    return inv_freq.new_empty(shape, dtype=dtype), inv_freq.new_empty(shape, dtype=dtype)


FAKES: dict[str, Callable[..., object]] = {
    "rotate": _fake_rotate,
    "rotate_": _same_device,
    "check": _same_device,
    "check_in_place": _same_device,
    "rotate_out": _fake_rotate_out,
    "norm_rotate": _fake_norm_rotate,
    "norm_grad": _fake_norm_grad,
    "norm_grad_out": _fake_norm_grad_out,
    "empty_like": torch.empty_like,
    "table_grad": _fake_table_grad,
    "table_rows": _fake_rows,
    "cos_sin": _fake_cos_sin,
    "revolutions": _fake_revolutions,
}
for _name, _fake in FAKES.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)

# A recorded rotate_ may allocate a temporary for its result.
errors.allocators.update(FAKES, rotate_=_fake_rotate)
