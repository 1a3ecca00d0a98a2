"""Tensors that `apply_` and `out=` refuse to write: the error says why, of which argument, and what helps."""

import re

import pytest
import torch

import rope_ext
from tests.conftest import lazy_negation, random

X, COS, SIN = random((1, 3, 2, 8), torch.float32), *rope_ext.RotaryEmbedding(8).tables(3)


def leaf():
    return X.clone().requires_grad_()


class ReturnsView(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, _weight):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def written(x):
    return rope_ext.apply_(x, COS, SIN)


def in_mode(mode, function, x):
    with mode():
        return function(x)


CUSTOM = "a view that a custom autograd.Function returned (its clone() is accepted)"
BOTH = "(create and write it both inside, or both outside)"
WRITTEN_VIEWS = {  # name: (x, what it must not be, what follows the advice)
    "custom Function": (
        lambda: ReturnsView.apply(leaf() * 1, leaf()),
        CUSTOM,
        lambda: written(ReturnsView.apply(leaf() * 1, leaf()).clone()),
    ),
    "custom Function, leaf": (
        lambda: ReturnsView.apply(leaf(), leaf()),
        CUSTOM,
        lambda: written(ReturnsView.apply(leaf(), leaf()).clone()),
    ),
    "custom Function, without grad": (
        lambda: ReturnsView.apply(X.clone(), leaf()),
        CUSTOM,
        lambda: written(ReturnsView.apply(X.clone(), leaf()).clone()),
    ),
    "split": (
        lambda: (leaf() * 1).split(2, dim=2)[0],
        "one of several views that an op returned (split, unbind, chunk; slices are accepted)",
        lambda: written((leaf() * 1)[:, :, :2]),
    ),
    "no_grad": (
        lambda: in_mode(torch.no_grad, lambda x: x.view_as(x), leaf() * 1),
        f"a view created under torch.no_grad {BOTH}",
        lambda: in_mode(torch.no_grad, lambda x: written(x.view_as(x)), leaf() * 1),
    ),
    "inference mode": (
        lambda: in_mode(torch.inference_mode, lambda x: x.view_as(x), leaf() * 1),
        f"a view created in inference mode {BOTH}",
        lambda: in_mode(torch.inference_mode, lambda x: written(x.view_as(x)), leaf() * 1),
    ),
}


@pytest.mark.parametrize("name", WRITTEN_VIEWS)
@pytest.mark.parametrize("recorded", [False, True])
def test_views_that_autograd_cannot_write_are_refused(name, recorded):
    make, rule, as_advised = WRITTEN_VIEWS[name]
    x = make()
    before, message = x.detach().clone(), f"rope_ext: x must not be {rule} when it is written, got one of shape "
    with pytest.raises(RuntimeError):  # torch refuses it too
        x.mul_(COS[0, 0].clone().requires_grad_(recorded))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rope_ext.apply_(x, COS.clone().requires_grad_(recorded), SIN)
    assert torch.equal(x.detach(), before)
    assert torch.equal(as_advised(), rope_ext.apply(X, COS, SIN))


def test_errors_about_out_name_out():
    with torch.inference_mode():
        out = X.clone()
    with pytest.raises(ValueError, match=r"^rope_ext: out must not be an inference tensor outside inference mode"):
        rope_ext.apply(X, COS, SIN, out=out)
    with pytest.raises(ValueError, match=r"^rope_ext: out must be inside every transform"):
        torch.func.vmap(lambda cos: rope_ext.apply(X, cos, SIN, out=torch.empty_like(X)))(COS[None])
    with pytest.raises(ValueError, match=r"^rope_ext: out must not be a lazy negation"):
        rope_ext.apply(lazy_negation(X), COS, SIN, out=lazy_negation(X))


@pytest.mark.parametrize("name", ["x", "out"])
def test_lazy_conjugates_are_refused(name):
    conjugate = torch.complex(X, X).conj()
    call = {
        "x": lambda: rope_ext.apply_(conjugate, COS, SIN),
        "out": lambda: rope_ext.apply(X, COS, SIN, out=conjugate),
    }[name]
    with pytest.raises(TypeError, match=rf"^rope_ext: {name} must be float64, .*, got complex64$"):
        call()
