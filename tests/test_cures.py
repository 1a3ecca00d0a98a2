"""Errors of wrong calls say what to write instead, and what they say works."""

import inspect

import numpy as np
import pytest
import torch

import rope_ext
from tests.conftest import random

pytestmark = pytest.mark.devices("cpu")
B, S, H, D = 2, 5, 3, 8
ROPE = rope_ext.RotaryEmbedding(D)
HF = rope_ext.RotaryEmbedding(D, precision="hf")
COS, SIN = ROPE.tables(S)
Q, K = random((B, S, H, D), torch.float32), random((B, S, 1, D), torch.float32)
HF_Q, HF_K = Q.transpose(1, 2), K.transpose(1, 2)  # (batch, heads, seqlen, head_dim)
PACKED, BOUNDARIES = random((6, H, D), torch.float32), torch.tensor([0, 2, 6])
WIDE = torch.cat((COS, COS), -1)  # an entry per channel
LONG = [t.repeat(1, 2) for t in ROPE.tables(9)]
apply, apply_ = rope_ext.apply, rope_ext.apply_


def both(table):
    return {"cos": table, "sin": table}


# (the wrong call, the end of its error from the argument on, what it tells to write; None: it is the user who knows)
CURES = {
    # too few rows
    "rows": (
        lambda: apply(Q, COS[:4], SIN[:4]),
        "cos must have a row for each of the 5 tokens of x, got 4 rows: rope.tables(5) has enough",
        lambda: apply(Q, *ROPE.tables(5)),
    ),
    "rows from an offset": (
        lambda: apply(Q, COS[:4], SIN[:4], offset=2),
        "cos must have a row for each of the 5 tokens of x from offset 2, got 4 rows: rope.tables(7) has enough",
        lambda: apply(Q, *ROPE.tables(7), offset=2),
    ),
    "rows from offsets": (
        lambda: apply(Q, COS[:4], SIN[:4], offset=torch.tensor([1, 3])),
        "cos must have a row for each of the 5 tokens of x from offset 3, got 4 rows: rope.tables(8) has enough",
        lambda: apply(Q, *ROPE.tables(8), offset=torch.tensor([1, 3])),
    ),
    "rows of sequences": (
        lambda: apply(PACKED, COS[:3], SIN[:3], layout="thd", cu_seqlens=BOUNDARIES),
        "cos must have a row for each of the 4 tokens of sequence 1, got 3 rows: rope.tables(4) has enough",
        lambda: apply(PACKED, *ROPE.tables(4), layout="thd", cu_seqlens=BOUNDARIES),
    ),
    "rows of the longest sequence": (
        lambda: apply(PACKED, COS[:1], SIN[:1], layout="thd", cu_seqlens=BOUNDARIES, offset=1),
        "cos must have a row for each of the 4 tokens of sequence 1 from offset 1, got 1 rows: rope.tables(5) has enough",
        lambda: apply(PACKED, *ROPE.tables(5), layout="thd", cu_seqlens=BOUNDARIES, offset=1),
    ),
    "offset": (
        lambda: apply(Q, COS, SIN, offset=1),
        "offset must index rows 0 to 4 of the table, got row 5 for token 4 of batch 0",
        None,
    ),
    "negative offset": (
        lambda: apply(Q, COS[:4], SIN[:4], offset=-1),
        "offset must index rows 0 to 3 of the table, got row -1 for token 0 of batch 0",
        None,
    ),
    "offset of sequences": (
        lambda: apply(PACKED, COS, SIN, layout="thd", cu_seqlens=BOUNDARIES, offset=2),
        "offset must index rows 0 to 4 of the table, got row 5 for sequence 1",
        None,
    ),
    # several tensors
    "q and k": (
        lambda: apply(Q, K, COS, SIN),
        "apply must get 1 to 3 arguments by position, x, cos and sin, got 4: pass several tensors as a tuple, "
        "apply((q, k), cos, sin), and all others by name, positions=positions",
        lambda: apply((Q, K), COS, SIN),
    ),
    "q and k in place": (
        lambda: apply_(Q, K, COS, SIN, torch.arange(S)),
        "apply_ must get 1 to 3 arguments by position, x, cos and sin, got 5: pass several tensors as a tuple, "
        "apply_((q, k), cos, sin), and all others by name, positions=positions",
        lambda: apply_((Q.clone(), K.clone()), COS, SIN),
    ),
    "q and k without tables": (
        lambda: apply(Q, K),
        "sin must be a Tensor, got None: apply(x, cos, sin) needs both; pass several tensors as a tuple, "
        "apply((q, k), cos, sin)",
        lambda: apply((Q, K), COS, SIN),
    ),
    # tables
    "no table": (
        lambda: apply(Q),
        "cos must be a Tensor, got None: call apply(x, cos, sin) or apply(x, inv_freq=inv_freq)",
        lambda: apply(Q, inv_freq=ROPE.inv_freq),
    ),
    "no cos": (
        lambda: apply_(Q, None, SIN),
        "cos must be a Tensor, got None: call apply(x, cos, sin) or apply(x, inv_freq=inv_freq)",
        None,
    ),
    "both tables at once": (
        lambda: apply(Q, ROPE.tables(S)),
        "cos must be a Tensor, got (Tensor of shape (5, 4), float32, Tensor of shape (5, 4), float32): "
        "pass both as apply(x, *tables)",
        lambda: apply(Q, *ROPE.tables(S)),
    ),
    "a RotaryEmbedding": (
        lambda: apply(Q, ROPE),
        f"cos must be a Tensor, got {ROPE!r}: rope.apply(x) needs no table, and rope.tables(max_position) returns cos and sin",
        lambda: ROPE.apply(Q),
    ),
    "a RotaryEmbedding as frequencies": (
        lambda: apply(Q, inv_freq=ROPE),
        f"inv_freq must be a Tensor, got {ROPE!r}: rope.apply(x) uses its frequencies",
        lambda: ROPE.apply(Q),
    ),
    "frequencies by position": (
        lambda: apply(Q, ROPE.inv_freq),
        "sin must be a Tensor, got None: pass frequencies as apply(x, inv_freq=inv_freq)",
        lambda: apply(Q, inv_freq=ROPE.inv_freq),
    ),
    "complex": (
        lambda: apply(Q, torch.complex(COS, SIN)),
        "sin must be a Tensor, got None: pass cos.real and cos.imag as cos and sin",
        lambda: apply(Q, torch.complex(COS, SIN).real, torch.complex(COS, SIN).imag),
    ),
    "width": (
        lambda: apply(Q, **both(COS[:, :2])),
        "cos must have width 4 (one entry per pair) or 8 (one per channel) for rotary_dim 8, got width 2: "
        "rotary_dim=4 (one per pair) or rotary_dim=2 (one per channel) fits",
        lambda: (apply(Q, **both(COS[:, :2]), rotary_dim=4), apply(Q, **both(COS[:, :2]), rotary_dim=2)),
    ),
    "width of frequencies": (
        lambda: apply(Q, inv_freq=torch.ones(3)),
        "inv_freq must have width 4, one entry per pair of rotary_dim 8, got width 3: rotary_dim=6 fits",
        lambda: apply(Q, inv_freq=torch.ones(3), rotary_dim=6),
    ),
    # layouts
    "layout of q and k": (
        lambda: apply((HF_Q, HF_K), **both(WIDE)),
        "x must hold tensors with the batch and seqlen of the first, (2, 3, 5, 8), got (2, 1, 5, 8): layout='bhsd' or "
        "one call per tensor fits",
        lambda: apply((HF_Q, HF_K), **both(WIDE), layout="bhsd"),
    ),
    "layout, (1, 1, S, D)": (
        lambda: apply(HF_Q, **both(WIDE[None, None])),
        "cos must have batch 1 or 2 and seqlen 3, those of x, when it has 4 dimensions, got shape (1, 1, 5, 8): "
        "layout='bhsd' fits",
        lambda: apply(HF_Q, **both(WIDE[None, None]), layout="bhsd"),
    ),
    "layout, (B, 1, S, D)": (
        lambda: apply(HF_Q, **both(WIDE.expand(2, 1, S, D))),
        "cos must have batch 1 or 2 and seqlen 3, those of x, when it has 4 dimensions, got shape (2, 1, 5, 8): "
        "layout='bhsd' fits",
        lambda: apply(HF_Q, **both(WIDE.expand(2, 1, S, D)), layout="bhsd"),
    ),
    "layout, (B, S, D)": (
        lambda: apply(HF_Q, **both(WIDE.expand(2, S, D))),
        "cos must have batch 1 or 2 and seqlen 3, those of x, when it has 3 dimensions, got shape (2, 5, 8): "
        "layout='bhsd' fits",
        lambda: apply(HF_Q, **both(WIDE.expand(2, S, D)), layout="bhsd"),
    ),
    "layout of Megatron": (
        lambda: apply(Q.transpose(0, 1), **both(WIDE[:, None, None])),
        "cos must have batch 1 or 5 and seqlen 2, those of x, when it has 4 dimensions, got shape (5, 1, 1, 8): "
        "layout='sbhd' fits",
        lambda: apply(Q.transpose(0, 1), **both(WIDE[:, None, None]), layout="sbhd"),
    ),
    "tables of Hugging Face, x is not": (
        lambda: apply(Q, **both(WIDE[None, None])),
        "cos must have batch 1 or 2 and seqlen 5, those of x, when it has 4 dimensions, got shape (1, 1, 5, 8): "
        "cos.squeeze(1) fits",
        lambda: apply(Q, **both(WIDE[None, None].squeeze(1))),
    ),
    "a whole table of four axes": (
        lambda: apply(Q, **both(LONG[0][None, None])),
        "cos must have batch 1 or 2 and seqlen 5, those of x, when it has 4 dimensions, got shape (1, 1, 9, 8): "
        "cos.flatten(0, -2) fits",
        lambda: apply(Q, **both(LONG[0][None, None].flatten(0, -2))),
    ),
    "an axis of one after the tokens": (
        lambda: apply(PACKED, **both(LONG[0][:6, None]), layout="shd"),
        "cos must have batch 1 and seqlen 6, those of x, when it has 3 dimensions, got shape (6, 1, 8): "
        "cos.flatten(0, -2) fits",
        lambda: apply(PACKED, **both(LONG[0][:6, None].flatten(0, -2)), layout="shd"),
    ),
    "positions in a table per token": (
        lambda: apply(Q, **both(WIDE[None]), positions=torch.arange(S)),
        "positions must be None when the tables have one row per token, got cos of shape (1, 5, 8): "
        "cos.flatten(0, -2) is a table to look up",
        lambda: apply(Q, **both(WIDE[None].flatten(0, -2)), positions=torch.arange(S)),
    ),
    "packed": (
        lambda: apply(PACKED, *LONG),
        "x must have 4 dimensions for layout 'bshd', got shape (6, 3, 8): layouts 'thd' and 'shd' have 3",
        lambda: apply(PACKED, *LONG, layout="thd"),
    ),
    "not packed": (
        lambda: apply(Q, COS, SIN, layout="thd"),
        "x must have 3 dimensions for layout 'thd', got shape (2, 5, 3, 8): layouts 'bshd', 'bhsd' and 'sbhd' have 4",
        lambda: apply(Q, COS, SIN),
    ),
    "tensors of several ranks": (
        lambda: apply((Q, Q[:, :4], torch.zeros(2)), COS, SIN),
        "x must hold tensors with the batch and seqlen of the first, (2, 5, 3, 8), got (2, 4, 3, 8): one call per tensor fits",
        lambda: (apply(Q, COS, SIN), apply(Q[:, :4], COS, SIN)),
    ),
    "one tensor of another rank": (
        lambda: apply((Q, PACKED), COS, SIN),
        "x must have 4 dimensions for layout 'bshd', got shape (6, 3, 8)",
        None,
    ),
    # positions
    "positions of decoding": (
        lambda: apply(Q[:, :1], COS, SIN, positions=torch.tensor([3, 4])),
        "positions must have shape (1,) or (2, 1), got (2,): positions[:, None] fits",
        lambda: apply(Q[:, :1], COS, SIN, positions=torch.tensor([3, 4])[:, None]),
    ),
    "positions of decoding, hf": (
        lambda: HF.apply(Q[:, :1], positions=torch.tensor([3, 4])),
        "positions must have shape (1,) or (2, 1), got (2,): positions[:, None] fits",
        lambda: HF.apply(Q[:, :1], positions=torch.tensor([3, 4])[:, None]),
    ),
    "offsets as a column": (
        lambda: apply(Q, *LONG, offset=torch.tensor([[3], [4]])),
        "offset must be an int or have shape (2,), got (2, 1): offset.flatten() fits",
        lambda: apply(Q, *LONG, offset=torch.tensor([[3], [4]]).flatten()),
    ),
    "offsets as a column, hf": (
        lambda: HF.apply(Q, offset=torch.tensor([[3], [4]])),
        "offset must be an int or have shape (2,), got (2, 1): offset.flatten() fits",
        lambda: HF.apply(Q, offset=torch.tensor([[3], [4]]).flatten()),
    ),
    "first position of each sequence": (
        lambda: apply(Q, *LONG, positions=torch.tensor([3, 4])),
        "positions must have shape (5,) or (2, 5), got (2,): offset=positions adds one value per sequence",
        lambda: apply(Q, *LONG, offset=torch.tensor([3, 4])),
    ),
    "one position": (
        lambda: apply(Q[:, :1], COS, SIN, positions=torch.tensor(3)),
        "positions must have shape (1,) or (2, 1), got (): offset=positions adds one value to every position",
        lambda: apply(Q[:, :1], COS, SIN, offset=torch.tensor(3)),
    ),
    "one fractional position": (
        lambda: apply(Q, inv_freq=ROPE.inv_freq, positions=torch.tensor(0.5)),
        "positions must have shape (5,) or (2, 5) or (1, 2, 5), axes first, got ()",
        None,
    ),
    "an int as positions": (
        lambda: apply(Q[:, :1], COS, SIN, positions=3),
        "positions must be a Tensor, got 3: pass an int as offset",
        lambda: apply(Q[:, :1], COS, SIN, offset=3),
    ),
    "positions transposed": (
        lambda: apply(Q, *LONG, positions=torch.zeros(S, B, dtype=torch.int64)),
        "positions must have shape (5,) or (2, 5), got (5, 2): positions.T fits",
        lambda: apply(Q, *LONG, positions=torch.zeros(S, B, dtype=torch.int64).T),
    ),
    "positions with a batch": (
        lambda: apply(PACKED, *LONG, layout="thd", positions=torch.arange(6)[None]),
        "positions must have shape (6,), got (1, 6): positions[0] fits",
        lambda: apply(PACKED, *LONG, layout="thd", positions=torch.arange(6)[None][0]),
    ),
    # devices
    "frequencies elsewhere": (
        lambda: apply(Q, inv_freq=ROPE.inv_freq.to("meta")),
        "inv_freq must be on the device of x, cpu, got meta",
        None,
    ),
    "positions elsewhere than frequencies": (
        lambda: rope_ext.cos_sin(torch.arange(3), ROPE.inv_freq.to("meta")),
        "positions must be on the device of inv_freq, meta, got cpu",
        None,
    ),
    "offset elsewhere": (
        lambda: apply(Q, COS, SIN, offset=torch.tensor(0, device="meta")),
        "offset must be on the device of x, cpu, got meta",
        None,
    ),
    # arrays of numpy
    **{
        f"array as {name}": (
            lambda name=name: apply(**{"x": Q, "cos": COS, "sin": SIN} | {name: np.zeros((40, 40))}),
            f"{name} must be {rule}, got ndarray of shape (40, 40), float64"
            + f": use torch.tensor({name})" * (rule == "a Tensor"),
            None,
        )
        for name, rule in {
            "cos": "a Tensor",
            "sin": "a Tensor",
            "positions": "a Tensor",
            "cu_seqlens": "a Tensor",
            "offset": "an int or a Tensor",
            "rotary_dim": "an int",
            "rotary_offset": "an int",
            "interleaved": "True or False",
            "inverse": "True or False",
            "per_channel": "True, False or None",
            "out_interleaved": "True, False or None",
            "layout": "one of bshd, bhsd, sbhd, thd, shd",
            "rounding": "'once' or 'eager'",
            "attention_scaling": "a number",
        }.items()
    },
    "array as frequencies": (
        lambda: apply(Q, inv_freq=np.zeros((40, 40))),
        "inv_freq must be a Tensor, got ndarray of shape (40, 40), float64: use torch.tensor(inv_freq)",
        None,
    ),
    "array as out": (
        lambda: apply(Q, COS, SIN, out=np.zeros(3)),
        "out must be a Tensor or a tuple or list of Tensors, like x, got ndarray",
        None,
    ),
    "array as x": (
        lambda: apply(np.zeros((1, 5, 2, 8)), COS, SIN),
        "x must be a Tensor or a tuple or list of Tensors, got ndarray: use torch.tensor(x)",
        None,
    ),
    "array as x without a table": (
        lambda: ROPE.apply(np.zeros((1, 5, 2, 8))),
        "x must be a Tensor or a tuple or list of Tensors, got ndarray: use torch.tensor(x)",
        None,
    ),
    "rows of numbers as x": (
        lambda: apply(Q.tolist(), COS, SIN),
        "x must be a Tensor or a tuple or list of Tensors, got list of " + ", ".join(["list"] * len(Q)),
        None,
    ),
    "pairs as x": (
        lambda: apply([(Q, Q), (Q, Q)], COS, SIN),
        "x must be a Tensor or a tuple or list of Tensors, got list of tuple, tuple",
        None,
    ),
    "list as positions": (
        lambda: apply(Q, COS, SIN, positions=[0, 1, 2]),
        "positions must be a Tensor, got [0, 1, 2]: use torch.tensor(positions)",
        None,
    ),
    "list of texts as positions": (
        lambda: apply(Q, COS, SIN, positions=["0", "1"]),
        "positions must be a Tensor, got ['0', '1']",
        None,
    ),
    "list of Tensors as cos": (
        lambda: apply(Q, [COS], SIN),
        f"cos must be a Tensor, got [Tensor of shape {tuple(COS.shape)}, float32]",
        None,
    ),
    "long list as x": (
        lambda: apply([Q] * 100 + [None], COS, SIN),
        "x must be a Tensor or a tuple or list of Tensors, got list of " + "Tensor, " * 8 + "...",
        None,
    ),
    "dtype by name": (
        lambda: rope_ext.angles.revolutions(ROPE.inv_freq, "float32"),
        "dtype must be torch.float32 or torch.float64, got 'float32'",
        None,
    ),
}


@pytest.mark.parametrize("name", CURES)
def test_the_error_says_what_to_write(name):
    wrong, message, right = CURES[name]
    before = Q.clone()
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong()
    assert str(caught.value) == "rope_ext: " + message
    assert torch.equal(Q, before)
    if right is not None:
        right()


KINDS = {
    "sparse": lambda: torch.ones(4).to_sparse(),
    "mkldnn": lambda: torch.ones(4).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
    "uninitialized": torch.nn.parameter.UninitializedParameter,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_positions_that_are_no_strided_tensor(kind):
    t = KINDS[kind]()
    for name, call in {
        "inv_freq": lambda: apply(Q, inv_freq=t),
        "inv_freq ": lambda: rope_ext.angles.revolutions(t),
        "positions": lambda: rope_ext.cos_sin(t, ROPE.inv_freq),
    }.items():
        with pytest.raises(TypeError, match=f"^rope_ext: {name.strip()} must be strided, got "):
            call()


@pytest.mark.parametrize("function", [apply, apply_])
def test_help_shows_three_arguments_by_position(function):
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    assert kinds[:3] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3
    assert set(kinds[3:]) == {inspect.Parameter.KEYWORD_ONLY}
