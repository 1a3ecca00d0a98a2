"""benchmarks/gpu_check.sh without a GPU: what it refuses, its order and limits, and what is kept of what ran."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check import dry_run, plan, run

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"


def command(*arguments, **environment):
    found = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([SCRIPT, *arguments], env=found, capture_output=True, text=True, check=False)


def test_usage_and_what_is_refused():
    found = command("--help")
    assert found.returncode == 0 and "Everything that needs a GPU" in found.stdout
    assert all(word in found.stdout for word in ("--only", "--wheels", "--seconds", "--dry-run", "OUT", "Exit status"))
    for arguments in (
        ["--only", "nothing"],
        ["--seconds", "0"],
        ["--wheels", "/nowhere"],
        ["--only"],
        ["third"],
        ["first", "--only", "ncu"],
        ["prepare", "--python", "/no/python"],
    ):
        found = command(*arguments)
        assert found.returncode in (1, 2) and len(found.stderr.splitlines()) == 1, found.stderr
        assert found.stderr.startswith("gpu_check.sh: ")


def test_without_a_gpu_one_sentence_and_an_exit_status(tmp_path):
    found = command("first", OUT=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "gpu_check.sh: needs a GPU that torch can use, got none\n"
    assert not list(tmp_path.iterdir())


# ---- the command, with a Python that only says what it was called for ----

PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$ROPE_EXT_DEVICES $*" >>"$CALLS"
case "$*" in
  "-c "*) echo "a made-up GPU" ;;
  *gpu_check.library*) echo "loads"; exit ${BUILD:-0} ;;
  *gpu_check.smoke*) echo "half of it"; ${HANG:+sleep 30}; echo "44 of 44" ;;
  *gpu_check.candidates*) echo "nvcc is not installed"; exit 77 ;;
  *"-m sanitizer"*) printf '11 passed in 1 s\\n========= ERROR SUMMARY: 0 errors\\n' ;;
  *"-m pytest"*) echo "1 failed, 5 passed in 1.00s"; exit 1 ;;
  *benchmarks.bench*) echo "{}" >"$OUT/gpu_${!###*_}.json" ;;
  *benchmarks.report*) echo "the table of ${!###*_}" ;;
  *harness.counters*) echo "91 %" ;;
esac
"""
COMPUTE_SANITIZER = '#!/usr/bin/env bash\nexec "${@:7}"\n'


