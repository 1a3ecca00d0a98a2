"""Mistakes with norm and eps: each error names the argument, the rule, the value and, where there is one, the cure."""

import numpy as np
import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import random

Q, K = random((2, 5, 3, 8), torch.float32), random((2, 5, 1, 8), torch.float32, 1)
COS, SIN = random((9, 4), torch.float32, 2), random((9, 4), torch.float32, 3)
WEIGHT = random((8,), torch.float32, 4)
V, T = ValueError, TypeError
WEIGHTS = "a Tensor, or a tuple or list with a Tensor or None for each tensor of x"
MISTAKES = {
    "no eps": (V, {"norm": WEIGHT}, "eps must be given with norm, got None: there is no default, since models differ: "
               "1e-6 and 1e-5 are common"),
    "no norm": (V, {"eps": 1e-6}, "eps must be given only with norm, got 1e-06"),
    "a number": (T, {"norm": 1.0, "eps": 1e-6}, f"norm must be {WEIGHTS}, got 1.0: for a norm without a weight "
                 "pass torch.ones(head_dim)"),
    "a module": (T, {"norm": torch.nn.RMSNorm(8), "eps": 1e-6},
                 f"norm must be {WEIGHTS}, got RMSNorm((8,), eps=None, elementwise_affine=True): pass its weight"),
    "an array": (T, {"norm": np.ones(8), "eps": 1e-6},
                 f"norm must be {WEIGHTS}, got ndarray of shape (8,), float64: use torch.tensor(norm)"),
    "a list of numbers": (T, {"norm": [1.0, 2.0], "eps": 1e-6}, f"norm must be {WEIGHTS}, got an entry 1.0: for a norm "
                          "without a weight pass torch.ones(head_dim)"),
    "three for two": (V, {"norm": [WEIGHT] * 3, "eps": 1e-6},
                      "norm must hold 2 entries, a weight or None for each tensor of x, got 3"),
    "none for two": (V, {"norm": [], "eps": 1e-6}, "norm must hold 2 entries, a weight or None for each tensor of x, got 0"),
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


def test_the_reference_does_not_ignore_a_norm_without_eps():
    with pytest.raises(ValueError, match="norm needs eps"):
        reference.apply(Q, COS, SIN, norm=WEIGHT)


@pytest.mark.parametrize("eps", [0, 1, np.float32(0.5), np.float64(0.5)])
def test_any_real_number_is_an_eps(eps):
    got = rope_ext.apply((Q, K), COS, SIN, norm=WEIGHT, eps=eps)
    expected = rope_ext.apply((Q, K), COS, SIN, norm=WEIGHT, eps=float(eps))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


WRONG_WEIGHTS = {
    "of all heads": (V, torch.ones(24), "norm must have shape (8,), one weight per channel of a head, got (24,): to "
                     "normalize across all heads, call torch.nn.functional.rms_norm before apply"),
    "two axes": (V, torch.ones(1, 8), "norm must have shape (8,), one weight per channel of a head, got (1, 8): its "
                 "flatten() fits"),
    "one number": (V, torch.ones(1), "norm must have shape (8,), one weight per channel of a head, got (1,)"),
    "no axis": (V, torch.ones(()), "norm must have shape (8,), one weight per channel of a head, got ()"),
    "integers": (T, torch.ones(8, dtype=torch.int32), "norm must be float64, float32, bfloat16 or float16, got int32"),
    "complex": (T, torch.ones(8) + 0j, "norm must be float64, float32, bfloat16 or float16, got complex64"),
    "elsewhere": (V, torch.ones(8, device="meta"), "norm must be on the device of x, cpu, got meta"),
}  # fmt: skip
WRONG_EPS = {-1e-7: "-1e-07", float("nan"): "nan", float("inf"): "inf", 1e300: "1e+300", -1: "-1"}


@pytest.mark.devices("cpu")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("wrong", [*WRONG_WEIGHTS, *WRONG_EPS])
@pytest.mark.parametrize("way", ["op", "recorded", "forward mode", "torch.func", "table", "jit.trace"])
def test_every_way_raises_the_same_error(wrong, way):
    kind, weight, message = WRONG_WEIGHTS.get(wrong, (V, WEIGHT, None))
    eps = 1e-6 if message else wrong
    message = message or f"eps must be a finite number, 0 or more, got {WRONG_EPS[wrong]}"
    q, cos = Q.clone(), COS.clone()

    def function(q):
        return rope_ext.apply(q, cos, SIN, norm=weight, eps=eps)

    with pytest.raises(kind) as caught, torch.autograd.forward_ad.dual_level():
        if way == "op":
            function(q)
        elif way == "recorded":
            function(q.requires_grad_())
        elif way == "forward mode":
            function(torch.autograd.forward_ad.make_dual(q, q))
        elif way == "torch.func":
            torch.func.grad(lambda q: function(q).sum())(q)
        elif way == "table":
            cos.requires_grad_()
            function(q)
        else:
            torch.jit.trace(function, q)
    assert str(caught.value) == "rope_ext: " + message


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("kind", ["sparse", "mkldnn", "nested", "uninitialized"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_weight_that_is_no_strided_tensor(kind):
    weight = {
        "sparse": torch.Tensor.to_sparse,
        "mkldnn": torch.Tensor.to_mkldnn,
        "nested": lambda w: torch.nested.nested_tensor([w]),
        "uninitialized": lambda _: torch.nn.parameter.UninitializedParameter(),
    }[kind](WEIGHT)
    for q in (Q, Q.clone().requires_grad_()):
        with pytest.raises(NotImplementedError, match=r"^rope_ext: norm must be an? (strided|ordinary) tensor, got "):
            rope_ext.apply(q, COS, SIN, norm=weight, eps=1e-6)


def test_a_weight_must_not_overlap_what_is_written():
    memory = random((2 * 5 * 3 * 8,), torch.float32)
    x = memory.view(2, 5, 3, 8)
    for call in (
        lambda: rope_ext.apply_(x, COS, SIN, norm=memory[:8], eps=1e-6),
        lambda: rope_ext.apply(Q, COS, SIN, norm=memory[:8], eps=1e-6, out=x),
    ):
        with pytest.raises(ValueError, match=r"rope_ext: (x|out) must not overlap norm"):
            call()
