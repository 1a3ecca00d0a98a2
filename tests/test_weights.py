"""permute_weights: the other pairing with permuted weights computes the same attention."""

import numpy as np
import pytest
import torch

import rope_ext
from tests.conftest import assert_same_bits, random, random_integers
from tests.pairwise import pairwise

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
PARTS = {
    "full": {},
    "leading": {"rotary_dim": 6},
    "trailing": {"rotary_offset": 4},
    "middle": {"rotary_dim": 4, "rotary_offset": 2},
}
CASES = {
    "part": PARTS,
    "kind": ["weight", "bias"],
    "num_heads": [1, 3],
    "to": ["half", "interleaved"],
    "dtype": [F64, F32, BF16],
}


def of_kind(kind, rows, dtype):
    return random((rows, 5) if kind == "weight" else (rows,), dtype)


@pytest.mark.parametrize("case", pairwise({**CASES, "part": list(PARTS)}), ids=str)
def test_each_direction_undoes_the_other(case):
    weight = of_kind(case["kind"], case["num_heads"] * 10, case["dtype"])
    part, back = PARTS[case["part"]], {"half": "interleaved", "interleaved": "half"}[case["to"]]
    there = rope_ext.permute_weights(weight, case["num_heads"], to=case["to"], **part)
    assert not torch.equal(there, weight)
    assert_same_bits(rope_ext.permute_weights(there, case["num_heads"], to=back, **part), weight)


def test_order_by_hand():
    rows = torch.arange(16)
    assert rope_ext.permute_weights(rows, 2, to="half").tolist() == [
        0,
        2,
        4,
        6,
        1,
        3,
        5,
        7,
        8,
        10,
        12,
        14,
        9,
        11,
        13,
        15,
    ]
    assert rope_ext.permute_weights(rows[:8], 1, to="interleaved").tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    middle = rope_ext.permute_weights(rows[:8], 1, 4, to="half", rotary_offset=2)
    assert middle.tolist() == [0, 1, 2, 4, 3, 5, 6, 7]


def test_the_docstring_shows_equivalent_code():
    weight, num_heads, head_dim = random((12, 5), F32), 3, 4
    expected = weight.view(num_heads, head_dim // 2, 2, -1).transpose(1, 2).reshape(weight.shape)
    assert_same_bits(rope_ext.permute_weights(weight, num_heads, to="half"), expected)


@pytest.mark.parametrize("part", PARTS)
def test_same_attention_scores(part):
    """Whole numbers in the projection, so that its sums are exact in any order of rows; and q @ k of whole numbers of
    the permuted channels is compared channel by channel, exactly, and summed in one order."""
    batch, seqlen, heads, heads_k, head_dim, features = 2, 5, 4, 2, 10, 7
    x = random_integers(9, (batch, seqlen, features)).to(F64) - 4
    rotary_dim = PARTS[part].get("rotary_dim", head_dim - PARTS[part].get("rotary_offset", 0))
    cos, sin = random((seqlen, rotary_dim // 2), F64, 1), random((seqlen, rotary_dim // 2), F64, 2)
    rotated = {}
    for interleaved in (True, False):
        qk = []
        for seed, n in ((3, heads), (4, heads_k)):
            weight = (random((n * head_dim, features), F64, seed) * 4).round()
            bias = (random((n * head_dim,), F64, seed + 2) * 4).round()
            if not interleaved:
                weight, bias = (rope_ext.permute_weights(t, n, to="half", **PARTS[part]) for t in (weight, bias))
            qk.append(torch.nn.functional.linear(x, weight, bias).unflatten(-1, (n, head_dim)))
        rotated[interleaved] = rope_ext.apply(qk, cos, sin, interleaved=interleaved, **PARTS[part])
    scores = []
    for interleaved in (True, False):
        q, k = rotated[interleaved]
        if not interleaved:  # restores the order of channels, which are permuted like the rows of a head
            order = rope_ext.permute_weights(torch.arange(head_dim), 1, to="interleaved", **PARTS[part])
            q, k = q[..., order], k[..., order]
        scores.append(torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(heads // heads_k, dim=2)))
    assert_same_bits(scores[0], scores[1])


def test_differentiable():
    weight = random((12, 5), F64).requires_grad_()
    y = rope_ext.permute_weights(weight, 3, to="half")
    g = random((12, 5), F64, 1)
    (grad,) = torch.autograd.grad(y, weight, g)
    assert_same_bits(grad, rope_ext.permute_weights(g, 3, to="interleaved"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"to": "neox"}, "to must be 'half' or 'interleaved', got 'neox'"),
        ({"num_heads": 5}, "weight must have a number of rows divisible by num_heads 5, got shape (12, 5)"),
        ({"num_heads": 0}, "num_heads must be positive, got 0"),
        ({"weight": torch.zeros(())}, "weight must have a number of rows divisible by num_heads 3, got shape ()"),
        ({"weight": [1.0]}, "weight must be a Tensor, got [1.0]: use torch.tensor(weight)"),
        ({"rotary_dim": 3}, "rotary_dim must be even and fit head_dim 4 from rotary_offset 0, got 3"),
        ({"rotary_dim": 6}, "rotary_dim must be even and fit head_dim 4 from rotary_offset 0, got 6"),
        ({"rotary_dim": -2}, "rotary_dim must be even and fit head_dim 4 from rotary_offset 0, got -2"),
        ({"rotary_offset": 1}, "rotary_dim must be even and fit head_dim 4 from rotary_offset 1, got 3"),
        ({"rotary_offset": 5}, "rotary_offset must be within the head, 0 to 4, got 5"),
        ({"rotary_offset": -1}, "rotary_offset must be within the head, 0 to 4, got -1"),
        ({"to": np.arange(2)}, "to must be 'half' or 'interleaved', got ndarray of shape (2,), int64"),
        ({"weight": torch.zeros(12, 5).to_sparse()}, "weight must be strided, got torch.sparse_coo"),
        ({"num_heads": None}, "num_heads must be an int, got None"),
        ({"num_heads": 3.0}, "num_heads must be an int, got 3.0"),
        ({"num_heads": True}, "num_heads must be an int, got True"),
        ({"rotary_dim": 2.0}, "rotary_dim must be an int, got 2.0"),
        ({"rotary_offset": "0"}, "rotary_offset must be an int, got '0'"),
    ],
    ids=str,
)
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError)) as error:
        rope_ext.permute_weights(**{"weight": random((12, 5), F32), "num_heads": 3, "to": "half", **arguments})
    assert str(error.value) == f"rope_ext: {message}"


def test_an_empty_weight_has_any_number_of_heads():
    assert rope_ext.permute_weights(torch.zeros(0, 5), 2**64, to="half").shape == (0, 5)