@pytest.fixture
def stand_ins(tmp_path):
    """The environment in which Python and compute-sanitizer are scripts."""
    for name, text in (("python", PYTHON), ("compute-sanitizer", COMPUTE_SANITIZER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "out").mkdir()
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    found = {"PYTHON": str(tmp_path / "python"), "OUT": str(tmp_path / "out"), "CALLS": str(tmp_path / "calls")}
    return {**os.environ, **found, "PATH": path, "PYTHONPATH": str(ROOT)}


def check(stand_ins, *arguments, **more):
    program = [sys.executable, ROOT / "benchmarks" / "gpu_check", *arguments]
    return subprocess.run(program, env={**stand_ins, **more}, capture_output=True, text=True, check=False)


def statuses(folder, call):
    return [(p["name"], p["status"]) for p in json.loads((folder / f"gpu_{call}.parts.json").read_text())["parts"]]


def test_both_calls_go_on_after_a_part_that_fails(stand_ins, tmp_path):
    found = check(stand_ins)
    assert statuses(tmp_path / "out", "first") == [
        ("build", "passed"),
        ("smoke", "passed"),
        ("tests", "FAILED"),
        ("candidates", "not available"),
        ("bench", "passed"),
    ]
    assert [name for name, status in statuses(tmp_path / "out", "second") if status == "passed"] == [
        "build",
        "sanitizer",
        "bench",
        "ncu",
    ]
    lines = found.stdout.splitlines()
    assert found.returncode == 1 and lines[-1].startswith("gpu_check.sh: FAILED: tests of first, tests of second;")
    assert "    44 of 44" in lines and "the table of first" in lines and "the table of second" in lines
    assert re.search(r"^candidates: not available in \d+ s of \d+: nvcc is not installed$", found.stdout, re.MULTILINE)
    names = {f"gpu_{call}{end}" for call in plan.CALLS for end in (".log", ".parts.json", ".json")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    calls = (tmp_path / "calls").read_text().splitlines()
    tests = [line for line in calls if "-m pytest" in line]
    assert all(line.startswith("cuda ") for line in tests)
    launches, others, memcheck = tests
    assert "tests/test_cuda_launch.py" in launches and "--ignore-glob=tests/test_cuda*.py" in others
    assert memcheck.endswith("tests/test_cuda_sizes.py tests/test_cuda_positions.py")
    first, second = (line for line in calls if "benchmarks.bench" in line)
    assert "--kinds bf16/half --" in first and "--kinds fp32/half fp16/half bf16/interleaved --" in second


def test_a_part_that_hangs_is_stopped_and_leaves_what_it_had(stand_ins, tmp_path):
    found = check(stand_ins, "first", "--only", "smoke", "--only", "bench", "--seconds", "12", HANG="1")
    assert statuses(tmp_path / "out", "first") == [("build", "passed"), ("smoke", "FAILED"), ("bench", "passed")]
    assert "smoke: FAILED in " in found.stdout and ": out of time\n    half of it\n" in found.stdout
    assert "the table of first" in found.stdout and "half of it" in (tmp_path / "out" / "gpu_first.log").read_text()


def test_whatever_stops_the_program_what_ran_is_kept(stand_ins, tmp_path):
    program = [sys.executable, ROOT / "benchmarks" / "gpu_check", "first", "--only", "smoke", "--only", "bench"]
    running = subprocess.Popen(program, env={**stand_ins, "HANG": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "out" / "gpu_first.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "half of it" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 1 and said == b"gpu_check.sh: interrupted; the results so far are kept\n"
    assert statuses(tmp_path / "out", "first") == [("build", "passed"), ("smoke", "FAILED")]


def test_without_a_library_only_what_needs_none_is_run(stand_ins, tmp_path):
    found = check(stand_ins, "first", BUILD="1")
    assert [name for name, status in statuses(tmp_path / "out", "first") if status == "FAILED"] == [
        "build",
        "smoke",
        "tests",
        "bench",
    ]
    assert "bench: FAILED in 0 s of " in found.stdout and "not started, since rope_ext does not load" in found.stdout


# ---- the clock ----


@pytest.mark.parametrize("call", plan.CALLS)
def test_no_part_can_take_the_time_of_another(call):
    parts = plan.CALLS[call]
    seconds = plan.planned(parts)
    assert seconds == {"first": 330, "second": 360}[call]
    for hangs in (None, *parts):
        found = dry_run.played(parts, seconds, hangs)
        assert found[-1][1] <= seconds + 1e-6
        if hangs != plan.BUILD:
            assert all(limit >= part.seconds - 1e-6 for part, (*_, limit) in zip(parts, found, strict=True))
    after_build = [limit for *_, limit in dry_run.played(parts, seconds, plan.BUILD)]
    assert after_build[0] == pytest.approx(0.4 * seconds) and min(after_build) > 0.6 * min(p.seconds for p in parts)


def test_what_one_part_leaves_over_is_for_the_next():
    parts, now, limits = [plan.Part(name, 10, "") for name in "abc"], [0.0], []

    def takes_a_second(part, limit):
        limits.append(limit)
        now[0] += 1

    list(plan.play(parts, 60, takes_a_second, lambda: now[0]))
    assert limits == [20, 39, 58]


def test_a_command_ends_within_its_limit_with_all_that_it_started(tmp_path):
    """Also where the program ignores an interrupt, as it does when a shell has started it in the background."""
    log = tmp_path / "log"
    script = "trap 'echo asked to end' INT; sleep 60 & echo $!; wait; wait"
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result, output = run.run("some", ["bash", "-c", script], 4.0, log, os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.status, result.said) == (run.FAILED, "out of time") and time.monotonic() - began < 8
    child, asked = output.split("\n")[:2]
    assert asked == "asked to end"
    left = Path(f"/proc/{child}/cmdline")  # empty in a process that has ended and that nobody has asked about
    while left.exists() and left.read_bytes():
        assert time.monotonic() - began < 20
        time.sleep(0.05)


def test_dry_run_names_what_travels_and_its_size():
    found = command("second", "--dry-run", "--seconds", "180")
    assert found.returncode == 0, found.stderr
    assert "second: at most 180 s" in found.stdout and "if bench hangs: stopped at" in found.stdout
    listed = re.findall(r"^ *([\d,]+)  (\S+)$", found.stdout, re.MULTILINE)
    sizes = {name: int(size.replace(",", "")) for size, name in listed}
    assert sizes["tests/conftest.py"] == (ROOT / "tests/conftest.py").stat().st_size and "setup.py" in sizes
    total = re.search(r"^(\d+) files travel, ([\d.]+) MiB, which fits 64 MiB$", found.stdout, re.MULTILINE)
    assert int(total[1]) == len(sizes) and float(total[2]) == pytest.approx(sum(sizes.values()) / 2**20, abs=0.06)
    assert "TOO MUCH for 64 MiB" in dry_run.travel_text({"large": 65 << 20})


def test_dry_run_says_when_what_is_carried_is_old(tmp_path, monkeypatch):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "gpu").mkdir()
    monkeypatch.setattr(dry_run, "ROOT", tmp_path)
    monkeypatch.setattr(dry_run, "CARRIED", tmp_path / "gpu")
    for name in ("CMakeLists.txt", "csrc/plan.h"):
        (tmp_path / name).write_text("")
    assert dry_run.stale() == ["build/gpu is empty: benchmarks/gpu_check.sh prepare"]
    (tmp_path / "gpu" / "carried.json").write_text("{}")
    for seconds, said in ((-5, []), (5, ["build/gpu is older than csrc/plan.h: benchmarks/gpu_check.sh prepare"])):
        os.utime(tmp_path / "csrc" / "plan.h", (time.time() + seconds,) * 2)
        assert dry_run.stale() == said
