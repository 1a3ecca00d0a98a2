"""`python -m benchmarks.gpu_check.library`: leaves a rope_ext/_ops.so that loads and whose CUDA kernels run.

Tried in this order: what is there, what `prepare` left in build/gpu, the newer of the two first; a build for this GPU
only.
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
there = rope_ext.apply(x.cuda(), cos.cuda(), sin.cuda()).cpu()
error = (there - rope_ext.apply(x, cos, sin)).abs().max().item()
assert error < 1e-5, f"CUDA kernels are off the CPU's by {error}"
print(f"{rope_ext.build_info()}, CUDA kernels run, off the CPU's results by {error:.1e}")
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
        shutil.copy2(file, temporary)  # with its time
        temporary.replace(ROOT / "rope_ext" / file.name)


def compile_here():
    """Not by pip: this leaves the Python that runs it as it was."""
    _, capability = python(CAPABILITY)
    more = {"ROPE_EXT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", capability)}
    more["CMAKE_ARGS"] = f"{TEST_HOOKS} {os.environ.get('CMAKE_ARGS', '')}"
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=os.environ | more, check=True)


def newer():
    """Whether what was carried is newer than what is there, which may be what an earlier call has copied."""
    there, carried = ROOT / "rope_ext" / "_ops.so", CARRIED / "_ops.so"
    return there.exists() and carried.exists() and carried.stat().st_mtime > there.stat().st_mtime


def main():
    ways = [("what is there", lambda: None), ("what was carried", use_carried), ("compiled here", compile_here)]
    for name, get in ways[newer() :]:
        try:
            get()
            works, said = python(PROBE)
        except (OSError, subprocess.CalledProcessError) as error:
            works, said = False, str(error)
        print(f"{name}: {'loads' if works else 'not to be used'}: {said}", flush=True)
        if works:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
