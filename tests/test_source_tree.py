"""Habits of the source tree that a machine keeps: layers, one formula, names, lengths, words."""

import ast
import re
from pathlib import Path

import pytest

from rope_ext import _introspect
from rope_ext._torch import flags

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
CSRC = sorted((ROOT / "csrc").rglob("*.*"))
FOLDERS = ("rope_ext", "benchmarks", "tools", "tests/conformance")
PYTHON = [ROOT / "setup.py", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]

LONG_FILES = {
    "rope_ext/ops.py": "the docstring of apply is its specification",
    "rope_ext/rotary.py": "half of it is the documentation of RotaryEmbedding",
}
OTHERS_FILES = {"config.json"}


def included(path):
    return re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())


def test_layers_include_only_what_lies_below():
    """core, cpu, cuda and introspect know no Torch; bindings know it through the stable ABI only."""
    below = {
        "core": ["core"],
        "cpu": ["core", "cpu"],
        "cuda": ["core", "cuda"],
        "bindings": ["core", "cpu", "cuda", "bindings"],
        "introspect": ["core", "cpu", "cuda", "introspect"],
    }
    outside = {
        "cpu": ["omp.h", "immintrin.h", "arm_neon.h", "pthread.h", "sys/auxv.h", "unistd.h"],
        "cuda": ["cuda_runtime_api.h", "cuda_bf16.h", "cuda_fp16.h"],
        "bindings": ["dlfcn.h", "torch/csrc/stable/", "torch/headeronly/", "pthread.h", "sys/mman.h", "unistd.h"],
        "introspect": ["pybind11/"],
    }
    for path in CSRC:
        layer = path.relative_to(ROOT / "csrc").parts[0]
        allowed = tuple(f"{name}/" for name in below[layer]) + tuple(outside.get(layer, []))
        for header in included(path):
            standard = "/" not in header and "." not in header  # <cstdint>
            assert standard or header.startswith(allowed), f"{path} includes {header}"


def test_flags_of_python_are_those_of_the_ops():
    in_python = {name: value for name, value in vars(flags).items() if name.isupper()}
    in_cpp = {re.sub(r"\B(?=[A-Z])", "_", name.removeprefix("k")).upper(): v for name, v in _introspect.flags.items()}
    assert in_python == in_cpp


def test_one_formula():
    """Only core/math.h multiplies channels by a cosine or sine; angles.h scales cosines in place (`*=`)."""
    product = re.compile(r"\w \* (\w+\.)*\w*(cos|sin)|(cos|sin)(\w|\.|\[|\])* \* \w")
    comment = re.compile(r"//.*")
    users = {str(p.relative_to(ROOT)) for p in CSRC if product.search(comment.sub("", p.read_text()))}
    assert users == {"csrc/core/math.h"}


def test_portable_cpp():
    """No `long`, whose size differs between systems, and no flag that breaks sines or NaN."""
    for path in CSRC:
        assert not re.search(r"\b(unsigned )?long\b(?! as)", re.sub(r"//.*", "", path.read_text())), path
    assert not re.search(r"fast-math|Ofast|ffinite-math|fassociative-math", (ROOT / "CMakeLists.txt").read_text())


def test_pages_name_files_that_exist():
    """And tests that exist: `test_source_tree.py::test_one_formula`."""
    files = {path.relative_to(ROOT) for path in ROOT.rglob("*.*") if path.suffix != ".pyc"}
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for name, test in re.findall(r"`([\w./-]+\.(?:py|h|cpp|cuh|cu|md|json|sh))(?:::(\w+))?`", text):
            found = [file for file in files if f"/{file}".endswith(f"/{name}")]
            assert found or name in OTHERS_FILES, f"{page.name}: {name}"
            assert not test or any(f"def {test}(" in (ROOT / file).read_text() for file in found), (
                f"{page.name}: {test}"
            )


# ---- lengths and words ----


def test_files_are_short():
    """Below 250 lines, but for the files in LONG_FILES, each with a reason."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (*CSRC, *PYTHON)}
    assert {name for name, length in lengths.items() if length > 250} == set(LONG_FILES)


def test_functions_are_short():
    """At most 60 lines, docstrings aside."""
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[ast.get_docstring(node) is not None :] or node.body
                assert body[-1].end_lineno - body[0].lineno < 60, f"{path}: {node.name}"


@pytest.mark.parametrize(
    ("word", "instead", "folders"),
    [
        (r"turn(s|ed|ing)?", "rotate, revolutions", ("csrc", "rope_ext")),
        (r"theta", "base", ("csrc",)),
        (r"streams? (past|store)", "non-temporal store", ("csrc", "rope_ext")),
        (r"noqa|type: ignore|pylint|NOLINT", "code that needs none", ("csrc", *FOLDERS)),
        (r"TODO|FIXME|XXX", "an issue", ("csrc", *FOLDERS)),
    ],
)
def test_words(word, instead, folders):
    """The field's words. The former names of angles.revolutions stay for one release."""
    former = re.compile(r"^(turns|Turns) = |former names|rope_ext\.angles\.Turns|turns that off|take turns")
    for path in (*CSRC, *PYTHON):
        if str(path.relative_to(ROOT)).startswith(folders):
            for line in path.read_text().splitlines():
                found = re.search(rf"\b({word})\b", line)
                assert not found or former.search(line), f"{path}: {instead} instead of {found[0]!r}: {line.strip()}"
