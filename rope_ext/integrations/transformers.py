"""Dialects of the rotary functions of Hugging Face transformers (5.23), and of remote code that copied them.

Each reader has the arguments of the functions that it stands for. Source of all: `transformers/models/*/modeling_*.py`.
"""

from typing import Any

import torch
from torch import Tensor

from . import _transformers_examples as examples
from . import _transformers_models as models
from ._dialect import Dialect, Examples, fused
from ._rotation import (
    FLOAT32,
    FLOAT32_INTERLEAVED,
    FLOAT32_INTERLEAVED_PER_PAIR,
    FLOAT32_TERMS,
    INTERLEAVED,
    INTERLEAVED_PER_PAIR,
    KEPT,
    PROMOTED,
    TERMS_INTERLEAVED,
    TERMS_INTERLEAVED_PER_PAIR,
    Convention,
    Read,
    Reader,
    Rotation,
)
from ._transformers_rotation import INTERLEAVED_PER_PAIR_TO_HALVES, PER_PAIR, rotation_of


def _q_k(convention: Convention, **how: Any) -> Reader:
    def read(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Read:
        return rotation_of((q, k), cos, sin, unsqueeze_dim, convention, **how)

    return read


def _llama(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Rotation:
    """Most models. It has no checks beyond those of `rotate`, to save time when decoding one token."""
    return Rotation((q, k), cos, sin, PROMOTED, unsqueeze_dim)


def _q_k_position_ids(convention: Convention, **how: Any) -> Reader:
    """Functions of transformers 4, which had an unused argument position_ids."""

    def read(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: object = None, unsqueeze_dim: int = 1
    ) -> Read:
        return rotation_of((q, k), cos, sin, unsqueeze_dim, convention, **how)

    return read


def _vision(convention: Convention, axis: int | None = None, **how: Any) -> Reader:
    def read(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Read:
        return rotation_of((q, k), cos, sin, axis, convention, **how)

    return read


def _x(convention: Convention, **how: Any) -> Reader:
    def read(x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Read:
        return rotation_of(x, cos, sin, unsqueeze_dim, convention, **how)

    return read


def _complex(q: Tensor, k: Tensor, freqs_cis: Tensor, axis: int) -> Read:
    if freqs_cis.dtype != torch.complex64:
        return None
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    return rotation_of((q, k), cos, sin, axis, FLOAT32_INTERLEAVED_PER_PAIR)


def _deepseek_v2(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> Read:
    return _complex(xq, xk, freqs_cis, 1)


def _llama4(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> Read:
    return _complex(xq, xk, freqs_cis, 2)


def _llama4_vision(query: Tensor, key: Tensor, freqs_ci: Tensor) -> Read:
    if query.dim() != 4 or key.dim() != 4:
        return None
    return _complex(query, key, freqs_ci.reshape(1, query.shape[1], query.shape[-1] // 2), 2)


# f(q, k, cos, sin, unsqueeze_dim=1), also with position_ids=None before the last argument: (name, convention, options
# of `rotation_of`, widths of the tables for 8 channels).
_Q_K: list[tuple[str, Convention, dict[str, Any], tuple[int, ...]]] = [
    ("gpt_neox", PROMOTED, {"partial": "leading"}, (8, 4)),
    ("glm", INTERLEAVED_PER_PAIR, {"partial": "leading", "halved": True}, (8, 4)),
    ("glm4v", INTERLEAVED, {"partial": "leading"}, (8, 4)),
    ("llama", PROMOTED, {}, (8,)),
    ("nanochat", PROMOTED._replace(inverse=True), {}, (8,)),
    ("olmo", KEPT, {}, (8,)),
    ("hunyuan_vl", FLOAT32, {}, (8,)),
    ("blt", INTERLEAVED, {}, (8,)),
    ("cohere", FLOAT32_INTERLEAVED, {}, (8,)),
    ("helium", INTERLEAVED_PER_PAIR, {"halved": True}, (8,)),
    ("esm", FLOAT32_TERMS, {}, (8,)),
    ("ernie4_5", TERMS_INTERLEAVED_PER_PAIR, {"halved": True}, (8,)),
    ("ernie4_5_vl", TERMS_INTERLEAVED, {}, (8,)),
    ("pe_audio", INTERLEAVED_PER_PAIR, {"halved": True, "joined": True}, (8,)),
    ("gpt_oss", PER_PAIR, {"joined": True}, (4,)),
    ("openai_privacy_filter", INTERLEAVED_PER_PAIR, {"joined": True}, (4,)),
    ("deepseek_v3", INTERLEAVED_PER_PAIR_TO_HALVES, {"halved": True, "joined": True}, (8,)),
]

# General dialects first: _known.json records the first of the dialects that a function equals.
_READERS: list[tuple[str, Reader, Examples]] = [
    ("muse_glimmer_assistant", models.last_rows, examples.last_rows_calls),
    ("mistral_large4", models.mistral_large4, examples.without_k(8, False)),
    *(
        (name, _llama if name == "llama" else _q_k(convention, **how), examples.q_k_calls(*widths))
        for name, convention, how, widths in _Q_K
    ),
    *(
        (
            f"{name}_position_ids",
            _q_k_position_ids(convention, **how),
            examples.q_k_calls(*widths, position_ids=True),
        )
        for name, convention, how, widths in _Q_K
    ),
    # f(q, k, cos, sin)
    ("qwen2_vl_vision", _vision(FLOAT32, -2), examples.vision_calls(8)),
    ("inkling2_vision", _vision(FLOAT32_INTERLEAVED, -2), examples.vision_calls(8)),
    ("minimax_m3_vision", _vision(PROMOTED, 1, partial="leading"), examples.vision_calls(8, 4, batched=False)),
    ("sam3", _vision(FLOAT32_INTERLEAVED), examples.sam3_calls),
    # f(x, cos, sin, unsqueeze_dim=1)
    ("gemma4", _x(PROMOTED), examples.x_calls(8)),
    ("deepseek_v4", _x(TERMS_INTERLEAVED_PER_PAIR, partial="trailing"), examples.x_calls(4, 2)),
    # others
    ("qwen4_exp", models.qwen4_exp, examples.without_k(4, True)),
    ("dinov3", models.after_prefix, examples.after_prefix_calls),
    ("clvp", models.clvp, examples.q_k_v_calls),
    ("wav2vec2_bert", models.conformer, examples.conformer_calls),
    ("gptj", models.sin_first, examples.sin_first_calls),
    ("roformer", models.roformer, examples.roformer_calls),
    ("musicflamingo", models.musicflamingo, examples.musicflamingo_calls),
    ("gemma4_vision", models.multidimensional, examples.multidimensional_calls),
    ("vjepa2", models.vjepa2, examples.vjepa2_calls),
    ("sam2", models.sam2, examples.sam2_calls),
    ("edgetam", models.edgetam, examples.edgetam_calls),
    ("llama4", _llama4, examples.complex_calls(2, 3, 8, heads=2)),
    ("deepseek_v2", _deepseek_v2, examples.complex_calls(2, 3, 8, heads=1)),
    ("llama4_vision", _llama4_vision, examples.complex_calls(3, 1, 8, heads=2)),
]
_FUSED = {"llama4", "deepseek_v2", "llama4_vision"}  # complex products
DIALECTS = [
    Dialect(f"transformers.{name}", read, calls, fused(read) if name in _FUSED else None)
    for name, read, calls in _READERS
]
