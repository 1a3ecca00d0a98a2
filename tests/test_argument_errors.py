"""ArgumentError and ArgumentTypeError: what a program can read off them, whoever raised them."""

import copy
import pickle

import pytest
import torch

import rope_ext
from rope_ext import ArgumentError, ArgumentTypeError

X, COS, LONG = torch.randn(1, 4, 2, 8), torch.randn(4, 4), torch.ones(4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        # raised in Python
        (lambda: rope_ext.apply(X, COS, COS, layout="hbsd"), ArgumentError, ("layout", "'hbsd'", "")),
        (lambda: rope_ext.apply([[1.0]], COS, COS), ArgumentTypeError, ("x", "list of list", "")),
        (lambda: rope_ext.apply(X, COS, COS, positions=3), ArgumentTypeError, ("positions", "3", "pass an int as offset")),
        (lambda: rope_ext.RotaryEmbedding(7), ArgumentError, ("head_dim", "7", "rotary_dim=6 leaves one channel unrotated")),
        (lambda: rope_ext.RotaryEmbedding(8, schedule="yarm"), ArgumentError, ("schedule", "'yarm'", "is it yarn?")),
        (lambda: rope_ext.RotaryEmbedding.from_config({"head_dim": 8}), ArgumentError, ("config", None, "")),
        (lambda: rope_ext.permute_weights(X, 2, to="x"), ArgumentError, ("to", "'x'", "")),
        (lambda: rope_ext.patch(3), ArgumentTypeError, ("model", "int", "")),
        (lambda: rope_ext.set_table_limit(-1), ArgumentError, ("max_bytes", "-1", "")),
        # raised by csrc
        (lambda: rope_ext.apply(X, COS, COS, rotary_dim=6), ArgumentError, ("cos", "width 4", "")),
        (lambda: rope_ext.apply(X, LONG, LONG), ArgumentTypeError, ("cos", "int64", "")),
        (lambda: rope_ext.apply(X, COS[:, None], COS), ArgumentError, ("sin", None, None)),
        (lambda: rope_ext.apply(X[:, 0], COS, COS), ArgumentError, ("x", "shape (1, 2, 8)", "layouts 'thd' and 'shd' have 3")),
        (lambda: torch.ops.rope_ext.rotate([X], LONG, LONG), ArgumentTypeError, ("cos", "int64", "")),
        # in the words of another library
        (lambda: rope_ext.compat.transformers.apply_rotary_pos_emb(X, X, COS, 3), ArgumentTypeError, ("sin", None, "")),
    ],
)  # fmt: skip
def test_an_error_has_its_parts(call, kind, parts):
    with pytest.raises(kind) as raised:
        call()
    error = raised.value
    cure = f": {error.cure}" if error.cure else ""
    assert str(error) == f"rope_ext: {error.argument} must {error.rule}, got {error.got}{cure}"
    for part, expected in zip((error.argument, error.got, error.cure), parts):
        assert expected is None or part == expected
    assert isinstance(error, ValueError if kind is ArgumentError else TypeError)


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_can_be_copied_and_sent_to_another_process(copied):
    error = copied(ArgumentTypeError("x", "be a Tensor", [1], "use torch.tensor(x)"))
    assert (error.argument, error.rule, error.got, error.cure) == (
        "x",
        "be a Tensor",
        "[1]",
        "use torch.tensor(x)",
    )
    assert str(error) == "rope_ext: x must be a Tensor, got [1]: use torch.tensor(x)"


def test_an_error_that_is_sent_keeps_its_notes_and_text():
    error = ArgumentError("x", "be long", 2)
    error.note = "of layer 3"
    error.args = ("in other words",)
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), sent.note, sent.argument) == ("in other words", "of layer 3", "x")


class Refusing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return rope_ext.apply(X, COS, COS, layout="hbsd")


def test_an_error_can_be_made_again_from_a_longer_text():
    """A DataLoader does so with an error of a worker, and raises RuntimeError where the type does not take the text."""
    with pytest.raises(ArgumentError, match="Caught ArgumentError in DataLoader worker process 0") as raised:
        list(torch.utils.data.DataLoader(Refusing(), num_workers=1))
    assert (raised.value.argument, raised.value.got) == ("", "")


def test_torch_compile_traces_an_error_that_is_caught():
    def f(x):
        try:
            raise ArgumentError("x", "be long", len(x))
        except ValueError:
            return x + 1

    assert torch.compile(f, fullgraph=True, backend="eager")(torch.zeros(2)).tolist() == [1, 1]
