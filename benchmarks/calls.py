"""Time small calls: `python -m benchmarks.calls`, or `make calls`, in about a minute.

Two cases are timed, each beside its yardstick in the same rounds: q and k of one token, where overhead is everything,
and a decode step in place. Several processes measure them, each with a memory layout of its own, and ratios are formed
within a process. vLLM and ONNX Runtime are timed too where they are installed.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.baselines import VARIANTS, peers, peers_cpu
from benchmarks.baselines.small_calls import dtensor_calls, small_calls, tiny
from benchmarks.bench import RESULTS
from benchmarks.harness.cases import Case
from benchmarks.harness.clocks import HostClock, seconds_for
from benchmarks.harness.machine import machine
from benchmarks.harness.measure import measure_undisturbed, prepare
from benchmarks.harness.shapes import SHAPES
from benchmarks.harness.variants import Step
from benchmarks.report.calls import ONE, markdown

PEERS = ("vLLM", "ONNX Runtime")
THREADS = min(2, os.cpu_count())  # of the decode step
PAUSE = 0.004  # seconds between calls, in which the threads fall asleep
ROUNDS_WITH_PAUSES = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="per process, for calls of one token")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--name", default="calls", help="name of the files NAME.md and NAME.json")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # the figures of one process, for its parent
    options = parser.parse_args()
    if options.rows:
        options.rows.write_text(json.dumps(measured(options.seconds)))
        return
    report = {"machine": machine("cpu"), "threads": THREADS, "processes": []}
    for _ in range(options.processes):
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder, "rows.json")
            command = [sys.executable, "-m", "benchmarks.calls", "--seconds", str(options.seconds), "--rows", str(rows)]
            subprocess.run(command, check=True)
            report["processes"].append(json.loads(rows.read_text()))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{options.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    (options.output / f"{options.name}.md").write_text(text)
    print(text, end="")


def measured(seconds):
    """{"sections": {section: {call: figures}}, "busy": {section: cores that others used}, "left_out": {peer: why}}."""
    found, left_out = peers.find({name: peers_cpu.PEERS[name] for name in PEERS}, THREADS)
    gc.collect()
    gc.disable()
    report = {"sections": {}, "busy": {}, "left_out": left_out}
    for name in (progress := tqdm([ONE, "decode fp32", "decode bf16"])):
        progress.set_description(name)
        steps, refused = _one_token(found) if name == ONE else _decode(name.split()[1], found)
        left_out |= {f"{name}, {peer}": why for peer, why in refused.items()}
        bounds = (10**6, seconds if name == ONE else 1.0, 2)  # rounds, seconds, attempts
        report["busy"][name], samples = measure_undisturbed(steps, HostClock(), *bounds)
        report["sections"][name] = _figures(samples)
        if name != ONE:
            report["sections"][f"{name}, {PAUSE * 1e3:g} ms between calls"] = _figures(_with_pauses(steps))
    return report


def _one_token(found):
    """({call: [Step]}, {peer: reason why it is left out})."""
    torch.set_num_threads(1)
    case = tiny()
    steps, _, refused = prepare(case, found, HostClock())
    made = small_calls(case) | dtensor_calls(case)
    return {name: [Step(call)] for name, call in made.items()} | steps, refused


def _decode(dtype, found):
    torch.set_num_threads(THREADS)
    shape = next(s for s in SHAPES if s.name == "decode")
    case = Case(shape, dtype, "half", "forward", "bshd", THREADS)
    variants = [v for v in VARIANTS if v.name in ("copy", "rope_ext in place", "rope_ext out=")]
    steps, _, refused = prepare(case, [*variants, *found], HostClock())
    return steps, refused


def _with_pauses(steps):
    """{call: seconds in each round}, each of a single call after a pause."""
    samples = {name: [] for name in steps}
    for _ in range(ROUNDS_WITH_PAUSES):
        for name, (step,) in steps.items():
            step.before()
            time.sleep(PAUSE)
            samples[name].append(seconds_for(step.call, 1))
            step.after()
    return samples


def _figures(samples):
    return {
        call: {"us_min": min(times) * 1e6, "us_median": statistics.median(times) * 1e6, "rounds": len(times)}
        for call, times in samples.items()
    }


if __name__ == "__main__":
    main()
