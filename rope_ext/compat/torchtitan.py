"""apply_rotary_emb of the two classes of torchtitan.models.common.rope (pytorch/torchtitan 0.3.0).

A subclass selects the function::

    class MyRoPE(ComplexRoPE):
        apply_rotary_emb = staticmethod(rope_ext.compat.torchtitan.apply_rotary_emb_complex)

query and key may be DTensors; a rope_cache that is a plain Tensor beside them is taken to be equal on all ranks.
"""

from torch import Tensor

from ._arguments import tensor
from ._called import called
from ._errors import refused, refused_type
from ._results import rotated

_ARGUMENTS = {
    "query": tensor("x", ranks=4),
    "key": tensor("x", ranks=4),
    "rope_cache": tensor("cos", "sin"),
}


@called(**_ARGUMENTS)
def apply_rotary_emb_complex(query: Tensor, key: Tensor, rope_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply pairs of channels (2i, 2i + 1), read as complex numbers, by rope_cache, as ComplexRoPE does.

    Results are equal to the original up to one rounding: PyTorch's complex product fuses a product and a sum on some
    processors.

    Args:
        query, key: (batch, seqlen, heads, head_dim), any strides; the numbers of heads may differ.
        rope_cache: (1 or batch, seqlen, 1, head_dim / 2), complex64, or complex128 for float64 query and key.

    Returns:
        (query, key), new tensors of the same shapes and dtype.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when rope_cache is not complex, or an argument has another wrong type or dtype.

    Equivalent to::

        rope_ext.apply((query, key), rope_cache.real, rope_cache.imag, interleaved=True)

    Source: torchtitan 0.3.0, torchtitan/models/common/rope.py, ComplexRoPE.apply_rotary_emb.
    """
    if not rope_cache.is_complex():
        raise refused_type("rope_cache", "be complex", rope_cache.dtype)
    _check(query, rope_cache, query.shape[-1] // 2)
    return rotated((query, key), rope_cache.real, rope_cache.imag, interleaved=True, per_channel=False)


@called(**_ARGUMENTS)
def apply_rotary_emb_cos_sin(query: Tensor, key: Tensor, rope_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate all channels of query and key, paired in halves, as CosSinRoPE does.

    Results are bit-identical to the original for 16-bit and float32 query and key. With float64 query and key and a
    float64 rope_cache the arithmetic is float64; the original rounds to float32.

    Args:
        query, key: (batch, seqlen, heads, head_dim), any strides; the numbers of heads may differ.
        rope_cache: (1 or batch, seqlen, 1, 2 * head_dim) float32, cos and then sin, one entry per channel.

    Returns:
        (query, key), new tensors of the same shapes and dtype.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to::

        cos, sin = rope_cache.chunk(2, dim=-1)
        rope_ext.apply((query, key), cos, sin)

    Source: torchtitan 0.3.0, torchtitan/models/common/rope.py, CosSinRoPE.apply_rotary_emb.
    """
    _check(query, rope_cache, 2 * query.shape[-1])
    cos, sin = rope_cache.chunk(2, dim=-1)
    return rotated((query, key), cos, sin, per_channel=True)


def _check(query: Tensor, rope_cache: Tensor, width: int) -> None:
    fits = query.dim() == rope_cache.dim() == 4 and rope_cache.shape[2:] == (1, width)
    if not fits:
        raise refused("rope_cache", f"have shape (1 or batch, seqlen, 1, {width})", rope_cache)
