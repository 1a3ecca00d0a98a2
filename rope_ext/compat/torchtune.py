"""forward of the rotary modules of torchtune (pytorch/torchtune 0.6.1), to be assigned to their classes.

For example::

    torchtune.modules.RotaryPositionalEmbeddings.forward = rope_ext.compat.torchtune.forward

`self` is any object with the `cache` of the module. A position outside the cache is an error; in torchtune a negative
position counts from the end of the cache.
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
    """Rotate all channels of x; pairs are (2i, 2i + 1), as in RotaryPositionalEmbeddings and Llama3ScaledRoPE.

    Results are bit-identical to the original for 16-bit and float32 x. float64 x requires a float64 cache; the original
    rounds to float32.

    Args:
        self: object whose `cache` is (max_seq_len, head_dim / 2, 2) and holds cos and sin.
        x: (batch, seqlen, heads, head_dim), any strides.
        input_pos: (seqlen,) or (1 or batch, seqlen) integers, or None for 0, 1, 2, ...

    Returns:
        A new contiguous tensor with the shape and dtype of x.

    Raises:
        ArgumentError: when a shape does not fit, a position is outside the cache, or the cache is missing.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to::

        options = {"interleaved": True, "positions": input_pos}
        rope_ext.apply(x, self.cache[..., 0], self.cache[..., 1], **options)

    Source: torchtune 0.6.1, torchtune/modules/position_embeddings.py, RotaryPositionalEmbeddings.forward, and
    torchtune/models/llama3_1/_position_embeddings.py, Llama3ScaledRoPE.forward.
    """
    return _forward(_cache(self), x, input_pos)


def forward_half(self: Any, x: Tensor, input_pos: Tensor | None = None, *, rounding: Rounding = "once") -> Tensor:
    """Rotate all channels of x, paired in halves, as the modules of Phi 3 and Qwen 2 do.

    Args:
        self: object whose `cache` is (max_seq_len, 2 * head_dim) and holds cos and then sin, one entry per channel.
        x: (batch, seqlen, heads, head_dim), any strides.
        input_pos: (seqlen,) or (1 or batch, seqlen) integers, or None for 0, 1, 2, ...
        rounding: "once" rounds as Phi 3 does: products have the dtype of x * cos, so with a float32 cache only the
            result is rounded to the dtype of x. "eager" rounds as Qwen 2 does: cos, sin and each product are rounded to
            the dtype of x. Each is bit-identical to its original, gradients of x included.

    Returns:
        A new tensor with the shape and dtype of x and the strides of `torch.empty_like(x)`.

    Raises:
        ArgumentError: when a shape does not fit, a position is outside the cache, or the cache is missing.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to::

        cos, sin = self.cache.chunk(2, dim=-1)  # cast to x.dtype for rounding="eager"
        rope_ext.apply(x, cos, sin, positions=input_pos, rounding="eager")

    Source: torchtune 0.6.1, torchtune/models/phi3/_position_embeddings.py, Phi3RotaryPositionalEmbeddings.forward, and
    torchtune/models/qwen2/_positional_embeddings.py, Qwen2RotaryPositionalEmbeddings.forward.
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
    # "eager" for Phi 3 too: it rounds each term of the gradient of 16-bit x
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
