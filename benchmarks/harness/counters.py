"""Explain why a kernel is slower than a copy: issue slots, DRAM throughput, occupancy, registers, by Nsight Compute.

`python -m benchmarks.harness.counters benchmarks/results/gpu_second` profiles prefill in bfloat16 and the case of that
report in which rope_ext is furthest below its target, or else decode. It prints the figures and adds them to the
report after each case. With --watched it is the process that ncu observes. Like instructions.py, it marks the start of
a case by a call that nothing else makes, here an empty kernel.
"""

import csv
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_check.run import UNAVAILABLE
from benchmarks.harness.shapes import SHAPES
from benchmarks.report.files import read, write
from benchmarks.report.targets import below_copy, counters_table

MARK = "spin_kernel"  # the kernel of torch.cuda._sleep
SECTIONS = ["SpeedOfLight", "ComputeWorkloadAnalysis", "Occupancy", "LaunchStats"]
METRICS = ["Duration", "DRAM Throughput", "Issue Slots Busy", "Executed Ipc Active", "Achieved Occupancy"]
METRICS += ["Registers Per Thread", "Grid Size", "Block Size"]
# Messages of ncu where it cannot count: no permission, or a driver or virtual machine without counters.
CANNOT = re.compile(
    r"^==ERROR== .*(ERR_NVGPUCTRPERM|[Ff]ailed to initialize|not supported|LibraryNotLoaded).*", re.MULTILINE
)


class NotAvailable(Exception):
    """ncu cannot count on this machine; the message says why."""


def cases_of(report):
    """[[dtype, pairing, pass, memory, shape, variant of rope_ext]]: two cases, since ncu takes longest to start."""
    shapes = {shape.name: dataclasses.asdict(shape) for shape in SHAPES}
    first, other = (["bf16", "half", "forward", "bshd", shapes[name], "rope_ext"] for name in ("prefill", "decode"))
    for row, name in below_copy(report)[:1]:
        other = [*(row[key] for key in ("dtype", "pairing", "pass", "memory", "shape")), name]
    return [first, other]


def counted(case):
    """The rows of one case. Raises NotAvailable, or RuntimeError where the observed program fails."""
    dtype, pairing, which, _memory, shape, name = case
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "counters.csv")
        options = ["--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "details"]
        options += [part for name in SECTIONS for part in ("--section", name)] + ["--log-file", str(log)]
        program = [sys.executable, "-m", "benchmarks.harness.counters", "--watched", json.dumps([case])]
        try:
            run = subprocess.run(["ncu", *options, *program], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise NotAvailable("ncu is not installed") from None
        text = log.read_text() if log.exists() else ""
    said = f"{text}\n{run.stdout}\n{run.stderr}"
    if cannot := CANNOT.search(said):
        raise NotAvailable(cannot[0].removeprefix("==ERROR== ")[:200])
    rows = rows_of(text, [f"{shape['name']} {dtype} {pairing} {which} {name}"])
    if run.returncode or not rows:
        raise RuntimeError(f"ncu failed ({run.returncode}): {' '.join(said.strip().splitlines()[-1:])[:200]}")
    return rows


def rows_of(text, names):
    """[{"case", "kernel", "metrics"}] from the CSV of ncu, a line per kernel and metric, mixed with remarks."""
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
    known = path.with_name(f"{path.name}.json").exists()
    report = read(path) if known else {"rows": []}
    report["counters"] = {"rows": []}
    try:
        for case in cases_of(report):
            report["counters"]["rows"] += counted(case)
            if known:
                write(report, path)
    except NotAvailable as reason:
        if known:
            write(report | {"counters": {"missing": str(reason)}}, path)
        print(reason)
        return UNAVAILABLE
    finally:
        if report["counters"]["rows"]:  # also where the second case is interrupted
            print(counters_table(report), flush=True)


if __name__ == "__main__":
    sys.exit(main())
