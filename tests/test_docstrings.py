"""Docstrings of all public names: help() shows them in a terminal, and the API reference is made of them."""

import builtins
import importlib
import inspect
import re
from itertools import pairwise

import pytest
import torch

import rope_ext
from rope_ext import errors

pytestmark = pytest.mark.devices("cpu")

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Warns:", "Equivalent to", "Source:")
MODULES = [
    "angles",
    "distributed",
    "errors",
    "export",
    "frequencies",
    "integrations.kernels",
    "memory",
    "onnx",
    "profile",
    "qkv",
    "reference",
    "weights",
    *(f"compat.{name}" for name in rope_ext.compat.__all__),
]
CHECKS_NOTHING = "rope_ext.reference"  # no function of this module promises errors


def is_documented(value):
    return inspect.isroutine(value) or inspect.isclass(value)


def names_of(module):
    """The names in __all__; without it those that the module defines."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return [name for name in names if is_documented(getattr(module, name))]


def members_of(cls):
    """(name, function or property) of the public methods and properties that the class itself defines."""
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)  # of a classmethod
        if isinstance(function, property) or inspect.isfunction(function):
            yield name, getattr(function, "fget", function)


def public():
    """{qualified name: function or class}, each object once."""
    found = {}
    modules = [rope_ext, *(importlib.import_module(f"rope_ext.{name}") for name in MODULES)]
    for module in modules:
        for name in names_of(module):
            value = getattr(module, name)
            if value not in found.values():
                found[f"{module.__name__}.{name}"] = value
            if inspect.isclass(value):
                members = members_of(value)
                kept = {key: member for key, member in members if not key.startswith("_") or key == "__call__"}
                found |= {f"{module.__name__}.{name}.{key}": member for key, member in kept.items()}
    return found


PUBLIC = public()


# ---- what a docstring says ----


def sections_of(doc):
    """{section: its lines}. Only lines without indentation begin or end one."""
    found, lines = {}, []
    for line in doc.splitlines():
        header = next((section for section in SECTIONS if line.startswith(section)), None)
        if header:
            assert header not in found, f"{header} comes twice"
            found[header] = lines = [line]
        elif line and not line.startswith(" "):
            lines = []
        else:
            lines.append(line)
    return found


def items_of(lines):
    """The names before the colon of each item of a section."""
    items = [re.fullmatch(r" {4}([*\w]+(?:, [*\w]+)*): .+", line) for line in lines[1:] if re.match(r" {4}\S", line)]
    assert items and all(items), f"not one item per paragraph in {lines[0]}"
    return [name for item in items for name in item[1].split(", ")]


def parameters_of(function):
    """The parameters in the def, with their stars. The signature that help() shows may leave some out or add some."""
    code = inspect.unwrap(function).__code__
    names = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    rest = code.co_varnames[len(names) :]
    if code.co_flags & inspect.CO_VARARGS:
        names += [f"*{rest[0]}"] * (rest[0] != "too_many")
        rest = rest[1:]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        names.append(f"**{rest[0]}")
    is_method = "." in function.__qualname__
    return [name for name in names if not (is_method and name in ("self", "cls"))]


def fields_of(cls):
    """The names that users read: fields of named tuples and dataclasses."""
    fields = getattr(cls, "_fields", getattr(cls, "__dataclass_fields__", ()))
    return [name for name in fields if not name.startswith("_")]


def is_exception(name):
    value = getattr(errors, name, getattr(builtins, name, None))
    return inspect.isclass(value) and issubclass(value, Exception)


# ---- what it must say ----


def check(value, checks_arguments=True):
    doc = inspect.getdoc(value) if value.__doc__ else ""
    assert doc, "no docstring"
    assert re.match(r".+\.(\n\n|$)", doc), "the first line does not end with a period, or no empty line follows"
    assert all(len(line) <= 120 for line in value.__doc__.splitlines()), "a line is longer than 120"
    found = sections_of(doc)
    order = [SECTIONS.index(section) for section in found]
    assert all(a < b for a, b in pairwise(order)), f"sections in another order: {list(found)}"
    for section in ("Args:", "Attributes:", "Raises:", "Warns:"):
        assert section not in found or found[section][0] == section, f"text after {section}"
    arguments = items_of(found["Args:"]) if "Args:" in found else []
    assert len(arguments) == len(set(arguments)), "an argument is documented twice"
    for name in items_of(found["Raises:"]) if "Raises:" in found else []:
        assert is_exception(name), f"{name} is not an exception"
    if inspect.isclass(value):
        check_class(value, arguments, items_of(found["Attributes:"]) if "Attributes:" in found else [])
        return
    expected = parameters_of(value)
    assert sorted(arguments) == sorted(expected), f"Args: {arguments}, in the signature: {expected}"
    of_result = found.get("Returns:", ["", ""])[1]
    assert not re.search(r":\s", re.sub("`.*?`", "", f"{of_result} ")), "Napoleon shows text before a colon as a type"
    returns_none = inspect.unwrap(value).__annotations__.get("return", "") in (None, "None")
    assert "Returns:" in found or returns_none, "Returns: is missing"
    assert "Raises:" in found or not expected or not checks_arguments, "Raises: is missing"


def check_class(cls, arguments, attributes):
    missing = set(fields_of(cls)) - {*arguments, *attributes}
    assert not missing, f"fields without a description: {missing}"
    constructor = cls.__init__
    is_ours = inspect.isfunction(constructor) and constructor.__module__.startswith("rope_ext")
    if is_ours and constructor.__code__.co_filename != "<string>":  # a dataclass writes its own
        expected = parameters_of(constructor)
        assert sorted(arguments) == sorted(expected), f"Args: {arguments}, of the constructor: {expected}"


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name):
    check(PUBLIC[name], checks_arguments=not name.startswith(CHECKS_NOTHING))


def test_every_public_module_is_checked():
    modules = {name for name in rope_ext.__all__ if inspect.ismodule(getattr(rope_ext, name))}
    assert modules - {"compat"} <= set(MODULES)
    assert {"rope_ext.apply", "rope_ext.RotaryEmbedding.apply", "rope_ext.RotaryEmbedding.__call__"} <= set(PUBLIC)


# ---- the check itself ----

GOOD = """Return x.

    Prose.

    Args:
        x: a Tensor
            of any shape.
        a, b: numbers.

            * A list.
        **options: others.

    Returns:
        x.

    Raises:
        ArgumentError: never.

    Equivalent to::

        x

    Source: a paper.
    """


def documented(doc):
    def function(x, *too_many, a, b=1, **options) -> torch.Tensor:
        return x

    function.__doc__ = doc
    return function


def test_a_good_docstring_passes():
    check(documented(GOOD))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (GOOD, "", "no docstring"),
        ("Return x.", "Return x", "period"),
        ("Return x.\n", "Return x.", "empty line follows"),
        ("Prose.", "Prose " * 30, "longer than 120"),
        ("        a, b: numbers.\n", "        a: a number.\n", "in the signature"),
        ("a, b: numbers", "a, b, c: numbers", "in the signature"),
        ("a, b: numbers", "a, b, a: numbers", "twice"),
        ("        **options: others.\n", "", "in the signature"),
        ("        x.\n\n    Raises", "        x: a Tensor.\n\n    Raises", "as a type"),
        ("        x: a Tensor\n", "        x is a Tensor\n", "one item per paragraph"),
        ("    Args:", "    Args: these", "text after Args:"),
        ("    Returns:\n        x.\n", "", "Returns: is missing"),
        ("    Raises:\n        ArgumentError: never.\n", "", "Raises: is missing"),
        ("ArgumentError:", "ArgumentErr:", "not an exception"),
        ("    Raises:", "    Source: a paper.\n\n    Raises:", "comes twice"),
        ("    Returns:\n        x.\n\n", "    Source:\n\n    Returns:\n        x.\n\n", "comes twice"),
        ("    Equivalent to::\n\n        x\n\n    Source: a paper.", "    Source: a paper.\n\n    Equivalent to::\n\n        x", "another order"),
    ],
)  # fmt: skip
def test_a_bad_docstring_is_refused(old, new, message):
    assert old in GOOD
    with pytest.raises(AssertionError, match=message):
        check(documented(GOOD.replace(old, new)))
