"""ROPE_EXT_DEVICES=cuda, with a GPU that is made up: which tests are left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]

MADE_UP_GPU = """
import torch, rope_ext
torch.cuda.is_available = lambda: True
rope_ext.build_info = lambda real=rope_ext.build_info: {**real(), "cuda_architectures": ["9.0"]}
"""


def collected(tmp_path, *arguments, gpu=True):
    (tmp_path / "made_up_gpu.py").write_text(MADE_UP_GPU if gpu else "")
    program = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-p", "made_up_gpu"]
    environment = {**os.environ, "ROPE_EXT_DEVICES": "cuda", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [*program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_only_the_run_on_a_gpu_is_collected(tmp_path):
    found = collected(tmp_path, "tests/test_empty.py", "tests/test_locks.py", "tests/test_source_tree.py")
    names = [line for line in found.stdout.splitlines() if "::" in line]
    assert found.returncode == 0 and names and all("[cuda" in name for name in names)
    for arguments, more, said in (
        (["tests/test_source_tree.py"], {}, "ROPE_EXT_DEVICES=cuda leaves no test"),
        (["tests/test_locks.py"], {"gpu": False}, "ROPE_EXT_DEVICES=cuda requires a GPU, but torch finds no GPU"),
    ):
        found = collected(tmp_path, *arguments, **more)
        assert found.returncode == 4 and said in found.stderr
