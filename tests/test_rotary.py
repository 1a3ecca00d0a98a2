"""RotaryEmbedding: a value with exact angles, whatever happens to its model. Its apply is in test_rotary_apply.py."""

import copy
import dataclasses
import inspect
import io
import math
import pickle
import types
import typing
from decimal import Decimal

import pytest
import torch

import rope_ext
from rope_ext import _keywords
from rope_ext._options import InPlaceOptions, RopeOptions
from tests.conftest import assert_same_bits
from tests.exact import exact_cos_sin

POSITIONS = [0, 1, 4095, 16384, 131071, 1_000_000]


@pytest.mark.parametrize(("head_dim", "rotary_dim", "base"), [(128, None, 10000.0), (64, 16, 500000.0)])
def test_tables_are_exact(head_dim, rotary_dim, base):
    """One rounding to float32: half an ulp, 2^-25 for values below 1, plus the error of the float64 angle, 1e-9 at
    position 1,000,000 (2^-53 relative)."""
    rope = rope_ext.RotaryEmbedding(head_dim, base=base, rotary_dim=rotary_dim)
    width = (rotary_dim or head_dim) // 2
    cos, sin = rope(torch.tensor(POSITIONS))
    for row, position in enumerate(POSITIONS):
        for pair in range(0, width, 5):
            angle = Decimal(position) * Decimal(base) ** (Decimal(-pair) / Decimal(width))
            for ours, expected in zip((cos, sin), exact_cos_sin(angle)):
                assert abs(ours[row, pair].item() - float(expected)) <= 2**-25 + 1e-9


def test_shapes_dtypes_and_agreement():
    rope = rope_ext.RotaryEmbedding(head_dim=16, base=1000.0)
    cos, sin = rope.tables(10)
    assert cos.shape == sin.shape == (10, 8) and cos.dtype == sin.dtype == torch.float32
    positions = torch.tensor([[3, 0, 9], [1, 1, 2]], dtype=torch.int32)
    cos_at, sin_at = rope(positions)
    assert torch.equal(cos_at, cos[positions]) and torch.equal(sin_at, sin[positions])
    assert rope(positions, dtype=torch.float64)[0].dtype == torch.float64
    negative_cos, negative_sin = rope(-positions)
    assert torch.equal(negative_cos, cos_at) and torch.equal(negative_sin, -sin_at)


def test_inv_freq():
    rope = rope_ext.RotaryEmbedding(8, base=10000.0)
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64, device="cpu")
    torch.testing.assert_close(rope.inv_freq, expected, rtol=1e-15, atol=0)
    assert math.isclose(rope_ext.frequencies.default(4, 7.0).inv_freq[1].item(), 7**-0.5)


def test_tables_per_token_equal_lookup():
    x = torch.randn(2, 3, 4, 16)
    rope, positions = rope_ext.RotaryEmbedding(16), torch.tensor([[5, 6, 7], [0, 1, 99]])
    looked_up = rope_ext.apply(x, *rope.tables(100), positions=positions)
    assert torch.equal(rope_ext.apply(x, *rope(positions)), looked_up)


def test_head_dim_does_not_change_the_frequencies():
    """The rotated channels alone set the frequencies; the width of the head does not matter."""
    assert rope_ext.RotaryEmbedding(96, rotary_dim=24).tables(3)[0].shape == (3, 12)
    narrow, wide = rope_ext.RotaryEmbedding(24), rope_ext.RotaryEmbedding(96, rotary_dim=24)
    assert torch.equal(narrow.inv_freq, wide.inv_freq) and narrow != wide


# ---- a value ----

YARN = {"schedule": "yarn", "factor": 4.0, "original_max_position": 4096}
LONGROPE = {
    "schedule": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [1.0, 3.0, 9.0, 27.0],
    "original_max_position": 100,
    "max_position": 400,
}
DYNAMIC = {"schedule": "dynamic_ntk", "factor": 2.0, "max_position": 100}
SCHEDULES = [
    {},
    {"schedule": "linear", "factor": 4.0},
    {"schedule": "ntk", "alpha": 8},
    DYNAMIC,
    YARN,
    LONGROPE,
    {"schedule": "llama3", "factor": 8.0, "original_max_position": 64},
    {"schedule": "proportional", "partial_rotary_factor": 0.5},
    {"schedule": "axial"},
    {"schedule": "warped", "factor": 4.0},
    {"pair_axis": (0, 1, 1, 2)},
]


def ropes(**others):
    return [rope_ext.RotaryEmbedding(8, **keywords, **others) for keywords in SCHEDULES]


def test_compares_by_value():
    for rope, twin in zip(ropes(), ropes()):
        assert rope == twin and hash(rope) == hash(twin) and rope is not twin
    assert len(set(ropes() + ropes() + ropes(precision="hf"))) == 2 * len(SCHEDULES)
    assert rope_ext.RotaryEmbedding(8, base=10) != rope_ext.RotaryEmbedding(8, base=11)


