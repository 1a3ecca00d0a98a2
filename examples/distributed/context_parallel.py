"""A training step with the sequence sharded over two processes in ring-attention order, compared with one process.

    python examples/distributed/context_parallel.py

`context_parallel` leaves each process its part of the sequence: two chunks, one from each half ("head_tail", torch's
default). `positions` tell the rotation which tokens these are. Without them each process would count its tokens from 0,
without an error unless ROPE_EXT_CHECK_POSITIONS=1 is set. Tables, if you pass any, must cover the whole sequence.
The rotation does not communicate, forward or backward.
"""

import torch
import torch.distributed as dist
from _processes import compare, run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.experimental import context_parallel
from torch.nn import functional as F

import rope_ext

BATCH, SEQLEN, HEADS, HEAD_DIM, VOCABULARY = 2, 64, 4, 16, 32


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HEADS * HEAD_DIM)
        self.qkv = nn.Linear(HEADS * HEAD_DIM, 3 * HEADS * HEAD_DIM)
        self.head = nn.Linear(HEADS * HEAD_DIM, VOCABULARY)
        self.rope = rope_ext.RotaryEmbedding(HEAD_DIM)

    def forward(self, tokens, positions, gather=lambda *keys: keys):
        x = self.embed(tokens)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        q, k = self.rope.apply((q, k), positions=positions)
        k, v, key_positions = gather(k, v, positions)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / HEAD_DIM**0.5
        weights = scores.masked_fill(positions[:, None] < key_positions, -torch.inf).softmax(-1)
        return self.head(x + torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


def step(model, tokens, labels, *arguments):
    """The loss, and the gradient of the projections, which come before the rotation."""
    loss = F.cross_entropy(model(tokens, *arguments).flatten(0, 1), labels.flatten())
    return loss.detach(), torch.autograd.grad(loss, model.qkv.weight)[0]


def sharded(rank, world_size):
    torch.manual_seed(0)
    model = Model()
    tokens, labels = torch.randint(VOCABULARY, (2, BATCH, SEQLEN))
    loss_alone, grad_alone = step(model, tokens, labels, torch.arange(SEQLEN))
    mesh = init_device_mesh("cpu", (world_size,))

    def gather(k, v, positions):
        """k, v and positions of all processes. The backward pass sums the gradients and returns each process its part.

        On a GPU, F.scaled_dot_product_attention(q, k, v, is_causal=True) in `context_parallel` is ring attention and
        needs none of this. On a CPU it raises NotImplementedError: torch 2.11 to 2.15 have no ring attention there.
        """
        k, v = (DTensor.from_local(t, mesh, [Shard(1)]).full_tensor(grad_placements=[Partial()]) for t in (k, v))
        return k, v, DTensor.from_local(positions, mesh, [Shard(0)]).full_tensor()

    positions = rope_ext.distributed.context_parallel_positions(
        SEQLEN, rank=rank, world_size=world_size, order="head_tail"
    )
    with context_parallel(mesh, buffers=[tokens, labels], buffer_seq_dims=[1, 1]):
        loss, grad = step(model, tokens, labels, positions, gather)
    for t in (loss, grad):  # means over equally many tokens in every process
        dist.all_reduce(t.div_(world_size))
    compare("loss", loss, loss_alone, bound=1e-6)
    compare("gradient of the projections", grad, grad_alone, bound=1e-5)


if __name__ == "__main__":
    run(sharded, 2)
