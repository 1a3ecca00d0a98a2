"""The command and the environment of each part."""

import os
import sys
import zipfile
from importlib import metadata
from importlib.machinery import PathFinder

from benchmarks.gpu_check.carry import ROOT
from benchmarks.gpu_check.plan import GRACE

PYTEST = ["-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]  # -v prints each test as it runs
LAUNCH_TESTS = "tests/test_cuda*.py"  # run by the first call; the second runs the others
MEMCHECK = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", "--report-api-errors", "no"]
MEMCHECKED = ["tests/test_cuda_sizes.py", "tests/test_cuda_positions.py"]
KINDS = {"first": ["bf16/half"], "second": ["fp32/half", "fp16/half", "bf16/interleaved"]}
CASE = 15.0  # maximum seconds of a case of bench.py, which starts none when its budget is spent
ENVIRONMENT = {
    "tests": {"ROPE_EXT_DEVICES": "cuda"},
    # Without torch's cache each tensor is a separate allocation, so that an access past its end is found.
    "sanitizer": {"ROPE_EXT_DEVICES": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
}


def command_of(name, call, limit, out, python, paths):
    if name == "tests":
        launches = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(LAUNCH_TESTS))
        chosen = launches if call == "first" else [f"--ignore-glob={LAUNCH_TESTS}"]
        return [python, *PYTEST, *in_parallel(paths), *chosen]
    if name == "sanitizer":
        return [*MEMCHECK, python, *PYTEST, "-m", "sanitizer", *MEMCHECKED]
    if name == "bench":
        budget = max(1.0, limit - GRACE - CASE)
        options = ["--device", "cuda", "--peers", "--kinds", *KINDS[call], "--compiled", "prefill", "train"]
        options += ["--budget", f"{budget:.0f}", "--output", str(out), "--name", f"gpu_{call}"]
        return [python, "-m", "benchmarks.bench", *options]
    programs = {
        "build": ["benchmarks.gpu_check.library"],
        "smoke": ["benchmarks.gpu_check.smoke"],
        "candidates": ["benchmarks.gpu_check.candidates", str(out / "candidates.jsonl")],
        "ncu": ["benchmarks.harness.counters", str(out / f"gpu_{call}")],
    }
    return [python, "-m", *programs[name]]


def in_parallel(paths):
    """Several processes, if pytest-xdist is available."""
    return ["-n", "6"] if PathFinder.find_spec("xdist", [*sys.path, *map(str, paths)]) else []


def unpacked(wheels, always, folder):
    """The folders with the Python packages in `wheels`, which are wheels or unpacked.

    always: also the wheels of packages that are installed.
    """
    for wheel in sorted(wheels.glob("*.whl")):
        if always or not installed(wheel.name.split("-")[0]):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    return [folder, wheels]


def installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def environment_of(name, paths):
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *map(str, paths)]).strip(os.pathsep)
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | ENVIRONMENT.get(name, {})
