"""examples/aoti: an exported layer in a program without Python, and in a Python that never imports the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rope_ext._torch.library import native

pytestmark = pytest.mark.devices("cpu")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "aoti"
OPS = native._name
cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """What package.py wrote: attention.pt2, inputs.pt and expected.pt."""
    folder = tmp_path_factory.mktemp("aoti")
    run(sys.executable, EXAMPLE / "package.py", folder)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program of run.cpp."""
    if cmake is None:
        pytest.skip("cmake must be installed")
    folder = tmp_path_factory.mktemp("build")
    run(cmake, "-S", EXAMPLE, "-B", folder, f"-DTORCH={torch.__path__[0]}", "-DCMAKE_BUILD_TYPE=Debug")
    run(cmake, "--build", folder)
    return folder / "run"


# The layer's kernels are torch's own and ours, none is generated: every way of running it gives the same bits.


def test_program_without_python_gives_the_values_of_python(package, program):
    output = package / "output.pt"
    run(program, OPS, "attention.pt2", "inputs.pt", output, cwd=package)
    assert torch.equal(torch.load(output), torch.load(package / "expected.pt"))


def test_program_needs_no_python(program):
    """Neither the program and the libraries that it loads, nor the operators, need Python's library."""
    for file in program, OPS:
        libraries = [line.split()[0] for line in run("ldd", file).splitlines()]
        assert any("libtorch_cpu" in name for name in libraries)
        assert not [name for name in libraries if re.search("libpython|libtorch_python", name)]


@pytest.mark.parametrize("loads", [True, False])
def test_python_with_the_library_alone(package, loads):
    """torch.ops.load_library is enough; without it torch names the operator that is missing."""
    program = f"""
import sys
import torch
from torch._inductor import aoti_load_package

if {loads}:
    torch.ops.load_library({OPS!r})
attention = aoti_load_package("attention.pt2")
output = attention(*torch.load("inputs.pt"))
assert torch.equal(output, torch.load("expected.pt"))
assert "rope_ext" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=package)
    assert (done.returncode == 0) == loads, done.stderr
    assert loads or "rope_ext::rotate" in done.stderr, done.stderr
