"""Mistakes of the first hour with RotaryEmbedding and frequencies: one sentence names the argument, the rule, what was
given, and what to write instead."""

import inspect
import re

import numpy as np
import pytest
import torch

import rope_ext
from rope_ext import RotaryEmbedding, frequencies

pytestmark = pytest.mark.devices("cpu")

ROPE, HF, AXIAL = RotaryEmbedding(8), RotaryEmbedding(8, precision="hf"), RotaryEmbedding(8, schedule="axial")
Q, LONG = torch.ones(1, 4, 2, 8), np.arange(3000.0)


def says(message, error, function, *args, **keywords):
    with pytest.raises(error, match=f"^rope_ext: {re.escape(message)}$"):
        function(*args, **keywords)


# ---- names ----

TAKE_FACTOR = "schedule 'linear', 'dynamic_ntk', 'yarn', 'longrope', 'llama3', 'proportional' or 'warped'"
YARN = {"schedule": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"theta": 1e4}, "theta must be given as base, got 10000.0"),
        ({"rope_theta": LONG}, "rope_theta must be given as base, got ndarray of shape (3000,), float64"),
        ({"rot_dim": 4}, "rot_dim must be given as rotary_dim, got 4"),
        ({"rotary_pct": 0.5}, "rotary_pct must be given as rotary_dim, a number of channels, got 0.5"),
        ({"rope_type": "yarn"}, "rope_type must be given as schedule, got 'yarn'"),
        (
            {**YARN, "original_max_position_embeddings": 8},
            "original_max_position_embeddings must be given as original_max_position, got 8",
        ),
        ({**YARN, "max_seq_len": 8}, "max_seq_len must be given as max_position, got 8"),
        ({"max_seq_len": 8}, "max_seq_len must be given to rope.tables(max_position), got 8"),
        ({"interleaved": True}, "interleaved must be given to rope.apply(x, interleaved=...), got True"),
        ({"device": "cuda"}, "device must be given to rope.tables(max_position, device=...), got 'cuda'"),
        ({"rope_scaling": {}}, "rope_scaling must be given to RotaryEmbedding.from_config(config), got {}"),
        (
            {"factor": 4.0},
            f"factor must be used with {TAKE_FACTOR}, got 4.0 with schedule 'default', which accepts none",
        ),
        (
            {"schedule": "ntk", "scaling_factor": 4},
            f"scaling_factor must be given as factor, with {TAKE_FACTOR}, got 4 with schedule 'ntk', which accepts alpha",
        ),
        (
            {"beta_fast": 32},
            "beta_fast must be used with schedule 'yarn', got 32 with schedule 'default', which accepts none",
        ),
        (
            {"schedul": "yarn"},
            "schedul must be a keyword of RotaryEmbedding or of schedule 'default', which accepts none, got 'yarn': is it "
            "schedule?",
        ),
        ({"spam": 1}, "spam must be a keyword of RotaryEmbedding or of schedule 'default', which accepts none, got 1"),
        (
            {"num_heads": 32},  # like num_axes, but not meant for it
            "num_heads must be a keyword of RotaryEmbedding or of schedule 'default', which accepts none, got 32",
        ),
    ],
)
def test_a_keyword_of_another_library_or_schedule(keywords, message):
    says(message, TypeError, RotaryEmbedding, 8, **keywords)


def test_head_dim_by_another_name_or_not_at_all():
    says("dim must be given as head_dim, got 64", TypeError, RotaryEmbedding, dim=64)
    says("head_dim must be given, got none: call RotaryEmbedding(head_dim)", TypeError, RotaryEmbedding, base=100.0)


@pytest.mark.parametrize("given, meant", [("dynamic", "dynamic_ntk"), ("Llama-3", "llama3"), ("su", "longrope")])
def test_a_schedule_by_another_name(given, meant):
    with pytest.raises(ValueError, match=rf"^rope_ext: schedule must be one of .*, got '{given}': is it {meant}\?$"):
        RotaryEmbedding(8, schedule=given)


def test_arguments_by_position():
    one = "must get one argument by position"
    says(
        f"RotaryEmbedding {one}, head_dim, got 2: pass all others by name, such as base=500000.0",
        TypeError,
        RotaryEmbedding,
        128,
        5e5,
    )
    says(f"rope {one}, positions, got 2: rope(position_ids) needs no x", TypeError, ROPE, Q, torch.arange(4))
    cure = "pass several tensors as a tuple, rope.apply((q, k)), positions by name, and no tables"
    says(f"rope.apply {one}, x, got 2: {cure}", TypeError, ROPE.apply, Q, Q)


