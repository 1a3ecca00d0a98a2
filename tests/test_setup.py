"""How setup.py reads the machine and environment variables."""

import ast
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
SETUP = ROOT / "setup.py"


def function_of_setup(name, **names):
    """A function of setup.py, which builds the package where it is imported. names: what the function reads."""
    (node,) = (n for n in ast.parse(SETUP.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name)
    exec(compile(ast.Module([node], []), str(SETUP), "exec"), names)
    return names[name]


@pytest.mark.parametrize(
    ("requested", "expected"),
    [("", ""), ("8.0", "80-real"), ("8.0;9.0a+PTX", "80-real;90a"), ("8.6 12.0+PTX", "86-real;120")],
)
def test_architectures_are_read_as_pytorch_writes_them(requested, expected):
    assert function_of_setup("cmake_architectures", re=re)(requested) == expected


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("ROPE_EXT_CUDA", "yes", "rope_ext: ROPE_EXT_CUDA must be 0, 1 or unset, got 'yes'."),
        ("TORCH_CUDA_ARCH_LIST", "Hopper", "TORCH_CUDA_ARCH_LIST must hold numbers like 8.0 or 9.0+PTX, got 'Hopper'."),
        (
            "ROPE_EXT_CUDA",
            "1",
            "rope_ext: nvcc must be in CUDA_HOME/bin or on PATH when ROPE_EXT_CUDA is 1, got none",
        ),
    ],
)
def test_wrong_environment_variables(variable, value, sentence, tmp_path):
    environment = {name: text for name, text in os.environ.items() if name != "ROPE_EXT_CUDA"} | {variable: value}
    if value == "1":  # a compiler, and no nvcc
        (tmp_path / "c++").symlink_to(shutil.which("c++"))
        environment |= {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    elif variable == "TORCH_CUDA_ARCH_LIST" and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    command = [sys.executable, str(SETUP), "build_ext", "--build-lib", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode and sentence in result.stderr.splitlines()[-1], result.stderr


@pytest.mark.parametrize(("gigabytes", "jobs"), [(1, 1), (8, 4), (64, 32), (1024, 64)])
def test_jobs_are_capped_by_memory(gigabytes, jobs):
    """FA#317: ninja on all cores, 64 here, froze machines."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 2**30 // 4096}
    machine = types.SimpleNamespace(sysconf=sizes.__getitem__, cpu_count=lambda: 64)
    assert function_of_setup("default_jobs", os=machine)() == jobs
