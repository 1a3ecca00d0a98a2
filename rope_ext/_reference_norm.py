"""RMSNorm of heads in plain PyTorch, with every sum in the order of the kernels (csrc/core/norm.h)."""

import torch
from torch import Tensor

from ._reference_angles import two_prod

SUM_LANES = 32


def sum_of_channels(q: Tensor) -> Tensor:
    """(..., 1): the sum over the last axis, in the tree order of csrc/core/norm.h."""
    n = SUM_LANES
    while n < q.shape[-1]:
        n *= 2
    if n > q.shape[-1]:  # not pad(): torch 2.11 pads DTensors by wrong widths
        q = torch.cat((q, q.new_zeros((*q.shape[:-1], n - q.shape[-1]))), dim=-1)
    while n > SUM_LANES:
        n //= 2
        q = q[..., :n] + q[..., n:]
    while n > 1:
        n //= 2
        q = q[..., 0::2] + q[..., 1::2]
    return q


def sum_of_rows(q: Tensor) -> Tensor:
    """(channels,): the sum of q (tokens, heads, channels), over heads sequentially, then over tokens as a tree."""
    s = torch.zeros(q.shape[0], q.shape[-1], dtype=q.dtype, device=q.device)
    for head in range(q.shape[1]):
        s = s + q[:, head]
    n = 1
    while n < q.shape[0]:
        n *= 2
    s = torch.nn.functional.pad(s, (0, 0, 0, n - q.shape[0]))
    while s.shape[0] > 1:
        s = s[0::2] + s[1::2]
    return s[0]


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., 1): 1 / sqrt(mean of squares + eps) over the last axis, in the dtype of x, float32 or float64."""
    mean = sum_of_channels(x * x) / x.shape[-1]
    return 1 / sqrt(mean + eps)  # PyTorch rounds eps to the dtype of mean


def sqrt(x: Tensor) -> Tensor:
    """The square root of x, float32 or float64, correctly rounded; PyTorch's is not on every CPU.

    In float32 it is the float64 root, rounded once more. In float64 a final step of Newton's method corrects it. The
    derivative remains PyTorch's.
    """
    if x.dtype != torch.float64:
        return x.double().sqrt().to(x.dtype)
    scale = torch.where(x.detach() < 2.0**-900, 2.0**100, 1.0)  # prevents underflow in the products of the correction
    x = x * scale * scale
    root = x.sqrt()
    near = root.detach()
    square, lost = two_prod(near, near)
    corrected = near + ((x.detach() - square) - lost) * (0.5 / near)  # the residual is exact
    return (root + torch.where(corrected.isfinite(), corrected - near, 0)) / scale


def normalise(
    x: Tensor, weight: Tensor, eps: float, *, unweighted: torch.dtype | None = None, weighted: torch.dtype | None = None
) -> Tensor:
    """RMSNorm over the last axis of x, float32 or float64, in its dtype: (x * inverse_rms) * weight.

    unweighted, weighted: dtypes to which the value is rounded before and after the multiplication by weight.
    """
    dtype = x.dtype
    n = x * inverse_rms(x, eps)
    n = n if unweighted is None else n.to(unweighted).to(dtype)
    n = n * weight.to(dtype)
    return n if weighted is None else n.to(weighted).to(dtype)


def norm_gradients(x: Tensor, weight: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight from that of the normalized x: all (tokens, heads, channels), in one dtype."""
    of_x, of_weights = head_gradients(x, weight, eps, grad)
    return of_x, sum_of_rows(of_weights)


def head_gradients(x: Tensor, weight: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight, (..., head_dim), the latter for each head of each token."""
    r = inverse_rms(x, eps)
    u = grad * weight.to(x.dtype)
    c = sum_of_channels(u * x) / x.shape[-1] * (r * r)
    return (u - x * c) * r, grad * (x * r)
