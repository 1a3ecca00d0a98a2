"""Every program of examples/ is run by a test and shown in docs/examples.md; the trainer is run here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_distributed_examples import COMPARED

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
TEST_OF = {
    "train_tiny_llama.py": "test_examples.py",
    "train_tiny_qwen3.py": "test_train_tiny_qwen3.py",
    "serve_tiny_llama.py": "test_serve_example.py",
    "aoti/package.py": "test_aoti.py",
    "aoti/run.cpp": "test_aoti.py",
    **{f"distributed/{name}.py": "test_distributed_examples.py" for name in COMPARED},
}


def programs():
    """Paths in examples/, without modules that programs import."""
    found = [path for pattern in ("*.py", "*.cpp") for path in EXAMPLES.rglob(pattern)]
    return {str(path.relative_to(EXAMPLES)) for path in found if not path.name.startswith("_")}


def test_every_program_is_run_by_a_test():
    assert programs() == TEST_OF.keys()
    for program, test in TEST_OF.items():
        name = Path(program).stem if program.startswith("distributed/") else Path(program).name
        assert name in (ROOT / "tests" / test).read_text(encoding="utf-8"), (program, test)


def test_every_program_is_shown_on_the_page():
    page = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    for program in programs():
        assert f"](../examples/{program})" in page, f"docs/examples.md has no link to {program}"
        assert f"```{{literalinclude}} ../examples/{program}\n" in page, f"docs/examples.md does not show {program}"


@pytest.mark.parametrize("command", ["train_tiny_llama.py --steps 2", "serve_tiny_llama.py --tokens 1"])
def test_too_few_steps_are_refused(command):
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package)
    program, option, number = command.split()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, EXAMPLES / program, option, number]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 2
    assert f"argument {option}: must be {int(number) + 1} or more, got {number}" in ended.stderr


def test_train_tiny_llama(tmp_path):
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, EXAMPLES / "train_tiny_llama.py", "--steps", "10", "--output", tmp_path]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = [line.split() for line in ended.stdout.splitlines() if line[:6].strip().isdigit()]
    assert [step for step, _, _ in rows] == ["1", "10"]
    assert all(eager == ours for _, eager, ours in rows)
    assert "largest difference between the losses of a step: 0\n" in ended.stdout
    assert ended.stdout.splitlines()[-2].endswith("forward mode: ok")
    assert (tmp_path / "losses.png").stat().st_size > 10_000
