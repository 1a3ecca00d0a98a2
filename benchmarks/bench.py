"""Time of rope_ext next to what models run: `python benchmarks/bench.py`, or with -q in less than a minute.

All variants of a case take turns in one process, so the noise of the machine hits all alike; figures are medians. Every
variant's result is compared with the exact one in the same run. Not timed: making the tables, compiling, the loss.
Timed, because users pay for it: allocating the result, where a variant does. For tensors above 32 MiB, which glibc
mostly makes of fresh pages at each call, that can be most of the time.
"""

import argparse
import dataclasses
import datetime
import gc
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torch._inductor.config
from baselines import check, prepare
from shapes import SHAPES
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAIRINGS, PASSES = ["half", "interleaved"], ["forward", "forward+backward"]
FULL = {"shapes": [shape.name for shape in SHAPES], "dtypes": list(DTYPES), "pairings": PAIRINGS}
QUICK = {"shapes": ["train", "decode"], "dtypes": ["bf16"], "pairings": ["half"]}
SHORTEST_SAMPLE = 200e-6  # seconds; shorter calls are timed in batches
MIN_ROUNDS = 5
BUSY = 0.1  # cores; a case during which other processes use more is measured again, and marked if that is no better
COLORS = {
    "rope_ext": "#0b4f8a",
    "rope_ext out=": "#3f8fd2",
    "rope_ext in place": "#9ccbf0",
    "eager": "#d9622b",
    "torch.compile": "#3a8f4d",
    "complex": "#8c6bb1",
}


def seconds_for(step, calls):
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return time.perf_counter() - start


def measure(steps, rounds, seconds):
    """{variant: seconds of a call in each round}; fewer rounds once `seconds` are over."""
    samples = {name: [seconds_for(step, 1)] for name, step in steps.items()}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, step in steps.items():
            step()  # untimed: the clock finds caches, free memory and threads as this variant leaves them, no other
            calls = math.ceil(SHORTEST_SAMPLE / min(samples[name]))
            samples[name].append(seconds_for(step, calls) / calls)
    return {name: times[1:] for name, times in samples.items()}


def busy_elsewhere():
    """CPU seconds since boot of other processes and other guests of the host; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def measure_undisturbed(steps, rounds, seconds, attempts):
    """(cores busy elsewhere, what measure returns), the quietest attempt: waiting for a busy core costs 8 ms."""
    found = []
    while len(found) < attempts and (not found or found[-1][0] > BUSY):
        start, before = time.perf_counter(), busy_elsewhere()
        samples = measure(steps, rounds, seconds)
        found.append(((busy_elsewhere() - before) / (time.perf_counter() - start), samples))
    return min(found, key=lambda attempt: attempt[0])


def run_case(shape, dtype, pairing, which, *bounds):
    """One row of the report. bounds: rounds, seconds, attempts."""
    torch.compiler.reset()  # else shapes add up to the limit of recompilations
    backward = which == "forward+backward"
    steps, expected = prepare(shape, DTYPES[dtype], pairing == "interleaved", backward)
    errors = {name: check(name, step, expected[name]) for name, step in steps.items()}
    del expected
    gc.collect()
    gc.disable()
    busy, samples = measure_undisturbed(steps, *bounds)
    gc.enable()
    elements = shape.batch * shape.seqlen * (shape.heads_q + shape.heads_k) * shape.head_dim
    payload = elements * DTYPES[dtype].itemsize * (4 if backward else 2)  # read and written, in each direction
    us = {name: statistics.median(times) * 1e6 for name, times in samples.items()}
    results = {
        name: {
            **{"us": us[name], "us_min": min(times) * 1e6, "us_max": max(times) * 1e6, "rounds": len(times)},
            **{"gb_per_s": payload / us[name] / 1e3, "percent_of_copy": 100 * us["copy"] / us[name]},
            "times_rope_ext": us[name] / us["rope_ext"],
            "times_rope_ext_out": None if backward else us[name] / us["rope_ext out="],
            **dict(zip(("max_error", "error_bound"), errors[name])),
        }
        for name, times in samples.items()
    }
    case = {"shape": dataclasses.asdict(shape), "dtype": dtype, "pairing": pairing, "pass": which}
    return {**case, "payload_bytes": payload, "busy_elsewhere": busy, "results": results}


def machine():
    """Where the figures come from."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    git = ["git", "--no-optional-locks", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)  # an unpacked archive has none
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
    }


# ---- reporting ----


def title(report):
    m = report["machine"]
    cpu = f"{m['cpu']} ({m['capability']}), {m['threads']} thread{'s' * (m['threads'] > 1)}"
    return f"{cpu}, torch {m['torch']}, commit {m['commit']}, {m['date']}"


