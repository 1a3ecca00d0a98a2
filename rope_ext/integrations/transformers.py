"""Dialects of the rotary functions of Hugging Face transformers (5.23), and of remote code that copied them.

Most are one function with options: see `_turn`. Source of all: transformers/models/*/modeling_*.py.
"""

import types

import torch

from ..compat._broadcast import rotate
from ..ops import apply
from ._dialect import Dialect

# Forms that `apply` takes as they are: axes of x, axes of the table, axis that the table gets -> layout.
_LAYOUTS = {(4, 3, 1): "bhsd", (4, 3, 2): "bshd", (4, 3, -2): "bshd", (4, 2, 0): "bhsd", (4, 2, None): "bhsd"}
_LAYOUTS |= {(3, 2, 1): "shd", (3, 2, -2): "shd"}
_SEQLEN = {"bhsd": 2, "bshd": 1, "shd": 0}


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
    x, dtype, head_dim = states[0], states[0].dtype, states[0].shape[-1]
    if read == "half":
        cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2]
    rotary_dim = cos.shape[-1] * (1 if read == "channels" else 2)
    _need(rotary_dim == head_dim or (partial and rotary_dim < head_dim), "cos must be as wide as x")
    _need(all(t.dtype == dtype for t in states), "states must have one dtype")
    if result.startswith("float32"):
        _need(torch.float64 not in (dtype, cos.dtype), "x and cos must not be float64 where arithmetic is float32")
        cos, sin = cos.float(), sin.float()
        rounding = "once" if result == "float32" else rounding
    if x.stride(-1) != 1 and (partial or joined):
        states = tuple(t.contiguous() for t in states)
    keep = result != "promoted"
    options = {"rounding": rounding, **pairing}
    if rotary_dim != head_dim:
        options["rotary_dim"] = rotary_dim
        options["rotary_offset"] = head_dim - rotary_dim if partial == "trailing" else 0
    layout = _LAYOUTS.get((x.dim(), cos.dim(), axis))
    if (
        layout is not None
        and (cos.dtype == dtype or (keep and cos.dtype == torch.float32 and dtype != torch.float64))
        and all(t.dim() == x.dim() and t.shape[_SEQLEN[layout]] == cos.shape[-2] for t in states)
    ):  # a third of the time
        return apply(states, cos, sin, layout=layout, **options)
    if axis is not None:
        cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
    return rotate(states, cos, sin, keep_dtype=keep, **options)


def _need(holds, rule):
    if not holds:
        raise ValueError(f"rope_ext: {rule}")


# ---- adapters, by the arguments of the functions that they replace ----


def _q_k(**how):
    def adapter(original, rounding, q, k, cos, sin, unsqueeze_dim=1):
        return _turn((q, k), cos, sin, rounding, unsqueeze_dim, **how)

    return adapter


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


# ---- examples ----


