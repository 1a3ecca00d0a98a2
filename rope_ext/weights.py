"""Weights of the projections to q and k, from one pairing of channels to the other."""

import numbers
from typing import Literal

import torch

from . import _numbers
from ._shown import shown
from .errors import ArgumentError, ArgumentTypeError


def permute_weights(
    weight: torch.Tensor,
    num_heads: int,
    rotary_dim: int | None = None,
    *,
    to: Literal["half", "interleaved"],
    rotary_offset: int = 0,
) -> torch.Tensor:
    """Rows of a projection to q or k reordered, so that the other pairing computes the same attention.

    weight: (num_heads * head_dim, in_features), or a bias (num_heads * head_dim,); any dtype and device.
    num_heads: for k the number of heads of k. A norm of q or k with one entry per channel needs the same order: permute
        its weight with num_heads=1.
    rotary_dim, rotary_offset: the rotated channels of a head, as in `apply`; the others stay where they are.
    to: "half" moves rows that made pairs (2i, 2i + 1) to (i, i + rotary_dim / 2): from Meta's to Hugging Face's Llama.
        "interleaved" is the exact inverse.

    Returns a new tensor, differentiable in weight. With weights permuted to "half", q and k rotated with
    interleaved=False are those that the original weights give with interleaved=True, with their channels in another
    order, which is the same for q and k: so q @ k is the same.

    Raises ArgumentError, a ValueError, for sizes and values, and ArgumentTypeError, a TypeError, for types.

    Equivalent to, for "half" and full rotary:
        weight.view(num_heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(weight.shape)

    Source: transformers/models/llama/convert_llama_weights_to_hf.py, permute.
    """
    if not isinstance(to, str) or to not in ("half", "interleaved"):
        raise ArgumentError("to", "be 'half' or 'interleaved'", shown(to))
    _numbers.tensor(weight=weight)
    if weight.layout != torch.strided:
        raise ArgumentTypeError("weight", "be strided", weight.layout)
    integers = {"num_heads": num_heads, "rotary_offset": rotary_offset}
    if rotary_dim is not None:
        integers["rotary_dim"] = rotary_dim
    for name, value in integers.items():
        if not isinstance(value, (numbers.Integral, torch.SymInt)) or isinstance(value, bool):
            raise ArgumentTypeError(name, "be an int", shown(value))
    if num_heads < 1:
        raise ArgumentError("num_heads", "be positive", shown(num_heads))
    if weight.dim() == 0 or weight.shape[0] % num_heads:
        rule = f"have a multiple of num_heads {num_heads} rows"
        raise ArgumentError("weight", rule, f"shape {tuple(weight.shape)}")
    head_dim = weight.shape[0] // num_heads
    if not 0 <= rotary_offset <= head_dim:
        raise ArgumentError("rotary_offset", f"be within the head, 0 to {head_dim}", shown(rotary_offset))
    rotary_dim = head_dim - rotary_offset if rotary_dim is None else rotary_dim
    if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim - rotary_offset:
        rule = f"be even and fit head_dim {head_dim} from rotary_offset {rotary_offset}"
        raise ArgumentError("rotary_dim", rule, shown(rotary_dim))
    if head_dim == 0:
        return weight.clone()  # num_heads may be more than reshape takes
    channels = torch.arange(head_dim, device=weight.device)
    rotated = channels[rotary_offset : rotary_offset + rotary_dim]
    pairs = (-1, 2) if to == "half" else (2, -1)
    order = torch.cat(
        (channels[:rotary_offset], rotated.view(pairs).t().flatten(), channels[rotary_offset + rotary_dim :])
    )
    return weight.reshape(num_heads, head_dim, *weight.shape[1:]).index_select(1, order).flatten(0, 1)
