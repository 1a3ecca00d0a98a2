"""Calls on q and k of one token, where overhead is everything, and ops of PyTorch to compare them with.

benchmarks/calls.py times them, benchmarks/instructions.py counts their instructions.
"""

import torch

import rope_ext
from benchmarks.baselines.pytorch import eager_half
from benchmarks.harness.cases import Case
from benchmarks.harness.shapes import SHAPES
from rope_ext._torch.flags import TRANSPOSED
from rope_ext._torch.private import SingleLevelFunction, function_of

ROTATE, ROTATE_IN_PLACE, ROTATE_OUT = (  # the ops that an ordinary call uses
    function_of(op.plain)
    for op in (torch.ops.rope_ext.rotate, torch.ops.rope_ext.rotate_, torch.ops.rope_ext.rotate_out)
)
ROWS = 64  # of the tables


def tiny():
    return Case(next(s for s in SHAPES if s.name == "tiny"), "fp32", "half", "forward", "bshd", threads=1)


def small_calls(case):
    """{name: call}: yardsticks, the ops alone, then the calls of rope_ext."""
    return _yardsticks(case) | _ours(case) | _with_derivatives(case)


def dtensor_calls(case):
    """{name: call} of DTensors on a mesh of this process alone, in a process group that is never left."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    q, k, cos, sin = _of(case)
    x = tuple(distribute_tensor(t, mesh, [Shard(2)]) for t in (q, k))
    return {
        "torch.add, DTensors": lambda: torch.add(x[0], x[0]),
        "apply, DTensors": lambda: rope_ext.apply(x, cos, sin),
    }


def _of(case):
    """q and k (batch, seqlen, heads, head_dim), tables whose first row rotates."""
    q, k = (x.transpose(1, 2).clone() for x in case.inputs)
    return q, k, case.tables.cos[-ROWS:].clone(), case.tables.sin[-ROWS:].clone()


def _yardsticks(case):
    q, k, cos, sin = _of(case)
    x, out, positions = [q, k], [q.clone(), k.clone()], torch.tensor([[3]])
    rotate_all, own = function_of(torch.ops.rope_ext.rotate.unrecorded), [q.clone(), k.clone()]
    return {
        "torch.add": lambda: torch.add(q, q),
        "two clones": lambda: (q.clone(), k.clone()),
        "op rotate": lambda: ROTATE(x, cos, sin),
        "op rotate_": lambda: ROTATE_IN_PLACE(own, cos, sin),
        "op rotate_out": lambda: ROTATE_OUT(out, x, cos, sin),
        "op rotate, positions": lambda: rotate_all(x, cos, sin, 0, 0, None, 0, 1.0, positions),
    }


def _ours(case):
    q, k, cos, sin = _of(case)
    x, own, out = (q, k), (q.clone(), k.clone()), (q.clone(), k.clone())
    rope, positions = rope_ext.RotaryEmbedding(case.shape.head_dim), torch.tensor([[3]])
    inv_freq, wide = case.tables.inv_freq, [torch.cat((t[:1], t[:1]), dim=-1)[None] for t in (cos, sin)]
    by_head, llama = [t.transpose(1, 2) for t in x], rope_ext.compat.transformers.apply_rotary_pos_emb
    options = {"layout": "bhsd", "offset": 7, "inverse": True}
    return {
        "apply": lambda: rope_ext.apply(x, cos, sin),
        "apply out=": lambda: rope_ext.apply(x, cos, sin, out=out),
        "apply_": lambda: rope_ext.apply_(own, cos, sin),
        "apply positions": lambda: rope_ext.apply(x, cos, sin, positions=positions),
        "apply layout, offset, inverse": lambda: rope_ext.apply(by_head, cos, sin, **options),
        "rope.apply": lambda: rope.apply(x),
        "apply inv_freq": lambda: rope_ext.apply(x, inv_freq=inv_freq),
        "compat.transformers": lambda: llama(*by_head, *wide),
    }


class OpInFunction(SingleLevelFunction):
    """The minimum that a derivative in Python costs: one node that saves the tables."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return tuple(ROTATE([q, k], cos, sin))

    @staticmethod
    def backward(ctx, *grads):
        cos, sin = ctx.saved_tensors
        return *ROTATE(grads, cos, sin, 0, TRANSPOSED), None, None


def _with_derivatives(case):
    """The calls with derivatives. Gradients are given: nothing is accumulated, no loss is computed."""
    q, k, cos, sin = _of(case)
    leaves = leaf_q, leaf_k = tuple(t.detach().requires_grad_() for t in (q, k))
    leaves_by_head = tuple(t.detach().requires_grad_() for t in case.inputs)
    (q_factor, k_factor), grads = (tuple(torch.randn_like(t) for t in (q, k)) for _ in range(2))
    grads_by_head = tuple(t.transpose(1, 2) for t in grads)
    learned = tuple(t.clone().requires_grad_() for t in (cos, sin))

    def multiplied():
        return leaf_q * q_factor, leaf_k * k_factor

    def recorded():
        return rope_ext.apply(leaves, cos, sin)

    def in_function():
        return OpInFunction.apply(*leaves, cos, sin)

    def eager():
        return eager_half(*leaves_by_head, case.tables)

    def of_learned():
        y = rope_ext.apply(leaves, *learned)
        return torch.autograd.grad(y, (*leaves, *learned), grads)

    return {
        "two multiplications, recorded": multiplied,
        "two multiplications, forward+backward": lambda: torch.autograd.grad(multiplied(), leaves, grads),
        "op rotate in a Function": in_function,
        "op rotate in a Function, forward+backward": lambda: torch.autograd.grad(in_function(), leaves, grads),
        "eager, recorded": eager,
        "eager, forward+backward": lambda: torch.autograd.grad(eager(), leaves_by_head, grads_by_head),
        "apply, recorded": recorded,
        "apply, forward+backward": lambda: torch.autograd.grad(recorded(), leaves, grads),
        "apply learned tables, forward+backward": of_learned,
    }
