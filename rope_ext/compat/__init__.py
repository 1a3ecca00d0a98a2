"""Rotary functions of other libraries, under their names and signatures, computed by `rope_ext.apply`.

There is one module per library, named after it::

    from rope_ext.compat.flash_attn import apply_rotary_emb  # instead of flash_attn.layers.rotary

Each function accepts and returns what the original does, and only translates the call: axes become a layout, tables
become views, arguments become those of `rope_ext.apply`. No original is imported. Where an original supports a call
that rope_ext does not, the function raises an error that names the argument of the original: ArgumentError (a
ValueError), ArgumentTypeError (a TypeError), or NotImplementedError for a sparse tensor or a device that this build has
no kernels for. docs/migrate.md shows the old and the new import of each library, and an equivalent call of
`rope_ext.apply`.
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
