"""forward of the rotary modules of torchtune (pytorch/torchtune 0.6.1), to put in their place:

    torchtune.modules.RotaryPositionalEmbeddings.forward = rope_ext.compat.torchtune.forward

`self` is any object with the module's `cache`. Positions outside the cache are errors (there negative ones count from
its end).
"""

from typing import Any

from torch import Tensor

from ..ops import apply
from ..reference import Rounding
from ._arguments import rounding, tensor
from ._called import called
from ._errors import refused
from ._results import rotated, rounded_tables

_ONCE: Rounding = "once"
_ARGUMENTS = {
    "cache": tensor("cos", "sin", shown="self.cache"),
    "x": tensor("x", ranks=4),
    "input_pos": tensor("positions", optional=True),
}


def forward(self: Any, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
    """RotaryPositionalEmbeddings.forward, and Llama3ScaledRoPE's: x (batch, seqlen, heads, head_dim), pairs (2i, 2i+1).

    self.cache: (max_seq_len, head_dim / 2, 2), cos and sin. input_pos: (seqlen,), (1 or batch, seqlen) integers, or
    None for 0, 1, 2, ... Bit-equal for 16-bit and float32 x, and contiguous, as there. float64 x needs a float64 cache
    (there: rounded to float32).

    Source: torchtune/modules/position_embeddings.py and torchtune/models/llama3_1/_position_embeddings.py.
    """
    return _forward(_cache(self), x, input_pos)


def forward_half(self: Any, x: Tensor, input_pos: Tensor | None = None, *, rounding: Rounding = "once") -> Tensor:
    """Phi3RotaryPositionalEmbeddings.forward, and Qwen2's: x (batch, seqlen, heads, head_dim), pairs in halves.

    self.cache: (max_seq_len, 2 * head_dim), cos and then sin, one entry per channel. input_pos as in `forward`.
    rounding: "once" is Phi 3's: products have the dtype of x * cos, so with a float32 cache only the result is rounded
    to that of x. "eager" is Qwen 2's: cos, sin and each product are rounded to the dtype of x. Both are bit-equal,
    gradients of x too.

    Source: torchtune/models/phi3/_position_embeddings.py, torchtune/models/qwen2/_positional_embeddings.py.
    """
    if rounding is _ONCE:  # nothing to check
        return _forward_half(_cache(self), x, input_pos)
    return _forward_half(_cache(self), x, input_pos, rounding=rounding)


@called(**_ARGUMENTS)
def _forward(cache: Tensor, x: Tensor, input_pos: Tensor | None) -> Tensor:
    _check(cache, x.shape[-1] // 2, 2)
    options: dict[str, Any] = {"interleaved": True, "per_channel": False, "positions": input_pos, "contiguous": ()}
    return rotated(x, cache[..., 0], cache[..., 1], **options)


@called(**_ARGUMENTS, rounding=rounding())
def _forward_half(cache: Tensor, x: Tensor, input_pos: Tensor | None, *, rounding: Rounding = _ONCE) -> Tensor:
    _check(cache, 2 * x.shape[-1])
    cos, sin = cache.chunk(2, dim=-1)
    cos, sin = rounded_tables(cos, sin, x, rounding)
    # "eager" for both: in Phi 3 too the terms of the gradient of 16-bit x are rounded
    y: Tensor = apply(x, cos, sin, per_channel=True, positions=input_pos, rounding="eager")
    return y


def _cache(self: Any) -> Tensor:
    cache: Tensor | None = getattr(self, "cache", None)
    if cache is None:
        raise refused("self.cache", "be built: call self.rope_init()", None)
    return cache


def _check(cache: Tensor, *row: int) -> None:
    if cache.shape[1:] != row or cache.dim() == 0:
        rule = f"have shape (max_seq_len, {', '.join(map(str, row))})"
        raise refused("self.cache", rule, cache)
