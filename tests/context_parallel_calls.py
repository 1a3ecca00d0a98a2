"""Prints what calls in torch's context_parallel give on one rank of two, as JSON: an error, or whether the bits are right.

python -m tests.context_parallel_calls RANK STORE
"""

import json
import sys

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel

import rope_ext

SEQLEN = 12
ROPE = rope_ext.RotaryEmbedding(8)
TABLES = ROPE.tables(SEQLEN)
WHOLE = torch.randn(2, SEQLEN, 3, 8, generator=torch.Generator().manual_seed(0))
ROTATED = {"tables": rope_ext.apply(WHOLE, *TABLES), "rope.apply": ROPE.apply(WHOLE)}


def outcomes(mesh, order):
    """Call -> "right", "wrong" or the text of its error."""
    rank, world_size = mesh.get_local_rank(), mesh.size()
    held = rope_ext.distributed.context_parallel_positions(SEQLEN, rank=rank, world_size=world_size, order=order)
    first = int(held[0])
    x, positions = WHOLE.clone(), torch.arange(SEQLEN)
    cos, sin = (t.clone() for t in TABLES)
    calls = {
        "apply": lambda: rope_ext.apply(x, *TABLES),
        "apply_": lambda: rope_ext.apply_(x.clone(), *TABLES),
        "apply_qkv": lambda: rope_ext.apply_qkv(torch.cat((x, x, x), 2), *TABLES, num_heads=3)[0],
        "rope.apply": lambda: ROPE.apply(x),
        "offset": lambda: rope_ext.apply(x, *TABLES, offset=first),
        "offset in a tensor": lambda: rope_ext.apply(x, *TABLES, offset=torch.tensor(first)),
        "positions": lambda: rope_ext.apply(x, *TABLES, positions=held),
        "rope.apply of positions": lambda: ROPE.apply(x, positions=held),
        "buffer of positions": lambda: rope_ext.apply(x, *TABLES, positions=positions),
        "buffers of tables": lambda: rope_ext.apply(x, cos, sin),
        "a row per token": lambda: rope_ext.apply(x, cos[None], sin[None]),
    }
    found = {}
    with context_parallel(mesh, buffers=[x, positions, cos, sin], buffer_seq_dims=[1, 0, 0, 0]):
        for name, call in calls.items():
            expected = ROTATED["rope.apply" if name.startswith("rope") else "tables"][:, held]
            try:
                found[name] = "right" if torch.equal(call(), expected) else "wrong"
            except rope_ext.ArgumentError as error:
                found[name] = str(error)
    found["afterwards"] = "right" if torch.equal(rope_ext.apply(WHOLE, *TABLES), ROTATED["tables"]) else "wrong"
    return found


def run(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    meshes = init_device_mesh("cpu", (2, 1), mesh_dim_names=("both", "alone"))
    found = {"head_tail": outcomes(meshes["both"], "head_tail"), "alone": outcomes(meshes["alone"], "head_tail")}
    attention = sys.modules["torch.distributed.tensor.experimental._context_parallel._attention"]
    attention._cp_options.enable_load_balance = False
    found["contiguous"] = outcomes(meshes["both"], "contiguous")
    sys.stdout.write(json.dumps([rank, found]) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":  # forked, so that torch is imported once
    torch.multiprocessing.start_processes(run, sys.argv[1:], nprocs=2, start_method="fork")
