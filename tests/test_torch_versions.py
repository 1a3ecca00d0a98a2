"""Private names of torch: this torch has them, one folder uses them, and a sentence reports a missing one."""

import ast
import re
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import ArgumentError, ArgumentTypeError
from rope_ext._torch import errors, private
from rope_ext._torch.call import ROTATE
from rope_ext._torch.library import torch_ops
from tests.conftest import random

pytestmark = pytest.mark.devices("cpu")
PACKAGE = Path(rope_ext.__file__).parent
X, COS, SIN = random((1, 3, 2, 8), torch.float32), *rope_ext.RotaryEmbedding(8).tables(3)
TOO_SHORT = (
    (X, COS[:2], SIN[:2]),
    ArgumentError,
    "rope_ext: cos must have a row for each of the 3 tokens of x, got 2 rows",
)
TWO_DTYPES = (X, COS.half(), SIN), ArgumentTypeError, "rope_ext: sin must have the dtype of cos, float16, got float32"


@pytest.mark.parametrize("arguments, kind, message", [TOO_SHORT, TWO_DTYPES], ids=["value", "type"])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_error_types_of_apply_and_of_the_raw_ops(arguments, kind, message, needs_grad):
    x, cos, sin = arguments
    x = x.clone().requires_grad_(needs_grad)
    raw = [
        lambda: torch_ops.rotate([x], cos, sin),
        lambda: torch_ops.rotate_([x.clone()], cos, sin),
        lambda: torch_ops.check_in_place([x.clone()], cos, sin),
        lambda: torch_ops.table_rows([x], cos, sin),
    ]
    for call in (lambda: rope_ext.apply(x, cos, sin), *raw):
        with pytest.raises(kind, match=re.escape(message)) as caught:
            call()
        assert type(caught.value) is kind


@pytest.mark.parametrize("arguments, kind, message", [TOO_SHORT, TWO_DTYPES], ids=["value", "type"])
def test_the_type_of_an_error_does_not_depend_on_what_torch_makes_of_it(arguments, kind, message):
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)) as caught:
        ROTATE.unrecorded([arguments[0]], *arguments[1:])
    as_in_torch_2_15 = RuntimeError(str(caught.value))
    assert type(errors.typed(as_in_torch_2_15)) is kind
    assert errors.typed(as_in_torch_2_15) is as_in_torch_2_15  # a type is taken once: it fits no later error


def test_another_error_keeps_its_type():
    error = RuntimeError("out of memory")
    assert errors.typed(error) is error


# ---- private names ----


def test_this_torch_has_every_name():
    source = (PACKAGE / "_torch" / "private.py").read_text()
    names = re.findall(r'_(?:needed|optional)\([^"]*"(torch\.[\w.]+)"', source)
    assert len(names) > 15
    for name in names:
        private._find(name)


def test_a_missing_name_that_every_call_needs_fails_the_import():
    with pytest.raises(ImportError) as caught:
        private._needed("torch._C._no_such_name", "which counts writes")
    assert str(caught.value) == (
        f"rope_ext: torch must have torch._C._no_such_name, which counts writes, got torch {torch.__version__} without"
        f" it; rope_ext was tested with torch {private.OLDEST} to {private.NEWEST}"
    )


def test_a_missing_name_that_one_feature_needs_fails_its_use():
    name = private._optional("torch._C._functorch.no_such_name", "which records in a transform")
    with pytest.raises(
        NotImplementedError, match=r"^rope_ext: torch must have torch\._C\._functorch\.no_such_name, which"
    ):
        name()


def names_used(path):
    """Names of attributes but those of self, names that are imported, and texts, which getattr may take for names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            yield from ".".join([module, *(alias.name for alias in node.names)]).split(".")


def test_private_names_stay_in_one_folder():
    listed = re.findall(r"\w+", (PACKAGE / "_torch" / "private.py").read_text())
    holders = (
        torch,
        torch.Tensor,
        torch.nn.Module,
        torch.autograd.Function,
        torch.utils,
        torch.jit,
        torch._ops.OpOverload,
    )
    of_torch = {name for name in listed if name not in vars(private)}.union(*map(dir, holders))
    of_torch = {name for name in of_torch if re.match(r"_[^_]", name)}
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "_torch"
        for name in of_torch.intersection(names_used(path))
    }
    assert found == set()


def test_a_later_torch_in_which_a_call_fails_is_named(monkeypatch):
    def fail(*_arguments):
        raise NotImplementedError("could not find kernel")

    monkeypatch.setattr(rope_ext.ops, "dispatch", fail)
    with pytest.raises(NotImplementedError, match=r"^could not find kernel$"):
        rope_ext.apply(X, COS, SIN)
    monkeypatch.setattr(torch, "__version__", "3.1.0+cpu")
    with pytest.raises(RuntimeError) as caught:
        rope_ext.apply(X, COS, SIN)
    assert str(caught.value) == (
        f"rope_ext: torch must be a release that rope_ext was tested with, {private.OLDEST} to {private.NEWEST}, got"
        " 3.1.0+cpu, in which this call failed: NotImplementedError: could not find kernel"
    )


@pytest.mark.parametrize("name", ["x", "cos", "positions"])
def test_the_sentence_about_layouts_names_the_tensor(name):
    arguments = {"x": X, "cos": COS, "sin": SIN, "positions": torch.arange(3)}
    arguments[name] = arguments[name].to_sparse()
    with pytest.raises(
        NotImplementedError,
        match=rf"^rope_ext: {name} must be a strided tensor, got torch\.sparse_coo; use to_dense\(\)",
    ):
        rope_ext.apply(arguments.pop("x"), **arguments)


def test_readme_and_metadata_name_the_releases_that_were_tested():
    root = PACKAGE.parent
    assert f"torch {private.OLDEST} to {private.NEWEST}, Python" in (root / "README.md").read_text()
    assert f'"torch>={private.OLDEST}"' in (root / "pyproject.toml").read_text()


def test_an_error_type_that_was_not_read_does_not_fit_a_later_error():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="sin must have the dtype of cos"):
        torch_ops.rotate([X.clone()], COS.half(), SIN)  # called without the Python of this package
    leaf = X.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^rope_ext: x must not be a leaf that requires grad"):
        rope_ext.apply_(leaf, COS, SIN)


def test_an_error_of_others_keeps_its_cause(monkeypatch):
    def fail(*_arguments):
        raise ValueError("theirs") from KeyError("why")

    monkeypatch.setattr(rope_ext.ops, "dispatch", fail)
    with pytest.raises(ValueError, match=r"^theirs$") as caught:
        rope_ext.apply(X, COS, SIN)
    assert isinstance(caught.value.__cause__, KeyError)
