"""Serve prompts with a tiny Llama: KV cache, left padding, packed prompts and torch.compile, each checked.

    python examples/serve_tiny_llama.py [--tokens 24] [--device cuda]

The model has grouped-query attention and an RMSNorm of each query and key head, as in Qwen3. Its weights are random.
In each layer, one call of `rope_ext.apply_qkv` normalizes and rotates q and k and splits the packed projection. Prefill
and decode differ only in how they pass the positions of the tokens to this call:

    prompts padded on the left         positions=(mask.cumsum(-1) - 1).clamp(min=0)
    packed prompts, without padding    layout="thd", cu_seqlens=cu_seqlens
    decode, one token per sequence     offset=lengths

Rotated q and k are bit-identical in all three forms. Logits are not, because matrix products and attention sum in an
order that depends on the shapes: the largest difference is printed, and every token has to be equal. The exit status is
1 if a check fails. torch.compile needs a C++ compiler. `--device cuda` has never been run.
"""

import argparse
import functools
import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import rope_ext

TEXTS = (
    "Before we proceed any further, hear me speak.",
    "Speak, speak.",
    "You are all resolved rather to die than to famish?",
)
# Of the difference between logits, relative to the largest. In another order, a float32 sum of 352 terms (the longest
# here) changes by about sqrt(352) * 2**-24 = 1e-6 of their size, and about ten sums follow one another. Decoding at the
# next position, by mistake, changes logits by 3e-2.
BOUND = 1e-5


@dataclass
class Config:
    vocabulary: int = 128  # tokens are bytes of ASCII
    dim: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 352


# ---- the model ----


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = {"num_heads": c.heads, "num_kv_heads": c.kv_heads}
        self.attention_norm, self.mlp_norm = nn.RMSNorm(c.dim), nn.RMSNorm(c.dim)
        self.qkv = nn.Linear(c.dim, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=False)
        self.q_norm, self.k_norm = (nn.Parameter(torch.rand(c.head_dim) + 0.5) for _ in range(2))
        self.out = nn.Linear(c.heads * c.head_dim, c.dim, bias=False)
        self.gate_up = nn.Linear(c.dim, 2 * c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.dim, bias=False)

    def split_and_rotate(self, qkv, rotation):
        """q and k, normalized and rotated, and v, unchanged. qkv: (..., heads of q, k and v * head_dim)."""
        return rope_ext.apply_qkv(qkv, **rotation, **self.heads, norm=(self.q_norm, self.k_norm), eps=1e-6)

    def forward(self, x, attend, rotation):
        q, k, v = self.split_and_rotate(self.qkv(self.attention_norm(x)), rotation)
        x = x + self.out(attend(q, k, v).flatten(-2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class TinyLlama(nn.Module):
    def __init__(self, c, max_position):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocabulary, c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.dim)
        self.head = nn.Linear(c.dim, c.vocabulary, bias=False)
        self.rope = rope_ext.RotaryEmbedding(c.head_dim)
        cos, sin = self.rope.tables(max_position)
        self.angles = {"cos": cos, "sin": sin}  # no buffers: nothing to save, and .half() does not round them

    def forward(self, tokens, attend, **positions):
        """Logits. attend(layer, q, k, v) is the attention; positions are keywords of `rope_ext.apply_qkv`."""
        x = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, functools.partial(attend, layer), {**self.angles, **positions})
        return self.head(self.norm(x))


# ---- prompts and cache ----


class Prompts:
    """Prompts of different lengths, in both forms: (batch, width), padded on the left, and packed, (tokens,)."""

    def __init__(self, prompts):
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(self.lengths.max())
        self.mask = torch.arange(width) >= width - self.lengths[:, None]  # False for padding
        self.packed = torch.cat(prompts)
        self.padded = torch.zeros(self.mask.shape, dtype=torch.int64).masked_scatter(self.mask, self.packed)
        self.positions = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)  # not clamped, padding would have position -1
        self.cu_seqlens = F.pad(self.lengths.cumsum(0), (1, 0))


class Cache:
    """Keys and values, (layers, batch, slots, kv_heads, head_dim), allocated once: the prompts, and count more tokens.

    All prompts end at the same slot, so a step of decoding writes one slot of every sequence, whatever their lengths.
    """

    def __init__(self, c, prompts, count):
        self.filled = F.pad(prompts.mask, (0, count))  # (batch, slots): False for padding, and until a token arrives
        shape = (c.layers, *self.filled.shape, c.kv_heads, c.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)  # not torch.empty: 0 * NaN is NaN

    def attention(self, slots):
        """attend(layer, q, k, v), which writes k and v to these slots, (seqlen,), and then attends to the cache."""
        numbers = torch.arange(self.filled.shape[1])
        visible = self.filled[:, None] & (numbers <= slots[:, None])  # (batch, seqlen, slots)
        visible |= numbers == slots[:, None]  # padding sees itself, because a softmax over no slot is NaN

        def attend(layer, q, k, v):
            keys = self.keys[layer].index_copy_(1, slots, k)
            values = self.values[layer].index_copy_(1, slots, v)
            q, k, v = (t.transpose(1, 2) for t in (q, keys, values))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=True).transpose(1, 2)

        return attend


# ---- prefill and decode ----


def prefill_padded(model, prompts, cache):
    """Logits after the last token of each prompt, (batch, vocabulary)."""
    slots = torch.arange(prompts.mask.shape[1])
    return model(prompts.padded, cache.attention(slots), positions=prompts.positions)[:, -1]


