"""Provide a rope_ext/_ops.so that loads and whose CUDA kernels run: `python -m benchmarks.gpu_check.library`.

Tried in this order: the newer of the present library and the one that `prepare` left in build/gpu, the other one, and
a build for this GPU alone.
"""

import os
import shutil
import subprocess
import sys

from benchmarks.gpu_check.carry import CARRIED, ROOT, TEST_HOOKS

PROBE = """
import torch
import rope_ext
from rope_ext import _introspect
x = torch.randn(2, 8, 4, 64)
cos, sin = rope_ext.RotaryEmbedding(64).tables(8, device="cpu")
on_gpu = rope_ext.apply(x.cuda(), cos.cuda(), sin.cuda()).cpu()
error = (on_gpu - rope_ext.apply(x, cos, sin)).abs().max().item()
assert error < 1e-5, f"CUDA kernels differ from the CPU by {error}"
print(f"{rope_ext.build_info()}, CUDA kernels run, largest difference from the CPU {error:.1e}")
"""
CAPABILITY = "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))"


def python(code):
    """(whether the code ran in a fresh process, the last line that it printed)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
    return run.returncode == 0, lines[-1] if lines else f"exit status {run.returncode}"


def use_carried():
    files = [CARRIED / "_ops.so", *CARRIED.glob("_introspect.*.so")]
    if not files[0].exists():
        raise FileNotFoundError(f"nothing in {CARRIED}: benchmarks/gpu_check.sh prepare")
    for file in files:
        temporary = ROOT / "rope_ext" / f"{file.name}.new"
        shutil.copy2(file, temporary)  # keeps the time of the file
        temporary.replace(ROOT / "rope_ext" / file.name)


def compile_here():
    """Build in place, without pip, so that the environment of this Python stays unmodified."""
    _, capability = python(CAPABILITY)
    more = {"ROPE_EXT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", capability)}
    more["CMAKE_ARGS"] = f"{TEST_HOOKS} {os.environ.get('CMAKE_ARGS', '')}"
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=os.environ | more, check=True)


def newer():
    """Whether the library in build/gpu is newer than the present one, which an earlier call may have copied."""
    there, carried = ROOT / "rope_ext" / "_ops.so", CARRIED / "_ops.so"
    return there.exists() and carried.exists() and carried.stat().st_mtime > there.stat().st_mtime


def main():
    ways = [("present library", lambda: None), ("build/gpu", use_carried), ("compiled here", compile_here)]
    for name, get in ways[newer() :]:
        try:
            get()
            works, said = python(PROBE)
        except (OSError, subprocess.CalledProcessError) as error:
            works, said = False, str(error)
        print(f"{name}: {'loads' if works else 'unusable'}: {said}", flush=True)
        if works:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
