"""Compares the tensors that a model returns bit for bit."""

import torch
from torch.utils._pytree import tree_leaves


def tensors(value, seen=None):
    """The tensors in the result of a model, including those in caches and other objects."""
    seen = set() if seen is None else seen
    found = []
    for leaf in tree_leaves(value):
        if torch.is_tensor(leaf):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not callable(leaf) and id(leaf) not in seen:
            seen.add(id(leaf))
            found += tensors([v for v in vars(leaf).values() if v is not None], seen)
    return found


def difference(expected, got, relative=False):
    """None if all tensors are equal bit for bit (NaN equals NaN), else the largest difference.

    relative: whether a difference is divided by the largest element of its tensor.
    """
    if [(t.shape, t.dtype) for t in expected] != [(t.shape, t.dtype) for t in got]:
        return float("inf")
    worst = None
    for a, b in zip(expected, got):
        if not same_bits(a, b):
            a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
            most = (a - b).abs().max().item() / (a.abs().max().item() if relative else 1)
            worst = max(worst or 0.0, float("inf") if most != most else most)
    return worst


def same_bits(a, b):
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    parts = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b)]
    bits = [t.contiguous().view(whole[t.element_size()]) for t in parts]
    return torch.equal(*bits) or bool(((bits[0] == bits[1]) | (parts[0].isnan() & parts[1].isnan())).all())
