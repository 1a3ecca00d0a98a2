"""Tensors whose memory is watched: each lies between guard bands, and a copy of all of it is taken before a call.

A `Drawn` describes a tensor. It can be made twice: in the memory that the call sees, and in the copy, where the
reference writes what the call should have written. So one comparison of bytes shows wrong values, writes outside the
tensors and writes to arguments that are only read.
"""

import random

import torch

GUARD = 64  # bytes between tensors
SIZE = 1 << 20
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
OTHER_FLOATS = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))


def _sources():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1 << 14, generator=generator, dtype=torch.float64)
    values[::61] = 0.0
    values[7::97] *= -0.0
    values[11::89] *= 1e-40  # subnormal in float32
    odd = values.clone()
    odd[::7], odd[3::11], odd[5::13] = torch.inf, torch.nan, -torch.inf
    return {dtype: values.to(dtype) for dtype in FLOATS}, {dtype: odd.to(dtype) for dtype in FLOATS}


_FINITE, _ODD = _sources()
_PATTERN = torch.randint(256, (SIZE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


class Memory:
    """The memory of one call. `apart`: every tensor has an allocation of its own, so that AddressSanitizer sees reads
    beyond it too."""

    def __init__(self, apart=False):
        self.apart = apart
        self._arena = torch.empty(SIZE, dtype=torch.uint8)
        self.clear()

    def clear(self):
        self.drawn, self.tensors = [], []  # those with memory of their own, and all
        self.buffers = []

    def prepare(self):
        """Give every tensor drawn since `clear` its memory and its values; returns a copy of all memory."""
        for drawn in self.tensors:
            drawn.settle()
        if self.apart:
            self.buffers = [torch.empty(d.at + d.bytes, dtype=torch.uint8) for d in self.drawn]
        else:
            at = GUARD
            for drawn in self.drawn:
                drawn.at += -(-at // 16) * 16
                at = drawn.at + drawn.bytes + GUARD
            if at > SIZE:
                raise RuntimeError(f"the tensors of one call need {at} bytes")
            self.buffers = [self._arena[: at + 1024]]
        for buffer in self.buffers:
            buffer.copy_(_PATTERN[: len(buffer)])
        for index, drawn in enumerate(self.drawn):
            drawn.buffer = index if self.apart else 0
            drawn.fill(self.buffers)
        return [buffer.clone() for buffer in self.buffers]


class Drawn:
    """A tensor to be made.

    strides: in elements. values: the integers of an index, in the order of its elements; None: normal random numbers.
    shares: the Drawn in whose memory this one lies, `shift` elements after its first. state: what is special about it,
    one of STATES or None.
    """

    def __init__(self, memory, r, dtype, shape, strides, values=None, state=None):
        self.dtype, self.shape, self.strides, self.values, self.state = dtype, list(shape), list(strides), values, state
        self.seed = r.randrange(8000)
        self.odd = r.random() < 0.02
        self.at = r.randrange(4) * dtype.itemsize if r.random() < 0.5 else 0
        self.shares, self.shift, self.has_sharers, self._least_bytes = None, 0, False, 0
        self._memory = memory
        memory.drawn.append(self)
        memory.tensors.append(self)

    @property
    def numel(self):
        return 0 if 0 in self.shape else _product(self.shape)

    @property
    def span(self):
        """Number of elements from the first to the last, gaps included."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides)) if self.numel else 0

    @property
    def bytes(self):
        return max(self.span * self.dtype.itemsize, self._least_bytes)

    def lie_in(self, other, shift):
        """Share the memory of another Drawn."""
        self.shares, self.shift, other.has_sharers = other, shift, True
        self._memory.drawn.remove(self)

    def settle(self):
        """Drop a state that PyTorch does not give to such a tensor, and ask for the memory of one that shares it."""
        if self.shares is not None:
            least = (self.span + self.shift) * self.dtype.itemsize
            self.shares._least_bytes = max(self.shares._least_bytes, least)
        if self.dtype not in FLOATS and self.state not in ("inference", "meta"):
            self.state = None
        elif self.state == "not a leaf" and (0 in self.strides or self.shares or self.has_sharers):
            self.state = None  # its values are written once more
        elif self.state == "not a leaf":
            self.odd = False  # which would give a NaN another payload

    def addresses(self):
        """(buffer, byte) of the first byte of every element, once where elements share one; after Memory.prepare."""
        buffer, first = self.place()
        found = [0] if self.numel else []
        for n, s in zip(self.shape, self.strides):
            found = [f + i * s for f in found for i in range(n if s else 1)]
        return [(buffer, first + f * self.dtype.itemsize) for f in found]

    def place(self):
        """(buffer, byte at which it begins)."""
        size = self.dtype.itemsize
        if self.shares is None:
            return self.buffer, self.at // size * size
        buffer, at = self.shares.place()
        return buffer, (at // size + self.shift) * size

    def fill(self, buffers):
        span = self.span
        if not span or self.state in ("meta", "sparse"):
            return
        if self.values is not None and self.dtype in INTEGERS:  # a mutation may have made it a narrower type
            self.values = torch.tensor(self.values, dtype=torch.int64).to(self.dtype).tolist()
        if self.values is not None and self.dtype in (*INTEGERS, *FLOATS):
            once = [min(n, 1) if s == 0 else n for n, s in zip(self.shape, self.strides)]  # expanded axes
            values = torch.tensor(self.values, dtype=self.dtype).reshape(self.shape)
            self._made(buffers, once, self.strides).copy_(values[tuple(slice(n) for n in once)])
        else:
            memory = self._made(buffers, [span], [1])
            source = (_ODD if self.odd else _FINITE).get(self.dtype)
            if source is None:
                memory.zero_()
            else:
                memory.copy_(source[self.seed : self.seed + span])

    def _made(self, buffers, shape=None, strides=None):
        buffer, at = self.place()
        shape, strides = (self.shape, self.strides) if shape is None else (shape, strides)
        t = torch.empty(0, dtype=self.dtype)
        return t.set_(buffers[buffer].untyped_storage(), at // self.dtype.itemsize, shape, strides)

    def make(self, buffers, plain=False):
        """The tensor: no view, with a version counter of its own. plain: nothing that autograd would ask about it."""
        if plain and self.state in ("requires grad", "not a leaf", "parameter", "inference"):
            return self._made(buffers)
        if self.state == "meta":
            return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")
        if self.state == "sparse":
            return torch.zeros([min(n, 4) for n in self.shape], dtype=self.dtype).to_sparse()
        if self.state == "inference":
            with torch.inference_mode():
                return self._made(buffers)
        t = self._made(buffers)
        if self.state == "requires grad":
            t.requires_grad_()
        elif self.state == "not a leaf":
            self.leaf = torch.full(self.shape, -0.0, dtype=self.dtype, requires_grad=True)
            t.add_(self.leaf)  # x + -0.0 is x, -0.0 too
        elif self.state == "negative bit":
            t = torch._neg_view(t)
        elif self.state == "parameter":
            t = torch.nn.Parameter(t)
        return t

    def __repr__(self):
        dtype, shape, strides = self.dtype, tuple(self.shape), tuple(self.strides)
        if self.values is not None:
            text = f"torch.tensor({self.values}, dtype={dtype}).reshape({shape})"
        elif dtype in FLOATS:
            text = f"torch.randn({self.span}, dtype={dtype}).as_strided({shape}, {strides})"
        else:
            text = f"torch.zeros({self.span}, dtype={dtype}).as_strided({shape}, {strides})"
        if self.values is not None and strides != tuple(dense(self.shape)):
            text += f" with strides {strides}"
        if self.shares is not None:
            text += f" in the memory of {self.shares.dtype} {tuple(self.shares.shape)} from element {self.shift}"
        return text + (f" [{self.state}]" if self.state else "") + (" [NaN and inf inside]" if self.odd else "")


STATES = ("requires grad", "not a leaf", "negative bit", "parameter", "inference", "meta", "sparse")


def dense(shape):
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return strides[::-1]


def any_strides(r: random.Random, shape, may_expand=True):
    """Strides as models produce them: axes in another order in memory, gaps, and axes that are expanded."""
    kind = r.random()
    if kind < 0.4:
        return dense(shape)
    order = list(range(len(shape)))
    if kind < 0.7 and len(shape) > 1:
        head = order[:-1]
        r.shuffle(head)
        order = [*head, order[-1]]
    elif kind < 0.8:
        r.shuffle(order)
    strides, step = [0] * len(shape), 1
    if r.random() < 0.2:
        step = 2
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
        if r.random() < 0.25:
            step += r.randrange(1, 4)
    if may_expand and r.random() < 0.25 and shape:
        strides[r.randrange(len(shape))] = 0
    return strides


def _product(shape):
    result = 1
    for n in shape:
        result *= n
    return result
