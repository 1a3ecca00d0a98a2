"""forward of the rotary modules of torchtune (pytorch/torchtune 0.6.1), to put in their place:

    torchtune.modules.RotaryPositionalEmbeddings.forward = rope_ext.compat.torchtune.forward

`self` is any object with the module's `cache`. Positions outside the cache are errors (there negative ones count from
its end).
"""

from ..ops import apply
from ._errors import called, refused


@called(positions="input_pos", cos="self.cache", sin="self.cache")
def forward(self, x, *, input_pos=None):
    """RotaryPositionalEmbeddings.forward, and Llama3ScaledRoPE's: x (batch, seqlen, heads, head_dim), pairs (2i, 2i+1).

    self.cache: (max_seq_len, head_dim / 2, 2), cos and sin. input_pos: (seqlen,), (1 or batch, seqlen) integers, or
    None for 0, 1, 2, ... Bit-equal for 16-bit and float32 x. float64 x needs a float64 cache (there: rounded to
    float32).

    Source: torchtune/modules/position_embeddings.py and torchtune/models/llama3_1/_position_embeddings.py.
    """
    cache = _cache(self, (x.shape[-1] // 2, 2))
    return apply(x, cache[..., 0], cache[..., 1], interleaved=True, positions=input_pos)


@called(positions="input_pos", cos="self.cache", sin="self.cache")
def forward_half(self, x, input_pos=None):
    """Phi3RotaryPositionalEmbeddings.forward, and Qwen2's: x (batch, seqlen, heads, head_dim), pairs in halves.

    self.cache: (max_seq_len, 2 * head_dim), cos and then sin, one entry per channel. input_pos as in `forward`.
    Bit-equal for float32 x, and for Phi 3 for 16-bit x. Qwen 2 there rounds cos, sin, both products and the sum to the
    dtype of x, here only the result is rounded.

    Source: torchtune/models/phi3/_position_embeddings.py, torchtune/models/qwen2/_positional_embeddings.py.
    """
    cos, sin = _cache(self, (2 * x.shape[-1],)).chunk(2, dim=-1)
    return apply(x, cos, sin, positions=input_pos, rounding="eager")  # of 16-bit x the terms of the gradient


def _cache(self, row):
    cache = getattr(self, "cache", None)
    if cache is None:
        raise refused("self.cache", "be built: call self.rope_init()", None)
    if tuple(cache.shape[1:]) != row:
        rule = f"have shape (max_seq_len, {', '.join(map(str, row))})"
        raise refused("self.cache", rule, cache)
    return cache
