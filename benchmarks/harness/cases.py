"""One case: q and k in some memory order, their tables, and the weights of a norm."""

import copy
import math
from dataclasses import dataclass

import torch

import rope_ext
from benchmarks.harness.shapes import Shape

EPS = 1e-6  # of the norm
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAIRINGS, PASSES = ["half", "interleaved"], ["forward", "forward+backward"]
# Memory order of the (batch, heads, seqlen, head_dim) views. qkv: q and k are slices of one packed projection (batch,
# seqlen, (heads_q + 2 heads_k) * head_dim), as a fused linear layer returns them.
MEMORIES = ["bshd", "bhsd", "qkv"]


@dataclass
class Tables:
    """The angles in the form of each implementation, built before the clock starts, as models do once or once per step.

    All forms come from the same float64 angles. Models multiply position and frequency in float32, which changes the
    accuracy and not the time; here it would hide errors of the rotation.
    """

    angles: torch.Tensor  # (seqlen, head_dim / 2) float64, radians
    inv_freq: torch.Tensor  # (head_dim / 2,) float64
    cos: torch.Tensor  # (first_position + seqlen, head_dim / 2) float32
    sin: torch.Tensor
    token_cos: torch.Tensor  # (seqlen, head_dim / 2) float32: the rows of this case's tokens
    token_sin: torch.Tensor
    channel_cos: torch.Tensor  # (1, 1, seqlen, head_dim) in the dtype of x: one entry per channel
    channel_sin: torch.Tensor
    unit: torch.Tensor  # (seqlen, head_dim / 2) complex64


@dataclass
class Case:
    shape: Shape
    dtype: str
    pairing: str
    which: str  # one of PASSES
    memory: str
    threads: int
    device: str = "cpu"
    norm: bool = False  # RMSNorm of each head before the rotation

    def __post_init__(self):
        torch.manual_seed(0)
        self.interleaved, self.backward = self.pairing == "interleaved", self.which == "forward+backward"
        self.inputs = in_memory(*self._random(), self.memory)
        self.grads = in_memory(*self._random(), self._memory_of_grads()) if self.backward else ()
        self.tables = self._make_tables()
        self.weights = self._make_weights() if self.norm else ()

    def __str__(self):
        return " ".join((self.shape.name, self.dtype, self.pairing, self.which, self.memory)) + " norm" * self.norm

    def fresh_inputs(self):
        """Copies of the inputs, to be overwritten."""
        return in_memory(*self.inputs, self.memory)

    def fresh_grads(self):
        return in_memory(*self.grads, self._memory_of_grads()) if self.backward else ()

    def again(self, times):
        """Copies of this case, each with its own inputs and gradients."""
        found = [copy.copy(self) for _ in range(times)]
        for case in found:
            case.inputs, case.grads = self.fresh_inputs(), self.fresh_grads()
        return found

    def outputs(self):
        """Targets for out=, mapped before the clock starts and filled with NaN, which the check would find."""
        return tuple(torch.full_like(x, math.nan) for x in self.inputs)

    def _memory_of_grads(self):
        return "bhsd" if self.memory == "bhsd" else "bshd"

    def _random(self):
        s = self.shape
        shapes = [(s.batch, heads, s.seqlen, s.head_dim) for heads in (s.heads_q, s.heads_k)]
        return [torch.randn(shape, device=self.device).to(DTYPES[self.dtype]) for shape in shapes]

    def _make_weights(self):
        """Random signs in the dtype of x: in place, smaller weights would lead to denormals after a few calls."""
        signs = torch.randint(2, (2, self.shape.head_dim), device=self.device) * 2 - 1
        return tuple(signs.to(DTYPES[self.dtype]))

    def _make_tables(self):
        first, end = self.shape.first_position, self.shape.first_position + self.shape.seqlen
        rope = rope_ext.RotaryEmbedding(self.shape.head_dim)
        cos, sin = rope.tables(end, device=self.device)

        def per_channel(t):
            wide = t.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat((t, t), dim=-1)
            return wide.to(DTYPES[self.dtype])[None, None]

        angles = torch.outer(torch.arange(first, end, dtype=torch.float64), rope.inv_freq).to(self.device)
        of_tokens = cos[first:], sin[first:]
        of_channels = map(per_channel, of_tokens)
        return Tables(angles, rope.inv_freq, cos, sin, *of_tokens, *of_channels, torch.complex(*of_tokens))


def in_memory(q, k, memory):
    """Copies of q and k, views (batch, heads, seqlen, head_dim) of new memory in the given order."""
    if memory == "bhsd":
        return tuple(x.clone(memory_format=torch.contiguous_format) for x in (q, k))
    by_token = [x.transpose(1, 2) for x in (q, k)]
    if memory == "qkv":
        packed = torch.cat((*by_token, by_token[1]), dim=2)
        copies = packed[:, :, : q.shape[1]], packed[:, :, q.shape[1] : q.shape[1] + k.shape[1]]
    else:
        copies = [x.clone(memory_format=torch.contiguous_format) for x in by_token]
    return tuple(x.transpose(1, 2) for x in copies)
