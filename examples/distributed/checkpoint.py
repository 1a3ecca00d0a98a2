"""A distributed checkpoint of a block that holds a RotaryEmbedding: sharded by two processes, loaded by one.

    python examples/distributed/checkpoint.py

A RotaryEmbedding holds Python numbers only and adds nothing to the state dict. A checkpoint therefore has the same keys
with rope_ext as without it, and no frequency in it can be sharded, rounded or missing. The code that builds the model
builds the RotaryEmbedding too, from the same configuration.
"""

import tempfile

import torch
import torch.distributed.checkpoint as dcp
from _processes import compare, run
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import rope_ext

BATCH, SEQLEN, HEADS, HEAD_DIM = 4, 32, 4, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(HEADS * HEAD_DIM, 3 * HEADS * HEAD_DIM)
        self.rope = rope_ext.RotaryEmbedding(HEAD_DIM, base=500_000.0)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        q, k = self.rope.apply((q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def save(rank, world_size, folder, x):
    """Trains a sharded block for one step, then saves the block and, for the comparison, its result for x."""
    torch.manual_seed(0)
    block = fully_shard(Block())
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2)
    block(x).square().mean().backward()
    optimizer.step()
    state = block.state_dict()
    dcp.save(state, checkpoint_id=f"{folder}/block")
    result = block(x).detach()
    if rank == 0:
        print("saved:", {name: (*t.placements, *t.shape) for name, t in state.items()})
        torch.save(result, f"{folder}/result.pt")
    assert [*state] == ["qkv.weight", "qkv.bias"], "a RotaryEmbedding adds nothing to the state dict"


def load(rank, world_size, folder, x):
    """Loads the shards into a block that is not sharded."""
    block = Block()
    dcp.load(block.state_dict(), checkpoint_id=f"{folder}/block")  # writes to the parameters in place
    compare("result of the loaded block", block(x).detach(), torch.load(f"{folder}/result.pt"))


def main():
    torch.manual_seed(1)
    x = torch.randn(BATCH, SEQLEN, HEADS * HEAD_DIM)
    with tempfile.TemporaryDirectory() as folder:
        run(save, 2, folder, x)
        run(load, 1, folder, x)


if __name__ == "__main__":
    main()