def test_defaults_that_are_spelled_out():
    """Those of the class make no difference, those of a schedule do."""
    plain, twin = rope_ext.RotaryEmbedding(8), rope_ext.RotaryEmbedding(8, rotary_dim=8, base=torch.tensor(1e4))
    assert plain == twin and hash(plain) == hash(twin)
    llama3 = {"schedule": "llama3", "factor": 8.0}
    plain, twin = (rope_ext.RotaryEmbedding(8, **llama3, **more) for more in ({}, {"low_freq_factor": 1.0}))
    assert plain != twin and torch.equal(plain.inv_freq, twin.inv_freq)


def test_is_frozen():
    rope = rope_ext.RotaryEmbedding(8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rope.base = 5.0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_survives_copying(copied):
    for rope in ropes():
        assert copied(rope) == rope


def test_repr_is_the_call():
    for rope in ropes() + ropes(precision="hf"):
        assert eval(repr(rope), {"RotaryEmbedding": rope_ext.RotaryEmbedding}) == rope
    assert repr(rope_ext.RotaryEmbedding(8)) == "RotaryEmbedding(head_dim=8, base=10000.0)"


def test_nothing_in_the_state_dict():
    model = torch.nn.Module()
    model.rope = rope_ext.RotaryEmbedding(8)
    assert not model.state_dict() and not list(model.buffers()) and not list(model.children())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16).float(),
        lambda m: m.to("meta").to_empty(device="cpu"),
        lambda m: m.double(),
    ],
)
def test_tables_survive_casts_and_moves_of_the_model(change):
    class Model(torch.nn.Module):
        def __init__(self, *_, device=None):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4, device=device)
            self.rope = rope_ext.RotaryEmbedding(128, base=500000.0)

    model = Model()
    expected = model.rope.tables(2048)
    model = change(model)
    got = model.rope.tables(2048)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_tables_on_the_meta_device():
    with torch.device("meta"):
        rope = rope_ext.RotaryEmbedding(8)
        assert rope.tables(4)[0].device.type == "meta"
    assert rope.tables(4, device="meta")[1].device.type == "meta"
    assert rope.tables(4)[0].device.type == torch.get_default_device().type


# ---- several axes, lengths, positions ----


def test_several_axes():
    rope = rope_ext.RotaryEmbedding(12, pair_axis=(0, 1, 2, 0, 2, 1))
    positions = torch.tensor([[[3, 4, 5, 6]], [[10, 10, 11, 11]], [[70, 71, 70, 71]]])
    cos, sin = rope(positions)
    assert cos.shape == sin.shape == (1, 4, 6)
    one = rope_ext.RotaryEmbedding(12)
    for pair, axis in enumerate((0, 1, 2, 0, 2, 1)):
        for ours, alone in zip((cos, sin), one(positions[axis])):
            assert torch.equal(ours[..., pair], alone[..., pair])
    text = torch.arange(5)  # text has the same position on every axis
    for ours, alone in zip((*rope(text), *rope.tables(5)), (*one(text), *one.tables(5))):
        assert torch.equal(ours, alone)
    assert all(torch.equal(a, b) for a, b in zip(rope(text.expand(3, 1, 5)), one(text[None])))
    with pytest.raises(ValueError, match=r"^rope_ext: positions must be \(axes = 3, batch, seqlen\), got \(2, 1, 4\)$"):
        rope(positions[:2])


def test_dynamic_schedules_choose_by_seqlen():
    for keywords in (DYNAMIC, LONGROPE):
        rope = rope_ext.RotaryEmbedding(8, **keywords)
        short, long = rope.frequencies(100), rope.frequencies(101)
        assert torch.equal(rope.inv_freq, short.inv_freq) and not torch.equal(short.inv_freq, long.inv_freq)
        for positions in (torch.arange(100), torch.arange(101), torch.tensor([[400, 2]])):
            expected = rope.frequencies(int(positions.max()) + 1)
            angles = positions.double()[..., None] * expected.inv_freq.to(positions.device)
            assert torch.equal(rope(positions)[1], (angles.sin() * expected.attention_scaling).float())
        assert torch.equal(rope.tables(100)[0], rope(torch.arange(100))[0])
        assert torch.equal(rope.tables(150)[0], rope(torch.arange(150))[0])
        assert torch.equal(rope.tables(50, seqlen=150)[0], rope.tables(150)[0][:50])
        assert torch.equal(rope(torch.arange(50), seqlen=150)[0], rope.tables(150)[0][:50])
        assert torch.equal(rope.tables(100)[0], rope(torch.arange(100))[0])  # unchanged after longer ones
        assert rope(torch.zeros(0, dtype=torch.int64))[0].shape == (0, 4)


