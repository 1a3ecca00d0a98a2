"""Train a tiny Llama twice from one seed, with rotary embedding in eager PyTorch and in rope_ext, and compare.

    python examples/train_tiny_llama.py [--steps 300] [--output build/demo]

Text: the opening of William Shakespeare's "Coriolanus" (1623, public domain), 102 kB, from the beginning of the file
"tiny shakespeare" that Andrej Karpathy compiled for char-rnn. Tokens are its characters.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import rope_ext

HERE = Path(__file__).resolve().parent


@dataclass
class Config:
    vocabulary: int
    dim: int = 128
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 352
    seqlen: int = 128
    batch: int = 8
    steps: int = 300
    learning_rate: float = 2e-3


# ---- the two rotary embeddings: tables once per forward pass; q and k are (batch, heads, seqlen, head_dim) ----


class EagerRotary:
    """The formula of Llama in Hugging Face transformers."""

    @staticmethod
    def tables(rope, seqlen):
        return [torch.cat((table, table), dim=-1) for table in rope.tables(seqlen)]

    @staticmethod
    def rotate_half(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    @classmethod
    def apply(cls, q, k, cos, sin):
        return q * cos + cls.rotate_half(q) * sin, k * cos + cls.rotate_half(k) * sin


class ExtRotary:
    @staticmethod
    def tables(rope, seqlen):
        return rope.tables(seqlen)

    @staticmethod
    def apply(q, k, cos, sin):
        return rope_ext.apply((q, k), cos, sin, layout="bhsd")


# ---- the model ----


class Block(nn.Module):
    def __init__(self, c, rotary):
        super().__init__()
        self.c, self.rotary = c, rotary
        self.attention_norm, self.mlp_norm = nn.RMSNorm(c.dim), nn.RMSNorm(c.dim)
        self.qkv = nn.Linear(c.dim, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=False)
        self.out = nn.Linear(c.heads * c.head_dim, c.dim, bias=False)
        self.gate_up = nn.Linear(c.dim, 2 * c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.dim, bias=False)

    def forward(self, x, cos, sin):
        c, (batch, seqlen, _) = self.c, x.shape
        heads = self.qkv(self.attention_norm(x)).view(batch, seqlen, -1, c.head_dim).transpose(1, 2)
        q, k, v = heads.split((c.heads, c.kv_heads, c.kv_heads), dim=1)
        q, k = self.rotary.apply(q, k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, seqlen, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class TinyLlama(nn.Module):
    def __init__(self, c, rotary):
        super().__init__()
        self.rotary = rotary
        self.embedding = nn.Embedding(c.vocabulary, c.dim)
        self.rope = rope_ext.RotaryEmbedding(c.head_dim)
        self.blocks = nn.ModuleList(Block(c, rotary) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.dim)
        self.head = nn.Linear(c.dim, c.vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        cos, sin = self.rotary.tables(self.rope, tokens.shape[1])
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


# ---- the run ----


def load_text():
    text = (HERE / "shakespeare.txt").read_text()
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    return torch.tensor([index[character] for character in text]), len(characters)


def train(name, rotary, tokens, c):
    """(loss of every step, seconds, number of parameters). All random numbers come from one seed."""
    torch.manual_seed(0)
    model = TinyLlama(c, rotary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.learning_rate, weight_decay=0.01)
    warmup = max(0.1, 2 / c.steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, c.learning_rate, total_steps=c.steps, pct_start=warmup)
    losses, start = [], time.perf_counter()
    for _ in tqdm(range(c.steps), desc=f"training, {name:8}", unit="step", mininterval=0.5):
        begin = torch.randint(len(tokens) - c.seqlen - 1, (c.batch, 1))
        window = tokens[begin + torch.arange(c.seqlen + 1)]
        logits = model(window[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start, sum(p.numel() for p in model.parameters())


def profile_rotary(rotary, c, repeats=20):
    """(ms, MB allocated, operators) of the rotary part of one training step: forward and backward, all layers."""
    packed = torch.randn(c.batch, c.seqlen, c.heads + 2 * c.kv_heads, c.head_dim, requires_grad=True).transpose(1, 2)
    q, k, _ = packed.split((c.heads, c.kv_heads, c.kv_heads), dim=1)
    cos, sin = rotary.tables(rope_ext.RotaryEmbedding(c.head_dim), c.seqlen)
    grads = [torch.randn_like(t) for t in (q, k)]

    def step():
        for _ in range(c.layers):
            torch.autograd.grad(rotary.apply(q, k, cos, sin), (q, k), grads)

    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        for _ in range(repeats):
            step()
    events = profiler.key_averages()
    microseconds = sum(e.self_cpu_time_total for e in events)
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in events)
    operators = sum(e.count for e in events if "::" in e.key)
    return microseconds / 1e3 / repeats, allocated / 1e6 / repeats, operators // repeats


def gradcheck_verdict():
    """Derivatives of first and second order, reverse and forward mode, with respect to x, cos and sin, in fp64."""
    torch.manual_seed(0)
    q, k = (torch.randn(2, h, 5, 6, dtype=torch.float64, requires_grad=True) for h in (4, 2))
    cos, sin = (torch.randn(8, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def rotated(q, k, cos, sin):
        return rope_ext.apply((q, k), cos, sin, layout="bhsd", offset=2)

    first = torch.autograd.gradcheck(rotated, (q, k, cos, sin), check_forward_ad=True, check_batched_grad=True)
    return first and torch.autograd.gradgradcheck(rotated, (q, k, cos, sin))


def draw(losses, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    eager, ext = losses
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1), layout="constrained")
    top.plot(eager, color="tab:orange", linewidth=4, alpha=0.5, label="eager PyTorch")
    top.plot(ext, color="tab:blue", linewidth=1, label="rope_ext")
    top.set(title="A tiny Llama trained twice from one seed", ylabel="loss (nats per character)")
    top.legend()
    bottom.plot([a - b for a, b in zip(eager, ext)], color="tab:gray")
    bottom.set(xlabel="step", ylabel="difference")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Config.steps, help="steps of each training, 3 or more")
    parser.add_argument("--output", type=Path, default=HERE.parent / "build" / "demo")
    options = parser.parse_args()
    if options.steps < 3:  # OneCycleLR needs a step of its own for the start, the peak and the end
        parser.error(f"argument --steps: must be 3 or more, got {options.steps}")
    tokens, vocabulary = load_text()
    c = Config(vocabulary=vocabulary, steps=options.steps)

    eager, eager_seconds, parameters = train("eager", EagerRotary, tokens, c)
    ext, ext_seconds, _ = train("rope_ext", ExtRotary, tokens, c)
    print(f"\n{parameters / 1e6:.2f} M parameters, {c.batch} x {c.seqlen} characters a step\n")
    print("  step   loss, eager   loss, rope_ext")
    for step in sorted({0, *range(49, c.steps, 50), c.steps - 1}):
        print(f"{step + 1:6} {eager[step]:13.6f} {ext[step]:16.6f}")
    print(f"largest difference between the losses of a step: {max(abs(a - b) for a, b in zip(eager, ext)):.3g}\n")

    profiles = [profile_rotary(rotary, c) for rotary in (EagerRotary, ExtRotary)]
    print("rotary part of a training step (forward and backward of all layers; torch.profiler):")
    for name, (ms, megabytes, operators), seconds in zip(("eager", "rope_ext"), profiles, (eager_seconds, ext_seconds)):
        print(f"  {name:8} {ms:7.2f} ms {megabytes:8.2f} MB {operators:5} operators; whole training {seconds:5.1f} s")
    verdict = "ok" if gradcheck_verdict() else "FAILED"
    print(f"\ngradcheck of rope_ext.apply, first and second order, reverse and forward mode: {verdict}")
    picture = options.output / "losses.png"
    draw((eager, ext), picture)
    print(f"loss curves: {picture}")


if __name__ == "__main__":
    main()
