"""Why a kernel is slower than a copy: DRAM throughput, occupancy, registers, by Nsight Compute's ncu.

`python -m benchmarks.harness.counters benchmarks/results/gpu` counts in the cases of that report where rope_ext is
furthest below its target, and adds the figures to the report. With --watched it is the program that ncu watches. Like
instructions.py, it marks the start of a case by a call that nothing else makes: an empty kernel.
"""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report.files import read, write
from benchmarks.report.summary import label
from benchmarks.report.targets import below_copy

MOST_CASES = 4  # ncu runs each kernel a dozen times, but starting takes longest
MARK = "spin_kernel"  # the kernel of torch.cuda._sleep
SECTIONS = ["SpeedOfLight", "Occupancy", "LaunchStats"]
METRICS = ["Duration", "DRAM Throughput", "Achieved Occupancy", "Registers Per Thread", "Grid Size", "Block Size"]


def count(report):
    """{"rows": [...]}, or {"missing": a line}."""
    cases = below_copy(report)[:MOST_CASES]
    if not cases:
        return {"missing": "no case below its target: nothing was counted"}
    if not shutil.which("ncu"):
        return {"missing": "ncu is not installed: no counters"}
    keys = ("dtype", "pairing", "pass", "memory", "shape")
    wanted = [[*(row[key] for key in keys), name] for row, name in cases]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "counters.csv")
        options = ["--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "details"]
        options += [part for name in SECTIONS for part in ("--section", name)] + ["--log-file", str(log)]
        program = [sys.executable, "-m", "benchmarks.harness.counters", "--watched", json.dumps(wanted)]
        run = subprocess.run(["ncu", *options, *program], capture_output=True, text=True, check=False)
        text = log.read_text() if log.exists() else ""
    rows = rows_of(text, [f"{label(row, report)} {name}" for row, name in cases])
    if run.returncode or not rows:
        said = (run.stderr.strip().splitlines() + text.splitlines())[-1:]
        return {"missing": f"ncu failed ({run.returncode}): {' '.join(said)[:200]}"}
    return {"rows": rows}


def rows_of(text, names):
    """[{"case", "kernel", "metrics"}] of ncu's CSV, which has a line per kernel and metric, among remarks."""
    kernels = {}
    for line in csv.DictReader(line for line in text.splitlines() if line.startswith('"')):
        found = kernels.setdefault(line["ID"], {"kernel": line["Kernel Name"], "metrics": {}})
        if line["Metric Name"] in METRICS:
            unit = line["Metric Unit"].replace("register/thread", "").replace("block", "").replace("thread", "")
            found["metrics"][line["Metric Name"]] = f"{line['Metric Value']} {unit}".strip()
    rows, case = [], -1
    for found in kernels.values():
        if MARK in found["kernel"]:
            case += 1
        else:
            rows.append({"case": names[case], **found, "kernel": found["kernel"].split("(")[0][:60]})
    return rows


def watched(wanted):
    import torch

    from benchmarks.baselines import VARIANTS
    from benchmarks.harness.cases import Case
    from benchmarks.harness.shapes import Shape

    builders = {variant.name: variant.build for variant in VARIANTS if variant.ours}
    for dtype, pairing, which, memory, shape, name in wanted:
        step = builders[name](Case(Shape(**shape), dtype, pairing, which, memory, threads=1, device="cuda"))
        step.before()
        step.call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        torch.cuda._sleep(0)
        step.call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main():
    if sys.argv[1] == "--watched":
        return watched(json.loads(sys.argv[2]))
    path = Path(sys.argv[1])
    report = read(path)
    report["counters"] = count(report)
    write(report, path)


if __name__ == "__main__":
    main()
