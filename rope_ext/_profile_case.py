"""The case that `rope_ext.profile` measures, its tensors, and the checks that precede the measurement."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ._shown import name_of, shown
from .errors import ArgumentError, ArgumentTypeError
from .ops import apply
from .qkv import apply_qkv
from .reference import DTYPES, LAYOUTS, Layout
from .rotary import RotaryEmbedding

DTYPES_BY_NAME = {name_of(dtype): dtype for dtype in DTYPES}


@dataclass(frozen=True)
class Case:
    """One rotation of contiguous tensors. The default is q and k of a layer of Llama 3 8B.

    Args:
        batch: number of sequences; with "thd" of packed sequences; 1 with "shd", which has no batch axis.
        seqlen: tokens per sequence.
        heads: number of heads of each tensor, 1 to 8 ints.
        head_dim: channels of a head.
        rotary_dim: rotated channels, even. None: head_dim.
        dtype: dtype of x. Tables are float64 for float64 x, else float32.
        device: "cpu", or "cuda", PyTorch's current device.
        layout: as in `rope_ext.apply`.
        interleaved: as in `rope_ext.apply`.
        norm: RMSNorm of the heads before the rotation, with derivatives of its weights.
        packed: `rope_ext.apply_qkv`, with q, k and v in one tensor (..., (heads of q + 2 * heads of k) * head_dim).

    Raises:
        ArgumentError: a size or a value is wrong; a ValueError.
        ArgumentTypeError: a type is wrong; a TypeError.
    """

    batch: int = 1
    seqlen: int = 4096
    heads: Sequence[int] = (32, 8)
    head_dim: int = 128
    rotary_dim: int | None = None
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"
    layout: Layout = "bshd"
    interleaved: bool = False
    norm: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        """Checks that `rope_ext.apply` would not make, or whose errors would be about its own arguments."""
        heads_hold = isinstance(self.heads, (tuple, list)) and 1 <= len(self.heads) <= 8
        check(heads_hold, "heads", "be 1 to 8 ints, one per tensor", self.heads)
        sizes = [(name, getattr(self, name)) for name in ("batch", "seqlen", "head_dim")]
        for name, size in (*sizes, *(("heads", heads) for heads in self.heads)):
            check(isinstance(size, int) and 0 < size < 2**40, name, "be an int in 1 to 2^40 - 1", size)
        is_known = isinstance(self.dtype, torch.dtype) and self.dtype in DTYPES
        check(is_known, "dtype", f"be one of {', '.join(map(str, DTYPES))}", self.dtype, ArgumentTypeError)
        elements = self.batch * self.seqlen * sum(self.heads) * self.head_dim
        check(elements < 2**56, "seqlen", "keep batch * seqlen * heads * head_dim below 2^56", self.seqlen)
        check(self.layout in LAYOUTS, "layout", f"be one of {', '.join(LAYOUTS)}", self.layout)
        check(self.layout != "shd" or self.batch == 1, "batch", "be 1 with layout shd", self.batch)
        for name in ("norm", "packed"):
            value = getattr(self, name)
            check(isinstance(value, bool), name, "be True or False", value, ArgumentTypeError)
        if self.packed:
            check(self.layout != "bhsd", "layout", "have the heads after the tokens if packed", self.layout)
            are_of_q_and_k = len(self.heads) == 2 and self.heads[0] % self.heads[1] == 0
            check(are_of_q_and_k, "heads", "be the heads of q and of k, a divisor of the former, if packed", self.heads)
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        check(self.device in devices, "device", "be cpu, or cuda where torch finds a GPU", self.device)

    def __str__(self) -> str:
        sizes = f"batch {self.batch}, seqlen {self.seqlen}, heads {' and '.join(map(str, self.heads))}"
        rotated = "all" if self.rotary_dim is None else self.rotary_dim
        pairs = "(2i, 2i + 1)" if self.interleaved else "(i, i + rotary_dim / 2)"
        channels = f"head_dim {self.head_dim}, rotary_dim {rotated}, pairs {pairs}"
        more = ", norm" * self.norm + ", packed" * self.packed
        return f"{sizes}, {channels}, {name_of(self.dtype)} on {self.device}, layout {self.layout}{more}"


class Inputs:
    """The tensors of a case and the other arguments of its calls."""

    def __init__(self, case: Case) -> None:
        tokens = case.batch * case.seqlen
        sizes = {"b": case.batch, "s": case.seqlen, "t": tokens, "d": case.head_dim}
        shapes = [[{**sizes, "h": heads}[axis] for axis in case.layout] for heads in case.heads]
        generator = torch.Generator(case.device).manual_seed(0)  # leaves the state of torch's default generator alone
        self.x = [torch.randn(shape, generator=generator, device=case.device).to(case.dtype) for shape in shapes]
        self.leaves = [t.detach().requires_grad_() for t in self.x]
        # own is rotated in place again and again, which preserves its norm.
        self.grads, self.own, self.out = ([t.clone() for t in self.x] for _ in range(3))
        rope = RotaryEmbedding(case.head_dim, base=500_000.0, rotary_dim=case.rotary_dim)
        self.rotary_dim = rope.rotary_dim
        table_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
        cos, sin = rope.tables(case.seqlen, dtype=table_dtype, device=case.device)
        self.options: dict[str, Any] = {name: getattr(case, name) for name in ("layout", "interleaved", "rotary_dim")}
        self.options.update(cos=cos, sin=sin)
        if case.layout == "thd":
            ends = torch.arange(0, tokens + 1, case.seqlen, dtype=torch.int32, device=case.device)
            self.options["cu_seqlens"] = ends
        self.weights = [torch.ones(case.head_dim, dtype=case.dtype, device=case.device) for _ in self.x if case.norm]
        self.options |= {"norm": self.weights, "eps": 1e-6} if case.norm else {}

    def forward_backward(self) -> tuple[torch.Tensor, ...]:
        """The output gradients are given: no loss is computed, and no gradient is accumulated."""
        options, weights = self._with_leaves()
        return torch.autograd.grad(apply(self.leaves, **options), [*self.leaves, *weights], self.grads)

    def _with_leaves(self) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """The options with weights that require grad, and these weights."""
        weights = [weight.detach().requires_grad_() for weight in self.weights]
        return {**self.options, "norm": weights} if weights else self.options, weights


class PackedInputs(Inputs):
    """The tensors of a case of `rope_ext.apply_qkv`, and the other arguments of its calls."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        (q, k), heads_axis = self.x, case.layout.index("h")
        self.qkv = torch.cat((q, k, k), dim=heads_axis).flatten(heads_axis)
        self.leaf, self.own_qkv, self.copied = self.qkv.detach().requires_grad_(), self.qkv.clone(), self.qkv.clone()
        num_heads, num_kv_heads = case.heads
        self.options |= {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        self.grads.append(k.clone())

    def forward_backward(self) -> tuple[torch.Tensor, ...]:
        options, weights = self._with_leaves()
        return torch.autograd.grad(apply_qkv(self.leaf, **options), [self.leaf, *weights], self.grads)


def check(
    holds: bool,
    name: str,
    rule: str,
    got: object,
    error: type[ArgumentError] | type[ArgumentTypeError] = ArgumentError,
) -> None:
    """Raise an error about the argument of this name unless the rule holds."""
    if not holds:
        raise error(name, rule, shown(got))


def check_names(case: Mapping[str, object], others: str) -> None:
    """Refuse keywords that are neither fields of Case nor among others."""
    names = [field.name for field in fields(Case)]
    for name in case:
        meant = difflib.get_close_matches(name, names, 1)
        hint = f" (is it {meant[0]}?)" if meant else ""
        check(name in names, name, f"be one of {', '.join(names)}, {others}{hint}", case[name], ArgumentTypeError)


def check_file(trace: object) -> None:
    """Raise an OSError if the file cannot be written. Only opening it proves that; a created file is removed."""
    if not isinstance(trace, (str, os.PathLike)):
        raise ArgumentTypeError("trace", "be a path or None", shown(trace))
    path = Path(trace)
    try:
        is_new = not path.exists()  # raises for a name that is too long or a folder without read permission
        path.open("a").close()
    except OSError as error:
        rule = "be a file that can be written"
        raise type(error)(f"rope_ext: trace must {rule}, got {shown(str(trace))}: {error.strerror}") from None
    if is_new:
        path.unlink()
