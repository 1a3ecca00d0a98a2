"""Other people's implementations, for `bench.py --peers`: found if installed, nothing of them copied.

Each function of PEERS in peers_cpu.py and peers_gpu.py returns variants, or raises, with what is missing as the
message. What a peer does not do (a dtype, a form of memory, a derivative) its builder says with NotOffered.
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
    """([Variant], {peer: why it is left out}). peers: of a device. threads: given to what has threads of its own."""
    # Read when they are first imported. Nothing is downloaded; JAX takes the size of its pool from NPROC.
    os.environ.update(HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu", NPROC=str(threads))
    found, missing = [], {}
    for name, variants in peers.items():
        try:
            found += [replace(variant, foreign=True) for variant in variants()]
        except Exception as error:  # whatever somebody else's package does must not end the benchmark
            missing[name] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return found, missing


def load(package, pattern):
    """Registers the compiled ops of a package that is installed: those in the files of that pattern."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    files = sorted(Path(spec.origin).parent.rglob(pattern))
    if not files:
        raise FileNotFoundError(f"{package} has no {pattern}")
    for file in files:
        torch.ops.load_library(file)


def on_rows(op, case, table_dtype=None):
    """vLLM and SGLang: (positions, q, k, head_dim, cat(cos, sin), half pairing) of (tokens, heads * head_dim).

    table_dtype: that of x if None.
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
