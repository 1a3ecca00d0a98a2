"""Splits a call of an op on DTensors into calls of the op on this rank's parts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from ..errors import ArgumentError, ArgumentTypeError
from .arguments import ORDINARY_TYPES, Lookup, Rest, eps_of, flags_of, layout_of, names_of_tables, norm_of, split
from .dtensor_parts import Shards, Spread, letters, local, redistributed, spread_of, strides_of_like
from .flags import FREQUENCIES
from .library import torch_ops as _ops


class Group(NamedTuple):
    """The tensors of x that are sharded alike, and the parts of the other arguments that this rank needs for them."""

    places: list[int]  # indices of `tensors` in x
    tensors: list[DTensor]
    axes: str  # of x
    shards: Shards
    table_axes: str
    others: tuple[Any, ...]  # the arguments after x
    # Whether each token is before the last boundary of cu_seqlens: (tokens, 1, 1); None: the op finds out from others.
    rotated: Tensor | None

    def parts_of_x(self) -> list[Tensor]:
        """The tensors that this rank rotates. Communicates if x is sharded along head_dim or Partial."""
        return [self.shards.part("x", t, self.axes) for t in self.tensors]

    def shapes_of_parts(self) -> list[Tensor]:
        """Tensors with the shapes of parts_of_x, one element each, expanded: for ops that read only shapes."""
        return [self.shards.shape_of_part(t, self.axes) for t in self.tensors]

    def where_rotated(self, y: Tensor, other: Tensor | float) -> Tensor:
        return y if self.rotated is None else torch.where(self.rotated, y, other)


class Call:
    """The arguments of an op and the groups of x, on a rank of the mesh of x."""

    def __init__(self, x: Sequence[Tensor], cos: Tensor, sin: Tensor, rest: Rest, out: Sequence[Tensor] = ()) -> None:
        self.x, self.cos, self.sin, self.rest = _all_dtensors(x, cos, sin, rest, out), cos, sin, rest
        layout = layout_of(flags_of(rest))
        self.axes = layout.replace("t", "s").replace("d", ".")
        self.has_frequencies = bool(flags_of(rest) & FREQUENCIES)
        self.mesh = self.x[0].device_mesh
        self._check()
        alike: dict[Spread, list[int]] = {}
        for place, t in enumerate(self.x):
            if t.device_mesh != self.mesh:
                raise ArgumentError("x", f"be on one mesh, {self.mesh}", t.device_mesh)
            if t.dim() != len(self.axes):
                raise ArgumentError("x", f"have {len(layout)} dimensions for layout '{layout}'", tuple(t.shape))
            alike.setdefault(spread_of("x", t, self.axes), []).append(place)
        self.groups = [self._group(places, Shards(self.mesh, spread)) for spread, places in alike.items()]

    def _check(self) -> None:
        """Raises the error that `apply` would raise for the whole tensors, as far as this rank knows their values."""
        if not all(type(local(t)) in ORDINARY_TYPES for t in self.x):  # fake tensors: a graph is traced
            return

        def stand_in(t: Any) -> Any:
            if not isinstance(t, DTensor):
                return t
            return local(t).new_zeros(()).expand(t.shape)

        def known(t: DTensor) -> Tensor:
            whole = (Replicate(),) * t.device_mesh.ndim
            is_known = t is lookup.cu_seqlens or t.placements == whole
            return local(redistributed("cu_seqlens", t, whole)) if is_known else stand_in(t)

        def of_table(t: Tensor) -> Any:  # frequencies must be contiguous; tables may have any strides
            return stand_in(t).contiguous() if self.has_frequencies else stand_in(t)

        scalars, lookup = split(self.rest)
        values = [known(t) if isinstance(t, DTensor) else t for t in lookup]
        norm = [*map(stand_in, norm_of(self.rest))]
        rest = [*scalars, *values, *((norm, eps_of(self.rest)) if norm else ())]
        try:
            _ops.check([stand_in(t) for t in self.x], of_table(self.cos), of_table(self.sin), *rest)
        except (RuntimeError, ValueError) as error:  # errors.py gives it its final type
            raise type(error)(f"{error}{self._cure(str(error))}") from None

    def _cure(self, error: str) -> str:
        """The cure to append to an error about an argument that covers only this rank's tokens; "" for other errors."""
        axis = self.axes.index("s")
        if self.x[0].dim() != len(self.axes):
            return ""
        whole, part = self.x[0].shape[axis], local(self.x[0]).shape[axis]
        _, (positions, _, _) = split(self.rest)
        for name, t, axes in ("positions", positions, "s"), ("cos", self.cos, self._axes_of_tables()):
            if t is None or "s" not in axes or part == whole:
                continue
            has_part = t.shape[axes.index("s") - len(axes) :][:1] == (part,)
            if has_part and f"rope_ext: {name} must " in error:
                return f": beside a DTensor x, {name} are for all {whole} tokens"
        return ""

    def _group(self, places: list[int], shards: Shards) -> Group:
        scalars, _ = split(self.rest)
        sizes = self.sizes(places[0])
        names = names_of_tables(flags_of(self.rest))
        table_axes = letters(names[0], self.cos, self._axes_of_tables(), sizes)
        cos, sin = (shards.part(name, t, table_axes) for name, t in zip(names, (self.cos, self.sin)))
        offset, lookup, rotated = self._lookup(shards, sizes, cos.device)
        others: tuple[Any, ...] = cos, sin, offset, *scalars[1:], *lookup
        norm = norm_of(self.rest)
        if norm:
            weights = [norm[place] for place in places]
            parts = [None if weight is None else shards.part("norm", weight, ".") for weight in weights]
            others = *others, parts, eps_of(self.rest)
        return Group(places, [self.x[place] for place in places], self.axes, shards, table_axes, others, rotated)

    def _axes_of_tables(self) -> str:
        if self.has_frequencies:
            return ".h."
        return {2: "..", 3: "bs."}.get(self.cos.dim(), self.axes if "b" in self.axes else "b" + self.axes)

    def _lookup(self, shards: Shards, sizes: dict[str, int], device: torch.device) -> tuple[int, Lookup, Tensor | None]:
        """(offset, lookup, Group.rotated): together they give the position of each token of this rank."""
        scalars, (positions, offsets, cu_seqlens) = split(self.rest)
        offset, rotated = scalars.offset, None
        if offsets is not None:
            offsets = shards.part("offset", offsets, letters("offset", offsets, "b" * offsets.dim(), sizes))
        if cu_seqlens is not None:
            cu_seqlens = shards.part("cu_seqlens", cu_seqlens, ".")
        if positions is not None:
            axes = letters("positions", positions, ".bs"[-positions.dim() :], sizes)
            positions = shards.part("positions", positions, axes)
        elif shards.split("s") and (self.has_frequencies or self.cos.dim() == 2):
            bounds = shards.bounds("s", sizes["s"])
            if cu_seqlens is not None:
                positions, rotated, cu_seqlens = _in_packed(shards.indices(sizes["s"], device), cu_seqlens)
            elif bounds is not None:
                if self.cos.dim() == 2:
                    self._check_rows(sizes["s"])
                offset = offset + bounds[0]
            else:
                positions = shards.indices(sizes["s"], device)
        return offset, Lookup(positions, offsets, cu_seqlens), rotated

    def _check_rows(self, seqlen: int) -> None:
        """Raises on every rank if the table is too short, in graphs too: without this only some ranks would."""
        offset, rows = split(self.rest)[0].offset, self.cos.shape[0]
        if not self.has_frequencies and offset >= 0 and offset + seqlen > rows:
            rule = f"have a row for each of the {seqlen} tokens of x from offset {offset}"
            raise ArgumentError("cos", rule, f"{rows} rows: rope.tables({offset + seqlen}) has enough")

    def sizes(self, place: int) -> dict[str, int]:
        """The size of each axis of x[place], by the letter of the axis."""
        return {"b": 1, **dict(zip(self.axes, self.x[place].shape))}

    def of_each_x(self, function: Callable[[Group], Sequence[Tensor]]) -> list[DTensor]:
        """DTensors like x, in the order of x; `function` returns this rank's parts for the tensors of a group."""
        found: dict[int, DTensor] = {}
        for group in self.groups:
            for place, y in zip(group.places, function(group)):
                like = self.x[place]
                found[place] = group.shards.whole(y, self.axes, like.shape, strides_of_like(like))
        return [found[place] for place in range(len(self.x))]


