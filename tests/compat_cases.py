"""Shared by the tests of rope_ext.compat: sizes, positions, and arguments of vLLM's form."""

from types import SimpleNamespace

import torch

from tests.conftest import random, random_integers

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
B, S, H, HK, D, P, ROWS = 2, 5, 3, 2, 8, 4, 12

CU = torch.tensor([0, 3, 3, 7, 12], dtype=torch.int32)
LENGTHS = [3, 0, 4, 5]
POSITIONS = random_integers(ROWS, (B, S))
START = torch.tensor([4, 0])
X, QK = [(B, S, H, D)], [(B, S, H, D), (B, S, HK, D)]
BHSD = [(B, H, S, D), (B, HK, S, D)]
PAIRS, CHANNELS = [(ROWS, P)] * 2, [(ROWS, D)] * 2


def module(cache):
    return SimpleNamespace(cache=cache)


VLLM = {
    "is_neox": [True, False],
    "axes": ["tokens", "tokens, heads", "batch", "batch, heads"],
    "memory": ["contiguous", "slice of packed"],
    "key": [True, False],
    "dtype": [F32, BF16],
    "rope_dim_offset": [0, 2],
    "inverse": [False, True],
    "positions": [torch.int64, torch.int32],
}


def vllm_arguments(case):
    """(positions, query, key, cache), in the shapes and strides of the case; key is None where the case has none."""
    batched, heads_apart = case["axes"].startswith("batch"), case["axes"].endswith("heads")
    shape = (B, S) if batched else (B * S,)
    positions = random_integers(ROWS, shape).to(case["positions"])
    packed = random((*shape, (H + HK) * D), case["dtype"])
    query, key = packed.split([H * D, HK * D], dim=-1)
    if case["memory"] == "contiguous":
        query, key = query.clone(), key.clone()
    if heads_apart:
        query, key = query.unflatten(-1, (H, D)), key.unflatten(-1, (HK, D))
    cache = random((ROWS, 6), case["dtype"], 1)
    return positions, query, key if case["key"] else None, cache
