"""Helpers of the programs in this folder: start processes that communicate through gloo, compare their results."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(program, world_size, *arguments):
    """Runs program(rank, world_size, *arguments) in new single-threaded processes; raises the first error of any."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:  # a rendezvous file: concurrent runs share no port
        mp.spawn(_join, (program, world_size, f"file://{folder}/store", arguments), nprocs=world_size)


def _join(rank, program, world_size, store, arguments):
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    program(rank, world_size, *arguments)
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # A regular exit aborts in rare runs, where a thread of gloo still holds a tensor.


def compare(name, result, expected, bound=0.0):
    """Prints on rank 0 the largest difference from expected, relative to its largest entry; raises if above bound.

    With bound 0 every entry must be equal.
    """
    difference = ((result - expected).abs().max() / expected.abs().max()).item()
    found = "bit-identical" if torch.equal(result, expected) else f"relative difference {difference:.1e}"
    if dist.get_rank() == 0:
        print(f"{name}: {found}", flush=True)
    if not difference <= bound:
        raise AssertionError(f"{name}: {found}, bound {bound:.1e}")
