"""What the annotations promise: a user's file passes `mypy --strict`, mistakes do not, and `dir` shows what is public."""

import ast
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import rope_ext

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
TYPING = ROOT / "tests/typing"


def errors_of_mypy(path):
    """(line, kind) of each error that mypy finds in a file, under the settings of pyproject.toml."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not run.stderr, run.stderr
    found = re.findall(r"^(.*?):(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE)
    assert {name for name, _, _ in found} <= {str(path.relative_to(ROOT))}, run.stdout
    return [(int(line), kind) for _, line, kind in found]


def test_users_file_passes():
    assert errors_of_mypy(TYPING / "user.py") == []


def test_users_file_runs_and_uses_all_that_is_public():
    subprocess.run([sys.executable, TYPING / "user.py"], cwd=ROOT, check=True, capture_output=True)
    used = set()
    for node in ast.walk(ast.parse((TYPING / "user.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rope_ext":
            used |= {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rope_ext":
            used.add(node.attr)
    assert set(rope_ext.__all__) <= used


def test_mistakes_are_found():
    lines = (TYPING / "mistakes.py").read_text().splitlines()
    expected = [(i, line.rpartition("# ")[2]) for i, line in enumerate(lines, 1) if "  # " in line]
    assert expected and errors_of_mypy(TYPING / "mistakes.py") == expected


@pytest.mark.parametrize("function", [rope_ext.apply, rope_ext.apply_])
def test_a_signature_shows_types_and_no_parameter_that_is_refused(function):
    parameters = inspect.signature(function).parameters.values()
    assert all(p.annotation is not p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters)
    assert inspect.signature(function).return_annotation is rope_ext.reference.Tensors


@pytest.mark.parametrize("name", rope_ext.__all__)
def test_annotations_can_be_read_while_the_program_runs(name):
    """As jsonargparse and typeguard read them."""
    public = getattr(rope_ext, name)
    inside = vars(public).values() if inspect.ismodule(public) or inspect.isclass(public) else ()
    for value in (public, *inside):
        if inspect.isfunction(value) or inspect.isclass(value):
            typing.get_type_hints(value)


def test_dir_shows_what_is_public():
    assert {name for name in dir(rope_ext) if not name.startswith("__")} == set(rope_ext.__all__)