def prefill_packed(model, prompts, cache):
    """The logits of `prefill_padded` without the padding."""
    return forward_packed(model, prompts, cache)[prompts.cu_seqlens[1:] - 1]


def forward_packed(model, prompts, cache=None):
    """Logits after every token, (tokens, vocabulary). With a cache, its filled slots receive the keys and values."""

    def attend(layer, q, k, v):  # (tokens, heads, head_dim); flash_attn_varlen_func is one call for this on a GPU
        if cache is not None:
            cache.keys[layer][cache.filled], cache.values[layer][cache.filled] = k, v
        sequences = zip(*(t.transpose(0, 1).split(prompts.lengths.tolist(), dim=1) for t in (q, k, v)))
        attended = [F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True) for qkv in sequences]
        return torch.cat(attended, dim=1).transpose(0, 1)

    return model(prompts.packed, attend, layout="thd", cu_seqlens=prompts.cu_seqlens)


def decode(model, tokens, cache, slot, lengths):
    """Logits after one more token of each sequence, (batch, vocabulary).

    tokens: (batch,). slot: (1,), where the keys and values go. lengths: (batch,), the number of tokens before, which is
    the position of this one.
    """
    cache.filled.index_fill_(1, slot, True)
    return model(tokens[:, None], cache.attention(slot), offset=lengths)[:, -1]


def serve(model, prompts, count, prefill=prefill_padded, step=decode, name=None):
    """Logits of `count` tokens after each prompt, (batch, count, vocabulary); each token is the most likely one."""
    width = prompts.mask.shape[1]
    cache = Cache(model.c, prompts, count)
    logits = [prefill(model, prompts, cache)]
    for i in tqdm(range(count - 1), desc=name, unit="token", leave=False):
        slot = torch.tensor([width + i])  # a tensor: torch.compile would make an int a constant of the graph
        logits.append(step(model, logits[-1].argmax(dim=-1), cache, slot, prompts.lengths + i))
    return torch.stack(logits, dim=1)


# ---- the checks ----


def rotations_are_bit_identical(model, prompts):
    """Whether q and k of padded and of packed prompts equal those of each prompt alone."""
    block = model.blocks[0]
    projected = torch.randn(*prompts.mask.shape, block.qkv.out_features)
    tokens = projected[prompts.mask]  # packed
    padded = block.split_and_rotate(projected, {**model.angles, "positions": prompts.positions})
    packed = block.split_and_rotate(tokens, {**model.angles, "layout": "thd", "cu_seqlens": prompts.cu_seqlens})
    alone = [block.split_and_rotate(t[None], model.angles) for t in tokens.split(prompts.lengths.tolist())]
    expected = [torch.cat(parts, dim=1)[0] for parts in zip(*alone)]
    forms = [t[prompts.mask] for t in padded], packed
    return all(torch.equal(a, b) for form in forms for a, b in zip(form, expected))


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24, help="tokens to generate after each prompt, 2 or more")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.tokens < 2:  # the first token is that of the prefill: one token is no decoding
        parser.error(f"argument --tokens: must be 2 or more, got {options.tokens}")
    count = options.tokens
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    texts = [torch.tensor([*text.encode()]) for text in TEXTS]
    prompts = Prompts(texts)
    model = TinyLlama(Config(), max_position=prompts.mask.shape[1] + count)

    alone = torch.cat([serve(model, Prompts([text]), count, name="each prompt alone") for text in texts])
    padded = serve(model, prompts, count, name="left padding")
    packed = serve(model, prompts, count, prefill=prefill_packed, name="packed prompts")
    compiled = serve(model, prompts, count, step=torch.compile(decode, fullgraph=True), name="compiled decode")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    whole = Prompts([torch.cat((text, logits.argmax(dim=-1)[:-1])) for text, logits in zip(texts, alone)])
    uncached = [logits[-count:] for logits in forward_packed(model, whole).split(whole.lengths.tolist())]
    is_exact = rotations_are_bit_identical(model, prompts)
    model.angles = {"inv_freq": model.rope.inv_freq.to(options.device)}  # no table: the kernel computes cos and sin
    tableless = serve(model, prompts, count, name="no table")

    print(f"prompts of {', '.join(str(len(text)) for text in texts)} tokens, {count} more of each\n")
    print("                                           tokens    logits, largest difference")
    results = [is_exact, graphs == 1]
    for name, logits, expected in (
        ("KV cache, against no cache", alone, torch.stack(uncached)),
        ("left padding, against each prompt alone", padded, alone),
        ("packed prompts, against each prompt alone", packed, alone),
        ("compiled decode, against eager decode", compiled, padded),
        ("no table, against a table", tableless, padded),
    ):
        difference = ((logits - expected).abs().max() / expected.abs().max()).item()
        is_equal = torch.equal(logits.argmax(dim=-1), expected.argmax(dim=-1))
        results.append(is_equal and difference <= BOUND)
        print(f"{name:42} {'equal' if is_equal else 'DIFFER':9} {difference:.1e}{'' if results[-1] else ' FAILED'}")
    verdict = "bit-identical to" if is_exact else "DIFFER from"
    print(f"\nrotated q and k, padded and packed: {verdict} those of each prompt alone")
    print(f"compiled decode: offsets {count - 1}, graphs {graphs}, recompilations {graphs - 1}")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
