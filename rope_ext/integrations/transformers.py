"""Dialects of the rotary functions of Hugging Face transformers (5.23), and of remote code that copied them.

Most are one function with options: see `_turn`. Source of all: transformers/models/*/modeling_*.py.
"""

import torch

from ..ops import apply
from . import _transformers_examples as examples
from ._dialect import Dialect
from ._turn import LAYOUTS, SEQLEN, turn

# What a result is -> options of `turn`.
_RESULTS = {
    "promoted": {},
    "kept": {"keep_dtype": True},
    "float32": {"keep_dtype": True, "least": torch.float32, "casts": 1},
    "float32 terms": {"keep_dtype": True, "least": torch.float32, "casts": 2},
}


def _turn(
    states, cos, sin, rounding, axis=None, *, result="promoted", partial=None, read="channels", joined=False, **pairing
):
    """The states, a tuple of tensors, turned by cos and sin, which broadcast to them after unsqueeze(axis).

    result: "promoted": of the dtype of x * cos. "kept": that, cast to the dtype of x. "float32": x is cast to float32,
        and the result back. "float32 terms": x is cast twice, for each product, so that a gradient of 16 bits is the
        sum of two rounded ones.
    partial: "leading" or "trailing": the table may have fewer channels than x.
    read: "channels": a table has an entry per channel. "pairs": per pair. "half": per channel, of which the first half
        is read, one per pair.
    joined: the result is a new tensor whose channels are neighbours in memory (torch.cat), also where those of x are
        not. Implied by partial.
    pairing: interleaved, out_interleaved and inverse of `rope_ext.apply`.

    Raises ValueError, "rope_ext: ...", for what eager code refuses or does in another way.
    """
    x, head_dim = states[0], states[0].shape[-1]
    if read == "half":
        cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2]
    rotary_dim = cos.shape[-1] * (1 if read == "channels" else 2)
    _need(rotary_dim == head_dim or (partial and rotary_dim < head_dim), "cos must be as wide as x")
    _need(result == "promoted" or all(t.dtype == x.dtype for t in states), "states must have one dtype")
    _need(cos.dtype != torch.float64 or not result.startswith("float32"), "cos must not be float64")
    if (partial or joined) and any(t.stride(-1) != 1 for t in states):
        states = tuple(t.contiguous() for t in states)
    options = _RESULTS[result] | pairing
    if rotary_dim != head_dim:
        options["rotary_dim"] = rotary_dim
        options["rotary_offset"] = head_dim - rotary_dim if partial == "trailing" else 0
    y = turn(states, cos, sin, rounding, axis=axis, per_pair=read != "channels", **options)
    _need(y is not None, "cos must broadcast to x")
    return y


def _need(holds, rule):
    if not holds:
        raise ValueError(f"rope_ext: {rule}")


# ---- adapters, by the arguments of the functions that they replace ----


def _q_k(**how):
    def adapter(original, rounding, q, k, cos, sin, unsqueeze_dim=1):
        return _turn((q, k), cos, sin, rounding, unsqueeze_dim, **how)

    return adapter


def _llama(original, rounding, q, k, cos, sin, unsqueeze_dim=1):
    """Most models. As they call it, it is one call of `apply`: what is around that counts when one token is decoded."""
    layout = LAYOUTS.get((q.dim(), cos.dim(), unsqueeze_dim))
    if (
        layout is not None
        and cos.shape[-1] == q.shape[-1]
        and cos.shape[-2] == q.shape[SEQLEN[layout]]
        and q.dtype == k.dtype == cos.dtype
    ):
        return apply((q, k), cos, sin, layout=layout, per_channel=True, rounding=rounding)
    return _turn((q, k), cos, sin, rounding, unsqueeze_dim)


