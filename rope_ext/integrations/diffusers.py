"""Dialects: the rotary functions of diffusers (huggingface/diffusers 0.42.1), in the order of their tables.

Each `read` has the arguments of the functions it stands for. Not here, since they are no functions of their own: the
rotations that cosmos3, ideogram4 and the autoencoder of MiniMax-H3 write out in their attention.
"""

import torch
from torch.nn.functional import embedding

from ._dialect import Dialect
from ._diffusers_examples import CALLS
from ._turn import adapter, examples, fused, turn

EVEN = {"interleaved": True}
PAIRS = EVEN | {"per_pair": True}
FP32 = {"least": torch.float32, "keep_dtype": True}
ONE_CAST = FP32 | {"casts": 1}
FP64 = {"least": torch.float64, "keep_dtype": True, "casts": 1}


# ---- cos and sin, one entry per channel ----


def _embeddings(x, freqs_cis, use_real=True, use_real_unbind_dim=-1, sequence_dim=2):
    if x.dim() != 4:
        return None
    if not use_real:
        return None if freqs_cis.dim() != 3 else _complex(x, freqs_cis.unsqueeze(2))
    cos, sin = freqs_cis
    if sequence_dim not in (1, 2) or use_real_unbind_dim not in (-1, -2) or cos.dim() != 2 or sin.dim() != 2:
        return None
    if sequence_dim == 1:
        cos, sin = cos[:, None], sin[:, None]
    return x, cos.to(x.device), sin.to(x.device), FP32 | {"interleaved": use_real_unbind_dim == -1}


def _qwen(x, freqs_cis, use_real=True, use_real_unbind_dim=-1):
    if not use_real:
        return None if x.dim() != 4 or freqs_cis.dim() != 2 else _complex(x, freqs_cis.unsqueeze(1))
    return _embeddings(x, freqs_cis, True, use_real_unbind_dim)


def _stable_audio(self, x, freqs_cis):
    cos, sin = (t.to(x.device) for t in freqs_cis)
    return None if x.dim() != 4 or cos.dim() != 2 else (x, cos, sin, FP32 | {"rotary_dim": cos.shape[-1]})


def _longcat_audio(hidden_states, rope):
    cos, sin = (t[:, None].to(hidden_states.device) for t in rope)
    return None if cos.dim() != 3 or hidden_states.dim() < 4 else (hidden_states, cos, sin, FP32)


def _joyimage(xq, xk, freqs_cis):
    cos, sin = (t.view(xq.shape[1], *[1] * (xq.dim() - 3), xq.shape[-1]).to(xq.device) for t in freqs_cis)
    return (xq, xk), cos, sin, FP32 | EVEN


def _joyimage_batched(xq, xk, freqs_cis):
    cos, sin = (t.to(xq.device).unsqueeze(2) for t in freqs_cis)
    return (xq, xk), cos, sin, FP32 | EVEN


def _ltx(x, freqs):  # (batch, seqlen, heads * head_dim), frequencies of their own for each head
    cos, sin = freqs
    return None if x.dim() != 3 else (x, cos, sin, FP32 | EVEN)


def _anima(hidden_states, cos, sin, unsqueeze_dim=1):
    return hidden_states, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), {}


def _minimax_h3(hidden_states, cos, sin):
    cos, sin = (t.to(hidden_states.dtype)[None, :, None] for t in (cos, sin))
    return hidden_states, cos, sin, {"rotary_dim": cos.shape[-1]}


def _minimax_music3(hidden_states, rotary_emb):
    cos, sin = (t[:, None].to(hidden_states.dtype) for t in rotary_emb)
    return hidden_states, cos, sin, {"rotary_dim": cos.shape[-1]}


# ---- one entry per pair ----


def _wan(hidden_states, freqs_cos, freqs_sin):  # the other entries of the tables are not read
    return hidden_states, freqs_cos[..., 0::2], freqs_sin[..., 1::2], {"keep_dtype": True} | PAIRS


def _helios(hidden_states, freqs_cis):
    cos, sin = freqs_cis.unsqueeze(-2).chunk(2, dim=-1)
    return _wan(hidden_states, cos, sin)


def _mochi(x, freqs_cos, freqs_sin):  # learned, per head
    return x, freqs_cos, freqs_sin, ONE_CAST | PAIRS


