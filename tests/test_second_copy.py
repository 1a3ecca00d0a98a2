"""Two copies of the library in one process: an error or a message, never a crash, and the first copy still works."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rope_ext

pytestmark = pytest.mark.devices("cpu")
PACKAGE = Path(rope_ext.__file__).parent
WORKS = """
import torch
x, table = torch.ones(1, 2, 1, 4), torch.ones(2, 2)
assert torch.equal(torch.ops.rope_ext.rotate([x], table, table)[0], torch.tensor([0.0, 0, 2, 2]).expand(1, 2, 1, 4))
print("works")
"""


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "rope_ext", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "rope_ext"


def run(program):
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])  # the torch of this run lies there
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", program], env=environment, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("load", ["torch.ops.load_library", "ctypes.CDLL"])
def test_library_after_the_package(load, copy):
    """The second copy registers nothing and says so."""
    result = run(f"import ctypes, torch, rope_ext\n{load}({str(copy / '_ops.so')!r})\n" + WORKS)
    assert result.returncode == 0 and result.stdout == "works\n", result.stderr
    said = f"rope_ext: {copy / '_ops.so'} registers nothing: another copy of it is loaded in this process"
    assert said in result.stderr.splitlines()


def test_two_libraries_without_the_package(copy):
    load = "".join(f"torch.ops.load_library({str(path)!r})\n" for path in (PACKAGE / "_ops.so", copy / "_ops.so"))
    result = run("import torch\n" + load + WORKS)
    assert result.returncode == 0 and result.stdout == "works\n", result.stderr


@pytest.mark.parametrize(
    "first", ["import rope_ext", "import torch; torch.ops.load_library({})", "import ctypes, torch; ctypes.CDLL({})"]
)
def test_package_after_another_copy(first, copy):
    """ImportError names both files, if torch knows the first."""
    forget = "for name in [n for n in sys.modules if n.split('.')[0] == 'rope_ext']: del sys.modules[name]"
    second = f"import sys\n{forget}\nsys.path.insert(0, {str(copy.parent)!r})"
    program = f"{first.format(repr(str(PACKAGE / '_ops.so')))}\n{second}\ntry:\n  import rope_ext\nexcept ImportError as error:\n  print(error)\n"
    result = run(program + WORKS)
    other = "another that torch.ops.load_library does not know of" if "CDLL" in first else PACKAGE / "_ops.so"
    error = f"rope_ext: one copy of the package must define torch.ops.rope_ext in a process, got {copy / '_ops.so'} after {other}\n"
    assert result.returncode == 0 and result.stdout == error + "works\n", result.stdout + result.stderr


def test_package_after_its_own_library():
    """One file is one copy, however it is loaded; and the package can be imported again."""
    for load in ("torch.ops.load_library", "ctypes.CDLL"):
        result = run(f"import ctypes, torch\n{load}({str(PACKAGE / '_ops.so')!r})\nimport rope_ext\n" + WORKS)
        assert result.returncode == 0 and result.stdout == "works\n" and not result.stderr, result.stderr


def test_a_second_import_of_the_same_copy():
    forget = "for name in [n for n in sys.modules if n.split('.')[0] == 'rope_ext']: del sys.modules[name]"
    again = "try:\n  import rope_ext\nexcept ImportError as error:\n  print(error)\n"
    result = run(f"import sys, rope_ext\n{forget}\n{again}" + WORKS)
    error = f"rope_ext: one copy of the package must define torch.ops.rope_ext in a process, got {PACKAGE / '_ops.so'} again: "
    assert result.returncode == 0 and result.stdout.startswith(error) and result.stdout.endswith("works\n"), (
        result.stderr
    )


def test_ops_that_something_else_defines():
    """A failing initialiser would end the process."""
    result = run(
        "import torch\nother = torch.library.Library('rope_ext', 'FRAGMENT')\n"
        "other.define('rotate(Tensor x) -> Tensor')\n"
        "try:\n  import rope_ext\nexcept ImportError as error:\n  print(error)\n"
    )
    assert result.returncode == 0 and result.stdout.startswith("rope_ext: one copy of the package must define"), (
        result.stderr
    )
