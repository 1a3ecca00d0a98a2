"""The implementations of other libraries, for `bench.py --peers`: used if installed, none of their code is copied.

Each function of PEERS in peers_cpu.py and peers_gpu.py returns variants, or raises an error that names what is missing.
The builder of a variant raises NotOffered for a dtype, memory order or derivative that the peer does not support.
"""

import importlib.util
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.cases import DTYPES
from benchmarks.harness.variants import NotOffered, Step, refill


def find(peers, threads):
    """([Variant], {peer: reason why it is left out}). peers: PEERS of a device. threads: for peers with own pools."""
    # Peers read these variables when first imported: no downloads; NPROC is the size of JAX's thread pool.
    os.environ.update(HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu", NPROC=str(threads))
    found, missing = [], {}
    for name, variants in peers.items():
        try:
            found += [replace(variant, foreign=True) for variant in variants()]
        except Exception as error:  # no failure of another package may end the benchmark
            missing[name] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return found, missing


def load(package, pattern):
    """Register the ops of an installed package's libraries whose file names match the pattern."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    files = sorted(Path(spec.origin).parent.rglob(pattern))
    if not files:
        raise FileNotFoundError(f"{package} has no {pattern}")
    for file in files:
        torch.ops.load_library(file)


def on_rows(op, case, table_dtype=None):
    """A Step that runs op(positions, q, k, head_dim, cat(cos, sin), is_neox) on q and k (tokens, heads * head_dim).

    table_dtype: dtype of cat(cos, sin); default: the dtype of x.
    """
    if case.memory == "bhsd":
        raise NotOffered("(tokens, heads * head_dim) only")
    s, x = case.shape, case.fresh_inputs()
    q, k = (t.transpose(1, 2).view(s.batch * s.seqlen, -1) for t in x)
    table = torch.cat((case.tables.cos, case.tables.sin), dim=-1).to(table_dtype or DTYPES[case.dtype])
    end = s.first_position + s.seqlen
    positions = torch.arange(s.first_position, end, device=table.device).repeat(s.batch)
    call = partial(op, positions, q, k, s.head_dim, table, not case.interleaved)
    return Step(call, before=partial(refill, x, case.inputs), fetch=lambda _nothing: x)