def test_signatures_show_the_rule():
    for function, first in (
        (RotaryEmbedding, "(head_dim, *, base="),
        (ROPE, "(positions, *, "),
        (ROPE.apply, "(x, *, "),
    ):
        signature = inspect.signature(function)
        bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        assert str(signature.replace(parameters=bare)).startswith(first)


# ---- positions ----


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        ([0, 1, 2], TypeError, "must be a Tensor, got [0, 1, 2]: use torch.tensor(positions)"),
        (5, TypeError, "must be a Tensor, got 5: use torch.tensor(positions)"),
        (
            LONG,
            TypeError,
            "must be a Tensor, got ndarray of shape (3000,), float64: use torch.tensor(positions)",
        ),
        (None, TypeError, "must be a Tensor, got None"),
        (
            (Q,),
            TypeError,
            "must be a Tensor, got (Tensor of shape (1, 4, 2, 8), float32,): to rotate x call rope.apply(x)",
        ),
        (
            Q,
            ValueError,
            "must have at most 3 axes when they are float32, got shape (1, 4, 2, 8): to rotate x call rope.apply(x)",
        ),
        (
            Q.bfloat16(),
            TypeError,
            "must be int32, int64 or float32, got bfloat16 of shape (1, 4, 2, 8): to rotate x call rope.apply(x)",
        ),
        (
            torch.ones(3).half(),
            TypeError,
            "must be int32, int64 or float32, got float16, which skips integers above 2048",
        ),
        (
            torch.ones(3).short(),
            TypeError,
            "must be int32, int64 or float32, got int16: use positions.to(torch.int64)",
        ),
        (torch.ones(3).bool(), TypeError, "must be int32, int64 or float32, got bool"),
    ],
)
@pytest.mark.parametrize("rope", [ROPE, HF], ids=["exact", "hf"])
def test_invalid_positions_are_refused(rope, positions, error, message):
    says(f"positions {message}", error, rope, positions)


def test_positions_of_every_shape():
    """Integer positions have any number of axes; float positions up to three, as for several axes or single heads."""
    for positions in (torch.ones(2, 3, 1, 2, 4).long(), torch.ones(2, 3, 4), torch.tensor(1.0)):
        for rope in (ROPE, HF):
            assert rope(positions)[0].shape == (*positions.shape, 4)
            assert torch.equal(rope(positions.long())[0], rope(positions)[0])


def test_positions_with_too_many_axes_are_refused():
    for positions in (torch.zeros(2, 1, 4, 4).long(), torch.zeros(3, 1, 4).long()):
        says(f"positions must be (axes = 2, batch, seqlen), got {tuple(positions.shape)}", ValueError, AXIAL, positions)


