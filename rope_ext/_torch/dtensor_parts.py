"""The part of each argument that a rank of a device mesh needs when x is a DTensor.

Each axis of a tensor has a letter: "b", "s" and "h" for the batch, tokens and heads of x, "." for any other axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from ..errors import ArgumentError
from .private import shard_order

# For each mesh dimension, the letter of the axis of x that it shards and the placement; None: it shards no axis.
Spread: TypeAlias = tuple[tuple[str, Placement] | None, ...]


class Shards(NamedTuple):
    """How a tensor of x is sharded over the ranks of a mesh, and what follows for the other arguments."""

    mesh: DeviceMesh
    spread: Spread

    def split(self, letter: str) -> bool:
        return any(entry is not None and entry[0] == letter for entry in self.spread)

    def placements(self, axes: str, missing: Placement | None = None) -> tuple[Placement, ...]:
        """The placements of a tensor with these axes.

        missing: the placement on mesh dimensions that shard an axis of x that the tensor lacks. Default: Replicate.
        """
        found: list[Placement] = []
        for entry in self.spread:
            if entry is None:
                found.append(Replicate())
            elif entry[0] in axes:
                found.append(_at(axes.index(entry[0]), entry[1]))
            else:
                found.append(missing or Replicate())
        return tuple(found)

    def bounds(self, letter: str, size: int) -> tuple[int, int] | None:
        """(first index, size) of this rank's range of an axis, split as by torch.chunk; None: not one range."""
        begin = 0
        for dim, entry in enumerate(self.spread):
            if entry is None or entry[0] != letter:
                continue
            if not isinstance(entry[1], Shard):
                return None
            ranks, rank = self.mesh.size(dim), self.mesh.get_local_rank(dim)
            chunk = (size + ranks - 1) // ranks
            first, end = torch.sym_min(chunk * rank, size), torch.sym_min(chunk * (rank + 1), size)
            begin, size = begin + first, end - first
        return begin, size

    def indices(self, size: int, device: torch.device) -> Tensor:
        """The index of each token of this rank in the whole sequence: int64, (number of this rank's tokens,)."""
        bounds = self.bounds("s", size)
        if bounds is None:
            return self.part("x", torch.arange(size, device=device), "s")
        return torch.arange(bounds[0], bounds[0] + bounds[1], device=device)

    def part(self, name: str, t: Tensor, axes: str) -> Tensor:
        """The part of t that this rank needs. A plain Tensor is assumed to be the same on all ranks."""
        if isinstance(t, DTensor):
            if t.device_mesh != self.mesh:
                raise ArgumentError(name, f"be on the mesh of x, {self.mesh}", t.device_mesh)
            return local(redistributed(name, t, self.placements(axes)))
        split = [axis for axis, letter in enumerate(axes) if self.split(letter)]
        bounds = {axis: self.bounds(axes[axis], t.shape[axis]) for axis in split}
        if None in bounds.values():  # torch then splits all axes: a narrow() of some would split them twice
            replicated = DTensor.from_local(t, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
            return self.part(name, replicated, axes)
        for axis, range_ in bounds.items():
            if range_ is not None:
                t = t.narrow(axis, *range_)
        return t

    def shape_of_part(self, t: DTensor, axes: str) -> Tensor:
        """A Tensor with the shape of part(t): one element, expanded."""
        split = local(t)
        sizes = [n if self.split(letter) else whole for n, whole, letter in zip(split.shape, t.shape, axes)]
        return split.new_empty(()).expand(sizes)

    def whole(
        self,
        part: Tensor,
        axes: str,
        shape: Sequence[int],
        stride: Sequence[int] | None = None,
        missing: Placement | None = None,
    ) -> DTensor:
        """The DTensor whose local tensor on this rank is `part`. shape, stride: global; contiguous without stride."""
        shape = torch.Size(shape)
        strides = _contiguous(shape) if stride is None else tuple(stride)
        placements = self.placements(axes, missing)
        return DTensor.from_local(part, self.mesh, placements, run_check=False, shape=shape, stride=strides)


def redistributed(name: str, t: DTensor, placements: tuple[Placement, ...]) -> DTensor:
    if t.placements == placements:
        return t
    found: Any = t.detach()  # torch 2.11 and 2.12 refuse a DTensor that requires grad here
    try:
        made: DTensor = found.redistribute(placements=placements)
    except (ValueError, RuntimeError) as error:
        if not any(hasattr(placement, "split_factor") for placement in (*t.placements, *placements)):
            raise
        rule = f"have placements that torch {torch.__version__} can redistribute to {placements}"
        raise NotImplementedError(f"rope_ext: {name} must {rule}, got {t.placements} (torch: {error})") from None
    return made


def local(t: DTensor) -> Tensor:
    """The local tensor of t. Waits for a pending collective."""
    found: Tensor = t.to_local()
    wait = getattr(found, "wait", None)  # only an AsyncCollectiveTensor has wait()
    return found if wait is None else wait()


def spread_of(name: str, x: DTensor, axes: str) -> Spread:
    """The Spread of x. Placements that are redistributed first, Shard of head_dim and Partial, are None too."""
    if any(list(order.mesh_dims) != sorted(order.mesh_dims) for order in shard_order(x)):
        rule = "be sharded by the dimensions of the mesh from the first to the last"
        raise ArgumentError(name, rule, f"placements {x.placements} in another order")
    spread: list[tuple[str, Placement] | None] = []
    for placement in x.placements:
        dim = _sharded(placement)
        if dim is not None:
            letter = axes[dim]
            spread.append(None if letter == "." else (letter, placement))
        elif isinstance(placement, (Replicate, Partial)):
            spread.append(None)
        else:
            raise ArgumentError(name, "have placements Shard, Replicate or Partial", placement)
    return tuple(spread)


def strides_of_like(t: Tensor) -> tuple[int, ...]:
    """The strides of torch.empty_like(t)."""
    if t.is_contiguous():
        return t.stride()
    return torch.empty_like(torch.empty_strided(t.shape, t.stride(), device="meta")).stride()


def letters(name: str, t: Tensor, axes: str, sizes: Mapping[str, int]) -> str:
    """The letters of the axes of t, with "." for a batch or heads axis of size 1, which broadcasts.

    sizes: the size of each axis of x, which t must match elsewhere.
    """
    found = ""
    for axis, (letter, size) in enumerate(zip(axes, t.shape)):
        if size == 1 and letter != "s":
            found += "."
        elif letter == "." or size == sizes[letter]:
            found += letter
        else:
            raise ArgumentError(name, f"have size {sizes[letter]} on axis {axis}, as x has", f"shape {tuple(t.shape)}")
    return found


def _sharded(placement: Any) -> int | None:
    """The axis of a Shard or of a _StridedShard, which does not derive from Shard; None for other placements."""
    if not isinstance(placement, Shard) and not hasattr(placement, "split_factor"):
        return None
    dim: int = placement.dim
    return dim


def _at(dim: int, placement: Any) -> Placement:
    """`placement`, a Shard or _StridedShard, with axis `dim`."""
    if isinstance(placement, Shard):
        return Shard(dim)
    strided: Placement = type(placement)(dim, split_factor=placement.split_factor)
    return strided


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step = step * torch.sym_max(size, 1)
    return tuple(reversed(strides))
