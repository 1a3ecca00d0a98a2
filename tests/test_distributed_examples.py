"""The programs of examples/distributed: what they compare, and that it agrees."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples/distributed"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj"]
PATCHED = "sharded: patched against unpatched"
ONE_PROCESS = "sharded and patched against one process"
COMPARED = {  # by program: whether a result is bit-identical; if not, the program itself checks a bound
    "checkpoint": {"result of the loaded block": True},
    "context_parallel": {"loss": False, "gradient of the projections": False},
    "fsdp2": {
        **{
            f"{name}: {result}": True
            for name in ("RotaryEmbedding in the block", "tables, cast_forward_inputs=False")
            for result in ("result", "gradient")
        },
        "tables, cast to bfloat16 (wrong): result": False,
        "tables, cast to bfloat16 (wrong): gradient": False,
    },
    "pipeline": {"loss": False, "gradient of the first projections": False},
    "tensor_parallel": {
        "rotation, heads sharded": True,
        "rotation, sequence sharded": True,
        "result": False,
        **{f"gradient of {name}.{kind}": False for name in LINEAR for kind in ("weight", "bias")},
    },
    "tensor_parallel_transformers": {
        f"logits, {PATCHED}": True,
        f"gradient of q_proj, {PATCHED}": True,
        f"logits: {ONE_PROCESS}": False,
        f"gradient of q_proj: {ONE_PROCESS}": False,
    },
}
NEEDED = {"tensor_parallel_transformers": ("transformers", "accelerate")}

pytestmark = [
    pytest.mark.devices("cpu"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
]


@pytest.mark.parametrize("program", COMPARED)
def test_program_agrees_with_one_process(program):
    for package in NEEDED.get(program, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} must be installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, FOLDER / f"{program}.py"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    printed = dict(line.rsplit(": ", 1) for line in ended.stdout.splitlines() if not line.startswith("saved: "))
    assert printed.keys() == COMPARED[program].keys()
    for name, is_exact in COMPARED[program].items():
        assert printed[name] == "bit-identical" or not is_exact, (name, printed[name])