def _all_dtensors(x: Sequence[Tensor], cos: Tensor, sin: Tensor, rest: Rest, out: Sequence[Tensor]) -> list[DTensor]:
    found = [t for t in x if isinstance(t, DTensor)]
    if len(found) == len(x):
        return found
    if found:
        cure = "distribute_tensor(x, mesh, placements) creates one"
        raise ArgumentTypeError("x", "be a DTensor when another tensor of x is one", "a Tensor beside it", cure)
    names = *names_of_tables(flags_of(rest)), "positions", "offset", "cu_seqlens"
    given = [*zip(names, (cos, sin, *split(rest)[1])), *(("out", t) for t in out)]
    name = next((name for name, t in given if isinstance(t, DTensor)), "norm")
    raise ArgumentTypeError("x", f"be a DTensor when {name} is one", "a Tensor", f"{name}.full_tensor() is a Tensor")


def _in_packed(tokens: Tensor, cu_seqlens: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(positions, rotated, cu_seqlens) for this rank's tokens of packed sequences.

    tokens: the indices of this rank's tokens among all packed tokens, ascending.
    """
    cu_seqlens = cu_seqlens.to(tokens.dtype).contiguous()
    rotated = tokens < cu_seqlens[-1]
    sequence = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
    begin = cu_seqlens[sequence]
    positions = torch.where(begin < 0, -1, tokens - begin)  # negative on a GPU only: nothing validated them
    positions = torch.where(rotated, positions, 0)  # row 0 exists if any sequence does
    if type(cu_seqlens) in ORDINARY_TYPES and cu_seqlens.is_cpu:  # reading values needs no synchronization
        if rotated.all():
            return positions, None, None
        if not rotated.any():
            return None, None, cu_seqlens.new_zeros(1)  # no sequence
    return positions, rotated.reshape(-1, 1, 1), None
