"""The DTensor rules of the ops on tables and frequencies; dtensor_rules.py registers them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from . import fake
from .dtensor_groups import Call
from .dtensor_parts import Shards, local, redistributed, spread_of, strides_of_like
from .library import torch_ops as _ops


def table_grad(
    grad: Sequence[Tensor], x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    call = Call(x, cos, sin, rest)
    of_groups: list[tuple[DTensor, DTensor]] = []
    for group in call.groups:
        grads = [group.shards.part("grad", grad[place], call.axes) for place in group.places]
        made = _ops.table_grad(grads, group.parts_of_x(), *group.others)
        cos_grad, sin_grad = (
            group.shards.whole(t, group.table_axes, cos.shape, strides_of_like(cos), missing=Partial()) for t in made
        )
        of_groups.append((cos_grad, sin_grad))
    of_cos, of_sin = zip(*of_groups)
    return _sum(of_cos), _sum(of_sin)


def _sum(grads: Sequence[DTensor]) -> DTensor:
    """The sum of grads: Replicate on mesh dimensions on which their placements differ."""
    first = grads[0]
    if len(grads) == 1:
        return first
    common = tuple(p[0] if p.count(p[0]) == len(p) else Replicate() for p in zip(*(g.placements for g in grads)))
    parts = [local(redistributed("cos", g, common)) for g in grads]
    total = sum(parts[1:], parts[0])
    return DTensor.from_local(
        total, first.device_mesh, common, run_check=False, shape=first.shape, stride=first.stride()
    )


def table_rows(x: Sequence[Tensor], cos: Tensor, sin: Tensor, *rest: Any) -> DTensor:
    call = Call(x[:1], cos, sin, rest)
    (group,) = call.groups
    rows = _ops.table_rows(group.shapes_of_parts(), *group.others)
    if group.rotated is not None:
        rows = torch.where(group.rotated.flatten(), rows, -1)
    sizes = fake.batch_and_seqlen(x, *rest)
    return group.shards.whole(rows, _of_batch(sizes) + "s", sizes)


def cos_sin(x: Sequence[Tensor], high: Tensor, low: Tensor, *rest: Any) -> tuple[DTensor, DTensor, DTensor]:
    call = Call(x[:1], high, low, rest)
    (group,) = call.groups
    cos, sin, positions = _ops.cos_sin(group.shapes_of_parts(), *group.others)
    if group.rotated is not None:
        rotated = group.rotated[None]
        cos, sin = torch.where(rotated, cos, 1), torch.where(rotated, sin, 0)
    sizes = fake.batch_and_seqlen(x, *rest)
    batch = _of_batch(sizes)
    axes = f"{batch}s{group.table_axes[1:]}"
    cos, sin = (group.shards.whole(t, axes, (*sizes, *high.shape[1:])) for t in (cos, sin))
    return cos, sin, group.shards.whole(positions, f".{batch}s", (high.shape[0], *sizes))


def _of_batch(sizes: tuple[int, int]) -> str:
    """The letter of the batch axis of rows and angles: "." for size 1, which all sequences share."""
    return "." if sizes[0] == 1 else "b"


def revolutions(inv_freq: DTensor, is_64: bool) -> tuple[DTensor, DTensor]:
    axes = "aph"[-inv_freq.dim() :]  # elementwise, so inv_freq may be sharded along any axis
    shards = Shards(inv_freq.device_mesh, spread_of("inv_freq", inv_freq, axes))
    high, low = _ops.revolutions(shards.part("inv_freq", inv_freq, axes), is_64)
    shape = (1,) * (3 - inv_freq.dim()) + tuple(inv_freq.shape)
    high, low = (shards.whole(t, "aph", shape) for t in (high, low))
    return high, low
