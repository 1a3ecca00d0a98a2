"""rotary_embedding of vllm._custom_ops (vllm-project/vllm 0.32)."""

from ..ops import apply_
from ._errors import called, refused


@called(
    x="query", cos="cos_sin_cache", sin="cos_sin_cache", rotary_dim="cos_sin_cache", rotary_offset="rope_dim_offset"
)
def rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox, rope_dim_offset=0, inverse=False):
    """Turns query and key in place; returns None.

    positions: (tokens,) or (batch, seqlen), int32 or int64: rows of the cache. query: (*positions.shape, heads *
    head_size) or (*positions.shape, heads, head_size), rows may have gaps (slices of packed q, k, v); key likewise,
    heads may differ, or None. cos_sin_cache: (max_position, rotary_dim), cos in its first half of columns, sin in its
    second, one entry per pair; float32 or the dtype of query. is_neox: channels are paired in halves, else (2i, 2i +
    1). rope_dim_offset: first rotated channel. inverse: turns back.

    In float32 and, for the CPU, in bfloat16 equal up to one rounding: vLLM fuses a product and a sum. On a GPU vLLM
    takes a cache in the dtype of query and rounds each product in 16 bits; here the arithmetic is float32, rounded
    once. Differentiable here, not there. int32 positions, heads axes and rope_dim_offset or inverse also on the CPU
    (there not).

    Source: vllm/_custom_ops.py, rotary_embedding.
    """
    if positions.dim() not in (1, 2):
        raise refused("positions", "have 1 or 2 dimensions", positions)
    if cos_sin_cache.dim() != 2:
        raise refused("cos_sin_cache", "have 2 dimensions", cos_sin_cache)
    x = [_with_heads(name, t, positions, head_size) for name, t in (("query", query), ("key", key)) if t is not None]
    cos, sin = cos_sin_cache.chunk(2, dim=-1)
    apply_(
        x,
        cos,
        sin,
        layout="shd" if positions.dim() == 1 else "bshd",
        interleaved=not is_neox,
        rotary_dim=cos_sin_cache.shape[-1],
        rotary_offset=rope_dim_offset,
        positions=positions,
        inverse=inverse,
    )


def _with_heads(name, x, positions, head_size):
    """A view (*positions.shape, heads, head_size) of x."""
    rank = positions.dim()
    fits = x.shape[:rank] == positions.shape and x.dim() in (rank + 1, rank + 2)
    fits = fits and (x.shape[-1] == head_size or (x.dim() == rank + 1 and x.shape[-1] % head_size == 0))
    if not fits:
        rule = f"have the axes {tuple(positions.shape)} of positions and then heads * head_size or heads, head_size"
        raise refused(name, rule, f"shape {tuple(x.shape)} with head_size {head_size}")
    return x.view(*positions.shape, -1, head_size)
