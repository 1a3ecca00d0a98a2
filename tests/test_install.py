"""From the source distribution to a working package, and the sentence that every failed installation gives."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import setuptools

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]


def run(*command, check=True, cwd=ROOT, env=None):
    command = [str(part) for part in command]
    result = subprocess.run(
        command, check=False, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0 or not check, result.stdout
    return result.stdout


def test_source_distribution_builds_and_works(tmp_path):
    """Trap C13: a header or source that the sdist forgets shows only where there is no checkout."""
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})")
    (archive,) = tmp_path.glob("rope_ext-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = (p for p in tmp_path.iterdir() if p.is_dir())
    suffixes = {".h", ".cpp", ".cuh", ".cu", ".py", ".txt", ".sh"}
    for folder in ("csrc", "tests", "benchmarks", "examples"):
        there, packed = (
            {p.relative_to(root) for p in (root / folder).rglob("*") if p.suffix in suffixes} for root in (ROOT, source)
        )
        assert packed == there
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    quick = {"ROPE_EXT_CUDA": "0", "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Debug"}  # a quarter of the time
    run(
        *[*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, source],
        env={**os.environ, **quick},
    )
    (wheel,) = tmp_path.glob("rope_ext-*.whl")
    run(*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel)
    program = (
        "import torch, rope_ext; from rope_ext import reference; x = torch.randn(1, 4, 2, 8);"
        "t = rope_ext.RotaryEmbedding(8).tables(4);"
        "print(rope_ext.__file__, torch.equal(rope_ext.apply(x, *t), reference.apply(x, *t)))"
    )
    printed = run(sys.executable, "-c", program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert printed.split() == [str(tmp_path / "site" / "rope_ext" / "__init__.py"), "True"]
    # What tests need is not installed: a module of raw pointers, and a function that has the ops call any code.
    assert [path.name for path in (tmp_path / "site" / "rope_ext").glob("*.so")] == ["_ops.so"]
    library = ctypes.CDLL(str(tmp_path / "site" / "rope_ext" / "_ops.so"))
    assert hasattr(library, "rope_ext_cpu_isa") and not hasattr(library, "rope_ext_use_cpu_kernels")


@pytest.fixture
def bare_python(tmp_path):
    """An interpreter that has setuptools and nothing else, and its site-packages."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    packages = Path(setuptools.__file__).parents[1]
    for path in (packages / "setuptools", packages / "_distutils_hack", *packages.glob("setuptools-*.dist-info")):
        (site / path.name).symlink_to(path)
    return tmp_path / "venv" / "bin" / "python", site


def last_line(output):
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["dist_info", "build_ext"])
def test_no_torch(bare_python, command):
    python, _ = bare_python
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # may hold a torch
    message = last_line(run(python, "setup.py", command, check=False, env=environment))
    assert message == (
        "rope_ext: torch must be installed before rope_ext is built, got none: pip install 'torch>=2.11', then install rope_ext again (with --no-build-isolation where builds run in an environment without the user's packages)."
    )


@pytest.mark.parametrize("command", ["dist_info", "build_ext"])
def test_old_torch(bare_python, command):
    python, site = bare_python
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("__version__ = '2.6.0+cu124'\n")
    message = last_line(run(python, "setup.py", command, check=False))
    assert (
        message
        == "rope_ext: torch must be at least 2.11, got 2.6.0+cu124: pip install 'torch>=2.11', then install rope_ext again (with --no-build-isolation where builds run in an environment without the user's packages)."
    )


def test_no_compiler(tmp_path):
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "empty")}
    environment.pop("CXX", None)
    message = last_line(
        run(sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, check=False, env=environment)
    )
    assert (
        message
        == "rope_ext: a C++17 compiler must be on PATH, got no c++ or g++ or clang++: apt install g++, or set CXX."
    )


def test_import_without_the_compiled_file(tmp_path):
    shutil.copytree(ROOT / "rope_ext", tmp_path / "rope_ext", ignore=shutil.ignore_patterns("*.so"))
    printed = run(
        sys.executable,
        "-c",
        "import rope_ext",
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert last_line(printed).startswith("ImportError: rope_ext: _ops.so must lie beside")


def test_import_with_a_compiled_file_that_does_not_load(tmp_path):
    shutil.copytree(ROOT / "rope_ext", tmp_path / "rope_ext", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "rope_ext" / "_ops.so").write_bytes(b"not a library")
    printed = run(
        sys.executable,
        "-c",
        "import rope_ext",
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "ImportError: rope_ext: _ops.so must load in torch" in last_line(
        printed
    ) and "rebuild: pip install" in last_line(printed)


def test_import_with_old_torch():
    program = "import torch; torch.__version__ = '2.6.0'; import rope_ext"
    printed = run(sys.executable, "-c", program, check=False)
    assert (
        last_line(printed) == "ImportError: rope_ext: torch must be at least 2.11, got 2.6.0: pip install 'torch>=2.11'"
    )


def test_build_requirements_leave_torch_alone():
    """Traps C2 and C17: a build requirement fetches a second torch, and an exact pin replaces the user's."""
    project = (ROOT / "pyproject.toml").read_text()
    assert "torch" not in re.search(r"^requires = \[(.*)\]", project, re.MULTILINE).group(1)
    assert re.search(r"^dependencies = (\[.*?\])", project, re.MULTILINE).group(1) == '["torch>=2.11"]'


def test_setup_imports_without_torch():
    """Trap C1: under build isolation `import torch` fails."""
    assert "import torch" not in (ROOT / "setup.py").read_text()
