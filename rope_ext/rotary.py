"""From frequencies and positions to the cos and sin that `rope_ext.apply` takes."""

import dataclasses
import inspect
import math
import numbers
import sys
import warnings

import torch
from torch.compiler import is_compiling

from . import _config, _kept, _keywords, _numbers, _shared_tables, frequencies
from ._float64 import may_lack_float64, widest
from ._positions import check_positions, with_offset
from ._signatures import REQUIRED, by_name, given_by_position
from ._torch.private import constant_in_graphs, dispatch_modes, has_static_value
from .angles import Turns, cos_sin, turns
from .errors import ArgumentError, ArgumentTypeError
from .ops import apply
from .reference import LAYOUTS

_DTYPES = {"exact": torch.float64, "hf": torch.float32}
_BY_LENGTH = {"dynamic_ntk": "max_position", "longrope": "original_max_position"}  # the length of the training
_FEWEST_ROWS = 4096  # of a table in a compiled graph in which the number of rows is symbolic


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class RotaryEmbedding:
    """cos and sin of rotary position embedding, for any positions.

    head_dim: channels of a head.
    base: ratio that sets the slowest frequency, "rope_theta" in configurations. Llama 2: 10000, Llama 3: 500000.
    rotary_dim: rotated channels, even; default head_dim.
    schedule, parameters: name and keywords of a function of rope_ext.frequencies, as schedule="linear", factor=4.0.
    pair_axis: for positions with several axes, the axis that each pair follows, rotary_dim / 2 ints
        (rope_ext.frequencies.mrope_pair_axis makes them).
    precision: "exact", angles are position * inv_freq in float64, and cos and sin are rounded once; or "hf", equal bits
        to transformers 5.23, which rounds inv_freq and the product to float32: off by up to 1e-2 at position 131072,
        and what its checkpoints were trained with.

    A value: frozen, hashable, comparable, can be copied and pickled. It holds Python numbers only and is no module:
    nothing in the state dict, nothing that .half(), .to(), to_empty(), a meta device or FSDP can round or lose.
    """

    head_dim: int
    rotary_dim: int
    base: float
    schedule: str
    pair_axis: tuple | None
    precision: str
    parameters: tuple  # of (name, value), in the order of the names
    _texts: tuple = dataclasses.field(compare=False)  # names and values of what frequencies() needs, see there
    _trained: str | None = dataclasses.field(compare=False)  # of _texts, the length of the training: see `_deciding`

    @by_name
    def __init__(
        self,
        head_dim=REQUIRED,
        *too_many,
        base=10000.0,
        rotary_dim=None,
        schedule="default",
        pair_axis=None,
        precision="exact",
        **parameters,
    ):
        if too_many:
            cure = "all others go by name, such as base=500000.0"
            raise given_by_position("RotaryEmbedding", ["head_dim"], too_many, cure)
        if head_dim is REQUIRED:
            raise _keywords.no_head_dim(parameters)
        _numbers.integer(head_dim=head_dim)
        if not 2 <= head_dim <= _numbers.MAX_CHANNELS:
            rule = "at least 2" if head_dim < 2 else f"at most {_numbers.MAX_CHANNELS}"
            raise ArgumentError("head_dim", f"be {rule}", _numbers.shown(head_dim))
        if rotary_dim is None and head_dim % 2:
            got, cure = _numbers.shown(head_dim), f"rotary_dim={head_dim - 1} leaves one channel as it is"
            raise ArgumentError("head_dim", "be even where rotary_dim is not given", got, cure)
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        _numbers.integer(rotary_dim=rotary_dim)
        if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
            raise ArgumentError("rotary_dim", f"be even and in 2 to head_dim {head_dim}", _numbers.shown(rotary_dim))
        base = base.item() if isinstance(base, torch.Tensor) and base.numel() == 1 else base
        _numbers.positive(base=base)
        _keywords.check_schedule(schedule)
        _check_precision(precision)
        _keywords.check_keywords(schedule, parameters)
        if pair_axis is not None:
            pair_axis = _numbers.axes_of("pair_axis", pair_axis)
            if schedule == "axial":
                raise ArgumentError("pair_axis", "be None with schedule 'axial'", pair_axis)
        values = {
            "head_dim": int(head_dim),
            "rotary_dim": int(rotary_dim),
            "base": float(base),
            "schedule": schedule,
            "pair_axis": pair_axis,
            "precision": precision,
            "parameters": tuple(sorted((name, _frozen(value)) for name, value in parameters.items())),
        }
        texts = {name: values[name] for name in ("rotary_dim", "base", "pair_axis")} | dict(values["parameters"])
        values["_texts"] = tuple((name, repr(value)) for name, value in texts.items())
        values["_trained"] = dict(values["_texts"]).get(_BY_LENGTH.get(schedule))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_frequencies()

    def _check_frequencies(self):
        """Every other error of the parameters, and whether the numbers they make are finite: here, not in each call."""
        try:
            for seqlen in (None, 2**62) if self.schedule in _BY_LENGTH else (None,):
                inv_freq, attention_scaling = self.frequencies(seqlen)
                if type(inv_freq) is not torch.Tensor or torch.compiler.is_compiling():
                    return  # a fake tensor, or a traced one: no values
                if not (inv_freq.isfinite().all() and math.isfinite(attention_scaling)):
                    raise OverflowError("inf or nan")
        except ArithmeticError as error:
            said = ", ".join(
                f"{name}={_numbers.shown(value)}" for name, value in (("base", self.base), *self.parameters)
            )
            rule = f"give finite frequencies in schedule {self.schedule!r} at precision {self.precision!r}"
            raise ArgumentError("parameters", rule, said) from error

    @classmethod
    def from_config(cls, config, layer_type=None, *, precision="exact"):
        """The rotation of a model of Hugging Face transformers, from its configuration.

        config: a configuration object of transformers 4 or 5, or the dict of a config.json; of the part that has the
            attention (text_config, vision_config), where there are several.
        layer_type: which of the rotations, for models whose layers differ ("full_attention", "sliding_attention").
        Reads rope_parameters, rope_scaling, rope_theta, partial_rotary_factor and what else models call these, and the
        defaults that transformers has in the code of a model. transformers itself is not needed.
        Raises ValueError or TypeError naming the key that is missing, null without a meaning in transformers, no number
            or in contradiction to another, or that is named like a rotation and not known (use_scaled_rope). A key that
            means nothing can be set to None.
        Warns (UserWarning) of keys inside rope_parameters that have no effect, as transformers does.
        Equivalent to: RotaryEmbedding(head_dim, base=rope_theta, schedule=rope_type, ...)
        """
        _check_precision(precision)
        return cls(precision=precision, **_config.read(config, layer_type, precision))

    def __getstate__(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    def __setstate__(self, state):
        """Through `__init__`: what a file says is checked as what a user says."""
        known = {"head_dim", "rotary_dim", "base", "schedule", "pair_axis", "precision"}
        self.__init__(**{name: state[name] for name in known}, **dict(state["parameters"]))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        """The call that makes an equal one."""
        said = {"base": self.base}
        if self.rotary_dim != self.head_dim:
            said["rotary_dim"] = self.rotary_dim
        for name in ("schedule", "pair_axis", "precision"):
            if getattr(self, name) != inspect.signature(RotaryEmbedding).parameters[name].default:
                said[name] = getattr(self, name)
        said |= dict(self.parameters)
        return f"RotaryEmbedding(head_dim={self.head_dim}, {', '.join(f'{k}={v!r}' for k, v in said.items())})"

    def frequencies(self, seqlen=None):
        """Frequencies(inv_freq, attention_scaling) of a sequence of seqlen positions, an int.

        inv_freq on the CPU, radians per position: (rotary_dim / 2,), or (axes, 1, rotary_dim / 2) where positions have
        several axes; float64 for "exact", float32 for "hf". seqlen matters to "dynamic_ntk" and "longrope" only; None:
        as within the length of the training.
        """
        _numbers.seqlen(seqlen)
        if torch.compiler.is_compiling():
            # Numbers become inputs of the graph as soon as two rotations differ in them; texts stay constants.
            keywords = {name: _read(text) for name, text in self._texts}
        else:
            keywords = {"rotary_dim": self.rotary_dim, "base": self.base, "pair_axis": self.pair_axis}
            keywords |= dict(self.parameters)
        pair_axis = keywords.pop("pair_axis")
        if self.schedule in _BY_LENGTH:
            keywords["seqlen"] = seqlen
        inv_freq, attention_scaling = getattr(frequencies, self.schedule)(dtype=_DTYPES[self.precision], **keywords)
        if pair_axis is not None:
            inv_freq = frequencies.per_axis(inv_freq, pair_axis)
        return frequencies.Frequencies(inv_freq, attention_scaling)

    @property
    def inv_freq(self):
        """`frequencies().inv_freq`."""
        return self.frequencies().inv_freq

    @property
    def attention_scaling(self):
        """`frequencies().attention_scaling`, the factor on cos and sin; the tables have it already."""
        return self.frequencies().attention_scaling

    def tables(self, max_position, *, dtype=torch.float32, device=None, seqlen=None):
        """(cos, sin) for positions 0 to max_position - 1, each (max_position, rotary_dim / 2).

        device: default torch's. seqlen: the length that "dynamic_ntk" and "longrope" choose by; default max_position.
        Every axis has the same position, as for text.
        Built once per process for equal frequencies, and grown; what is returned is a view of the shared table. Do not
        write into it, and clone it before it becomes a buffer that a checkpoint is loaded into. The process keeps the
        last used tables (`memory.set_table_limit`, `memory.clear_tables`). "exact": computed on the CPU and then moved,
        so that every device gets the same bits. "hf": computed on the device, as transformers.
        In torch.compile and torch.export the table is a constant of the graph. Where max_position is symbolic, a graph
        of torch.compile has the next larger of 4096, 32768, ... rows, and an exported program computes the table at
        every call, of which it warns (UserWarning).
        RuntimeError while a CUDA graph is captured, if the table was not built before.
        Equivalent to: angles = torch.outer(torch.arange(max_position), inv_freq); (angles.cos(), angles.sin())
        """
        max_position = _numbers.as_int64("max_position", max_position)
        if max_position < 0:
            raise ArgumentError("max_position", "not be negative", max_position)
        _numbers.floating_point(dtype)
        device = _device(device)
        if seqlen is not None:
            seqlen = _numbers.seqlen(seqlen)
        seqlen = self._deciding(max_position if seqlen is None else seqlen)
        if is_compiling():
            return self._tables_of_graph(max_position, dtype, device, seqlen)
        if not _kept.takes_ordinary(device):
            return _rows(self.frequencies(seqlen), 0, max_position, dtype, device)
        return _shared(self, seqlen, max_position, dtype, device)

    def _tables_of_graph(self, max_position, dtype, device, seqlen):
        """`tables` in torch.compile and torch.export."""
        rows = max_position
        if not has_static_value(max_position) and not _is_exporting():
            rows = _FEWEST_ROWS
            while rows < max_position:  # a guard for each comparison: a longer sequence compiles once more
                rows *= 8
        if not has_static_value(rows):
            _warn_of_export()
        if not (has_static_value(rows) and has_static_value(seqlen)):
            return _rows(self.frequencies(seqlen), 0, max_position, dtype, device)
        name = _tables_of_graphs(self.schedule, self.precision, self._texts, seqlen, rows, dtype, device)
        cos, sin = getattr(_kept.in_graphs, name)
        return (cos, sin) if rows is max_position else (cos[:max_position], sin[:max_position])

    def _deciding(self, seqlen):
        """The seqlen that stands for all with these frequencies: None up to the length of the training, and beyond it
        one for all of "longrope"."""
        if self._trained is None or seqlen is None or seqlen <= _read(self._trained):
            return None
        return seqlen if self.schedule == "dynamic_ntk" else 2**63 - 1

    @by_name
    def apply(self, x, *too_many, positions=None, offset=0, seqlen=None, rotary_offset=0, **options):
        """`rope_ext.apply` with these frequencies, rotary_dim and attention_scaling: no table, angles in the kernel.

        x: as there, of this head_dim. Part of another head: with rotary_offset, or with the rotary_dim that this has.
        positions, offset, rotary_offset, options: as there (layout, interleaved, cu_seqlens, inverse, rounding,
            out_interleaved, out).
        seqlen: the length that "dynamic_ntk" and "longrope" choose by, an int, and then to be given.
        Keys that are in a cache hold attention_scaling: to move them rotate by the frequencies alone,
        rope_ext.apply(k, inv_freq=rope.inv_freq, positions=distances).
        precision="hf" goes through tables of the positions, which have its bits; without cu_seqlens.
        """
        if too_many:
            cure = "several tensors go in a tuple, rope.apply((q, k)), positions by name, and tables nowhere"
            raise given_by_position("rope.apply", ["x"], too_many, cure)
        if seqlen is not None:
            seqlen = _numbers.seqlen(seqlen)
        elif self.schedule in _BY_LENGTH:
            raise ArgumentError("seqlen", f"be given for schedule {self.schedule!r}", "None")
        seqlen = self._deciding(seqlen)
        if options:
            self._check_options(options)
        tensors = x if isinstance(x, (tuple, list)) else [x]
        if rotary_offset == 0 and options.get("rotary_dim") is None:
            self._check_heads(tensors)
        options = {"per_channel": False, **options, "rotary_offset": rotary_offset, "rotary_dim": self.rotary_dim}
        first = tensors[0] if tensors else x
        if not isinstance(first, torch.Tensor):
            return apply(x, inv_freq=self.inv_freq, **options)  # raises
        if self.precision == "exact":
            dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
            turns, scaling = _kept_turns(self, seqlen, dtype, first.device)
            return apply(x, inv_freq=turns, attention_scaling=scaling, positions=positions, offset=offset, **options)
        if options.get("cu_seqlens") is not None:
            raise ArgumentError("cu_seqlens", "be None with precision 'hf'", "a Tensor")
        layout = options.get("layout", "bshd")
        if not isinstance(layout, str) or layout not in LAYOUTS or first.dim() != len(layout):
            return apply(x, inv_freq=self.inv_freq, **options)  # raises
        found = self.frequencies(seqlen)
        axes = len(found.inv_freq) if found.inv_freq.dim() == 3 else None
        positions = with_offset(first, layout, axes, positions, offset)
        cos, sin = _cos_sin(positions, found, first.dtype if first.dtype == torch.float64 else torch.float32)
        return apply(x, *((t if t.dim() == 3 else t[None]) for t in (cos, sin)), **options)

    def _check_heads(self, tensors):
        try:
            for t in tensors:
                if (got := t.size(-1)) != self.head_dim:
                    cure = f"rotary_dim={self.rotary_dim} rotates its first {self.rotary_dim} channels"
                    raise ArgumentError("x", f"have head_dim {self.head_dim}", got, cure)
        except (AttributeError, IndexError, TypeError):
            pass  # no tensors (`size` of an array is an int), or without axes: `apply` says so

    def _check_options(self, options):
        said = options.get("rotary_dim")
        if said is not None and _numbers.as_int("rotary_dim", said) != self.rotary_dim:
            raise ArgumentError("rotary_dim", f"be that of the frequencies, {self.rotary_dim}", said)
        for name in ("cos", "sin", "inv_freq", "attention_scaling"):
            if name in options:
                cure = "rope_ext.apply takes it, this apply has frequencies of its own"
                raise ArgumentTypeError(name, "not be given", _numbers.shown(options[name]), cure)

    @by_name
    def __call__(self, positions, *too_many, dtype=torch.float32, seqlen=None):
        """(cos, sin) for positions of any shape, negative ones too: each (*positions.shape, rotary_dim / 2).

        positions: int32, int64 or float32. With positions (batch, seqlen) the result is tables with one row per token.
        Where positions have several axes: (axes, batch, seqlen), which gives (batch, seqlen, rotary_dim / 2); of lower
        rank: the same position on every axis. float32 positions of more than 3 axes are an error: they would be x by
        mistake, which `apply` rotates, and whose tables would take gigabytes.
        The result is on the device of positions. Devices other than CPU and CUDA may have no float64: for them "exact"
        angles are made on the CPU, which waits for the positions.
        seqlen: the length that "dynamic_ntk" and "longrope" choose by; default positions.max() + 1, which waits for a
        GPU and does not go into one graph of torch.compile: give it.
        """
        if too_many:
            raise given_by_position("rope", ["positions"], too_many, "rope(position_ids) needs no x")
        if isinstance(positions, (tuple, list)) and any(isinstance(p, torch.Tensor) for p in positions):
            got, cure = _numbers.shown(positions), "rope.apply(x) rotates x"
            raise ArgumentTypeError("positions", "be a Tensor", got, cure)
        _numbers.tensor(positions=positions)
        check_positions(positions)
        if seqlen is not None:
            seqlen = _numbers.seqlen(seqlen)
        elif self.schedule in _BY_LENGTH and positions.numel():
            longest = positions.max().item()
            if not math.isfinite(longest):
                raise ArgumentError("positions", "be finite where no seqlen is given", longest)
            seqlen = max(int(longest) + 1, 0)
        return _cos_sin(positions, self.frequencies(seqlen), dtype)


# Numbers, texts and tensors only: torch.load(weights_only=True) may make them.
torch.serialization.add_safe_globals([RotaryEmbedding, frequencies.Frequencies, Turns])


def _device(device):
    """The device, with its index."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:  # the last from a torch without CUDA
        if "out of memory" in str(error):
            raise
        raise ArgumentError("device", "be one that torch can use", _numbers.shown(device), str(error)) from error


def _check_precision(precision):
    if not isinstance(precision, str) or precision not in _DTYPES:
        raise ArgumentError("precision", "be 'exact' or 'hf'", _numbers.shown(precision))


def _rows(found, start, stop, dtype, device):
    where = "cpu" if found.inv_freq.dtype == torch.float64 and device.type != "meta" else device
    cos, sin = _cos_sin(torch.arange(start, stop, device=where), found, dtype)
    return cos.to(device), sin.to(device)


def _cos_sin(positions, found, dtype):
    """float64 frequencies: exact angles, one rounding; float32: operation by operation as transformers."""
    _numbers.floating_point(dtype)
    inv_freq, attention_scaling = found
    per_axis = inv_freq.dim() == 3 and positions.dim() >= 3
    if per_axis and (len(positions) != len(inv_freq) or positions.dim() > 3):
        shape = tuple(positions.shape)
        raise ArgumentError("positions", f"be (axes = {len(inv_freq)}, batch, seqlen)", shape)
    if inv_freq.dim() == 3 and not per_axis:  # the same position on every axis, and a pair follows one
        inv_freq = inv_freq.sum(0)[0]
    if inv_freq.dtype == torch.float64:
        device = positions.device
        if may_lack_float64(device):
            cos, sin = _cos_sin(positions.cpu(), found, dtype)
            return cos.to(device), sin.to(device)
        positions = positions.to(widest(device)) if positions.is_floating_point() else positions
        inv_freq = inv_freq.to(device, widest(device))
        cos, sin = cos_sin(positions, inv_freq, attention_scaling, dtype=widest(device))
        return cos.to(dtype), sin.to(dtype)
    # Elementwise, never a matmul: TF32 and autocast would round the positions.
    inv_freq, positions = inv_freq.to(positions.device), positions.to(torch.float32).unsqueeze(-1)
    angles = sum(p * f[0] for p, f in zip(positions, inv_freq)) if per_axis else positions * inv_freq
    return (angles.cos() * attention_scaling).to(dtype), (angles.sin() * attention_scaling).to(dtype)


def _shared(rope, seqlen, max_position, dtype, device):
    """The shared tables: those of equal frequencies are one."""
    found, key = _kept_frequencies(rope, seqlen)
    return _shared_tables.rows(
        (key, dtype, device),
        max_position,
        device,
        lambda start, stop: _rows(found, start, stop, dtype, device),
    )


@_kept.kept
def _kept_frequencies(rope, seqlen):
    """(frequencies, what tables of equal frequencies have in common)."""
    found = rope.frequencies(seqlen)
    inv_freq = found.inv_freq
    in_bytes = bytes(inv_freq.contiguous().view(torch.uint8).flatten().tolist())  # without numpy
    return found, (in_bytes, tuple(inv_freq.shape), inv_freq.dtype, found.attention_scaling)


def _kept_turns(rope, seqlen, dtype, device):
    """(what the kernels take of the frequencies, attention_scaling): kept, if the caller can use ordinary tensors."""
    if is_compiling():
        if not has_static_value(seqlen):
            return _make_turns(rope, seqlen, dtype, device)
        name = _turns_of_graphs(rope.schedule, rope.precision, rope._texts, seqlen, dtype, device)
        high, low, per_axis, attention_scaling = getattr(_kept.in_graphs, name)
        return Turns(high, low, per_axis), _read(attention_scaling)
    if device == _kept.CPU and not dispatch_modes():  # the two questions below in one: this is asked at every call
        return _made_turns(rope, seqlen, dtype, device)
    if not _kept.takes_ordinary(device):
        return _make_turns(rope, seqlen, dtype, device)
    if not _kept.is_capturing(device):
        return _made_turns(rope, seqlen, dtype, device)
    made = _made_turns(rope, seqlen, dtype, device)
    _kept.keep_for_graph(made)
    return made


def _make_turns(rope, seqlen, dtype, device):
    inv_freq, attention_scaling = rope.frequencies(seqlen)
    high, low, per_axis = turns(inv_freq, dtype)
    return Turns(high.to(device), low.to(device), per_axis), attention_scaling


@_kept.kept
def _made_turns(rope, seqlen, dtype, device):
    made = _make_turns(rope, seqlen, dtype, device)
    if device.type == "cuda":  # another stream may read it next
        torch.cuda.current_stream(device).synchronize()
    return made


# ---- what graphs read: texts in, since torch.compile guards them by value ----


def _of_texts(schedule, precision, texts):
    keywords = {name: _read(text) for name, text in texts}
    return RotaryEmbedding(keywords["rotary_dim"], schedule=schedule, precision=precision, **keywords)


@_kept.named
def _tables_of_graphs(schedule, precision, texts, seqlen, max_position, dtype, device):
    cos, sin = _shared(_of_texts(schedule, precision, texts), seqlen, max_position, dtype, device)
    return cos.clone(), sin.clone()  # a graph does not notice what somebody writes into shared tables


@_kept.named
def _turns_of_graphs(schedule, precision, texts, seqlen, dtype, device):
    (high, low, per_axis), scaling = _made_turns(_of_texts(schedule, precision, texts), seqlen, dtype, device)
    return high, low, per_axis, repr(scaling)


@constant_in_graphs
def _is_exporting():
    return torch.compiler.is_exporting()  # asked of Python: the dynamo of torch 2.11 answers True in torch.compile too


@constant_in_graphs
def _warn_of_export():
    rule = "be an int in torch.export for tables that are a constant of the program"
    got = "a symbolic length, so that every call of the program computes them"
    cure = "give an int no less than every length, or call apply of the RotaryEmbedding, which needs no table"
    message = f"rope_ext: max_position must {rule}, got {got}: {cure}"
    warnings.warn(message, UserWarning, stacklevel=4)  # names the line that called `tables`


def _frozen(value):
    """Numbers that are numbers of Python, so that their repr can be read back."""
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and abs(value) <= sys.float_info.max else value


def _read(text):
    """The number, or tuple of numbers, of which this is the repr."""
    if text[0] == "(":
        return tuple([_read(part.strip()) for part in text[1:-1].split(",") if part])
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    return int(text) if text.lstrip("-").isdigit() else float(text)