class _Draw:
    """Random states of a dtype and tables of another. cos and sin are unrelated, and so are the entries of a pair: no
    rotation, so that a function that reads another entry is told apart."""

    def __init__(self, seed, dtype, table_dtype):
        self.generator, self.dtype, self.table_dtype = torch.Generator().manual_seed(seed), dtype, table_dtype

    def x(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def table(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.table_dtype)

    def tables(self, *shape):
        return self.table(*shape), self.table(*shape)

    def q_k(self, seqlen=5, head_dim=8):
        """As models have them: (batch, heads, seqlen, head_dim), heads behind tokens in memory, fewer of k."""
        return self.x(2, seqlen, 4, head_dim).transpose(1, 2), self.x(2, seqlen, 2, head_dim).transpose(1, 2)


def _examples(calls):
    """`Dialect.examples` of calls(draw) -> [(args, kwargs), ...], for tables of each dtype."""

    def examples(seed, dtype):
        dtypes = dict.fromkeys((dtype, torch.float32, torch.bfloat16))
        return [call for table_dtype in dtypes for call in calls(_Draw(seed, dtype, table_dtype))]

    return examples


def _q_k_calls(*widths, position_ids=False):
    """f(q, k, cos, sin) with tables of these widths and all values of unsqueeze_dim; head_dim is 8."""

    def calls(draw):
        for width in widths:
            yield (*draw.q_k(), *draw.tables(2, 5, width)), {}
            yield (*draw.q_k(), *draw.tables(1, 5, width)), {"unsqueeze_dim": 1}
            yield (draw.x(2, 3, 4, 8), draw.x(2, 3, 1, 8), *draw.tables(2, 3, width)), {"unsqueeze_dim": 2}
            yield (*draw.q_k(), *draw.tables(5, width)), {"unsqueeze_dim": 0}
            strided = draw.x(2, 4, 8, 5).transpose(2, 3), draw.x(2, 2, 8, 5).transpose(2, 3)
            yield (*strided, *draw.tables(2, 5, width)), {}
            if position_ids:
                yield (*draw.q_k(), *draw.tables(2, 5, width), torch.arange(5)[None], 1), {}

    return _examples(calls)


def _without_k(width, by_name):
    def calls(draw):
        q, k = draw.q_k()
        cos, sin = draw.tables(2, 5, width)
        yield (q, None, cos, sin), {}
        yield (q, k, cos, sin), {}
        yield (q.transpose(1, 2), k.transpose(1, 2), cos, sin, 2), {}
        if by_name:
            yield (q,), {"cos": cos, "sin": sin}

    return _examples(calls)


def _x_calls(*widths):
    def calls(draw):
        for width in widths:
            yield (draw.q_k()[0], *draw.tables(2, 5, width)), {}
            yield (draw.x(2, 3, 4, 8), *draw.tables(1, 3, width)), {"unsqueeze_dim": 2}
            yield (draw.x(2, 3, 4, 8), *draw.tables(2, 3, width), 2), {}

    return _examples(calls)


def _vision_calls(*widths, batched=True):
    def calls(draw):
        for width in widths:
            yield (draw.x(6, 4, 8), draw.x(6, 4, 8), *draw.tables(6, width)), {}
            if batched:
                yield (draw.x(2, 3, 4, 8), draw.x(2, 3, 4, 8), *draw.tables(1, 3, width)), {}

    return _examples(calls)


@_examples
def _sam3_calls(draw):
    yield (*draw.q_k(), *draw.tables(5, 8)), {}
    yield (*draw.q_k(), *draw.tables(1, 1, 5, 8)), {}


@_examples
def _last_rows_calls(draw):
    q, k = draw.q_k()
    cos, sin = draw.tables(2, 5, 8)
    yield (q[:, :, -2:], k, cos, sin), {}
    yield (q, k, cos, sin, 1), {}


@_examples
def _after_prefix_calls(draw):
    for prefix in (0, 2):
        yield (*draw.q_k(), *draw.tables(5 - prefix, 8)), {}
        yield (*draw.q_k(), *draw.tables(2, 1, 5 - prefix, 8)), {"position_ids": None}


@_examples
def _q_k_v_calls(draw):
    q, k = draw.q_k()
    yield (q, k, draw.q_k()[1], *draw.tables(7, 8), torch.tensor([[0, 1, 2, 3, 4], [2, 3, 6, 5, 1]])), {}


@_examples
def _conformer_calls(draw):
    module = types.SimpleNamespace(num_heads=2, head_size=4)
    yield (module, draw.x(2, 3, 8), draw.table(2, 5, 1, 1, 4)), {}


@_examples
def _sin_first_calls(draw):
    yield (draw.x(2, 3, 4, 8), *draw.tables(2, 3, 4)), {}
    yield (draw.x(2, 3, 4, 8), *draw.tables(1, 3, 4)), {}


@_examples
def _roformer_calls(draw):
    q, k = draw.q_k()
    yield (draw.table(1, 1, 5, 8), q, k), {}
    yield (draw.table(1, 1, 5, 8), q, k, draw.q_k()[0]), {}


@_examples
def _musicflamingo_calls(draw):
    yield (draw.x(2, 3, 8), *draw.tables(2, 3, 4)), {}
    yield (draw.x(2, 3, 8), *draw.tables(2, 3, 8)), {}


@_examples
def _multidimensional_calls(draw):
    for axes in (1, 2):
        yield (draw.x(2, 3, 4, 8), *draw.tables(2, 3, 8), torch.zeros(2, 3, axes, dtype=torch.int64)), {}
        yield (draw.x(1, 3, 4, 8), *draw.tables(1, 3, 8), torch.zeros(1, 3, axes), 2), {}


@_examples
def _vjepa2_calls(draw):
    yield (draw.x(2, 3, 5, 8), torch.arange(5)), {}
    yield (draw.x(2, 3, 5, 8), torch.tensor([4, 0, 1, 9, 3]).expand(2, 3, 5)), {}


@_examples
def _sam2_calls(draw):
    q = draw.x(2, 2, 4, 8)
    for table in ((4, 8), (1, 1, 4, 8)):
        cos, sin = draw.tables(*table)
        yield (q, draw.x(2, 2, 4, 8), cos, sin), {}
        yield (q, draw.x(2, 2, 7, 8), cos, sin), {"num_k_exclude_rope": 3}
        yield (q, draw.x(2, 2, 11, 8), cos, sin, 3, True), {}
        yield (q, draw.x(2, 2, 3, 8), cos, sin, 3), {"repeat_freqs_k": True}


@_examples
def _edgetam_calls(draw):
    tables = *draw.tables(4, 8), *draw.tables(3, 8)
    yield (draw.x(2, 1, 4, 8), draw.x(2, 1, 3, 8), *tables), {}
    yield (draw.x(2, 1, 4, 8), draw.x(2, 1, 12, 8), *tables), {"num_k_exclude_rope": 2, "repeat_freqs_k": 2}
    yield (draw.x(2, 1, 4, 8), draw.x(2, 1, 2, 8), *tables, 2), {}


def _complex_calls(*shape, heads):
    """heads: axis of the heads of x."""

    def examples(seed, dtype):
        draw = _Draw(seed, dtype, torch.float32)
        q, k = draw.q_k(3, 16)
        if heads == 2:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        return [((q, k, torch.complex(*draw.tables(*shape))), {})]

    return examples


_BEFORE_HALF = {"read": "half", "interleaved": True, "out_interleaved": False, "joined": True}

# General ones first: python -m rope_ext.integrations.known takes the first that a function equals.
DIALECTS = [
    Dialect(f"transformers.{name}", *rest)
    for name, *rest in [
        # f(q, k, cos, sin, unsqueeze_dim=1)
        ("muse_glimmer_assistant", _last_rows, _last_rows_calls),
        ("gpt_neox", _q_k(partial="leading"), _q_k_calls(8, 4)),
        ("glm", _q_k(partial="leading", read="half", interleaved=True), _q_k_calls(8, 4)),
        ("glm4v", _q_k(partial="leading", interleaved=True), _q_k_calls(8, 4)),
        ("llama", _q_k(), _q_k_calls(8)),
        ("nanochat", _q_k(inverse=True), _q_k_calls(8)),
        ("olmo", _q_k(result="kept"), _q_k_calls(8)),
        ("hunyuan_vl", _q_k(result="float32"), _q_k_calls(8)),
        ("blt", _q_k(interleaved=True), _q_k_calls(8)),
        ("cohere", _q_k(result="float32", interleaved=True), _q_k_calls(8)),
        ("helium", _q_k(read="half", interleaved=True), _q_k_calls(8)),
        ("esm", _q_k(result="float32 terms"), _q_k_calls(8)),
        ("ernie4_5", _q_k(result="float32 terms", read="half", interleaved=True), _q_k_calls(8)),
        ("ernie4_5_vl", _q_k(result="float32 terms", interleaved=True), _q_k_calls(8)),
        ("pe_audio", _q_k(read="half", interleaved=True, joined=True), _q_k_calls(8)),
        ("gpt_oss", _q_k(read="pairs", joined=True), _q_k_calls(4)),
        ("openai_privacy_filter", _q_k(read="pairs", interleaved=True, joined=True), _q_k_calls(4)),
        ("mistral_large4", _optional_k(True, **_BEFORE_HALF), _without_k(8, False)),
        # f(q, k, cos, sin, position_ids=None, unsqueeze_dim=1)
        ("glmasr", _q_k_position_ids(partial="leading"), _q_k_calls(8, 4, position_ids=True)),
        ("deepseek_v3", _q_k_position_ids(**_BEFORE_HALF), _q_k_calls(8, position_ids=True)),
        # f(q, k, cos, sin)
        ("qwen2_vl_vision", _vision(axis=-2, result="float32"), _vision_calls(8)),
        ("inkling2_vision", _vision(axis=-2, result="float32", interleaved=True), _vision_calls(8)),
        ("minimax_m3_vision", _vision(axis=1, partial="leading"), _vision_calls(8, 4, batched=False)),
        ("sam3", _vision(result="float32", interleaved=True), _sam3_calls),
        # f(x, cos, sin, unsqueeze_dim=1)
        ("gemma4", _x(), _x_calls(8)),
        ("deepseek_v4", _x(result="float32 terms", partial="trailing", read="pairs", interleaved=True), _x_calls(4, 2)),
        # others
        ("qwen4_exp", _optional_k(False, partial="leading"), _without_k(4, True)),
        ("dinov3", _after_prefix, _after_prefix_calls),
        ("clvp", _q_k_v, _q_k_v_calls),
        ("wav2vec2_bert", _conformer, _conformer_calls),
        ("gptj", _sin_first, _sin_first_calls),
        ("roformer", _roformer, _roformer_calls),
        ("musicflamingo", _musicflamingo, _musicflamingo_calls),
        ("gemma4_vision", _multidimensional, _multidimensional_calls),
        ("vjepa2", _vjepa2, _vjepa2_calls),
        ("sam2", _sam2, _sam2_calls),
        ("edgetam", _edgetam, _edgetam_calls),
        ("llama4", _xq_xk(2), _complex_calls(2, 3, 8, heads=2), _fused),
        ("deepseek_v2", _xq_xk(1), _complex_calls(2, 3, 8, heads=1), _fused),
        ("llama4_vision", _llama4_vision, _complex_calls(3, 1, 8, heads=2), _fused),
    ]
]
