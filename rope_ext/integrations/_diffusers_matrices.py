"""Readers of functions of diffusers whose tables hold complex numbers or 2x2 matrices."""

from typing import Any

import torch
from torch import Tensor

from ._rotation import FLOAT32_INTERLEAVED, FLOAT32_INTERLEAVED_PER_PAIR, Convention, Read, Rotation, Rotations

FLOAT64_INTERLEAVED_PER_PAIR = FLOAT32_INTERLEAVED_PER_PAIR._replace(min_dtype=torch.float64)


def of_complex(
    x: Tensor, freqs_cis: Tensor, convention: Convention = FLOAT32_INTERLEAVED_PER_PAIR, may_fuse: bool = False
) -> Rotation | None:
    if not freqs_cis.is_complex():
        return None
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    return Rotation(x, cos, sin, convention, may_fuse=may_fuse)


def complex_heads(x_in: Tensor, freqs_cis: Tensor) -> Read:
    return None if x_in.dim() != 4 else of_complex(x_in, freqs_cis.unsqueeze(2))


def anyflow(hidden_states: Tensor, freqs: Tensor) -> Read:
    return None if hidden_states.dim() != 4 else of_complex(hidden_states, freqs, FLOAT64_INTERLEAVED_PER_PAIR)


def sana_wm(hidden_states: Tensor, freqs: Tensor) -> Read:
    """hidden_states: (batch, heads, head_dim, seqlen)."""
    if hidden_states.dim() != 4:
        return None
    return Rotations([of_complex(hidden_states.transpose(2, 3), freqs)], lambda y: y.transpose(2, 3))


def wan_animate_2(x: Tensor, grid_sizes: Tensor, freqs: Tensor, time_stride: int = 1) -> Read:
    """The function has one table per axis (frames, rows, columns) and copies the tokens of a sample beyond its grid."""
    pairs = x.size(3) // 2
    axes = torch.split(freqs, [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)
    parts, rest = [], []
    for sample, (f, h, w) in zip(x, grid_sizes.tolist()):
        steps = axes[0][: f * time_stride : time_stride], axes[1][:h], axes[2][:w]
        shapes = (f, 1, 1, -1), (1, h, 1, -1), (1, 1, w, -1)
        table = torch.cat([t.view(s).expand(f, h, w, -1) for t, s in zip(steps, shapes)], dim=-1)
        table = table.reshape(f * h * w, 1, -1)
        parts.append(of_complex(sample[: f * h * w], table, FLOAT64_INTERLEAVED_PER_PAIR._replace(keep_dtype=False)))
        rest.append(sample[f * h * w :])
    return Rotations(parts, lambda *y: torch.stack([torch.cat(tokens) for tokens in zip(y, rest)]).float())


# ---- 2x2 matrices ----


def _of_matrices(x: Any, m: Tensor) -> Rotation:
    """m: (..., pairs, 2, 2), arbitrary matrices: y = m[..., 0] * x_even + m[..., 1] * x_odd."""
    cos = m.diagonal(dim1=-2, dim2=-1).flatten(-2)
    sin = torch.stack((-m[..., 0, 1], m[..., 1, 0]), dim=-1).flatten(-2)
    return Rotation(x, cos, sin, FLOAT32_INTERLEAVED)


def hidream(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> Rotation:
    return _of_matrices((xq, xk), freqs_cis)


def prx(xq: Tensor, freqs_cis: Tensor) -> Rotation:
    return _of_matrices(xq, freqs_cis.to(device=xq.device, dtype=torch.float32))


def kandinsky6(x: Tensor, rope: Tensor) -> Rotation:
    return _of_matrices(x, rope.float())


def kandinsky5(x: Tensor, rope: Tensor) -> Rotations:
    """The result is bfloat16 for x of any dtype."""
    x = x if x.dtype == torch.bfloat16 else x.to(torch.float32)
    return Rotations([_of_matrices(x, rope)], lambda y: y.to(torch.bfloat16))


def next_number(args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
    """Bound for a missing rounding in float64, after which the float32 result can differ by one number."""
    return torch.finfo(torch.float32).eps * y.abs() + 1e-14
