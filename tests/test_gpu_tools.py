"""compute-sanitizer and ncu, with stand-ins: what they find, and what they say where they do not work."""

import os
import sys

import pytest

from benchmarks.gpu_check import run
from benchmarks.harness import counters
from benchmarks.report import files
from tests.test_gpu_benchmark import made_up_report, made_up_row

pytestmark = pytest.mark.devices("cpu")

CLEAN = "11 passed in 3 s\n========= ERROR SUMMARY: 0 errors\n"
INVALID = "========= Invalid __global__ read of size 16 bytes\n"
UNSUPPORTED = "========= COMPUTE-SANITIZER\n========= Error: Device not supported\n"


@pytest.mark.parametrize(
    ("code", "output", "status", "said"),
    [
        (0, CLEAN, run.PASSED, ""),
        (
            9,
            f"{INVALID}11 passed\n========= ERROR SUMMARY: 1 error\n",
            run.FAILED,
            "Invalid __global__ read of size 16 bytes",
        ),
        (9, INVALID + UNSUPPORTED, run.FAILED, "Invalid __global__ read of size 16 bytes"),
        (1, UNSUPPORTED, run.NOT_AVAILABLE, "Error: Device not supported"),
        (0, f"{UNSUPPORTED}========= ERROR SUMMARY: 0 errors\n", run.NOT_AVAILABLE, "Error: Device not supported"),
        (1, "========= Error: Failed to initialize\n", run.NOT_AVAILABLE, "Error: Failed to initialize"),
        (1, "1 failed, 10 passed\n========= ERROR SUMMARY: 0 errors\n", run.FAILED, "exit status 1"),
        (0, "========= ERROR SUMMARY: 0 errors\n", run.FAILED, "no test ran under it"),
        (None, "3 passed\n", run.FAILED, "out of time"),
    ],
)
def test_what_compute_sanitizer_found_and_where_it_cannot_look(code, output, status, said):
    assert run.judged("sanitizer", code, output) == (status, said)


def test_a_tool_that_is_not_installed_is_not_available(tmp_path):
    result, _ = run.run("sanitizer", ["compute-sanitizer-that-is-not-there"], 5.0, tmp_path / "log", os.environ)
    assert (result.status, result.said) == (run.NOT_AVAILABLE, "compute-sanitizer-that-is-not-there is not installed")


NCU = """#!/usr/bin/env bash
[[ "$*" == *"--section SpeedOfLight --section ComputeWorkloadAnalysis --section Occupancy"* ]] || exit 3
while [[ $1 != --log-file ]]; do shift; done
{said}
cat >"$2" <<'END'
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","spin_kernel(long)","Section","Duration","us","1"
"1","rotate<bf16>(Params)","Section","Issue Slots Busy","%","71.5"
END
"""


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [
        ("", None, "71.5 %"),
        (
            "echo '==ERROR== ERR_NVGPUCTRPERM - no permission'; exit 1",
            run.UNAVAILABLE,
            "ERR_NVGPUCTRPERM - no permission",
        ),
        (
            "echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 1",
            run.UNAVAILABLE,
            "LibraryNotLoaded",
        ),
    ],
)
def test_ncu_counts_or_is_not_available(tmp_path, monkeypatch, capsys, said, code, shown):
    (tmp_path / "ncu").write_text(NCU.format(said=said))
    (tmp_path / "ncu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["counters", str(tmp_path / "gpu_second")])
    assert counters.main() == code and shown in capsys.readouterr().out


def test_counters_of_one_case_are_kept_when_the_next_fails(tmp_path, monkeypatch):
    report = made_up_report(failed=[], not_measured=[])
    files.write(report, tmp_path / "gpu_second")
    cases = iter([[{"case": "first", "kernel": "rotate", "metrics": {}}]])

    def counted(case):
        return next(cases, None) or pytest.fail("no more")

    monkeypatch.setattr(counters, "counted", counted)
    monkeypatch.setattr(sys, "argv", ["counters", str(tmp_path / "gpu_second")])
    with pytest.raises(pytest.fail.Exception):
        counters.main()
    assert [row["case"] for row in files.read(tmp_path / "gpu_second")["counters"]["rows"]] == ["first"]


def test_counters_are_of_prefill_and_of_the_worst_case():
    slow = made_up_row("video", "fp32", "forward+backward", copy=100.0, ours=125.0, peer=120.0)
    for rows, other in (([], "decode"), ([slow], "video")):
        found = counters.cases_of(made_up_report(*rows))
        assert [case[4]["name"] for case in found] == ["prefill", other] and found[0][0] == "bf16"
