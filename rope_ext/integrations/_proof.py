"""The numeric half of recognizing a function: it agrees with rope_ext on the examples of a dialect."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._shown import name_of
from .._torch.private import outside_modes, tree
from ._candidate import Candidate
from ._dialect import Dialect
from ._fingerprint import helpers

# (key of a candidate, functions that it calls, dialect) -> (the function, and its difference or None). Holding the
# function keeps CPython from reusing its id, which is part of the key.
_proofs: dict[Any, tuple[types.FunctionType, str | None]] = {}


def proof(candidate: Candidate, dialect: Dialect) -> str | None:
    """None if a function and rope_ext agree on all examples of a dialect, else the first difference, in words."""
    key = candidate.key, helpers(candidate.function), dialect.name
    if key not in _proofs:
        # Modes that surround the call of patch must not matter: default devices, fake tensors, autocast.
        with outside_modes(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            _proofs[key] = candidate.function, _difference(candidate, dialect)
    return _proofs[key][1]


def _difference(candidate: Candidate, dialect: Dialect) -> str | None:
    for dtype in (torch.float32, torch.bfloat16):
        for index, (args, kwargs) in enumerate(dialect.examples(0, dtype)):
            call = f"example {index} in {name_of(dtype)}"
            with torch.no_grad():
                expected, expected_args = _run(candidate.original, args, kwargs)
                ours = functools.partial(dialect.call, candidate.original, "eager")
                result, result_args = _run(ours, args, kwargs)
            if isinstance(expected, Exception) or isinstance(result, Exception):
                failed = next(r for r in (expected, result) if isinstance(r, Exception))
                return f"{type(failed).__name__} in {call}: {failed}"
            bound = dialect.bound and dialect.bound(args, kwargs, expected)
            if not _equal(result, expected, bound) or not _equal(result_args, expected_args, None):
                return f"different result in {call}"
    return None


def same_gradients(candidate: Candidate, dialect: Dialect) -> bool:
    """Whether the gradients of 16-bit states are equal bit for bit. States are arguments with the shape of a result.

    A proof does not require this; it decides between dialects whose results are equal.
    """
    for args, kwargs in dialect.examples(0, torch.bfloat16):
        ours = functools.partial(dialect.call, candidate.original, "eager")
        if not _equal(_gradients(ours, args, kwargs), _gradients(candidate.original, args, kwargs), None):
            return False
    return True


def _gradients(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    args, kwargs = tree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    shapes = {t.shape for t in tree.tree_flatten(function(*args, **kwargs))[0] if isinstance(t, torch.Tensor)}
    states = [t for t in args if isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16 and t.shape in shapes]
    for t in states:
        t.requires_grad_()
    results = [t for t in tree.tree_flatten(function(*args, **kwargs))[0] if isinstance(t, torch.Tensor)]
    directions = [torch.linspace(-1, 2, t.numel()).reshape(t.shape).to(t.dtype) for t in results]
    return torch.autograd.grad(results, states, directions)


def _run(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """(the result or the exception, the arguments after the call, which may have written to them)"""
    args, kwargs = tree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    try:
        return function(*args, **kwargs), (args, kwargs)
    except Exception as error:  # an unknown function may raise anything for the examples of another
        return error, (args, kwargs)


def _equal(result: Any, expected: Any, bound: Any) -> bool:
    results, structure = tree.tree_flatten(result)
    others, expected_structure = tree.tree_flatten(expected)
    if structure != expected_structure:
        return False
    bounds = tree.tree_flatten(bound)[0] if bound is not None else []
    bounds = bounds * len(results) if len(bounds) == 1 else bounds or [None] * len(results)
    return all(map(_same, results, others, bounds))


def _same(a: Any, b: Any, bound: Tensor | None) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a is b or a == b
    if a.shape != b.shape or a.dtype != b.dtype or a.stride()[-1:] != b.stride()[-1:]:
        return False  # later code may depend on whether channels are adjacent in memory
    if bound is not None:
        return bool(((a.double() - b.double()).abs() <= bound).all())
    return _bytes(a).equal(_bytes(b))


def _bytes(t: Tensor) -> Tensor:
    return t.resolve_conj().reshape(-1).view(torch.uint8)
