"""Positions and offsets as tensors of the user: what they must be, and their sum."""

import torch

from ._numbers import as_int64, converted, name_of, shown


def with_offset(x, layout, axes, positions, offset):
    """The positions of each token of x, as `apply` adds them up: (seqlen,), (batch, seqlen), or with axes first."""
    seqlen = x.shape[layout.replace("t", "s").index("s")]
    batch = x.shape[layout.index("b")] if "b" in layout else None
    if positions is None:
        positions = torch.arange(seqlen, device=x.device)
    check_positions(positions)
    shape, sequences = tuple(positions.shape), (1, batch)
    fits = shape[-1:] == (seqlen,) and (
        len(shape) == 1
        or (len(shape) == 2 and batch is not None and shape[0] in sequences)
        or (len(shape) == 3 and shape[0] == axes and shape[1] in sequences)
    )
    if not fits:
        of_batch = "" if batch is None else f" or ({batch}, {seqlen})"
        cure = ": positions[:, None] fits" if seqlen == 1 and shape == (batch,) else ""
        raise ValueError(f"rope_ext: positions must have shape ({seqlen},){of_batch}, got {shape}{cure}")
    _check_device("positions", positions, x)
    if not positions.is_floating_point():
        positions = positions.to(torch.int64)  # in which the sum does not wrap
    if not isinstance(offset, torch.Tensor):
        return positions + as_int64("offset", offset, "an int or a Tensor")
    if offset.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"rope_ext: offset must be int32 or int64, got {name_of(offset.dtype)}")
    if tuple(offset.shape) not in ((), (1,), (batch,)):
        cure = ": offset.flatten() fits" if offset.dim() > 1 and offset.numel() == (batch or 1) else ""
        got = f"{tuple(offset.shape)}{cure}"
        raise ValueError(f"rope_ext: offset must be an int or have shape ({batch or 1},), got {got}")
    _check_device("offset", offset, x)
    return positions + offset.reshape(-1, 1)


def _check_device(name, t, x):
    if t.device != x.device:
        raise ValueError(f"rope_ext: {name} must be on the device of x, {x.device}, got {t.device}")


def check_positions(positions):
    if not isinstance(positions, torch.Tensor):
        got = shown(positions) + converted("positions", positions)
        raise TypeError(f"rope_ext: positions must be a Tensor, got {got}")
    if positions.layout != torch.strided:
        raise TypeError(f"rope_ext: positions must be strided, got {positions.layout}")
    dtype, is_float = positions.dtype, positions.is_floating_point()
    if dtype in (torch.int64, torch.int32) or (dtype == torch.float32 and positions.dim() <= 3):
        return
    name, cure = name_of(dtype), ""
    if dtype == torch.float32:
        got = f"shape {tuple(positions.shape)}: rope.apply(x) rotates x"
        raise ValueError(f"rope_ext: positions must have at most 3 axes where they are float32, got {got}")
    if is_float and positions.dim() > 3:
        cure = f" of shape {tuple(positions.shape)}: rope.apply(x) rotates x"
    elif dtype in (torch.bfloat16, torch.float16):
        cure = f", which skips integers above {round(2 / torch.finfo(dtype).eps)}"
    elif dtype != torch.bool and not dtype.is_complex:
        cure = f": positions.to(torch.{'float32' if is_float else 'int64'}) is one"
    raise TypeError(f"rope_ext: positions must be int32, int64 or float32, got {name}{cure}")
