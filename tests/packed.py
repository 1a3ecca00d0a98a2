"""Packed q, k, v, and what apply_qkv makes of them by the reference."""

import torch

from rope_ext import reference
from tests.conftest import random

# (q_weight, k_weight), or one for both, of 8 channels.
NORMS = {
    "no norm": None,
    "one weight": random((8,), torch.float32, 11),
    "two weights": (random((8,), torch.bfloat16, 12), random((8,), torch.float64, 13)),
    "q alone": (random((8,), torch.float32, 14), None),
}
FORMS = ["flat", "heads", "parted"]
LEAD = {"bshd": (2, 5), "sbhd": (5, 2), "thd": (6,), "shd": (5,)}  # the axes of the tokens


def packed(form, layout, num_heads, num_kv_heads, grouped, head_dim, dtype, seed=0):
    """Random qkv of a form; parted: with an axis of q, k and v, or of groups."""
    heads = num_heads + 2 * num_kv_heads
    parted = (num_kv_heads, heads // num_kv_heads) if grouped else (3, num_heads)
    shape = {"flat": (heads * head_dim,), "heads": (heads, head_dim), "parted": (*parted, head_dim)}[form]
    return random((*LEAD[layout], *shape), dtype, seed)


def unpacked(qkv, layout, num_heads, num_kv_heads, grouped):
    """q, k and v, (.., heads, head_dim) each, by the index of every head."""
    groups, of_group = (num_kv_heads, num_heads // num_kv_heads) if grouped else (1, num_heads)
    kv_of_group = num_kv_heads // groups
    index = torch.arange(num_heads + 2 * num_kv_heads).reshape(groups, of_group + 2 * kv_of_group)
    heads = qkv.reshape(*LEAD[layout], index.numel(), -1)
    parts = index.split((of_group, kv_of_group, kv_of_group), dim=1)
    return tuple(heads.index_select(-2, part.flatten()) for part in parts)


def expected(qkv, cos, sin, *, num_heads, num_kv_heads, grouped=False, layout="bshd", **options):
    """What `apply_qkv` returns."""
    q, k, v = unpacked(qkv, layout, num_heads, num_kv_heads, grouped)
    return *reference.apply((q, k), cos, sin, layout=layout, **options), v
