"""The vmap rules of the ops, for torch.func.vmap and for the legacy vmap of torch.autograd.grad(is_grads_batched)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .arguments import LOOKUP_END, eps_of, flags_of, layout_of, norm_of
from .flags import FREQUENCIES
from .library import NAMESPACE
from .library import torch_ops as _ops
from .private import schema_of, tree

_library = torch.library.Library(NAMESPACE, "IMPL")


def _vmap_by_loop(op: Callable[..., Any], writes: bool = False) -> Callable[..., tuple[Any, Any]]:
    """A vmap rule that calls the op once per sample: if more than x is batched, or if the op writes to x."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ArgumentError("torch.func.vmap", "map over at least one sample", "none")
        for t, d in zip(arguments[0], in_dims[0]) if writes else ():
            if d is None:  # every sample would write to the same tensor
                got = f"one of shape {tuple(t.shape)} from outside"
                raise ArgumentError("x", "be inside torch.func.vmap when it is written", got)
        flat, spec = tree.tree_flatten(list(arguments), is_leaf=lambda a: a is None)
        dims, _ = tree.tree_flatten(list(in_dims), is_leaf=lambda d: d is None)

        def sample(i: int) -> Any:
            return tree.tree_unflatten([a if d is None else a.select(d, i) for a, d in zip(flat, dims)], spec)

        results = [op(*sample(i)) for i in range(info.batch_size)]
        if results[0] is None:
            return None, None
        stacked = tree.tree_map(lambda *samples: torch.stack(samples), *results)
        return stacked, tree.tree_map(lambda _: 0, stacked)

    return rule


_rotate_by_loop = _vmap_by_loop(_ops.rotate)


def _rotate_vmap(
    info: Any, in_dims: Sequence[Any], x: list[Tensor], cos: Tensor, sin: Tensor, *rest: Any
) -> tuple[Any, Any]:
    flags = flags_of(rest)
    per_head = cos.dim() == 4 or (flags & FREQUENCIES and cos.shape[1] > 1)
    others, _ = tree.tree_flatten(list(in_dims[1:]), is_leaf=lambda d: d is None)  # norm is a list
    if per_head or info.batch_size == 0 or any(d is not None for d in others):
        return _rotate_by_loop(info, in_dims, x, cos, sin, *rest)
    heads = layout_of(flags).index("h")  # samples with the same angles are folded into the heads axis

    def fold(t: Tensor, d: int | None) -> Tensor:
        if d is None:
            t = t.unsqueeze(heads).expand(*t.shape[:heads], info.batch_size, *t.shape[heads:])
        else:
            t = t.movedim(d, heads)
        return t.flatten(heads, heads + 1)

    y = _ops.rotate([fold(t, d) for t, d in zip(x, in_dims[0])], cos, sin, *rest)
    y = [t.unflatten(heads, (info.batch_size, t.shape[heads] // info.batch_size)) for t in y]
    return y, [heads] * len(y)


_UNFOLDED = "check", "check_in_place", "norm_rotate", "norm_grad", "table_grad", "cos_sin", "table_rows", "revolutions"
_RULES = {name: _vmap_by_loop(getattr(_ops, name)) for name in _UNFOLDED}
_RULES |= {"rotate": _rotate_vmap, "rotate_": _vmap_by_loop(_ops.rotate_, writes=True)}
for _name, _rule in _RULES.items():
    torch.library.register_vmap(f"{NAMESPACE}::{_name}", _rule, lib=_library)


# is_grads_batched, and therefore gradcheck's check_batched_grad, uses the legacy vmap. Its only rule, a loop over
# samples, does not support lists of tensors, so each op that accepts lists has a twin for one tensor, for the loop.

_twins = torch.library.Library(NAMESPACE, "FRAGMENT")


def _define_twin(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    schema = str(schema_of(getattr(_ops, name).default)).removeprefix(f"{NAMESPACE}::").replace("Tensor[]", "Tensor")
    _twins.define(schema.replace(name, name + "_of_one", 1))
    _twins.impl(name + "_of_one", kernel, "CompositeExplicitAutograd")
    twin: Callable[..., Any] = getattr(_ops, name + "_of_one").default
    return twin


_rotate_of_one = _define_twin("rotate", lambda x, *rest: _ops.rotate([x], *rest)[0])
_table_grad_of_one = _define_twin("table_grad", lambda grad, x, *rest: _ops.table_grad([grad], [x], *rest))


def _norm_grad_of_lists(input: Tensor, inv_rms: Tensor, wanted: int, grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    (grad_x,), (grad_weight,) = _ops.norm_grad([input], [inv_rms], wanted, [grad], *rest)
    return grad_x, grad_weight


_norm_grad_of_one = _define_twin("norm_grad", _norm_grad_of_lists)


def _legacy_rotate(x: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [_rotate_of_one(t, *rest) for t in x]


def _legacy_table_grad(grad: Sequence[Tensor], x: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    pairs = [_table_grad_of_one(grad_i, x_i, *rest) for grad_i, x_i in zip(grad, x)]
    return tuple(sum(grads[1:], grads[0]) for grads in zip(*pairs))


def _legacy_norm_grad(
    input: Sequence[Tensor],
    inv_rms: Sequence[Tensor],
    wanted: int,
    grad: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    *rest: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        _norm_grad_of_one(x, r, wanted >> i & 0x101, g, cos, sin, *rest[:LOOKUP_END], [weight], eps_of(rest))
        for i, (x, r, g, weight) in enumerate(zip(input, inv_rms, grad, norm_of(rest)))
    ]
    return [to_x for to_x, _ in pairs], [to_weight for _, to_weight in pairs]


_library.impl("rotate", _legacy_rotate, "Batched")
_library.impl("norm_grad", _legacy_norm_grad, "Batched")
_library.impl("table_grad", _legacy_table_grad, "Batched")
