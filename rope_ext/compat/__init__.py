"""The rotary functions of other libraries, under their names and signatures, on the kernels of rope_ext.

    from rope_ext.compat.flash_attn import apply_rotary_emb     # instead of flash_attn.layers.rotary

One module per library. Each function takes and returns what the original does, and only translates: axes become a
layout, tables become views, arguments become those of `rope_ext.apply`. No original is imported. What an original does
and rope_ext does not is an error that names the argument of the original: ArgumentError (a ValueError),
ArgumentTypeError (a TypeError), or NotImplementedError for sparse tensors and unknown devices. Before and after for
each library: docs/migrate.md.
"""

from . import (
    apex,
    flash_attn,
    liger,
    meta_llama,
    rotary_embedding_torch,
    timm,
    torchtitan,
    torchtune,
    transformer_engine,
    transformers,
    vllm,
    x_transformers,
)

__all__ = [
    "apex",
    "flash_attn",
    "liger",
    "meta_llama",
    "rotary_embedding_torch",
    "timm",
    "torchtitan",
    "torchtune",
    "transformer_engine",
    "transformers",
    "vllm",
    "x_transformers",
]
