"""The DTensor rule of each op runs the op on this rank's parts. It may redistribute arguments, never results.

torch calls the rules below autograd, so the backward passes of rope_ext (derivatives.py, norm.py) call ops on DTensors,
too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial

from ..errors import ArgumentError, ArgumentTypeError
from . import dtensor_tables, fake
from .arguments import norm_of
from .dtensor_groups import Call, Group
from .dtensor_parts import local, redistributed, strides_of_like
from .library import NAMESPACE
from .library import torch_ops as _ops
from .private import forward_mode_enabled, tree

# ---- rotate ----


def _rotate(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> list[DTensor]:
    call = Call(x, cos, sin, rest)
    return call.of_each_x(_rotated)


def _rotated(group: Group) -> list[Tensor]:
    x = group.parts_of_x()
    return [group.where_rotated(y, t) for y, t in zip(_ops.rotate(x, *group.others), x)]


def _rotate_in_place(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    call = Call(x, cos, sin, rest)
    _write("x", x, call, lambda _, group: _ops.rotate_(group.parts_of_x(), *group.others))


def _rotate_out(out: Sequence[Tensor], x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    call = Call(x, cos, sin, rest, out)
    _write("out", out, call, lambda to, group: _ops.rotate_out(to, group.parts_of_x(), *group.others))


def _write(name: str, out: Sequence[Tensor], call: Call, write: Callable[[list[Tensor], Group], None]) -> None:
    """Writes the rotated x to `out`, the argument `name`, without a temporary if `out` is placed like the result.

    All reads and all errors precede the first write, because a tensor of `out` may be an x of another group.
    """
    if len(out) != len(call.x):
        raise ArgumentError(name, f"hold {len(call.x)} tensors, as x does", len(out))
    targets = [_writable(name, t, like) for t, like in zip(out, call.x)]
    # With several groups, rotate_out could overwrite the x of a later group; rotate_ writes only the x of its own.
    may_write = len(call.groups) == 1 or name == "x"
    made: list[tuple[list[DTensor], Group, list[Tensor] | None]] = []
    for group in call.groups:
        to = [targets[place] for place in group.places]
        placements = group.shards.placements(call.axes)
        is_direct = may_write and group.rotated is None and all(t.placements == placements for t in to)
        if is_direct and len(call.groups) > 1:  # for a single group the op itself checks before it writes
            _ops.check_in_place(group.parts_of_x(), *group.others)
        made.append((to, group, None if is_direct else _rotated(group)))
    for to, group, parts in made:
        if parts is None:
            write([local(t) for t in to], group)
            continue
        for target, part in zip(to, parts):
            y = group.shards.whole(part, call.axes, target.shape, target.stride())
            local(target).copy_(local(redistributed(name, y, target.placements)))


def _writable(name: str, t: Tensor, like: DTensor) -> DTensor:
    if not isinstance(t, DTensor):
        raise ArgumentTypeError(name, "be a DTensor when x is one", "a Tensor")
    if t.device_mesh != like.device_mesh:
        raise ArgumentError(name, f"be on the mesh of x, {like.device_mesh}", t.device_mesh)
    if t.shape != like.shape or t.dtype != like.dtype:
        got = f"shape {tuple(t.shape)}, {t.dtype}"
        raise ArgumentError(name, f"have the shape and dtype of x, {tuple(like.shape)}, {like.dtype}", got)
    if any(isinstance(placement, Partial) for placement in t.placements):
        cure = f"write to {name}.redistribute(placements=...)"
        raise ArgumentError(name, "not be Partial when it is written", f"placements {t.placements}", cure)
    return t


def _check(*arguments: Any) -> None:
    x, cos, sin, *rest = arguments
    Call(x, cos, sin, rest)


def _check_in_place(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> None:
    call = Call(x, cos, sin, rest)
    for t in call.x:
        _writable("x", t, t)
    for group in call.groups:
        placements = group.shards.placements(call.axes)
        if all(call.x[place].placements == placements for place in group.places):
            _ops.check_in_place(group.parts_of_x(), *group.others)


# ---- norm ----


def _norm_rotate(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> tuple[list[DTensor], list[DTensor]]:
    call = Call(x, cos, sin, rest)
    inv_rms: dict[int, DTensor] = {}

    def rotate(group: Group) -> list[Tensor]:
        x = group.parts_of_x()
        y, factors = _ops.norm_rotate(x, *group.others)
        for place, factor in zip(group.places, factors):
            inv_rms[place] = _factors(call, group, place, factor)
        return [group.where_rotated(t, other) for t, other in zip(y, x)]

    y = call.of_each_x(rotate)
    return y, [inv_rms[place] for place in range(len(x))]


def _factors(call: Call, group: Group, place: int, part: Tensor) -> DTensor:
    """inv_rms, (batch, seqlen, heads), or an empty DTensor if x[place] has no norm."""
    if norm_of(call.rest)[place] is None:
        return group.shards.whole(part, ".", (0,))
    batch, seqlen, heads = (call.sizes(place)[letter] for letter in "bsh")
    return group.shards.whole(part, "bsh", (batch, seqlen, heads))


def _norm_grad(
    input: Sequence[Tensor],
    inv_rms: Sequence[Tensor],
    wanted: int,
    grad: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    *rest: Any,
) -> tuple[list[DTensor], list[DTensor]]:
    call = Call(input, cos, sin, rest)
    to_x: dict[int, DTensor] = {}
    to_weight: dict[int, DTensor] = {}
    for group in call.groups:
        places, shards = group.places, group.shards
        some = sum((wanted >> place & 0x101) << i for i, place in enumerate(places))
        grads = [shards.part("grad", grad[place], call.axes) for place in places]
        factors = [
            shards.part("inv_rms", inv_rms[place], "bsh" if inv_rms[place].dim() == 3 else ".").contiguous()
            for place in places
        ]
        # Tokens past the last boundary add nothing to the gradients of the weights, even if they are NaN.
        rotated, inputs = ([group.where_rotated(t, 0) for t in tensors] for tensors in (grads, group.parts_of_x()))
        if group.rotated is not None:
            factors = [torch.where(group.rotated[None, ..., 0], t, 1) if t.numel() else t for t in factors]
        grad_x, grad_weight = _ops.norm_grad(inputs, factors, some, rotated, *group.others)
        for place, x, weight, g in zip(places, grad_x, grad_weight, grads):
            like = call.x[place]
            if wanted >> place & 1:
                to_x[place] = shards.whole(group.where_rotated(x, g), call.axes, like.shape, strides_of_like(like))
            else:
                to_x[place] = shards.whole(x, ".", (0,))
            is_wanted = wanted >> (8 + place) & 1
            size = (like.shape[-1],) if is_wanted else (0,)
            to_weight[place] = shards.whole(weight, ".", size, missing=Partial() if is_wanted else None)
    return [to_x[i] for i in range(len(input))], [to_weight[i] for i in range(len(input))]


# ---- registration ----


def _outside(name: str, mesh: DeviceMesh, arguments: Sequence[Any]) -> Any:
    """The results in a process outside the mesh: DTensors with empty local tensors."""

    def on_meta(t: Any) -> Any:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") if isinstance(t, Tensor) else t

    def of_mesh(t: Tensor | None) -> DTensor | None:
        if t is None:  # an op that writes returns nothing
            return None
        part = torch.empty(0, dtype=t.dtype, device=mesh.device_type)
        return DTensor.from_local(part, mesh, run_check=False, shape=t.shape, stride=t.stride())

    return tree.tree_map(of_mesh, fake.FAKES[name](*tree.tree_map(on_meta, list(arguments))))


def _register(name: str, rule: Callable[..., Any]) -> None:
    def dispatch(_cls: type, _op: object, _types: object, args: tuple[Any, ...] = (), _keywords: Any = None) -> Any:
        with torch.no_grad(), forward_mode_enabled(False):  # else to_local and redistribute would record
            flat = tree.tree_leaves(list(args))
            mesh = next(t.device_mesh for t in flat if isinstance(t, DTensor))
            return rule(*args) if mesh.get_coordinate() is not None else _outside(name, mesh, args)

    torch.library.register_torch_dispatch(f"{NAMESPACE}::{name}", DTensor, dispatch, lib=_library)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_RULES: dict[str, Callable[..., Any]] = {
    "rotate": _rotate,
    "rotate_": _rotate_in_place,
    "rotate_out": _rotate_out,
    "check": _check,
    "check_in_place": _check_in_place,
    "norm_rotate": _norm_rotate,
    "norm_grad": _norm_grad,
    "table_grad": dtensor_tables.table_grad,
    "table_rows": dtensor_tables.table_rows,
    "cos_sin": dtensor_tables.cos_sin,
    "revolutions": dtensor_tables.revolutions,
}
for _name, _rule in _RULES.items():
    _register(_name, _rule)
