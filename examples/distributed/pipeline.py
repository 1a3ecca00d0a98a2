"""Two pipeline stages with four microbatches, each stage with its own RotaryEmbedding, compared with one process.

    python examples/distributed/pipeline.py

Only hidden states travel between stages; each stage computes its own cos and sin. Every process passes integer
positions, one row per sequence, to `step`, which splits them into microbatches like the tokens. Do not pass tables:
`step` would split them too, along their first axis, which is the position.
"""

import torch
import torch.distributed as dist
from _processes import compare, run
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn import functional as F

import rope_ext

BATCH, SEQLEN, HEADS, HEAD_DIM, VOCABULARY, MICROBATCHES = 8, 32, 4, 16, 32, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(HEADS * HEAD_DIM, 3 * HEADS * HEAD_DIM)
        self.rope = rope_ext.RotaryEmbedding(HEAD_DIM)

    def forward(self, x, positions):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        q, k = self.rope.apply((q, k), positions=positions)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """The whole model; after `keep`, the modules of one stage."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HEADS * HEAD_DIM)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(HEADS * HEAD_DIM, VOCABULARY)

    def keep(self, stage):
        self.blocks = self.blocks[stage : stage + 1]
        if stage == 0:
            self.head = nn.Identity()
        else:
            self.embed = nn.Identity()
        return self

    def forward(self, x, positions):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, positions)
        return self.head(x)


def loss_of(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def sharded(rank, world_size):
    torch.manual_seed(0)
    model = Model()
    tokens, labels = torch.randint(VOCABULARY, (2, BATCH, SEQLEN))
    positions = torch.arange(SEQLEN).repeat(BATCH, 1)
    gaps = torch.randint(SEQLEN, (BATCH, 1))  # so that microbatches differ in their positions
    positions += 100 * (positions >= gaps)
    loss_alone = loss_of(model(tokens, positions), labels)
    grad_alone = torch.autograd.grad(loss_alone, model.blocks[0].qkv.weight)[0]

    stage = PipelineStage(model.keep(rank), rank, world_size, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, MICROBATCHES, loss_of)
    losses = []
    if rank == 0:
        schedule.step(tokens, positions=positions)
    else:
        schedule.step(positions=positions, target=labels, losses=losses)
    loss = torch.stack(losses).mean() if losses else torch.zeros(())
    dist.broadcast(loss.detach(), src=world_size - 1)
    compare("loss", loss.detach(), loss_alone.detach(), bound=1e-6)
    if rank == 0:  # the stage with the first block
        compare("gradient of the first projections", model.blocks[0].qkv.weight.grad, grad_alone, bound=1e-5)


if __name__ == "__main__":
    run(sharded, 2)
