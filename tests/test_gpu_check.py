"""benchmarks/gpu_check.sh, as far as it goes without a GPU: what it refuses, and that no part can stop the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices("cpu")
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_check.sh"


def run(*command, **environment):
    found = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=found, capture_output=True, text=True, check=False)


def test_gpu_check_prints_its_usage_and_refuses_unknown_options():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    help_text = run(SCRIPT, "--help")
    assert help_text.returncode == 0 and help_text.stdout.startswith("Everything that needs a GPU")
    assert all(word in help_text.stdout for word in ("--only", "--wheels", "--seconds", "OUT", "Exit status"))
    for arguments in (["--only", "nothing"], ["--seconds", "0"], ["--wheels", "/nowhere"], ["--only"], ["more"]):
        found = run(SCRIPT, *arguments)
        assert found.returncode == 2 and len(found.stderr.splitlines()) == 1, found.stderr


def test_without_a_gpu_one_sentence_and_an_exit_status(tmp_path):
    found = run(SCRIPT, OUT=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "gpu_check.sh: needs a GPU that torch can use, got none\n"
    assert not list(tmp_path.iterdir())


PYTHON = """#!/usr/bin/env bash
case "$*" in
  *is_available*) echo "a made-up GPU" ;;
  "- "*) echo loads ;;
  *"-m pytest"*"-m sanitizer"*) echo "========= ERROR SUMMARY: 0 errors" ;;
  *"-m pytest"*) [[ $ROPE_EXT_REQUIRE_CUDA ]] && echo "1 failed, 5 passed in 1.00s"; ${HANG:+sleep 30}; exit 1 ;;
  *benchmarks.bench*) echo "{}" >"$OUT/gpu.json" ;;
  *benchmarks.report*) echo "the table" ;;
esac
"""
PARTS = ["tests", "sanitizer", "bench", "ncu"]


@pytest.fixture
def check(tmp_path):
    """Runs the script with a Python and a compute-sanitizer that only say that they were called."""
    for name, text in (("python", PYTHON), ("compute-sanitizer", '#!/usr/bin/env bash\nexec "${@:7}"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PYTHON": str(tmp_path / "python"), "OUT": str(tmp_path / "out")}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return lambda *arguments, **more: run(SCRIPT, *arguments, **environment, **more)


def test_gpu_check_goes_on_after_a_part_that_fails_and_ends_with_the_table(check, tmp_path):
    found = check(*(argument for name in PARTS for argument in ("--only", name)))
    lines = found.stdout.splitlines()
    assert found.returncode == 1
    expected = [
        "build: rope_ext/_ops.so loads: loads",
        "tests: FAILED (1)",
        "    1 failed, 5 passed",
        "1 failed, 5 passed",
    ]
    expected += [
        "sanitizer memcheck: passed",
        "sanitizer racecheck: passed",
        "bench: passed",
        "ncu: passed",
        "the table",
    ]
    starts = [line for line in lines if line.startswith(tuple(expected))]
    assert len(starts) == len(expected) and all(map(str.startswith, starts, expected)), found.stdout
    assert lines[-2] == "the table" and "FAILED: tests; files in" in lines[-1]
    files = {f"{name}.log" for name in ("build", *PARTS)} | {"gpu.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files


def test_gpu_check_stops_a_part_that_hangs(check):
    found = check("--only", "tests", "--seconds", "5", HANG="1")
    assert "tests: FAILED, out of time after" in found.stdout and found.returncode == 1
    found = check("--only", "tests", "--seconds", "1", HANG="1")
    assert "tests: FAILED, no time left" in found.stdout
