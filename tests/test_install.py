"""From the source distribution to a working package, and the sentence that every failed installation gives."""

import ast
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
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


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source distribution of the checkout, unpacked into a folder that is called rope_ext, as a clone is."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})")
    (archive,) = folder.glob("rope_ext-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (source,) = (p for p in folder.iterdir() if p.is_dir())
    return source.rename(folder / "rope_ext")


def build(source, hook, target):
    """The output of a hook of the build backend. Built without CUDA and optimisation, in a quarter of the time."""
    program = f"from setuptools import build_meta; build_meta.{hook}({str(target)!r})"
    quick = {"ROPE_EXT_CUDA": "0", "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Debug"}
    return run(sys.executable, "-c", program, cwd=source, env={**os.environ, **quick})


@pytest.fixture(scope="module")
def wheel(unpacked):
    assert re.search(
        r"rope_ext: compiling \d+ files for the CPU, .* about \d+ s", build(unpacked, "build_wheel", "dist")
    )
    (wheel,) = (unpacked / "dist").glob("*.whl")
    return wheel


def test_source_distribution_is_complete(unpacked):
    """A header or source that the sdist forgets shows only where there is no checkout."""
    suffixes = {".h", ".cpp", ".cuh", ".cu", ".py", ".txt", ".sh"}
    for folder in ("csrc", "tests", "benchmarks", "examples", "tools"):
        there, packed = (
            {p.relative_to(root) for p in (root / folder).rglob("*") if p.suffix in suffixes}
            for root in (ROOT, unpacked)
        )
        assert packed == there


def test_source_distribution_builds_a_wheel_that_works(wheel, tmp_path):
    assert re.fullmatch(r"rope_ext-[\d.]+-py3-none-\w+\.whl", wheel.name)  # one file for every Python and torch
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel)
    program = (
        "import torch, rope_ext; from rope_ext import reference; x = torch.randn(1, 4, 2, 8);"
        "t = rope_ext.RotaryEmbedding(8).tables(4);"
        "print(rope_ext.__file__, torch.equal(rope_ext.apply(x, *t), reference.apply(x, *t)))"
    )
    printed = run(sys.executable, "-c", program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert printed.split() == [str(tmp_path / "site" / "rope_ext" / "__init__.py"), "True"]
    for path in (ROOT / "rope_ext").rglob("*.py"):
        assert (tmp_path / "site" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    # What tests need is not installed: a module of raw pointers, and a function that has the ops call any code.
    assert [path.name for path in (tmp_path / "site" / "rope_ext").glob("*.so")] == ["_ops.so"]
    library = ctypes.CDLL(str(tmp_path / "site" / "rope_ext" / "_ops.so"))
    assert hasattr(library, "rope_ext_cpu_isa") and not hasattr(library, "rope_ext_use_cpu_kernels")


def test_second_build_compiles_nothing(unpacked, wheel, tmp_path):
    assert "rope_ext: nothing to compile" in build(unpacked, "build_wheel", tmp_path)


def test_wheel_packs_nothing_of_earlier_builds(unpacked, wheel, tmp_path):
    (library,) = unpacked.glob("build/lib*/rope_ext/_ops.so")
    (library.parent / "_introspect.so").write_bytes(b"")
    (library.parent / "deleted.py").write_text("")
    build(unpacked, "build_wheel", tmp_path)
    (again,) = tmp_path.glob("*.whl")
    names = [set(zipfile.ZipFile(path).namelist()) for path in (wheel, again)]
    assert names[0] == names[1]
    assert {name.partition("/")[0].partition("-")[0] for name in names[0]} == {"rope_ext"}  # no tests, no benchmarks


def test_editable_installation_is_found_from_the_folder_above(unpacked, wheel, tmp_path):
    """From there the clone, a folder called rope_ext without an __init__.py, would shadow a package found later."""
    build(unpacked, "build_editable", tmp_path)
    (editable,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(editable).extractall(tmp_path / "site")
    program = (
        f"import importlib.util, site; site.addsitedir({str(tmp_path / 'site')!r});"
        "print(importlib.util.find_spec('rope_ext').origin)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = run(sys.executable, "-S", "-c", program, cwd=unpacked.parent, env=environment)  # no other installation
    assert printed.strip() == str(unpacked / "rope_ext" / "__init__.py")


@pytest.fixture
def bare_python(request, tmp_path):
    """An interpreter that has setuptools and nothing else, and its site-packages."""
    folder = tmp_path / getattr(request, "param", "venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    packages = Path(setuptools.__file__).parents[1]
    for path in (packages / "setuptools", packages / "_distutils_hack", *packages.glob("setuptools-*.dist-info")):
        (site / path.name).symlink_to(path)
    return folder / "bin" / "python", site


def last_line(output):
    return output.strip().splitlines()[-1]


TOOLS = "'torch>=2.11' 'setuptools>=77' cmake ninja pybind11"
FRONT_ENDS = [  # the variable by which a front end is recognised, and what its user has to type
    (
        "venv",
        "PIP_BUILD_TRACKER",
        "pip install 'torch>=2.11' and repeat; if it is installed elsewhere, repeat with --no-build-isolation.",
    ),
    ("venv", "UV_INTERNAL__BUILD_DIR", f"uv pip install {TOOLS}, and repeat with --no-build-isolation."),
    ("build-env-x", "", f"pip install {TOOLS}, and repeat with --no-isolation."),
    (
        "venv",
        "",
        f"pip install {TOOLS}, and repeat without isolation (pip and uv: --no-build-isolation, build: --no-isolation).",
    ),
]
BY_FRONT_END = pytest.mark.parametrize(
    ("bare_python", "variable", "cure"), FRONT_ENDS, indirect=["bare_python"], ids=["pip", "uv", "build", "none"]
)


def environment_of(variable):
    others = {"PYTHONPATH", "PIP_BUILD_TRACKER", "UV_INTERNAL__BUILD_DIR"}  # the first may hold a torch
    return {name: value for name, value in os.environ.items() if name not in others} | {variable or "_": "/tmp"}


@BY_FRONT_END
def test_no_torch(bare_python, variable, cure):
    """Each front end has its own option against isolation."""
    message = last_line(run(bare_python[0], "setup.py", "build_ext", check=False, env=environment_of(variable)))
    assert message == (
        f"rope_ext: torch must be installed before rope_ext is built, not found in the build environment: {cure}"
    )


def test_no_torch_is_said_before_torch_is_downloaded(bare_python):
    """pip asks for the metadata first."""
    said = [
        last_line(run(bare_python[0], "setup.py", command, check=False, env=environment_of("PIP_BUILD_TRACKER")))
        for command in ("dist_info", "build_ext")
    ]
    assert said[0] == said[1] and "torch must be installed before rope_ext is built" in said[0]


@BY_FRONT_END
def test_old_torch(bare_python, variable, cure):
    python, site = bare_python
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("__version__ = '2.6.0+cu124'\n")
    message = last_line(run(python, "setup.py", "dist_info", check=False, env=environment_of(variable)))
    assert message == f"rope_ext: torch must be at least 2.11, got 2.6.0+cu124: {cure}"


def test_what_is_needed_is_what_pyproject_requires():
    requires = re.search(r"^requires = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    names = [re.match(r"\w+", requirement)[0] for requirement in ast.literal_eval(requires)]
    assert re.findall(r"(\w+)[>=\d.]*", TOOLS.replace("'", ""))[1:] == names


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


@pytest.fixture
def import_of_copy(tmp_path):
    """Imports a copy of the package that lacks its compiled files; returns the folder and a function, which returns the
    last line that Python prints."""
    package = tmp_path / "rope_ext"
    shutil.copytree(ROOT / "rope_ext", package, ignore=shutil.ignore_patterns("*.so"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def error():
        return last_line(run(sys.executable, "-c", "import rope_ext", check=False, cwd=tmp_path, env=environment))

    return package, error


def test_import_without_the_compiled_file(import_of_copy):
    error = import_of_copy[1]()
    assert error.startswith("ImportError: rope_ext: _ops.so must be beside")
    assert error.endswith(
        ": pip install -e . in the checkout, or start Python in another folder, if rope_ext is installed"
    )


def test_import_with_a_compiled_file_that_does_not_load(import_of_copy):
    package, import_error = import_of_copy
    (package / "_ops.so").write_bytes(b"not a library")
    error = import_error()
    assert "ImportError: rope_ext: _ops.so must load in torch" in error and "rebuild: pip install" in error


def test_import_with_old_torch():
    program = "import torch; torch.__version__ = '2.6.0'; import rope_ext"
    printed = run(sys.executable, "-c", program, check=False)
    assert (
        last_line(printed) == "ImportError: rope_ext: torch must be at least 2.11, got 2.6.0: pip install 'torch>=2.11'"
    )


def test_build_requirements_leave_torch_alone():
    """A build requirement would fetch a second torch, and an exact pin would replace the user's."""
    project = (ROOT / "pyproject.toml").read_text()
    assert "torch" not in re.search(r"^requires = \[(.*)\]", project, re.MULTILINE).group(1)
    assert re.search(r"^dependencies = (\[.*?\])", project, re.MULTILINE).group(1) == '["torch>=2.11"]'


def test_setup_imports_without_torch():
    """Under build isolation `import torch` fails."""
    assert "import torch" not in (ROOT / "setup.py").read_text()


def test_importing_the_package_is_enough():
    """extension-cpp#6: the library needs torch loaded first; the package sees to it."""
    run(sys.executable, "-c", "import rope_ext; rope_ext.apply")


def test_nothing_is_compiled_at_run_time():
    for path in (ROOT / "rope_ext").rglob("*.py"):
        assert not re.search(r"cpp_extension|torch_extensions|load_inline|subprocess", path.read_text()), path


def test_editable_installation_is_documented():
    assert "pip install --no-build-isolation -e ." in (ROOT / "README.md").read_text()
