"""One case: q and k in a form of memory, the tables of their angles, and what a variant makes of them for the clock."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import rope_ext
from benchmarks.harness.shapes import Shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAIRINGS, PASSES = ["half", "interleaved"], ["forward", "forward+backward"]
# Of (batch, heads, seqlen, head_dim) views. qkv: q and k are slices of one (batch, seqlen, (heads_q + 2 heads_k) *
# head_dim) projection, as a fused linear layer leaves them.
MEMORIES = ["bshd", "bhsd", "qkv"]
FORMS = ["functional", "out=", "in place"]  # compared with their like only: they move different numbers of bytes


@dataclass
class Tables:
    """What is made once per model or per step, before the clock starts: each implementation's form of the angles.

    All forms come from the same float64 angles. Models multiply position and frequency in float32, which changes
    accuracy and not time; here it would hide errors of the rotation.
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

    def __post_init__(self):
        torch.manual_seed(0)
        self.interleaved, self.backward = self.pairing == "interleaved", self.which == "forward+backward"
        self.inputs = in_memory(*self._random(), self.memory)
        self.grads = in_memory(*self._random(), self._memory_of_grads()) if self.backward else ()
        self.tables = self._make_tables()

    def __str__(self):
        return " ".join((self.shape.name, self.dtype, self.pairing, self.which, self.memory))

    def fresh_inputs(self):
        """The inputs once more, to be overwritten."""
        return in_memory(*self.inputs, self.memory)

    def fresh_grads(self):
        return in_memory(*self.grads, self._memory_of_grads()) if self.backward else ()

    def again(self, times):
        """As many copies of this case, each with inputs and gradients in memory of its own."""
        found = [copy.copy(self) for _ in range(times)]
        for case in found:
            case.inputs, case.grads = self.fresh_inputs(), self.fresh_grads()
        return found

    def outputs(self):
        """Written now, so that no page is new to the clock; NaN, which the check finds where it stays."""
        return tuple(torch.full_like(x, math.nan) for x in self.inputs)

    def _memory_of_grads(self):
        return "bhsd" if self.memory == "bhsd" else "bshd"

    def _random(self):
        s = self.shape
        shapes = [(s.batch, heads, s.seqlen, s.head_dim) for heads in (s.heads_q, s.heads_k)]
        return [torch.randn(shape, device=self.device).to(DTYPES[self.dtype]) for shape in shapes]

    def _make_tables(self):
        first, end = self.shape.first_position, self.shape.first_position + self.shape.seqlen
        rope = rope_ext.RotaryEmbedding(self.shape.head_dim)
        cos, sin = rope.tables(end, device=self.device)

        def per_channel(t):
            wide = t[first:].repeat_interleave(2, dim=-1) if self.interleaved else torch.cat((t[first:],) * 2, dim=-1)
            return wide.to(DTYPES[self.dtype])[None, None]

        angles = torch.outer(torch.arange(first, end, dtype=torch.float64), rope.inv_freq).to(self.device)
        of_tokens = cos[first:], sin[first:]
        per_channel = per_channel(cos), per_channel(sin)
        return Tables(angles, rope.inv_freq, cos, sin, *of_tokens, *per_channel, torch.complex(*of_tokens))


def in_memory(q, k, memory):
    """q and k, (batch, heads, seqlen, head_dim), copied to fresh memory of that form."""
    if memory == "bhsd":
        return tuple(x.clone(memory_format=torch.contiguous_format) for x in (q, k))
    by_token = [x.transpose(1, 2) for x in (q, k)]
    if memory == "qkv":
        packed = torch.cat((*by_token, by_token[1]), dim=2)
        copies = packed[:, :, : q.shape[1]], packed[:, :, q.shape[1] : q.shape[1] + k.shape[1]]
    else:
        copies = [x.clone(memory_format=torch.contiguous_format) for x in by_token]
    return tuple(x.transpose(1, 2) for x in copies)


# ---- variants ----


class NotOffered(Exception):
    """A variant does not do this case; the message says why."""


def nothing():
    pass


@dataclass
class Step:
    """call() is what the clock sees. before() and after() are not timed, and surround every sample of calls."""

    call: Callable  # () -> results: rotated q and k, and with derivatives their gradients
    before: Callable = nothing
    after: Callable = nothing
    forward: Callable | None = None  # with derivatives: the part of call that records them
    fetch: Callable = tuple  # results -> torch tensors, (batch, heads, seqlen, head_dim)


@dataclass(frozen=True)
class Variant:
    """roundings: to the dtype of x, on the way from x and exact angles to a result (exactness.error_bound)."""

    name: str
    form: str
    build: Callable  # Case -> Step, or raises NotOffered
    roundings: int
    pairing: str | None = None  # None: both
    float32_angles: bool = False  # it computes the angles itself, in float32
    reads: str = ""  # where that is not the table of cos and sin in float32 that ours reads
    ours: bool = False
    foreign: bool = False  # its failures and wrong results are reported; those of the others end the program


def of_tensors(call, order=(0, 1, 2, 3)):
    """build of call(q, k, tables) -> (q, k) of torch tensors, which autograd differentiates.

    order: of the axes (batch, heads, seqlen, head_dim) in the tensors that call takes and returns.
    """
    back = [order.index(axis) for axis in range(4)]

    def fetch(results):
        return [y.permute(back) for y in results]

    def build(case):
        inputs, grads = ([x.permute(order) for x in group] for group in (case.inputs, case.grads))
        if not case.backward:
            return Step(partial(call, *inputs, case.tables), fetch=fetch)
        leaves = [x.detach().requires_grad_() for x in inputs]

        def forward_backward():  # autograd.grad of given gradients: nothing is accumulated, no loss is computed
            y = call(*leaves, case.tables)
            return *y, *torch.autograd.grad(y, leaves, grads)

        return Step(forward_backward, forward=partial(call, *leaves, case.tables), fetch=fetch)

    return build


def forward_only(build):
    """build, for what has no derivative."""

    def checked(case):
        if case.backward:
            raise NotOffered("no derivative")
        return build(case)

    return checked
