"""`gpu_check.sh prepare`: build what a GPU machine without a network needs, on a machine with nvcc and no GPU.

Afterwards build/gpu has, for one architecture, _ops.so and _introspect for the Python of the GPU machine, the programs
of candidates.cu, and wheels of pytest and other libraries. _ops.so depends on no Python version and only on torch's
stable ABI, so it loads in every torch from 2.11 on. A wheel is used where the GPU machine lacks the package.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / "build" / "gpu"
TEST_HOOKS = "-DROPE_EXT_TEST_HOOKS=ON"
PROGRAMS = {"candidates": [], "candidates_st_cs": ["-Xptxas", "-dscm=cs", "-DSTORES=st.cs"]}
WHEELS = ["pytest", "pytest-xdist", "execnet", "pluggy", "iniconfig", "packaging", "pygments", "tqdm"]
WHEELS += ["liger-kernel", "einops"]  # measured libraries, and an import of flash-attention
# flash-attention is published as source only, mostly CUDA. Its rotary kernel is written in Triton, in these files.
FLASH_ATTENTION = "flash-attn==2.8.3"
FLASH_FILES = [
    "layers/__init__.py",
    "layers/rotary.py",
    "ops/__init__.py",
    "ops/triton/__init__.py",
    "ops/triton/rotary.py",
]


def prepare(interpreter, architecture):
    """interpreter: a Python of the version on the GPU machine. architecture: as in TORCH_CUDA_ARCH_LIST."""
    from benchmarks.harness.machine import commit  # late: it imports torch

    version = header_version(interpreter)
    shutil.rmtree(CARRIED, ignore_errors=True)
    CARRIED.mkdir(parents=True)
    print(f"for Python {version} and architecture {architecture}", flush=True)
    build_library(interpreter, architecture)
    load_library(interpreter)
    compile_candidates(CARRIED, f"sm_{architecture.replace('.', '')}")
    download()
    made_for = {"python": version, "architecture": architecture, "commit": commit()}
    (CARRIED / "carried.json").write_text(json.dumps(made_for) + "\n")


def header_version(interpreter):
    """The version of a Python, which must have its headers."""
    code = "from sysconfig import *; open(get_path('include') + '/Python.h'); print(get_python_version())"
    try:
        return subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        said = lines[-1 if lines[0].startswith("Traceback") else 0]
        sys.exit(f"gpu_check.sh: prepare needs a Python with its headers, --python PATH, got {interpreter}: {said}")


def build_library(interpreter, architecture):
    """Build with the torch, setuptools, pybind11, cmake and ninja of this Python; none depends on its version."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "ROPE_EXT_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": architecture,
            "CMAKE_ARGS": f"{TEST_HOOKS} {os.environ.get('CMAKE_ARGS', '')}",
            "ROPE_EXT_BUILD_DIR": str(ROOT / "build" / "gpu_objects"),
            "PYTHONPATH": os.pathsep.join([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]),
            "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        }
        command = [interpreter, "setup.py", "--quiet", "build_ext", "--build-lib", folder]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        for file in Path(folder, "rope_ext").glob("*.so"):
            shutil.copy2(file, CARRIED)


LOAD = """
import importlib.util, pathlib, sys, torch
folder = pathlib.Path(sys.argv[1])
torch.ops.load_library(folder / "_ops.so")
spec = importlib.util.spec_from_file_location("_introspect", next(folder.glob("_introspect.*.so")))
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print("loaded here in torch", torch.__version__)
"""


def load_library(interpreter):
    """Check that both files load, if that Python has torch."""
    if subprocess.run([interpreter, "-c", "import torch"], capture_output=True, check=False).returncode:
        return print(f"not loaded here: {interpreter} cannot import torch")
    subprocess.run([interpreter, "-c", LOAD, CARRIED], check=True)


def compile_candidates(folder, architecture):
    """The programs of candidates.cu, which need only the C library and the driver."""
    options = ["-std=c++17", f"-arch={architecture}", "-fmad=false", "-cudart", "static", f"-I{ROOT / 'csrc'}"]
    options += ["-Xcompiler", "-static-libstdc++", "-Xcompiler", "-static-libgcc"]
    source = ROOT / "benchmarks" / "candidates.cu"
    for name, more in PROGRAMS.items():
        subprocess.run(["nvcc", *options, *more, "-o", folder / name, source], check=True)
    return [folder / name for name in PROGRAMS]


def download():
    """Download the wheels and the files of flash-attention; print a line for each that is not available."""
    wheels = CARRIED / "wheels"
    pip = [sys.executable, "-m", "pip"]
    fetch = [*pip, "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    for name in WHEELS:
        if subprocess.run([*fetch, "--only-binary=:all:", "--dest", wheels, name], check=False).returncode:
            print(f"left out: {name}")
    with tempfile.TemporaryDirectory() as folder:
        # pip runs the setup.py of source downloads, which imports these.
        needs = [*pip, "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target", f"{folder}/needs"]
        environment = os.environ | {"PYTHONPATH": f"{folder}/needs", "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
        source = [*fetch, "--no-build-isolation", "--no-binary=:all:", "--dest", folder, FLASH_ATTENTION]
        done = [
            subprocess.run([*needs, "psutil", "packaging"], check=False),
            subprocess.run(source, env=environment, check=False),
        ]
        if any(run.returncode for run in done):
            return print(f"left out: {FLASH_ATTENTION}")
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            top = archive.getnames()[0].split("/")[0]
            for name in FLASH_FILES:
                target = wheels / "flash_attn" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(f"{top}/flash_attn/{name}").read())
