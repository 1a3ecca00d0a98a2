"""Tensor-parallel attention in plain PyTorch: q and k are DTensors, passed to rope_ext.apply unchanged.

    python examples/distributed/tensor_parallel.py

`parallelize_module` shards q and k across heads, and each process rotates its heads; cos and sin are plain tensors,
equal in all processes. Where the sequence is sharded instead, each process rotates its tokens by their positions in the
whole sequence. The rotation does not communicate, forward or backward.
"""

import copy

import torch
from _processes import compare, run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

import rope_ext

BATCH, SEQLEN, HEADS, KV_HEADS, HEAD_DIM = 2, 32, 4, 2, 16
DIM = HEADS * HEAD_DIM


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(DIM, HEADS * HEAD_DIM)
        self.k_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM)
        self.v_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, DIM)

    def forward(self, x, cos, sin):
        q, k, v = (project(x).unflatten(-1, (-1, HEAD_DIM)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rope_ext.apply((q, k), cos, sin)
        q, k, v = (to_local(t).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def to_local(t):
    """The heads of this process. DTensor supports the attention kernels for CUDA, but not the one for CPUs."""
    return t.to_local() if isinstance(t, DTensor) else t


def sharded(rank, world_size):
    torch.manual_seed(0)
    alone = Attention()
    x = torch.randn(BATCH, SEQLEN, DIM)
    cos, sin = rope_ext.RotaryEmbedding(HEAD_DIM).tables(SEQLEN)
    heads_here = ColwiseParallel(use_local_output=False)  # DTensors, sharded across heads
    plan = {"q_proj": heads_here, "k_proj": heads_here, "v_proj": heads_here, "o_proj": RowwiseParallel()}
    mesh = init_device_mesh("cpu", (world_size,))
    attention = parallelize_module(copy.deepcopy(alone), mesh, plan)
    for module in (alone, attention):
        module.result = module(x, cos, sin)
        module.result.square().mean().backward()
    compare("result", attention.result, alone.result, bound=1e-6)
    for (name, parameter), parameter_alone in zip(attention.named_parameters(), alone.parameters()):
        grad = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        compare(f"gradient of {name}", grad, parameter_alone.grad, bound=1e-5)

    q = torch.randn(BATCH, SEQLEN, HEADS, HEAD_DIM)
    for name, placement in (("heads", Shard(2)), ("sequence", Shard(1))):
        rotated = rope_ext.apply(distribute_tensor(q, mesh, [placement]), cos, sin)
        compare(f"rotation, {name} sharded", rotated.full_tensor(), rope_ext.apply(q, cos, sin))


if __name__ == "__main__":
    run(sharded, 2)
