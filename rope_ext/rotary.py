"""RotaryEmbedding: frequencies, and the cos and sin of positions that `rope_ext.apply` accepts.

Its frequencies are in _rotary_frequencies.py; cos, sin and the tables that the process shares in _rotary_tables.py; its
`apply` in _rotary_apply.py; the checks in _rotary_checks.py, those of schedule keywords in _keywords.py. The package
_config reads the configurations of models.
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
    """The frequencies of a rotary position embedding; computes cos and sin for any positions.

    An immutable value: hashable, copyable and picklable. It holds Python numbers only and is not an nn.Module: it adds
    nothing to state_dict, and nothing that .half(), .to(), to_empty(), a meta device or FSDP could round or lose.

    Two are equal if their attributes are: RotaryEmbedding(128, base=1e4) equals RotaryEmbedding(128). Keywords of the
    schedule are compared as passed, so one that is spelled out with its default value makes a difference.

    Args:
        head_dim: channels of a head.
        base: the constant that sets the slowest frequency, "rope_theta" in configurations; a number or a Tensor with
            one number. Default: 10000, as in Llama 2; Llama 3 has 500000.
        rotary_dim: number of rotated channels, even. Default: head_dim.
        schedule: name of a function of `rope_ext.frequencies` that computes the frequencies. Default: "default".
        pair_axis: for positions with several axes, the axis that each pair follows: rotary_dim / 2 ints, as from
            `rope_ext.frequencies.mrope_pair_axis`. Default: one axis.
        precision: "exact" (default): angles are position * inv_freq in float64, and cos and sin are rounded once. "hf":
            bit-identical to transformers 5.23, which rounds inv_freq and the product to float32. That is off by up to
            1e-2 at position 131072, but it is what its checkpoints were trained with.
        **parameters: keywords of the schedule, such as factor=8.0 with schedule="llama3". The function of that name
            documents them: help(rope_ext.frequencies.llama3).

    Attributes:
        head_dim: as given.
        rotary_dim: as given, or head_dim.
        base: as given, a float.
        schedule: as given.
        pair_axis: as given, a tuple of ints, or None.
        precision: as given.
        parameters: the keywords of the schedule as a tuple of (name, value), sorted by name.

    Raises:
        ArgumentError: a size or a value is wrong; a ValueError.
        ArgumentTypeError: a type or a keyword is wrong; a TypeError.

    Equivalent to, for the default schedule::

        inv_freq = base ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)

    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, section 3.2.
    """

    head_dim: int
    rotary_dim: int
    base: float
    schedule: Schedule
    pair_axis: tuple[int, ...] | None
    precision: Precision
    parameters: tuple[tuple[str, Any], ...]  # (name, value) of each keyword of the schedule, sorted by name
    _recipe: Recipe = dataclasses.field(compare=False)
    _trained: str | None = dataclasses.field(compare=False)  # repr of the training length, see `_canonical`

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
            cure = "pass all others by name, such as base=500000.0"
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
        """The keywords of `frequencies_of`."""
        return {"rotary_dim": self.rotary_dim, "base": self.base, "pair_axis": self.pair_axis, **dict(self.parameters)}

    @classmethod
    def from_config(cls, config: object, layer_type: str | None = None, *, precision: Precision = "exact") -> Self:
        """Read the rotation of a Hugging Face transformers model from its configuration.

        Reads rope_parameters, rope_scaling, rope_theta, partial_rotary_factor, the names that other models use for
        these, and the defaults that transformers keeps in the code of a model. transformers itself is not needed.

        Args:
            config: a configuration object of transformers 4 or 5, or the dict of a config.json. If it has several parts
                (text_config, vision_config), pass the part that has the attention.
            layer_type: which rotation, for models whose layers differ ("full_attention", "sliding_attention").
            precision: as in the class.

        Returns:
            A RotaryEmbedding.

        Raises:
            ArgumentError: a key is missing, is null although transformers gives null no meaning, contradicts another
                key, is named like a rotation but unknown (rotary_scale), or has a value that from_config cannot
                interpret (use_scaled_rope=True). A key that has no effect can be set to None.
            ArgumentTypeError: a key has a wrong type.

        Warns:
            UserWarning: a key inside rope_parameters has no effect, as transformers warns.

        Equivalent to::

            RotaryEmbedding(head_dim, base=rope_theta, schedule=rope_type, ...)
        """
        _rotary_checks.check_precision(precision)
        return cls(precision=precision, **_config.read(config, layer_type, precision))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore through `__init__`, which checks the values of a file like those of a user."""
        known = {"head_dim", "rotary_dim", "base", "schedule", "pair_axis", "precision"}
        type(self).__init__(self, **{name: state[name] for name in known}, **dict(state["parameters"]))

    def __copy__(self) -> "RotaryEmbedding":
        return self

    def __deepcopy__(self, memo: object) -> "RotaryEmbedding":
        return self

    def __repr__(self) -> str:
        """The call that creates an equal RotaryEmbedding."""
        shown: dict[str, Any] = {"base": self.base}
        if self.rotary_dim != self.head_dim:
            shown["rotary_dim"] = self.rotary_dim
        for name in ("schedule", "pair_axis", "precision"):
            if getattr(self, name) != inspect.signature(RotaryEmbedding).parameters[name].default:
                shown[name] = getattr(self, name)
        shown |= dict(self.parameters)
        return f"{type(self).__name__}(head_dim={self.head_dim}, {', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def frequencies(self, seqlen: int | None = None) -> Frequencies:
        """Compute the frequencies of a sequence of seqlen positions.

        Args:
            seqlen: an int, which matters only to "dynamic_ntk" and "longrope". Default: None, as for any length up to
                the training length.

        Returns:
            Frequencies(inv_freq, attention_scaling). inv_freq is on the CPU, in radians per position, of shape
            (rotary_dim / 2,), or (axes, 1, rotary_dim / 2) if positions have several axes; float64 for precision
            "exact", float32 for "hf".

        Raises:
            ArgumentError: seqlen is negative or beyond 64 bits.
            ArgumentTypeError: seqlen is not an int.
        """
        length = _numbers.seqlen(seqlen)
        if is_compiling():
            return frequencies_of_recipe(self._recipe, length)
        return frequencies_of(self.schedule, self.precision, self._keywords(), length)

    @property
    def inv_freq(self) -> torch.Tensor:
        """Return `frequencies().inv_freq`, the radians per position of sequences up to the training length.

        Returns:
            A Tensor, as described in `frequencies`.
        """
        return self.frequencies().inv_freq

    @property
    def attention_scaling(self) -> float:
        """Return `frequencies().attention_scaling`, a factor on cos and sin that the tables already include.

        Returns:
            A float.
        """
        return self.frequencies().attention_scaling

    def tables(
        self,
        max_position: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | int | None = None,
        seqlen: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Build the tables cos and sin for positions 0 to max_position - 1.

        They are built once per process for equal frequencies, and grow on demand. "exact" tables are computed on the
        CPU and then moved, so that they are bit-identical on every device; "hf" tables are computed on the device, as
        transformers does. The process keeps the most recently used tables (`memory.set_table_limit`,
        `memory.clear_tables`).

        In torch.compile and torch.export the table is a constant of the graph. If max_position is symbolic, a graph of
        torch.compile holds the next larger of 4096, 32768, ... rows, and an exported program computes the table in
        every call.

        Args:
            max_position: the number of positions.
            dtype: a floating-point dtype. Default: torch.float32.
            device: where to put the tables. Default: PyTorch's default device.
            seqlen: the sequence length that selects the frequencies of "dynamic_ntk" and "longrope". Default:
                max_position.

        Returns:
            (cos, sin), each (max_position, rotary_dim / 2). If positions have several axes, a row has the same position
            on every axis, as for text. Both are views of the shared table: do not write to them, and clone them before
            they become buffers that a checkpoint is loaded into.

        Raises:
            ArgumentError: a value is wrong.
            ArgumentTypeError: a type is wrong.
            RuntimeError: a CUDA graph is being captured and the table was not built before.

        Warns:
            UserWarning: torch.export traces a symbolic max_position, so that the table is computed in every call.

        Equivalent to::

            angles = torch.outer(torch.arange(max_position), inv_freq)
            angles.cos(), angles.sin()
        """
        count: Any = _numbers.as_int64("max_position", max_position)  # in graphs a SymInt, which torch accepts as int
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
        """A seqlen with the same frequencies: None up to the training length; one value beyond it for "longrope"."""
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
        """Rotate x by `rope_ext.apply` with these frequencies: no table, the kernel computes the angles.

        Keys in a cache already include attention_scaling. To move them to other positions, rotate them by the
        frequencies alone: rope_ext.apply(k, inv_freq=rope.inv_freq, positions=distances).

        With precision="hf" each call builds tables for its positions, and cu_seqlens is not accepted.

        Args:
            x: Tensor, or tuple or list of Tensors, as in `rope_ext.apply`, with the head_dim of this object. For
                another head_dim pass the rotary_dim of this object, or a rotary_offset other than 0.
            positions: as in `rope_ext.apply`.
            offset: as in `rope_ext.apply`.
            seqlen: the sequence length that selects the frequencies of "dynamic_ntk" and "longrope", which require it.
            rotary_offset: as in `rope_ext.apply`.
            **options: layout, interleaved, rotary_dim, per_channel, cu_seqlens, inverse, rounding, out_interleaved,
                norm, eps and out, as documented in `rope_ext.apply`.

        Returns:
            What `rope_ext.apply` returns.

        Raises:
            ArgumentError: as in `rope_ext.apply`, and if seqlen is missing or the head_dim of x is another.
            ArgumentTypeError: as in `rope_ext.apply`, and if cos, sin, inv_freq or attention_scaling is passed.
            NotImplementedError: as in `rope_ext.apply`.

        Equivalent to, with exact angles::

            rope_ext.apply(x, *rope(positions + offset), ...)
        """
        if too_many:
            cure = "pass several tensors as a tuple, rope.apply((q, k)), positions by name, and no tables"
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
        """Compute cos and sin of any positions, negative ones included.

        Args:
            positions: int32, int64 or float32, of any shape; (batch, seqlen) gives tables with one row per token. If
                positions have several axes: (axes, batch, seqlen); with fewer dimensions the position is the same on
                every axis. float32 positions with more than 3 axes are refused: they are probably x, which `apply`
                rotates, and whose tables would take gigabytes.
            dtype: of the result, floating-point. Default: torch.float32.
            seqlen: the sequence length that selects the frequencies of "dynamic_ntk" and "longrope". Default:
                positions.max() + 1, which waits for a GPU and breaks a graph of torch.compile: pass it there.

        Returns:
            (cos, sin), each `(*positions.shape, rotary_dim / 2)`, or (batch, seqlen, rotary_dim / 2) for positions
            (axes, batch, seqlen), on the device of positions. Devices other than CPU and CUDA may lack float64: for
            them "exact" angles are computed on the CPU, which waits for the positions.

        Raises:
            ArgumentError: a shape or a value is wrong.
            ArgumentTypeError: a type or a dtype is wrong.

        Equivalent to::

            angles = positions[..., None] * inv_freq
            angles.cos().to(dtype), angles.sin().to(dtype)
        """
        if too_many:
            raise given_by_position("rope", ["positions"], too_many, "rope(position_ids) needs no x")
        _rotary_checks.check_positions(positions)
        if self.schedule in BY_LENGTH:
            if seqlen is None and positions.numel():
                seqlen = _rotary_checks.length_of(positions)
            found = self.frequencies(seqlen)  # not cached: growing lengths would fill the cache
        elif is_compiling() or not _kept.takes_ordinary(positions.device):
            found = self.frequencies(seqlen)
        else:
            _numbers.seqlen(seqlen)  # only validated: these frequencies do not depend on it
            found = _rotary_tables.kept_frequencies(self._recipe)
        return _rotary_tables.tables_at(positions, found, dtype)


# These hold only numbers, strings and tensors, so torch.load(weights_only=True) may construct them.
torch.serialization.add_safe_globals([RotaryEmbedding, Frequencies, Revolutions])
