"""Conversion of query and key projection weights between the two pairings of channels."""

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
    """Reorder the rows of a query or key projection for the other pairing of channels.

    With weights permuted to "half", a rotation with interleaved=False gives the query and key that the original weights
    give with interleaved=True, with their channels in another order. The order is the same for query and key, so
    attention scores do not change.

    Args:
        weight: (num_heads * head_dim, in_features), or a bias (num_heads * head_dim,); any dtype and device.
        num_heads: number of heads; for a key projection the number of key heads. The weight of a norm of query or key,
            with one entry per channel, needs the same order: permute it with num_heads=1.
        rotary_dim, rotary_offset: the rotated channels of a head, as in `apply`; the rows of the others do not move.
        to: "half" moves the rows of pairs (2i, 2i + 1) to (i, i + rotary_dim / 2): from Meta's to Hugging Face's Llama.
            "interleaved" is the exact inverse.

    Returns:
        A new tensor with the shape and dtype of weight, differentiable in it.

    Raises:
        ArgumentError: a size or a value is wrong; a ValueError.
        ArgumentTypeError: a type is wrong; a TypeError.

    Equivalent to, for "half" with all channels rotated::

        head_dim = weight.shape[0] // num_heads
        weight.view(num_heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(weight.shape)

    Source: transformers, transformers/models/llama/convert_llama_weights_to_hf.py, permute.
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
        rule = f"have a number of rows divisible by num_heads {num_heads}"
        raise ArgumentError("weight", rule, f"shape {tuple(weight.shape)}")
    head_dim = weight.shape[0] // num_heads
    if not 0 <= rotary_offset <= head_dim:
        raise ArgumentError("rotary_offset", f"be within the head, 0 to {head_dim}", shown(rotary_offset))
    rotary_dim = head_dim - rotary_offset if rotary_dim is None else rotary_dim
    if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim - rotary_offset:
        rule = f"be even and fit head_dim {head_dim} from rotary_offset {rotary_offset}"
        raise ArgumentError("rotary_dim", rule, shown(rotary_dim))
    if head_dim == 0:
        return weight.clone()  # reshape may refuse a num_heads this large
    channels = torch.arange(head_dim, device=weight.device)
    rotated = channels[rotary_offset : rotary_offset + rotary_dim]
    pairs = (-1, 2) if to == "half" else (2, -1)
    order = torch.cat(
        (channels[:rotary_offset], rotated.view(pairs).t().flatten(), channels[rotary_offset + rotary_dim :])
    )
    return weight.reshape(num_heads, head_dim, *weight.shape[1:]).index_select(1, order).flatten(0, 1)