def _kolors(x, rope_cache):
    if x.dim() != 4 or rope_cache.shape[0] < x.shape[0]:
        return None
    pairs = rope_cache.shape[-2]
    cos, sin = rope_cache[: x.shape[0]].view(x.shape[0], -1, 1, pairs, 2).unbind(-1)
    return x, cos, sin, {"rotary_dim": 2 * pairs} | PAIRS


# ---- complex numbers ----


def _complex(x, freqs_cis, options=ONE_CAST):
    if not freqs_cis.is_complex():
        return None
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    return x, cos, sin, options | PAIRS


def _complex_heads(x_in, freqs_cis):
    return None if x_in.dim() != 4 else _complex(x_in, freqs_cis.unsqueeze(2))


def _anyflow(hidden_states, freqs):
    return None if hidden_states.dim() != 4 else _complex(hidden_states, freqs, FP64)


def _sana_wm(original, rounding, hidden_states, freqs):  # (batch, heads, head_dim, seqlen)
    read = None if hidden_states.dim() != 4 else _complex(hidden_states.permute(0, 1, 3, 2), freqs)
    y = None if read is None else turn(*read[:3], rounding, **read[3])
    return original(hidden_states, freqs) if y is None else y.permute(0, 1, 3, 2)


def _wan_animate_2(original, rounding, x, grid_sizes, freqs, time_stride=1):
    """The function reads a table for each of three axes; the tokens of a sample past its grid are copied."""
    pairs = x.size(3) // 2
    axes = freqs.split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)
    samples = []
    for sample, (f, h, w) in zip(x, grid_sizes.tolist()):
        steps = axes[0][: f * time_stride : time_stride], axes[1][:h], axes[2][:w]
        shapes = (f, 1, 1, -1), (1, h, 1, -1), (1, 1, w, -1)
        table = torch.cat([t.view(s).expand(f, h, w, -1) for t, s in zip(steps, shapes)], dim=-1).reshape(
            f * h * w, 1, -1
        )
        tokens, cos, sin, options = _complex(sample[: f * h * w], table.reshape(f * h * w, 1, -1), FP64)
        y = turn(tokens, cos, sin, rounding, **options | {"keep_dtype": False})
        if y is None:
            return original(x, grid_sizes, freqs, time_stride)
        samples.append(torch.cat([y, sample[f * h * w :]]))
    return torch.stack(samples).float()


# ---- 2x2 matrices ----


def _matrices(x, m):
    """m: (..., pairs, 2, 2), any matrices: y = m[..., 0] * x_even + m[..., 1] * x_odd."""
    cos = m.diagonal(dim1=-2, dim2=-1).flatten(-2)
    sin = torch.stack((-m[..., 0, 1], m[..., 1, 0]), dim=-1).flatten(-2)
    return x, cos, sin, ONE_CAST | EVEN


def _hidream(xq, xk, freqs_cis):
    return _matrices((xq, xk), freqs_cis)


def _prx(xq, freqs_cis):
    return _matrices(xq, freqs_cis.to(device=xq.device, dtype=torch.float32))


def _kandinsky6(x, rope):
    return _matrices(x, rope.float())


def _kandinsky5(original, rounding, x, rope):  # bfloat16, whatever x is
    x32 = x if x.dtype == torch.bfloat16 else x.to(torch.float32)
    read = _matrices(x32, rope)
    y = turn(*read[:3], rounding, **read[3])
    return original(x, rope) if y is None else y.to(torch.bfloat16)


# ---- angles ----


def _ernie(x_in, freqs_cis):
    cos, sin = freqs_cis.cos().to(x_in.dtype), freqs_cis.sin().to(x_in.dtype)
    return x_in, cos, sin, {"rotary_dim": freqs_cis.shape[-1]}


def _stable_audio_3(t, freqs):
    angles = freqs[-t.shape[-3] :].float().unsqueeze(1)
    return t, angles.cos(), angles.sin(), ONE_CAST | {"rotary_dim": freqs.shape[-1]}