# ---- dtypes and numbers ----


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float32", "'float32': use torch.float32"),
        ("bf16", "'bf16': use torch.bfloat16"),
        (np.float64, "<class 'numpy.float64'>: use torch.float64"),
        (np.dtype("float16"), "dtype('float16'): use torch.float16"),
        (float, "<class 'float'>: use torch.float32"),
        (torch.int32, "torch.int32"),
        ("int32", "'int32'"),
        ("tensor", "'tensor'"),
        (None, "None"),
    ],
)
def test_an_invalid_dtype_is_refused(dtype, message):
    message = f"dtype must be a floating-point dtype, got {message}"
    positions = torch.arange(3)
    for function, *args in (
        (ROPE.tables, 8),
        (ROPE, positions),
        (HF, positions),
        (frequencies.xpos_scale, positions, 8),
    ):
        says(message, TypeError, function, *args, dtype=dtype)
    for wrong in (dtype, torch.float16):
        with pytest.raises(TypeError, match=r"^rope_ext: dtype must be torch\.float64 or torch\.float32, got"):
            frequencies.default(8, dtype=wrong)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("seqlen must be an int, got '8'", lambda: ROPE.frequencies("8")),
        ("inv_freq must be a Tensor, got [1, 2]: use torch.tensor(", lambda: frequencies.per_axis([1, 2], [0, 0])),
        ("axes must be at most 64, got 1000", lambda: frequencies.per_axis(torch.ones(2), [0, 0], axes=1000)),
        ("axes must be in 1 to 64, got 128", lambda: frequencies.axial(256, axes=128)),
        ("positions must be a Tensor, got [0, 1]", lambda: frequencies.xpos_scale([0, 1], 8)),
        ("center must be a number, got 'x'", lambda: frequencies.xpos_scale(torch.arange(3), 8, center="x")),
        (
            "base must be a number, got Tensor of shape (2,), int64",
            lambda: frequencies.default(8, torch.ones(2).long()),
        ),
        ("pair_axis must be a list of ints, got an entry 0.5", lambda: RotaryEmbedding(8, pair_axis=[0.5] * 4)),
        ("mrope_section must be a list of ints, got an entry 0.0", lambda: frequencies.mrope_pair_axis(LONG)),
        ("weight must be a Tensor, got ndarray of shape (3000,)", lambda: rope_ext.permute_weights(LONG, 4, to="half")),
        ("max_bytes must be an int, got ndarray of shape (3000,)", lambda: rope_ext.set_output_pool(LONG)),
    ],
    ids=lambda value: value.split(",")[0] if isinstance(value, str) else "",
)
def test_errors_show_values_in_one_line(message, call):
    with pytest.raises((TypeError, ValueError), match=f"^rope_ext: {re.escape(message)}") as caught:
        call()
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", ["linear", "llama3", "longrope", "axial", "proportional"])
def test_errors_show_an_array_in_one_line(schedule):
    """Every parameter of these schedules, needed or with a default."""
    known = inspect.signature(getattr(frequencies, schedule)).parameters
    for name in set(known) - {"rotary_dim", "dtype", "seqlen", "base"}:
        values = {key: 2.0 for key, p in known.items() if p.default is inspect.Parameter.empty and key != "rotary_dim"}
        with pytest.raises((TypeError, ValueError)) as caught:
            RotaryEmbedding(8, schedule=schedule, **values | {name: LONG})
        assert str(caught.value).startswith("rope_ext: ")
        assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_a_length_must_not_be_a_tensor():
    positions = torch.arange(16)
    says(
        "max_position must be an int, got Tensor of shape (), int64: use int(max_position)",
        TypeError,
        ROPE.tables,
        positions.max() + 1,
    )
    says("max_position must be an int, got Tensor of shape (16,), int64", TypeError, ROPE.tables, positions)
    says("max_position must be an int, got Tensor of shape (), float32", TypeError, ROPE.tables, torch.tensor(16.0))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, torch.tensor])
def test_numbers_of_numpy_are_numbers(kind, recwarn):
    """NumPy does not warn: it would, if the largest float64 were compared with a NumPy float32."""
    assert RotaryEmbedding(8, base=kind(100)) == RotaryEmbedding(8, base=100.0)
    assert not list(recwarn)


def test_rope_apply_refuses_heads_of_another_size():
    """Another width of the head is refused, as for a table, unless rotary_dim or rotary_offset asks for a part."""
    rope, q, k = rope_ext.RotaryEmbedding(8), torch.randn(1, 3, 2, 16), torch.randn(1, 3, 2, 8)
    for x in (q, [k, q], (q, k)):
        with pytest.raises(
            ValueError, match=r"^rope_ext: x must have head_dim 8, got 16: pass rotary_dim=8 to rotate its first 8"
        ):
            rope.apply(x, rotary_offset=np.int64(0) if x is q else 0)
    part = rope_ext.apply(q, inv_freq=rope.inv_freq, rotary_dim=8)
    assert torch.equal(rope.apply(q, rotary_dim=8), part)
    assert torch.equal(rope.apply(q, rotary_offset=8)[..., :8], q[..., :8])


@pytest.mark.parametrize("name", ["cos", "sin", "inv_freq", "attention_scaling"])
def test_rope_apply_refuses_tables_and_frequencies(name):
    rope, x = rope_ext.RotaryEmbedding(8), torch.randn(1, 3, 2, 8)
    with pytest.raises(TypeError, match=rf"^rope_ext: {name} must not be given, got "):
        rope.apply(x, **{name: torch.ones(4)})


@pytest.mark.parametrize("name", ["theta", "out", "out_interleaved"])
def test_an_unknown_keyword_is_refused_as_python_refuses_it(name):
    tables = ROPE.tables(4)
    calls = {"apply_": lambda: rope_ext.apply_(Q, *tables, **{name: None})}
    if name == "theta":
        calls["apply"] = lambda: ROPE.apply(Q, **{name: 1})
    for function, call in calls.items():
        with pytest.raises(TypeError, match=rf"^{function}\(\) got an unexpected keyword argument '{name}'$"):
            call()


def test_cos_sin_takes_positions_and_not_x():
    x, inv_freq = torch.randn(1, 3, 2, 8), torch.ones(4)
    with pytest.raises(
        ValueError, match=r"^rope_ext: positions must have at most 3 axes when they are float32, got sh"
    ):
        rope_ext.cos_sin(x, inv_freq)
    assert rope_ext.cos_sin(x.long(), inv_freq)[0].shape == (1, 3, 2, 8, 4)
