"""DTensor support for the rest of the package, without the import of torch.distributed.tensor, which takes 0.9 s.

A program with a DTensor has imported that module already. In such a program, the first call of an op with a Tensor
subclass registers the rules of dtensor_rules.py.
"""

import importlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from .arguments import Rest, flags_of, names_of_tables, norm_of, positions_of
from .private import constant_in_graphs, functorch_is_active, level_of, unwrapped

_MODULE = "torch.distributed.tensor"
_thread = threading.local()


@constant_in_graphs
def register_rules() -> bool:
    """Registers the rules once torch.distributed.tensor is imported.

    Returns True once per thread, at its first call after that import: the op may have run before the rules existed.
    """
    if hasattr(_thread, "has_rules") or _MODULE not in sys.modules:
        return False
    importlib.import_module(f"{__package__}.dtensor_rules")  # registers the rules; a second thread waits for the first
    _thread.has_rules = True
    return True


def is_dtensor(t: Any) -> bool:
    # While another thread imports the module, its attribute DTensor may not exist yet.
    return isinstance(_unwrapped(t), getattr(sys.modules.get(_MODULE), "DTensor", ()))


def _unwrapped(t: Any) -> Any:
    """t without the wrappers of torch.func transforms."""
    while functorch_is_active() and isinstance(t, Tensor) and level_of(t) >= 0:
        t = unwrapped(t)
    return t


def beside(t: Tensor, other: Tensor, name: str) -> Tensor:
    """t, the argument `name`, for PyTorch's ops together with `other`: a replicated DTensor if either is a DTensor."""
    if is_dtensor(t):
        return _with_placements(t, [_replicate()] * len(_unwrapped(t).placements), name)
    if not is_dtensor(other):
        return t
    if t.requires_grad:
        raise _plain_gradient(name)
    like = _unwrapped(other)
    replicated: Tensor = like.from_local(t, like.device_mesh, run_check=False)
    return replicated


def refuse_plain_gradients(x: Sequence[Tensor], cos: Tensor, sin: Tensor, rest: Rest) -> None:
    """Raises if x holds DTensors and another argument is a plain Tensor that requires grad. For recorded calls."""
    if not any(map(is_dtensor, x)):
        return
    weights = (("norm", weight) for weight in norm_of(rest))
    for name, t in (*zip(names_of_tables(flags_of(rest)), (cos, sin)), ("positions", positions_of(rest)), *weights):
        if t is not None and t.requires_grad and not is_dtensor(t):
            raise _plain_gradient(name)


def _plain_gradient(name: str) -> ArgumentError:
    """The error for a plain Tensor that requires grad: nothing would reduce its gradient over the ranks.

    The backward of from_local reduces it. The cure does not name distribute_tensor, which creates a new leaf: the
    Tensor would get no gradient at all.
    """
    cure = f"DTensor.from_local({name}, mesh) creates one, and sums the gradient of {name} over the ranks"
    return ArgumentError(name, "be a DTensor when it requires grad and x is one", "a Tensor", cure)


def with_whole_heads(t: Tensor) -> Tensor:
    """t, redistributed as dtensor_rules.py does: no placement shards head_dim, and none is Partial."""
    if not is_dtensor(t):
        return t
    last = t.dim() - 1
    placements = _unwrapped(t).placements
    wanted = [_replicate() if p.is_partial() or getattr(p, "dim", None) == last else p for p in placements]
    return _with_placements(t, wanted, "x")


def placed_as(t: Tensor, other: Tensor) -> Tensor:
    """t with the placements of other. PyTorch's ops may have replicated t, as they do with tiny shards."""
    if not is_dtensor(t) or not is_dtensor(other) or _unwrapped(t) is not t or _unwrapped(other) is not other:
        return t
    like: Any = other
    return _with_placements(t, [*like.placements], "x")


def _replicate() -> Any:
    return sys.modules[_MODULE].Replicate()


def _with_placements(t: Tensor, wanted: list[Any], name: str) -> Tensor:
    """t with the wanted placements. Autograd differentiates the redistribution; torch.func does not."""
    placements = [*_unwrapped(t).placements]
    if wanted == placements:
        return t
    if _unwrapped(t) is not t:
        cure = f"call {name}.redistribute(placements=...) before the transform"
        raise ArgumentError(name, f"have placements {wanted} under torch.func", placements, cure)
    whole: Tensor = sys.modules[_MODULE].DTensor.redistribute(t, placements=wanted)
    return whole


def check_views(qkv: Any, *slices: Any) -> None:
    """Raises if a slice is a copy, as slices along a sharded axis are: writes to the copy would be lost."""
    sharded = [not p.is_replicate() for p in _unwrapped(qkv).placements]
    if all([not p.is_replicate() for p in _unwrapped(t).placements] == sharded for t in slices):
        return
    rule = "be whole along the heads when it is written, or sharded by whole groups"
    cure = "redistribute it, or call apply_qkv, which returns q and k"
    raise ArgumentError("qkv", rule, f"placements {_unwrapped(qkv).placements}", cure)
