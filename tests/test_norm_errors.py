"""Mistakes with norm and eps: each error names the argument, the rule, the value and, where there is one, the cure."""

import numpy as np
import pytest
import torch

import rope_ext
from tests.conftest import random

Q, K = random((2, 5, 3, 8), torch.float32), random((2, 5, 1, 8), torch.float32, 1)
COS, SIN = random((9, 4), torch.float32, 2), random((9, 4), torch.float32, 3)
WEIGHT = random((8,), torch.float32, 4)
V, T = ValueError, TypeError
WEIGHTS = "a Tensor, or a tuple or list with a Tensor or None for each tensor of x"
MISTAKES = {
    "no eps": (V, {"norm": WEIGHT}, "eps must be given with norm, got None: there is no default, since models differ: "
               "1e-6 and 1e-5 are common"),
    "no norm": (V, {"eps": 1e-6}, "eps must come with norm, got 1e-06"),
    "a number": (T, {"norm": 1.0, "eps": 1e-6}, f"norm must be {WEIGHTS}, got 1.0: a norm without weight has ones, "
                 "torch.ones(head_dim)"),
    "a module": (T, {"norm": torch.nn.RMSNorm(8), "eps": 1e-6},
                 f"norm must be {WEIGHTS}, got RMSNorm((8,), eps=None, elementwise_affine=True): a module's weight is one"),
    "an array": (T, {"norm": np.ones(8), "eps": 1e-6},
                 f"norm must be {WEIGHTS}, got ndarray of shape (8,), float64: torch.tensor(norm) makes one"),
    "a list of numbers": (T, {"norm": [1.0, 2.0], "eps": 1e-6}, f"norm must be {WEIGHTS}, got 1.0 in it: a norm without "
                          "weight has ones, torch.ones(head_dim)"),
    "three for two": (V, {"norm": [WEIGHT] * 3, "eps": 1e-6},
                      "norm must hold 2 weights, one or None per tensor of x, got 3"),
    "none for two": (V, {"norm": [], "eps": 1e-6}, "norm must hold 2 weights, one or None per tensor of x, got 0"),
    "eps is a text": (T, {"norm": WEIGHT, "eps": "1e-6"}, "eps must be a number, got '1e-6'"),
    "eps is a bool": (T, {"norm": WEIGHT, "eps": True}, "eps must be a number, got True"),
    "eps is a tensor": (T, {"norm": WEIGHT, "eps": torch.tensor(1e-6)}, "eps must be a number, got Tensor of shape (), "
                        "float32"),
}  # fmt: skip


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("function", [rope_ext.apply, rope_ext.apply_])
@pytest.mark.parametrize("name", MISTAKES)
def test_the_error_names_argument_rule_and_value(name, function):
    kind, keywords, message = MISTAKES[name]
    q, k = Q.clone(), K.clone()
    with pytest.raises(kind) as caught:
        function((q, k), COS, SIN, **keywords)
    assert str(caught.value) == "rope_ext: " + message
    assert torch.equal(q, Q) and torch.equal(k, K)
    with pytest.raises(kind) as caught:
        rope_ext.RotaryEmbedding(8).apply((q, k), **keywords)
    assert str(caught.value) == "rope_ext: " + message


@pytest.mark.parametrize("eps", [0, 1, np.float32(0.5), np.float64(0.5)])
def test_any_real_number_is_an_eps(eps):
    got = rope_ext.apply((Q, K), COS, SIN, norm=WEIGHT, eps=eps)
    expected = rope_ext.apply((Q, K), COS, SIN, norm=WEIGHT, eps=float(eps))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