def table(report):
    """Markdown, one row per case. (1.5x): 1.5 times the time of rope_ext."""
    head = ["shape", "dtype", "pairing", "pass", "copy us", "rope_ext us", "GB/s", "% of copy", "out= us"]
    head, others = [*head, "in place us"], ["eager", "torch.compile", "complex"]
    lines = [head + [f"{name} us" for name in others], ["---"] * 4 + ["---:"] * 9]
    for row in report["rows"]:
        results = row["results"]
        us = {name: f"{r['us']:.1f}" if r["us"] < 100 else f"{r['us']:.0f}" for name, r in results.items()}
        ours = results["rope_ext"]
        mark = r" \*" if row["busy_elsewhere"] > BUSY else ""
        cells = [row["shape"]["name"] + mark, row["dtype"], row["pairing"], row["pass"], us["copy"], us["rope_ext"]]
        cells += [f"{ours['gb_per_s']:.1f}", f"{ours['percent_of_copy']:.0f}"]
        cells += [us.get("rope_ext out=", ""), us.get("rope_ext in place", "")]
        cells += [f"{us[n]} ({results[n]['times_rope_ext']:.1f}x)" if n in us else "" for n in others]
        lines.append(cells)
    disturbed = any(row["busy_elsewhere"] > BUSY for row in report["rows"])
    note = f"\n\n\\*: other processes kept more than {BUSY} cores busy meanwhile." if disturbed else ""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + note


def errors(report):
    """One line per dtype and variant: the largest error of all cases and the bound of that case."""
    worst = {}
    for row in report["rows"]:
        for name, result in row["results"].items():
            key = row["dtype"], name
            worst[key] = max(worst.get(key, (-1.0, 0.0)), (result["max_error"], result["error_bound"]))
    return "\n".join(f"{dtype} {name}: max error {e:.3g} (bound {b:.3g})" for (dtype, name), (e, b) in worst.items())


def draw(report, path):
    """A panel per shape (down), pass and pairing (across): time in copies, on a log axis, per dtype and variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {}
    for row in report["rows"]:
        panels.setdefault((row["shape"]["name"], row["pass"], row["pairing"]), []).append(row)
    names = list(dict.fromkeys(shape for shape, _, _ in panels))
    columns = [column for column in itertools.product(PASSES, PAIRINGS) if (names[0], *column) in panels]
    figure, axes = plt.subplots(
        len(names), len(columns), figsize=(16, 2.5 * len(names) + 1.7), sharey=True, squeeze=False, layout="constrained"
    )
    for name, line in zip(names, axes):
        line[0].set_ylabel(f"{name}\ncopies", fontsize=12)
        for column, axis in zip(columns, line):
            draw_panel(axis, panels[(name, *column)])
    for column, axis in zip(columns, axes[0]):
        axis.set_title(", ".join(column), fontsize=12)
    patches = [matplotlib.patches.Patch(color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=12)
    figure.suptitle(f"Rotary embedding of q and k: time in copies of them, log axis, lower is better\n{title(report)}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_panel(axis, rows):
    width = 0.88 / len(COLORS)
    for group, row in enumerate(rows):
        present = [name for name in COLORS if name in row["results"]]
        for i, name in enumerate(present):
            times = 100 / row["results"][name]["percent_of_copy"]
            x = group + (i - (len(present) - 1) / 2) * width
            axis.bar(x, times - 1, width, bottom=1, color=COLORS[name])
            label = f"{times:.1f}" if times < 10 else f"{times:.0f}"
            axis.annotate(label, (x, max(times, 1)), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axis.set_yscale("log")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.margins(y=0.12)
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.set_xticks(range(len(rows)), [row["dtype"] for row in rows])
    axis.yaxis.set_major_formatter("{x:g}x")
    axis.spines[["top", "right"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-q", "--quick", action="store_true", help="two shapes, bf16, half, and less time per case")
    parser.add_argument("--shapes", nargs="+", choices=FULL["shapes"])
    parser.add_argument("--dtypes", nargs="+", choices=FULL["dtypes"])
    parser.add_argument("--pairings", nargs="+", choices=PAIRINGS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=301, help="at most, per case; time per case is bounded too")
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="DIR")
    parser.add_argument("--name", help="of the files written, NAME.md, .json, .png; default cpu, with -q cpu_quick")
    options = parser.parse_args()
    preset, bounds, name = (QUICK, (0.5, 1), "cpu_quick") if options.quick else (FULL, (2.5, 2), "cpu")
    shapes = [shape for shape in SHAPES if shape.name in (options.shapes or preset["shapes"])]
    dtypes = [dtype for dtype in DTYPES if dtype in (options.dtypes or preset["dtypes"])]
    pairings = [pairing for pairing in PAIRINGS if pairing in (options.pairings or preset["pairings"])]
    torch.set_num_threads(options.threads)
    torch._inductor.config.compile_threads = 1  # no worker processes, which would take a core while others are timed
    report = {"machine": machine(), "rows": []}
    for case in (progress := tqdm(list(itertools.product(shapes, dtypes, pairings, PASSES)))):
        progress.set_description(" ".join((case[0].name, *case[1:])))
        report["rows"].append(run_case(*case, options.rounds, *bounds))
    name = options.name or name
    text = f"{title(report)}\n\n{table(report)}\n"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.md").write_text(text)
    (options.output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.output / f"{name}.png")
    print(errors(report), text, sep="\n\n", end="")


if __name__ == "__main__":
    main()
