"""Two programs of examples/distributed, and what they print; `make distributed` runs all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples/distributed"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj"]
COMPARED = {  # by program; True: the bits have to be equal, else the program has a bound
    "tensor_parallel": {
        "rotation, heads sharded": True,
        "rotation, sequence sharded": True,
        "result": False,
        **{f"gradient of {name}.{kind}": False for name in LINEAR for kind in ("weight", "bias")},
    },
    "context_parallel": {"loss": False, "gradient of the projections": False},
}

pytestmark = [
    pytest.mark.devices("cpu"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
]


@pytest.mark.parametrize("program", COMPARED)
def test_program_agrees_with_one_process(program):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, FOLDER / f"{program}.py"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    printed = dict(line.split(": ") for line in ended.stdout.splitlines())
    assert printed.keys() == COMPARED[program].keys()
    for name, is_exact in COMPARED[program].items():
        assert printed[name] == "bits equal" or not is_exact, (name, printed[name])
