"""FSDP2 with bfloat16 parameters: how cos and sin reach a block unrounded.

    python examples/distributed/fsdp2.py

Under MixedPrecisionPolicy(param_dtype=torch.bfloat16), `fully_shard` casts every floating-point argument of a block's
forward to bfloat16. Tables passed this way keep 8 of 24 bits. Two forms are exact: a RotaryEmbedding in the block with
integer positions, which are not cast, or tables with cast_forward_inputs=False.
"""

import copy

import torch
from _processes import compare, run
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import rope_ext

SEQLEN, HEADS, HEAD_DIM = 512, 4, 16


class Block(nn.Module):
    """The projection and the RotaryEmbedding of the two blocks below."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM, bias=False)
        self.rope = rope_ext.RotaryEmbedding(HEAD_DIM)  # no parameter or buffer that could be cast

    def project(self, x):
        return self.q_proj(x).unflatten(-1, (HEADS, HEAD_DIM))


class PositionsBlock(Block):
    def forward(self, x, positions):
        return self.rope.apply(self.project(x), positions=positions)


class TablesBlock(Block):
    def forward(self, x, cos, sin):
        return rope_ext.apply(self.project(x), cos, sin)


def step(block, x, *rotation):
    """The result of the block, and the gradient of its parameter in float32."""
    y = block(x, *rotation)
    y.float().logsumexp(dim=-1).mean().backward()
    return y.detach(), block.q_proj.weight.grad.float()


def alone(block, batches, *rotation):
    """The result that each process should compute, and the mean of the gradients, computed without FSDP."""
    results, grads = zip(*(step(copy.deepcopy(block).bfloat16(), x, *rotation) for x in batches))
    return results, torch.stack(grads).mean(0)


def sharded(rank, world_size):
    torch.manual_seed(0)
    batches = torch.randn(world_size, 1, SEQLEN, HEADS * HEAD_DIM).bfloat16()  # as returned by a previous block
    positions = torch.arange(SEQLEN)
    tables = rope_ext.RotaryEmbedding(HEAD_DIM).tables(SEQLEN)

    def check(name, block, rotation, cast_forward_inputs, bound=0.0):
        expected, expected_grad = alone(block, batches, *rotation)
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=cast_forward_inputs)
        fully_shard(block, mp_policy=policy)
        result, grad = step(block, batches[rank], *rotation)
        compare(f"{name}: result", result, expected[rank], bound)
        compare(f"{name}: gradient", grad.full_tensor(), expected_grad, bound)

    check("RotaryEmbedding in the block", PositionsBlock(), (positions,), cast_forward_inputs=True)
    check("tables, cast_forward_inputs=False", TablesBlock(), tables, cast_forward_inputs=False)
    # cos and sin, rounded to 8 bits, are each off by up to 2**-9, and each result sums two products of them
    check("tables, cast to bfloat16 (wrong)", TablesBlock(), tables, cast_forward_inputs=True, bound=2**-6)


if __name__ == "__main__":
    run(sharded, 2)