def _q_k_position_ids(**how):
    def adapter(original, rounding, q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        return _turn((q, k), cos, sin, rounding, unsqueeze_dim, **how)

    return adapter


def _optional_k(required, **how):
    """k may be None. required: q alone has a default less, and then only q is returned."""

    def adapter(original, rounding, q, k, cos, sin, unsqueeze_dim=1):
        states = _turn((q,) if k is None else (q, k), cos, sin, rounding, unsqueeze_dim, **how)
        return (states[0], None) if k is None else states

    def adapter_of_one(original, rounding, q, k=None, cos=None, sin=None, unsqueeze_dim=1):
        states = _turn((q,) if k is None else (q, k), cos, sin, rounding, unsqueeze_dim, **how)
        return states[0] if k is None else states

    return adapter if required else adapter_of_one


def _vision(**how):
    def adapter(original, rounding, q, k, cos, sin):
        return _turn((q, k), cos, sin, rounding, **how)

    return adapter


def _x(**how):
    def adapter(original, rounding, x, cos, sin, unsqueeze_dim=1):
        return _turn((x,), cos, sin, rounding, unsqueeze_dim, **how)[0]

    return adapter


def _last_rows(original, rounding, q, k, cos, sin, unsqueeze_dim=1):
    """Muse Glimmer's assistant: q are the last tokens."""
    _need(unsqueeze_dim == 1 and cos.dim() == 3, "cos must be (batch, seqlen, head_dim)")
    length = q.shape[-2]
    if length == k.shape[-2]:
        return _turn((q, k), cos, sin, rounding, 1)
    (q,) = _turn((q,), cos[:, -length:], sin[:, -length:], rounding, 1)
    return q, *_turn((k,), cos, sin, rounding, 1)


def _after_prefix(original, rounding, q, k, cos, sin, **kwargs):
    """DINOv3: tokens before the patches are not turned."""
    prefix = q.shape[-2] - sin.shape[-2]
    _need(prefix >= 0 and q.shape[-2] == k.shape[-2], "tables must not have more tokens than q and k")
    states = _turn((q[..., prefix:, :], k[..., prefix:, :]), cos, sin, rounding)
    return tuple(torch.cat((t[..., :prefix, :], turned), dim=-2) for t, turned in zip((q, k), states))


def _q_k_v(original, rounding, q, k, v, cos, sin, position_ids, unsqueeze_dim=1):
    """CLVP."""
    return _turn((q, k, v), cos[position_ids], sin[position_ids], rounding, unsqueeze_dim)


def _conformer(original, rounding, self, hidden_states, relative_position_embeddings):
    """Wav2Vec2-BERT: q and k before they are projected, tables (2, seqlen, 1, 1, head_dim)."""
    batch, seqlen, _ = hidden_states.shape
    x = hidden_states.view(batch, seqlen, self.num_heads, self.head_size)
    cos, sin = relative_position_embeddings[:, :seqlen].unbind()
    _need(cos.dim() == 4 and cos.shape[1:3] == (1, 1), "tables must be (seqlen, 1, 1, head_dim)")
    (x,) = _turn((x,), cos.transpose(0, 2)[0], sin.transpose(0, 2)[0], rounding, 2)
    return x.reshape(batch, seqlen, -1)


def _sin_first(original, rounding, tensor, sin, cos):
    """GPT-J, CodeGen: (batch, seqlen, heads, head_dim)."""
    return _turn((tensor,), cos, sin, rounding, 2, read="pairs", interleaved=True)[0]


def _roformer(original, rounding, sinusoidal_pos, query_layer, key_layer, value_layer=None):
    sin, cos = sinusoidal_pos.chunk(2, dim=-1)
    states = (query_layer, key_layer) if value_layer is None else (query_layer, key_layer, value_layer)
    if sinusoidal_pos.dim() == 4 and sinusoidal_pos.shape[1] == 1:  # as the model has them
        return _turn(states, cos[:, 0], sin[:, 0], rounding, 1, read="pairs", interleaved=True)
    return _turn(states, cos, sin, rounding, read="pairs", interleaved=True)


def _musicflamingo(original, rounding, hidden_states, cos, sin):
    x = hidden_states.double()
    (x,) = _turn((x,), cos.to(x), sin.to(x), rounding, partial="leading", interleaved=True)
    return x.to(hidden_states.dtype)


def _multidimensional(original, rounding, x, cos, sin, position_ids, unsqueeze_dim=2):
    """Gemma 4's vision tower: halves inside one block of channels per axis; the blocks become tokens."""
    axes = position_ids.shape[-1]
    block = x.shape[-1] // axes
    _need(x.dim() == 4 and cos.dim() == 3 and unsqueeze_dim == 2, "x must be (batch, seqlen, heads, head_dim)")
    _need(
        block * axes == x.shape[-1] == cos.shape[-1] and cos.shape[0] == x.shape[0], "cos must have the channels of x"
    )
    batch, seqlen, heads, _ = x.shape
    blocks = x.reshape(batch * seqlen, heads, axes, block)
    cos, sin = (t.reshape(batch * seqlen, axes, block) for t in (cos, sin))
    return _turn((blocks,), cos, sin, rounding, 1)[0].reshape(x.shape)


def _vjepa2(original, rounding, x, pos):
    """Angles of the dtype of x. The table repeats its entries and pairs are neighbours: no rotation, but trained so."""
    omega = torch.arange(x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    omega /= x.shape[-1] / 2.0
    angles = pos.unsqueeze(-1) * (1.0 / 10000**omega)
    cos, sin = (t.repeat(1, 1, 1, 2) for t in (angles.cos(), angles.sin()))
    return _turn((x,), cos, sin, rounding, interleaved=True)[0]


def _sam2(original, rounding, q, k, cos, sin, num_k_exclude_rope=0, repeat_freqs_k=False):
    """SAM 2, SAM 3: k is longer: further frames have the tables of the first, and its last tokens are not turned."""
    length = k.shape[-2] - num_k_exclude_rope
    k, others = k[..., :length, :], k[..., length:, :]
    how = {"result": "float32", "interleaved": True}
    if length == q.shape[-2] and q.dim() == k.dim():
        q, k = _turn((q, k), cos, sin, rounding, **how)
    else:
        (turned,) = _turn((q,), cos, sin, rounding, **how)
        if length:
            if repeat_freqs_k:
                cos, sin = (t.repeat(1, 1, length // q.shape[-2], 1) for t in (cos, sin))
            (k,) = _turn((k,), cos, sin, rounding, **how)
        q = turned
    return q, torch.cat((k, others), dim=-2)


def _edgetam(original, rounding, q, k, cos, sin, cos_k, sin_k, num_k_exclude_rope=0, repeat_freqs_k=1):
    """EdgeTAM: k has groups of tokens, of which the last ones, as many as the table has, are turned."""
    (turned,) = _turn((q,), cos, sin, rounding, result="float32", interleaved=True)
    length = k.shape[-2] - num_k_exclude_rope
    k, others = k[..., :length, :], k[..., length:, :]
    if length == 0:
        return turned, others
    groups = k.unflatten(-2, (repeat_freqs_k, -1))
    temporal = groups.shape[-2] - cos_k.shape[-2]
    how = {"result": "float32", "interleaved": True}
    cos_k, sin_k = (t.reshape(t.shape[-2:]) for t in (cos_k, sin_k))
    (spatial,) = _turn((groups[..., temporal:, :],), cos_k, sin_k, rounding, **how)
    k = torch.cat((groups[..., :temporal, :], spatial), dim=-2).flatten(-3, -2)
    return turned, torch.cat((k, others), dim=-2)


def _complex(q, k, freqs_cis, rounding, axis):
    _need(freqs_cis.dtype == torch.complex64, "freqs_cis must be complex64")
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    return _turn((q, k), cos, sin, rounding, axis, result="float32", read="pairs", interleaved=True)


def _xq_xk(axis):
    def adapter(original, rounding, xq, xk, freqs_cis):
        return _complex(xq, xk, freqs_cis, rounding, axis)

    return adapter


def _llama4_vision(original, rounding, query, key, freqs_ci):
    _need(query.dim() == 4 == key.dim(), "query must be (batch, seqlen, heads, head_dim)")
    return _complex(query, key, freqs_ci.reshape(1, query.shape[1], query.shape[-1] // 2), rounding, 2)


def _fused(args, kwargs, y):
    """Bound of complex products, which may fuse a product and the sum: one of three roundings is missing, each of at
    most half a unit in the last place of |x1 cos| + |x2 sin|; a result rounded to 16 bits can be the next number."""
    q, k, freqs_cis = args
    largest = torch.view_as_real(freqs_cis).abs().max()
    return tuple(
        1.5
        * torch.finfo(torch.float32).eps
        * largest
        * x.float().abs().unflatten(-1, (-1, 2)).sum(-1).repeat_interleave(2, -1)
        + (0 if t.dtype == torch.float32 else torch.finfo(t.dtype).eps * t.abs().float())
        for x, t in zip((q, k), y)
    )


_BEFORE_HALF = {"read": "half", "interleaved": True, "out_interleaved": False, "joined": True}

# f(q, k, cos, sin, unsqueeze_dim=1), and with a position_ids=None before the last, which transformers 4 had and did
# not read: name, options of `_turn`, widths of tables for 8 channels.
_Q_K = [
    ("gpt_neox", {"partial": "leading"}, (8, 4)),
    ("glm", {"partial": "leading", "read": "half", "interleaved": True}, (8, 4)),
    ("glm4v", {"partial": "leading", "interleaved": True}, (8, 4)),
    ("llama", {}, (8,)),
    ("nanochat", {"inverse": True}, (8,)),
    ("olmo", {"result": "kept"}, (8,)),
    ("hunyuan_vl", {"result": "float32"}, (8,)),
    ("blt", {"interleaved": True}, (8,)),
    ("cohere", {"result": "float32", "interleaved": True}, (8,)),
    ("helium", {"read": "half", "interleaved": True}, (8,)),
    ("esm", {"result": "float32 terms"}, (8,)),
    ("ernie4_5", {"result": "float32 terms", "read": "half", "interleaved": True}, (8,)),
    ("ernie4_5_vl", {"result": "float32 terms", "interleaved": True}, (8,)),
    ("pe_audio", {"read": "half", "interleaved": True, "joined": True}, (8,)),
    ("gpt_oss", {"read": "pairs", "joined": True}, (4,)),
    ("openai_privacy_filter", {"read": "pairs", "interleaved": True, "joined": True}, (4,)),
    ("deepseek_v3", _BEFORE_HALF, (8,)),
]

# General ones first: python -m rope_ext.integrations.known takes the first that a function equals.
DIALECTS = [
    Dialect(f"transformers.{name}", *rest)
    for name, *rest in [
        ("muse_glimmer_assistant", _last_rows, examples.last_rows_calls),
        *(
            (name, _llama if name == "llama" else _q_k(**how), examples.q_k_calls(*widths))
            for name, how, widths in _Q_K
        ),
        *(
            (f"{name}_position_ids", _q_k_position_ids(**how), examples.q_k_calls(*widths, position_ids=True))
            for name, how, widths in _Q_K
        ),
        ("mistral_large4", _optional_k(True, **_BEFORE_HALF), examples.without_k(8, False)),
        # f(q, k, cos, sin)
        ("qwen2_vl_vision", _vision(axis=-2, result="float32"), examples.vision_calls(8)),
        ("inkling2_vision", _vision(axis=-2, result="float32", interleaved=True), examples.vision_calls(8)),
        ("minimax_m3_vision", _vision(axis=1, partial="leading"), examples.vision_calls(8, 4, batched=False)),
        ("sam3", _vision(result="float32", interleaved=True), examples.sam3_calls),
        # f(x, cos, sin, unsqueeze_dim=1)
        ("gemma4", _x(), examples.x_calls(8)),
        (
            "deepseek_v4",
            _x(result="float32 terms", partial="trailing", read="pairs", interleaved=True),
            examples.x_calls(4, 2),
        ),
        # others
        ("qwen4_exp", _optional_k(False, partial="leading"), examples.without_k(4, True)),
        ("dinov3", _after_prefix, examples.after_prefix_calls),
        ("clvp", _q_k_v, examples.q_k_v_calls),
        ("wav2vec2_bert", _conformer, examples.conformer_calls),
        ("gptj", _sin_first, examples.sin_first_calls),
        ("roformer", _roformer, examples.roformer_calls),
        ("musicflamingo", _musicflamingo, examples.musicflamingo_calls),
        ("gemma4_vision", _multidimensional, examples.multidimensional_calls),
        ("vjepa2", _vjepa2, examples.vjepa2_calls),
        ("sam2", _sam2, examples.sam2_calls),
        ("edgetam", _edgetam, examples.edgetam_calls),
        ("llama4", _xq_xk(2), examples.complex_calls(2, 3, 8, heads=2), _fused),
        ("deepseek_v2", _xq_xk(1), examples.complex_calls(2, 3, 8, heads=1), _fused),
        ("llama4_vision", _llama4_vision, examples.complex_calls(3, 1, 8, heads=2), _fused),
    ]
]
