"""Checks of positions and offsets, and their sum."""

import torch
from torch import Tensor

from ._numbers import as_int64
from ._shown import converted, name_of, shown
from .errors import ArgumentError, ArgumentTypeError
from .reference import Layout


def with_offset(x: Tensor, layout: Layout, axes: int | None, positions: object, offset: object) -> Tensor:
    """The positions of all tokens of x plus offset, as in `apply`: (seqlen,), (batch, seqlen), or with axes first."""
    seqlen = x.shape[layout.replace("t", "s").index("s")]
    batch = x.shape[layout.index("b")] if "b" in layout else None
    if positions is None:
        positions = torch.arange(seqlen, device=x.device)
    positions = check_positions(positions)
    shape, sequences = tuple(positions.shape), (1, batch)
    fits = shape[-1:] == (seqlen,) and (
        len(shape) == 1
        or (len(shape) == 2 and batch is not None and shape[0] in sequences)
        or (len(shape) == 3 and shape[0] == axes and shape[1] in sequences)
    )
    if not fits:
        of_batch = "" if batch is None else f" or ({batch}, {seqlen})"
        cure = "positions[:, None] fits" if seqlen == 1 and shape == (batch,) else ""
        raise ArgumentError("positions", f"have shape ({seqlen},){of_batch}", shape, cure)
    _check_device("positions", positions, x)
    if not positions.is_floating_point():
        positions = positions.to(torch.int64)  # an int32 sum could wrap
    if not isinstance(offset, Tensor):
        return positions.add(as_int64("offset", offset, "an int or a Tensor"))
    if offset.dtype not in (torch.int32, torch.int64):
        raise ArgumentTypeError("offset", "be int32 or int64", name_of(offset.dtype))
    if tuple(offset.shape) not in ((), (1,), (batch,)):
        cure = "offset.flatten() fits" if offset.dim() > 1 and offset.numel() == (batch or 1) else ""
        raise ArgumentError("offset", f"be an int or have shape ({batch or 1},)", tuple(offset.shape), cure)
    _check_device("offset", offset, x)
    return positions + offset.reshape(-1, 1)


def _check_device(name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise ArgumentError(name, f"be on the device of x, {x.device}", t.device)


def check_positions(positions: object) -> Tensor:
    """Return positions; raise unless they are an int32, int64 or float32 Tensor."""
    if not isinstance(positions, Tensor):
        raise ArgumentTypeError("positions", "be a Tensor", shown(positions), converted("positions", positions))
    if positions.layout != torch.strided:
        raise ArgumentTypeError("positions", "be strided", positions.layout)
    dtype, is_float = positions.dtype, positions.is_floating_point()
    if dtype in (torch.int64, torch.int32) or (dtype == torch.float32 and positions.dim() <= 3):
        return positions
    got, cure = name_of(dtype), ""
    if dtype == torch.float32:
        got, cure = f"shape {tuple(positions.shape)}", "to rotate x call rope.apply(x)"
        raise ArgumentError("positions", "have at most 3 axes when they are float32", got, cure)
    if is_float and positions.dim() > 3:
        got, cure = f"{got} of shape {tuple(positions.shape)}", "to rotate x call rope.apply(x)"
    elif dtype in (torch.bfloat16, torch.float16):
        got += f", which skips integers above {round(2 / torch.finfo(dtype).eps)}"
    elif dtype != torch.bool and not dtype.is_complex:
        cure = f"use positions.to(torch.{'float32' if is_float else 'int64'})"
    raise ArgumentTypeError("positions", "be int32, int64 or float32", got, cure)
