"""apply_rotary_emb of the two classes of torchtitan.models.common.rope (pytorch/torchtitan 0.3.0).

    class MyRoPE(ComplexRoPE):
        apply_rotary_emb = staticmethod(rope_ext.compat.torchtitan.apply_rotary_emb_complex)

query and key may be DTensors; a rope_cache that is a Tensor beside them is the same on all ranks.
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
    """ComplexRoPE.apply_rotary_emb: query, key (batch, seqlen, heads, head_dim), pairs (2i, 2i + 1).

    rope_cache: (1 or batch, seqlen, 1, head_dim / 2) complex64 (complex128 for float64 query). Equal up to one rounding
    of the result: PyTorch's complex product fuses a product and a sum on some processors.

    Source: torchtitan/models/common/rope.py, ComplexRoPE.apply_rotary_emb.
    """
    if not rope_cache.is_complex():
        raise refused_type("rope_cache", "be complex", rope_cache.dtype)
    _check(query, rope_cache, query.shape[-1] // 2)
    return rotated((query, key), rope_cache.real, rope_cache.imag, interleaved=True, per_channel=False)


@called(**_ARGUMENTS)
def apply_rotary_emb_cos_sin(query: Tensor, key: Tensor, rope_cache: Tensor) -> tuple[Tensor, Tensor]:
    """CosSinRoPE.apply_rotary_emb: query, key (batch, seqlen, heads, head_dim), pairs (i, i + head_dim / 2).

    rope_cache: (1 or batch, seqlen, 1, 2 * head_dim) float32: cos, then sin, one entry per channel. Bit-equal for
    16-bit and float32 query. float64 stays float64 with a float64 rope_cache (there: rounded to float32).

    Source: torchtitan/models/common/rope.py, CosSinRoPE.apply_rotary_emb.
    """
    _check(query, rope_cache, 2 * query.shape[-1])
    cos, sin = rope_cache.chunk(2, dim=-1)
    return rotated((query, key), cos, sin, per_channel=True)


def _check(query: Tensor, rope_cache: Tensor, width: int) -> None:
    fits = query.dim() == rope_cache.dim() == 4 and rope_cache.shape[2:] == (1, width)
    if not fits:
        raise refused("rope_cache", f"have shape (1 or batch, seqlen, 1, {width})", rope_cache)