@pytest.mark.parametrize("which", range(len(SCHEDULES)))
def test_a_given_length_does_not_wait_for_the_device(which):
    """Reading the value of a tensor, which would wait for a device, raises an error here."""

    class NoValues(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            assert op is not torch.ops.aten._local_scalar_dense.default, "waited for the device"
            return op(*args, **(kwargs or {}))

    rope = ropes()[which]
    positions = torch.arange(12).view(2, 6) if rope.inv_freq.dim() == 1 else torch.arange(36).view(-1, 1, 12)
    positions = positions[: len(rope.inv_freq)] if rope.inv_freq.dim() == 3 else positions
    with NoValues():
        rope(positions, seqlen=200)
        rope.tables(30, seqlen=200)
    if rope.schedule in ("dynamic_ntk", "longrope"):
        with pytest.raises(AssertionError, match="waited"), NoValues():
            rope(positions)


def test_float_positions():
    rope = rope_ext.RotaryEmbedding(8)
    half = torch.tensor([0.5, -1.25])
    angles = half.double()[:, None] * rope.inv_freq.to(half.device)
    assert torch.equal(rope(half)[1], angles.sin().float())
    whole = torch.tensor([3, 700])
    assert all(torch.equal(a, b) for a, b in zip(rope(whole.float()), rope(whole)))


def test_hf_precision_is_the_float32_product():
    """The expected values are written out as in transformers' modules."""
    rope = rope_ext.RotaryEmbedding(64, base=500000.0, precision="hf", **YARN)
    positions = torch.tensor(POSITIONS)
    inv_freq, attention_scaling = rope.frequencies()
    assert inv_freq.dtype == torch.float32 and attention_scaling != 1
    freqs = positions[..., None].float() * inv_freq.to(positions.device)
    assert torch.equal(rope(positions)[0], freqs.cos() * attention_scaling)
    assert torch.equal(rope(positions, dtype=torch.bfloat16)[1], (freqs.sin() * attention_scaling).bfloat16())
    exact = rope_ext.RotaryEmbedding(64, base=500000.0, **YARN)
    error = (rope(positions)[0] - exact(positions)[0]).abs().amax(-1)
    assert error[0] == 0 and error[2] < 1e-3 and error[-1] > 1e-3


def test_compiles():
    rope = rope_ext.RotaryEmbedding(16)

    def function(x, positions):
        return rope_ext.apply(rope_ext.apply(x, *rope(positions)), *rope.tables(x.shape[1]))

    x, positions = torch.randn(1, 6, 2, 16), torch.arange(6).unsqueeze(0)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, positions), function(x, positions))


def cos_of(x, rope, positions):
    return rope(positions, seqlen=150)[0] * x + rope.tables(6, seqlen=150)[1]


def test_every_schedule_compiles():
    """All schedules share one code object: numbers that differ between calls must not become inputs of its graph."""
    x = torch.ones(1)
    torch.compiler.reset()
    compiled = torch.compile(cos_of, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=2 * len(SCHEDULES)):
        for rope in ropes() + ropes(precision="hf")[3:5]:
            axes = len(rope.inv_freq) if rope.inv_freq.dim() == 3 else 1
            positions = torch.randint(0, 90, (axes, 1, 6) if axes > 1 else (1, 6))
            assert torch.equal(compiled(x, rope, positions), cos_of(x, rope, positions))


def test_equal_rotations_compile_once():
    x, positions = torch.ones(1), torch.arange(6)
    torch.compiler.reset()
    compiled = torch.compile(cos_of, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            compiled(x, rope_ext.RotaryEmbedding(8, **YARN), positions)


def test_lengths_of_dynamic_schedules_compile_once_per_side():
    """A symbolic seqlen chooses by a guard, not by one graph per length."""

    def function(positions, rope):
        return rope(positions, seqlen=positions.shape[0])[0]

    for keywords in (LONGROPE, DYNAMIC):
        rope = rope_ext.RotaryEmbedding(8, **keywords)
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch._dynamo.config.patch(recompile_limit=2):
            for length in (40, 60, 100, 101, 150, 333):
                positions = torch.arange(length)
                assert torch.equal(compiled(positions, rope), function(positions, rope))


# ---- errors ----


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda rope: rope.tables(2**64),
            "max_position must be at least -2^63 and below 2^63, got 18446744073709551616",
        ),
        (lambda rope: rope.tables(4, seqlen=-5), "seqlen must be in 0 to 2 ** 63 - 1, got -5"),
        (
            lambda rope: rope(torch.tensor([0.0, torch.nan])),
            "positions must be finite when no seqlen is given, got nan",
        ),
        (lambda rope: rope.tables(4, device="nowhere"), "device must be a device that torch can use, got 'nowhere': "),
    ],
)
def test_invalid_arguments_of_tables_are_refused(call, message):
    with pytest.raises(ValueError) as caught:
        call(rope_ext.RotaryEmbedding(8, schedule="dynamic_ntk", factor=2.0, max_position=4))
    assert str(caught.value).startswith("rope_ext: " + message)