def _ltx2_decoder(original, rounding, self, x, positions, inv_freqs, axis):  # (batch, t, h, w, heads, channels)
    angles = positions[:, None] * inv_freqs
    before, tokens, after = (x.shape[:axis].numel(), x.shape[axis], x.shape[axis + 1 : -1].numel())
    x4 = x.reshape(before, tokens, after, x.shape[-1])
    y = turn(x4, angles.cos().unsqueeze(1), angles.sin().unsqueeze(1), rounding, **ONE_CAST | PAIRS)
    return original(self, x, positions, inv_freqs, axis) if y is None else y.view(x.shape)


# ---- others ----


def _by_heads(x, table):
    """(batch, seqlen, heads * head_dim) as (batch, heads, seqlen, head_dim), where only the table has heads."""
    return x.unflatten(-1, (table.shape[1], -1)).transpose(1, 2) if x.dim() != 4 and table.dim() == 4 else x


def _ltx2_split(x, freqs):
    cos, sin = freqs
    return _by_heads(x, cos), cos, sin, ONE_CAST | {"per_pair": True}


def _ltx2_split_adapter(original, rounding, x, freqs):
    x4, cos, sin, options = _ltx2_split(x, freqs)
    y = turn(x4, cos, sin, rounding, **options)
    if y is None:
        return original(x, freqs)
    return y if x4 is x else y.transpose(1, 2).flatten(2)


def _allegro(original, rounding, x, freqs_cis, positions):  # a third of the channels for each axis
    if x.dim() == 4 and all(p.dim() == 2 for p in positions):
        gathered = [[embedding(p, t)[:, None] for t in tables] for p, tables in zip(positions, freqs_cis)]
        y = [turn(part, *tables, rounding, **FP32) for part, tables in zip(x.chunk(3, dim=-1), gathered)]
        if not any(part is None for part in y):
            return torch.cat(y, dim=-1)
    return original(x, freqs_cis, positions)


# ---- bounds, where PyTorch fuses a product and the sum ----


def _sana_wm_bound(args, kwargs, y):
    hidden_states, freqs = args
    return fused(_complex)((hidden_states.transpose(2, 3), freqs), {}, y.transpose(2, 3)).transpose(2, 3)


def _ltx2_split_bound(args, kwargs, y):
    y4 = _by_heads(y, args[1][0])
    bound = fused(_ltx2_split)(args, kwargs, y4)
    return bound if y4 is y else bound.transpose(1, 2).flatten(2)


def _float64_bound(args, kwargs, y):
    """One rounding is missing in float64, which can lead to the next float32 number."""
    return torch.finfo(torch.float32).eps * y.abs() + 1e-14


ADAPTERS = {
    "embeddings": adapter(_embeddings, bits=True),
    "qwen": adapter(_qwen),
    "stable_audio": adapter(_stable_audio),
    "longcat_audio": adapter(_longcat_audio),
    "joyimage": adapter(_joyimage),
    "joyimage_batched": adapter(_joyimage_batched),
    "ltx": adapter(_ltx),
    "anima": adapter(_anima),
    "minimax_h3": adapter(_minimax_h3),
    "minimax_music3": adapter(_minimax_music3),
    "wan": adapter(_wan),
    "helios": adapter(_helios),
    "mochi": adapter(_mochi),
    "kolors": adapter(_kolors),
    "complex": adapter(_complex_heads),
    "anyflow": adapter(_anyflow),
    "sana_wm": _sana_wm,
    "wan_animate_2": _wan_animate_2,
    "hidream": adapter(_hidream),
    "prx": adapter(_prx),
    "kandinsky5": _kandinsky5,
    "kandinsky6": adapter(_kandinsky6),
    "ernie_image": adapter(_ernie),
    "stable_audio_3": adapter(_stable_audio_3),
    "ltx2_decoder": _ltx2_decoder,
    "ltx2_split": _ltx2_split_adapter,
    "allegro": _allegro,
}
BOUNDS = {
    "qwen": fused(_qwen),
    "complex": fused(_complex_heads),
    "anyflow": fused(_anyflow),
    "sana_wm": _sana_wm_bound,
    "wan_animate_2": _float64_bound,
    "ltx2_split": _ltx2_split_bound,
}
DIALECTS = [Dialect(f"diffusers.{name}", ADAPTERS[name], examples(CALLS[name]), BOUNDS.get(name)) for name in ADAPTERS]
