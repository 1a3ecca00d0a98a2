"""Time of rope_ext next to what models run: `python benchmarks/bench.py`, or with -q in less than a minute.

All variants of a case take turns in one process, so the noise of the machine hits all alike; figures are medians. Every
variant's result is compared with the exact one in the same run. Not timed: making the tables, compiling, the loss.
Timed, because users pay for it: allocating the result, where a variant does. For tensors above 32 MiB, which glibc
mostly makes of fresh pages at each call, that can be most of the time: see --malloc.

--peers adds other people's implementations, those that are installed: transformers, rotary-embedding-torch, onnxruntime
(with onnx), jax, mlx, vllm (its CPU build), sgl_kernel, kernels (with its rotary kernel downloaded before).
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import instructions
import peers
import torch
import torch._inductor.config
from baselines import POOLED, VARIANTS
from cases import DTYPES, MEMORIES, PAIRINGS, PASSES, Case
from measure import run_case
from report import markdown, summary
from shapes import SHAPES
from tqdm import tqdm

import rope_ext

HERE = Path(__file__).resolve().parent
FULL = {"shapes": [shape.name for shape in SHAPES], "dtypes": list(DTYPES), "pairings": PAIRINGS}
QUICK = {"shapes": ["train", "decode"], "dtypes": ["bf16"], "pairings": ["half"]}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-q", "--quick", action="store_true", help="two shapes, bf16, half, and less time per case")
    parser.add_argument("--shapes", nargs="+", choices=FULL["shapes"])
    parser.add_argument("--dtypes", nargs="+", choices=FULL["dtypes"])
    parser.add_argument("--pairings", nargs="+", choices=PAIRINGS)
    parser.add_argument("--memory", nargs="+", choices=MEMORIES, default=["bshd"], help="forms of q and k in memory")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--peers", action="store_true", help="also other people's implementations, if installed")
    parser.add_argument(
        *["--malloc"],
        **{"nargs": "+", "choices": ["default", "tuned", "pool"], "default": ["default"]},
        help="where fresh results lie; pool: a row with rope_ext.set_output_pool; tuned: all with rope_ext.tune_malloc",
    )
    parser.add_argument("--instructions", action="store_true", help="also count those of a call, if valgrind is there")
    parser.add_argument("--rounds", type=int, default=301, help="at most, per case; time per case is bounded too")
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="DIR")
    parser.add_argument("--name", help="of the files written, NAME.md, .json, .png; default cpu, with -q cpu_quick")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # of one setting, for the parent of this process
    return parser.parse_args()


def main():
    options = parse()
    settings = settings_of(options)
    if len(settings) == 1:
        rows, missing = measure_rows(options, *settings[0])
    else:  # threads of some peers, and malloc, are set once in a process
        parts = [rows_of_child(*setting, options) for setting in settings]
        rows, missing = [row for part in parts for row in part["rows"]], parts[0]["missing"]
    if options.rows:
        options.rows.write_text(json.dumps({"rows": rows, "missing": missing}))
        return
    report = {"machine": machine(), "missing": missing, "rows": rows}
    report["summary"] = summary(report)
    if options.instructions:
        report["instructions"] = instructions.count()
    write(report, options.output, options.name or ("cpu_quick" if options.quick else "cpu"))


def settings_of(options):
    """[(threads, malloc)]: what a whole process has in common."""
    malloc = ["default"] if {"default", "pool"} & set(options.malloc) else []
    if "tuned" in options.malloc:
        if hasattr(rope_ext, "tune_malloc"):
            malloc.append("tuned")
        else:
            print("this rope_ext has no tune_malloc: no rows with it", file=sys.stderr)
    if not malloc:
        raise SystemExit("nothing to measure")
    return list(itertools.product(options.threads, malloc))


def rows_of_child(threads, malloc, options):
    """What this command writes for one setting."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        malloc = ["tuned"] if malloc == "tuned" else [m for m in options.malloc if m != "tuned"]
        setting = ["--threads", str(threads), "--malloc", *malloc, "--rows", str(path)]  # the last of an option wins
        subprocess.run([sys.executable, __file__, *sys.argv[1:], *setting], check=True)
        return json.loads(path.read_text())


def measure_rows(options, threads, malloc):
    """([row of each case], {peer: why it is missing})."""
    preset, bounds = (QUICK, (0.5, 1)) if options.quick else (FULL, (2.0, 2))
    names, dtypes, pairings = (getattr(options, key) or preset[key] for key in ("shapes", "dtypes", "pairings"))
    torch.set_num_threads(threads)
    torch._inductor.config.compile_threads = 1  # no worker processes, which would take a core while others are timed
    if malloc == "tuned":
        rope_ext.tune_malloc()
    variants, missing = chosen_variants(options, threads)
    shapes = [shape for shape in SHAPES if shape.name in names]
    cases = itertools.product(
        shapes, [d for d in DTYPES if d in dtypes], [p for p in PAIRINGS if p in pairings], PASSES
    )
    rows = []
    for arguments in (progress := tqdm([(*c, memory) for c in cases for memory in options.memory])):
        case = Case(*arguments, threads)
        progress.set_description(f"{case} {threads}t {malloc}")
        row = {
            "shape": dataclasses.asdict(case.shape),
            "dtype": case.dtype,
            "pairing": case.pairing,
            "pass": case.which,
        }
        row |= {"memory": case.memory, "threads": threads, "malloc": malloc}
        rows.append(row | run_case(case, variants, options.rounds, *bounds))
    return rows, missing


def chosen_variants(options, threads):
    """([Variant], {peer: why it is missing})."""
    variants, missing = list(VARIANTS), {}
    if "pool" in options.malloc:
        if hasattr(rope_ext, "set_output_pool"):
            variants.insert(2, POOLED)
        else:
            print("this rope_ext has no set_output_pool: no rows with it", file=sys.stderr)
    if options.peers:
        found, missing = peers.find(threads)
        variants += found
        if missing:
            print("left out:", "; ".join(f"{name} ({why})" for name, why in missing.items()), file=sys.stderr)
    return variants, missing


def machine():
    """Where the figures come from."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    git = ["git", "--no-optional-locks", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)  # an unpacked archive has none
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
    }


def write(report, folder, name):
    """NAME.md, which is printed too, NAME.json with all figures, NAME.png."""
    from picture import draw

    text = markdown(report)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, folder / f"{name}.png")
    print(text, end="")


if __name__ == "__main__":
    main()