def cuda_error(words, code):
    error = torch.AcceleratorError(f"CUDA error: {words}")
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), ValueError),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (cuda_error("out of memory", 2), torch.AcceleratorError),
        (cuda_error("invalid device ordinal", 101), ValueError),
    ],
)
def test_errors_of_a_device_that_torch_cannot_use(error, shown, monkeypatch):
    """The errors of a torch without CUDA, of a full GPU, and of a machine with fewer GPUs."""

    def empty(*_arguments, device):
        raise error

    rope = rope_ext.RotaryEmbedding(8)
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(shown, match=str(error)):
        rope.tables(4, device="cuda")


# ---- types ----


def _kinds(annotation):
    return set(typing.get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}


def test_annotated_parameters_are_those_of_the_schedules():
    """mypy reads the TypedDict; at run time each schedule has its own signature."""
    typed = typing.get_type_hints(_keywords.Parameters)
    taken = [_keywords._keywords_of(schedule) for schedule in rope_ext.frequencies.SCHEDULES]
    assert set(typed) == {name for keywords in taken for name in keywords}
    assert all(_kinds(p.annotation) <= _kinds(typed[name]) for keywords in taken for name, p in keywords.items())


@pytest.mark.parametrize("typed", [InPlaceOptions, RopeOptions])
def test_annotated_options_are_those_of_apply(typed):
    """mypy reads the TypedDicts; `apply` itself has the signature."""
    signature = inspect.signature(rope_ext.apply).parameters
    options = {name: p for name, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    hints = typing.get_type_hints(typed)
    assert all(_kinds(options[name].annotation) == _kinds(hints[name]) for name in hints if name != "out")
    if typed is InPlaceOptions:
        assert set(hints) == set(options) - {"out", "out_interleaved"}
        shown = inspect.signature(rope_ext.apply_)
        assert [str(p) for p in shown.parameters.values()] == [
            str(p) for n, p in signature.items() if n in {*hints, "x", "cos", "sin"}
        ]
    else:
        named = {"positions", "offset", "rotary_offset"}  # in the signature of rope.apply itself
        assert set(hints) | named == set(options) - {"inv_freq", "attention_scaling"}


# ---- files ----


class Holds(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rope = rope_ext.RotaryEmbedding(8, **YARN, pair_axis=(0, 1, 2, 0))
        self.frequencies, self.turns = self.rope.frequencies(), rope_ext.angles.turns(self.rope.inv_freq)
        self.register_buffer("cos", self.rope.tables(5)[0])


def loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_is_loaded_with_weights_only():
    """rope_ext tells torch that its values are safe, in the file of a model, of a list, or of an extra state."""
    with torch.serialization.safe_globals([Holds, set]):
        model = loaded(Holds().eval())
    expected = Holds()
    assert model.rope == expected.rope and hash(model.rope) == hash(expected.rope)
    assert_same_bits(model.rope.tables(5)[0], expected.cos)
    assert (
        all(map(torch.equal, model.turns[:2], expected.turns[:2])) and model.frequencies[1] == expected.frequencies[1]
    )
    for rope in ropes():
        assert loaded({"extra": [rope]}) == {"extra": [rope]}
        assert repr(pickle.loads(pickle.dumps(rope))) == repr(rope)


def test_a_file_is_checked_as_a_call_is():
    rope = rope_ext.RotaryEmbedding(8)
    for wrong in ({"schedule": "Frequencies"}, {"base": -1.0}, {"rotary_dim": 7}, {"parameters": (("factor", 2.0),)}):
        with pytest.raises((ValueError, TypeError), match=r"^rope_ext: "):
            rope.__class__.__new__(rope.__class__).__setstate__(rope.__getstate__() | wrong)


class WithName(rope_ext.RotaryEmbedding):
    def __init__(self, head_dim, **keywords):
        super().__init__(head_dim, **keywords)
        object.__setattr__(self, "name", "the name of a subclass")


def test_a_pickled_subclass_runs_its_own_constructor():
    assert pickle.loads(pickle.dumps(WithName(8))).name == "the name of a subclass"


@pytest.mark.parametrize("name", [n for n in rope_ext.frequencies.__all__ if n not in ("SCHEDULES", "Schedule")])
def test_pickles_of_functions_name_the_public_module(name):
    assert b"rope_ext.frequencies\x94" in pickle.dumps(getattr(rope_ext.frequencies, name))
