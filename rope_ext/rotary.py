"""RotaryEmbedding: from frequencies and positions to the cos and sin that `rope_ext.apply` takes.

Its frequencies: _rotary_frequencies.py. Its cos and sin, and the tables that the process shares: _rotary_tables.py. How
its `apply` gets to the kernels: _rotary_apply.py. Checks: _rotary_checks.py, and _keywords.py for the keywords of the
schedules. Configurations of models: the package _config.
"""

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch.compiler import is_compiling
from typing_extensions import Self, Unpack  # torch requires this package

from . import _config, _kept, _keywords, _numbers, _rotary_checks, _rotary_tables
from ._keywords import Parameters
from ._options import RopeOptions
from ._rotary_apply import rotate_as_hf, rotate_exactly
from ._rotary_frequencies import (
    BY_LENGTH,
    Precision,
    Recipe,
    Seqlen,
    frequencies_of,
    frequencies_of_recipe,
    frozen,
    read,
)
from ._signatures import REQUIRED, by_name, given_by_position
from .angles import Revolutions
from .errors import ArgumentError
from .frequencies import Frequencies, Schedule
from .reference import Tensors


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class RotaryEmbedding:
    """cos and sin of rotary position embedding, for any positions.

    head_dim: channels of a head.
    base: the ratio that sets the slowest frequency, "rope_theta" in configurations. Llama 2: 10000, Llama 3: 500000.
    rotary_dim: rotated channels, even; default head_dim.
    schedule, parameters: name and keywords of a function of rope_ext.frequencies, as schedule="linear", factor=4.0.
    pair_axis: for positions with several axes, the axis that each pair follows, rotary_dim / 2 ints
        (rope_ext.frequencies.mrope_pair_axis makes them).
    precision: "exact", angles are position * inv_freq in float64, and cos and sin are rounded once; or "hf", equal bits
        to transformers 5.23, which rounds inv_freq and the product to float32: off by up to 1e-2 at position 131072,
        and what its checkpoints were trained with.

    A value: frozen, hashable, comparable, can be copied and pickled. It holds Python numbers only and is no module:
    nothing in the state dict, nothing that .half(), .to(), to_empty(), a meta device or FSDP can round or lose.

    Raises ArgumentError, a ValueError, or ArgumentTypeError, a TypeError.
    Equivalent to: inv_freq = base ** -(torch.arange(0, rotary_dim, 2) / rotary_dim), for the default schedule.
    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, section 3.2.
    """

    head_dim: int
    rotary_dim: int
    base: float
    schedule: Schedule
    pair_axis: tuple[int, ...] | None
    precision: Precision
    parameters: tuple[tuple[str, Any], ...]  # (name, value) of the keywords of the schedule, sorted by name
    _recipe: Recipe = dataclasses.field(compare=False)
    _trained: str | None = dataclasses.field(compare=False)  # text of the length of the training, see `_canonical`

    @by_name
    def __init__(
        self,
        head_dim: int = REQUIRED,
        *too_many: NoReturn,
        base: float | torch.Tensor = 10000.0,
        rotary_dim: int | None = None,
        schedule: Schedule = "default",
        pair_axis: Iterable[int] | torch.Tensor | None = None,
        precision: Precision = "exact",
        **parameters: Unpack[Parameters],
    ) -> None:
        if too_many:
            cure = "all others go by name, such as base=500000.0"
            raise given_by_position("RotaryEmbedding", ["head_dim"], too_many, cure)
        if head_dim is REQUIRED:
            raise _keywords.no_head_dim(parameters)
        _rotary_checks.check_channels(head_dim, rotary_dim)
        base = base.item() if isinstance(base, torch.Tensor) and base.numel() == 1 else base
        _numbers.positive(base=base)
        _keywords.check_schedule(schedule)
        _rotary_checks.check_precision(precision)
        _keywords.check_keywords(schedule, parameters)
        if pair_axis is not None:
            pair_axis = _numbers.axes_of("pair_axis", pair_axis)
            if schedule == "axial":
                raise ArgumentError("pair_axis", "be None with schedule 'axial'", pair_axis)
        values: dict[str, object] = {
            "head_dim": int(head_dim),
            "rotary_dim": int(head_dim if rotary_dim is None else rotary_dim),
            "base": float(base),
            "schedule": schedule,
            "pair_axis": pair_axis,
            "precision": precision,
            "parameters": tuple(sorted((name, frozen(value)) for name, value in parameters.items())),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        texts = tuple((name, repr(value)) for name, value in self._keywords().items())
        object.__setattr__(self, "_recipe", (schedule, precision, texts))
        object.__setattr__(self, "_trained", dict(texts).get(BY_LENGTH.get(schedule, "")))
        _rotary_checks.check_frequencies(self.frequencies, schedule, precision, (("base", self.base), *self.parameters))

    def _keywords(self) -> dict[str, Any]:
        """Keywords of `frequencies_of`."""
        return {"rotary_dim": self.rotary_dim, "base": self.base, "pair_axis": self.pair_axis, **dict(self.parameters)}

    @classmethod
    def from_config(cls, config: object, layer_type: str | None = None, *, precision: Precision = "exact") -> Self:
        """The rotation of a model of Hugging Face transformers, from its configuration.

        config: a configuration object of transformers 4 or 5, or the dict of a config.json. Where it has several parts
            (text_config, vision_config), the part with the attention.
        layer_type: which of the rotations, for models whose layers differ ("full_attention", "sliding_attention").
        Reads rope_parameters, rope_scaling, rope_theta, partial_rotary_factor, the names of other models for these, and
        the defaults that transformers has in the code of a model. transformers itself is not needed.
        Raises ArgumentError or ArgumentTypeError about a key that is missing, null without a meaning in transformers,
            of a wrong type, in contradiction to another, or named like a rotation and not known (use_scaled_rope). A
            key that means nothing can be set to None.
        Warns (UserWarning) of keys inside rope_parameters that have no effect, as transformers does.
        Equivalent to: RotaryEmbedding(head_dim, base=rope_theta, schedule=rope_type, ...)
        """
        _rotary_checks.check_precision(precision)
        return cls(precision=precision, **_config.read(config, layer_type, precision))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Through `__init__`, which checks what a file says as it checks what a user says."""
        known = {"head_dim", "rotary_dim", "base", "schedule", "pair_axis", "precision"}
        type(self).__init__(self, **{name: state[name] for name in known}, **dict(state["parameters"]))

    def __copy__(self) -> "RotaryEmbedding":
        return self

    def __deepcopy__(self, memo: object) -> "RotaryEmbedding":
        return self

    def __repr__(self) -> str:
        """The call that makes an equal one."""
        shown: dict[str, Any] = {"base": self.base}
        if self.rotary_dim != self.head_dim:
            shown["rotary_dim"] = self.rotary_dim
        for name in ("schedule", "pair_axis", "precision"):
            if getattr(self, name) != inspect.signature(RotaryEmbedding).parameters[name].default:
                shown[name] = getattr(self, name)
        shown |= dict(self.parameters)
        return f"{type(self).__name__}(head_dim={self.head_dim}, {', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def frequencies(self, seqlen: int | None = None) -> Frequencies:
        """Frequencies(inv_freq, attention_scaling) of a sequence of seqlen positions.

        inv_freq: on the CPU, radians per position: (rotary_dim / 2,), or (axes, 1, rotary_dim / 2) where positions have
            several axes; float64 for "exact", float32 for "hf".
        seqlen: matters to "dynamic_ntk" and "longrope" only; None: as within the length of the training.
        Raises ArgumentError or ArgumentTypeError about seqlen.
        """
        length = _numbers.seqlen(seqlen)
        if is_compiling():
            return frequencies_of_recipe(self._recipe, length)
        return frequencies_of(self.schedule, self.precision, self._keywords(), length)

    @property
    def inv_freq(self) -> torch.Tensor:
        """`frequencies().inv_freq`."""
        return self.frequencies().inv_freq

    @property
    def attention_scaling(self) -> float:
        """`frequencies().attention_scaling`, the factor on cos and sin; the tables have it already."""
        return self.frequencies().attention_scaling

    def tables(
        self,
        max_position: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | int | None = None,
        seqlen: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) for positions 0 to max_position - 1, each (max_position, rotary_dim / 2).

        dtype: a floating point type. device: default torch's. seqlen: the length that "dynamic_ntk" and "longrope"
        choose by; default max_position. Every axis has the same position, as for text.
        Built once per process for equal frequencies, and grown; what is returned is a view of the shared table. Do not
        write into it, and clone it before it becomes a buffer that a checkpoint is loaded into. The process keeps the
        last used tables (`memory.set_table_limit`, `memory.clear_tables`). "exact": computed on the CPU and then moved,
        so that every device gets the same bits. "hf": computed on the device, as in transformers.
        In torch.compile and torch.export the table is a constant of the graph. Where max_position is symbolic, a graph
        of torch.compile has the next larger of 4096, 32768, ... rows, and an exported program computes the table at
        every call, and warns of that (UserWarning).
        Raises ArgumentError or ArgumentTypeError; RuntimeError while a CUDA graph is captured, if the table was not
        built before.
        Equivalent to: angles = torch.outer(torch.arange(max_position), inv_freq); (angles.cos(), angles.sin())
        """
        count: Any = _numbers.as_int64("max_position", max_position)  # a SymInt in graphs, for torch an int
        if count < 0:
            raise ArgumentError("max_position", "not be negative", count)
        _numbers.floating_point(dtype)
        where = _rotary_checks.device_of(device)
        length = self._canonical(count if seqlen is None else _numbers.seqlen(seqlen))
        if is_compiling():
            return _rotary_tables.in_graph(self._recipe, length, count, dtype, where)
        if not _kept.takes_ordinary(where):
            return _rotary_tables.rows(frequencies_of_recipe(self._recipe, length), 0, count, dtype, where)
        return _rotary_tables.shared(self._recipe, length, count, dtype, where)

    def _canonical(self, seqlen: Seqlen) -> Seqlen:
        """The seqlen that represents all with its frequencies: None up to the length of the training, and beyond it
        one value for "longrope"."""
        if self._trained is None or seqlen is None or seqlen <= read(self._trained):
            return None
        return seqlen if self.schedule == "dynamic_ntk" else 2**63 - 1

    @by_name
    def apply(
        self,
        x: Tensors,
        *too_many: NoReturn,
        positions: torch.Tensor | None = None,
        offset: int | torch.Tensor = 0,
        seqlen: int | None = None,
        rotary_offset: int = 0,
        **options: Unpack[RopeOptions],
    ) -> Tensors:
        """`rope_ext.apply` with these frequencies, rotary_dim and attention_scaling: no table, angles in the kernel.

        x: as there, of this head_dim. Another head_dim needs rotary_offset, or rotary_dim, equal to that of this rope.
        positions, offset, rotary_offset, options: as there (layout, interleaved, cu_seqlens, inverse, rounding,
            out_interleaved, norm, eps, out).
        seqlen: the length that "dynamic_ntk" and "longrope" choose by; these need it.
        Keys that are in a cache hold attention_scaling: to move them rotate by the frequencies alone,
        rope_ext.apply(k, inv_freq=rope.inv_freq, positions=distances).
        precision="hf" makes tables of the positions in each call, and takes no cu_seqlens.
        Returns and raises what `rope_ext.apply` does.
        Equivalent to: rope_ext.apply(x, *rope(positions + offset), ...), with exact angles
        """
        if too_many:
            cure = "several tensors go in a tuple, rope.apply((q, k)), positions by name, and tables nowhere"
            raise given_by_position("rope.apply", ["x"], too_many, cure)
        if seqlen is None:
            if self.schedule in BY_LENGTH:
                raise ArgumentError("seqlen", f"be given for schedule {self.schedule!r}", "None")
            length = None
        else:
            length = self._canonical(_numbers.seqlen(seqlen))
        if options:
            _rotary_checks.check_options(options, self.rotary_dim)
        of_rope = self._recipe, length, self.head_dim, self.rotary_dim
        rotate = rotate_exactly if self.precision == "exact" else rotate_as_hf
        rotated: Tensors = rotate(of_rope, x, positions, offset, rotary_offset, options)
        return rotated

    @by_name
    def __call__(
        self,
        positions: torch.Tensor,
        *too_many: NoReturn,
        dtype: torch.dtype = torch.float32,
        seqlen: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) for positions of any shape, negative ones too: each (*positions.shape, rotary_dim / 2).

        positions: int32, int64 or float32. With positions (batch, seqlen) the result is tables with one row per token.
            Where positions have several axes: (axes, batch, seqlen), which gives (batch, seqlen, rotary_dim / 2); of
            lower rank: the same position on every axis. float32 positions of more than 3 axes are an error: they would
            be x by mistake, which `apply` rotates, and whose tables would take gigabytes.
        dtype: of the result, a floating point type.
        seqlen: the length that "dynamic_ntk" and "longrope" choose by; default positions.max() + 1, which waits for a
            GPU and does not go into one graph of torch.compile: give it.
        The result is on the device of positions. Devices other than CPU and CUDA may have no float64: for them "exact"
        angles are made on the CPU, which waits for the positions.
        Raises ArgumentError or ArgumentTypeError.
        Equivalent to: angles = positions[..., None] * inv_freq; (angles.cos().to(dtype), angles.sin().to(dtype))
        """
        if too_many:
            raise given_by_position("rope", ["positions"], too_many, "rope(position_ids) needs no x")
        _rotary_checks.check_positions(positions)
        if self.schedule in BY_LENGTH:
            if seqlen is None and positions.numel():
                seqlen = _rotary_checks.length_of(positions)
            found = self.frequencies(seqlen)  # not kept: lengths that grow would fill the cache
        elif is_compiling() or not _kept.takes_ordinary(positions.device):
            found = self.frequencies(seqlen)
        else:
            _numbers.seqlen(seqlen)  # only checked: these frequencies do not depend on it
            found = _rotary_tables.kept_frequencies(self._recipe)
        return _rotary_tables.tables_at(positions, found, dtype)


# Numbers, texts and tensors only: torch.load(weights_only=True) may make them.
torch.serialization.add_safe_globals([RotaryEmbedding, Frequencies, Revolutions])
