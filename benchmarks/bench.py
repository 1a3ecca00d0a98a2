"""Time rope_ext beside the code that models run: `python -m benchmarks.bench`, or with -q in less than a minute.

All variants of a case are interleaved in one process, so that noise of the machine hits all alike; figures are medians.
Every result of every variant is compared with the exact one in the same run. The clock excludes building tables,
compiling and the loss. It includes the allocation of results, because users pay for it; above 32 MiB glibc usually maps
new pages at each call, which can take most of the time (see --malloc).

--peers adds the implementations of other libraries that are installed. On a CPU: transformers, rotary-embedding-torch,
onnxruntime (with onnx), jax, mlx, vllm (CPU build), sgl_kernel, kernels (with its rotary kernel already downloaded).
On a GPU, --device cuda: flash_attn, liger_kernel, transformer_engine, apex, vllm, flashinfer.
"""

import argparse
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

import rope_ext
from benchmarks.baselines import POOLED, VARIANTS, peers, peers_cpu, peers_gpu
from benchmarks.harness import instructions
from benchmarks.harness.cases import DTYPES, MEMORIES, PAIRINGS, PASSES, Case
from benchmarks.harness.clocks import CudaClock, HostClock
from benchmarks.harness.machine import machine
from benchmarks.harness.measure import run_case
from benchmarks.harness.shapes import SHAPES
from benchmarks.report.files import draw, printed, write

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = [shape.name for shape in SHAPES]
GPU_NAMES, GPU_DTYPES = ["prefill", "train", "decode", "tiny", "long", "video"], ["bf16", "fp32", "fp16"]
# {(device, --quick): defaults of the options}. bounds: seconds per case, attempts to measure it undisturbed.
PRESETS = {
    ("cpu", False): {"shapes": NAMES[:-1], "dtypes": list(DTYPES), "pairings": PAIRINGS, "bounds": (2.0, 2)},
    ("cpu", True): {"shapes": ["train", "decode"], "dtypes": ["bf16"], "pairings": ["half"], "bounds": (0.5, 1)},
    ("cuda", False): {"shapes": GPU_NAMES, "dtypes": GPU_DTYPES, "pairings": PAIRINGS, "bounds": (0.6, 1)},
    ("cuda", True): {"shapes": ["train", "decode"], "dtypes": ["bf16"], "pairings": ["half"], "bounds": (0.3, 1)},
}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-q", "--quick", action="store_true", help="two shapes, bf16, half pairing, less time per case")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=NAMES)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES))
    parser.add_argument("--pairings", nargs="+", choices=PAIRINGS)
    kinds = [f"{dtype}/{pairing}" for dtype in DTYPES for pairing in PAIRINGS]
    listed = "DTYPE/PAIRING, instead of --dtypes and --pairings; a GPU measures them in this order"
    parser.add_argument("--kinds", nargs="+", choices=kinds, metavar="KIND", help=listed)
    only = "shapes for which torch.compile is timed, which compiles for each case; default: all"
    parser.add_argument("--compiled", nargs="*", choices=NAMES, default=NAMES, metavar="SHAPE", help=only)
    parser.add_argument("--norm", action="store_true", help="with an RMSNorm of the heads before the rotation")
    parser.add_argument("--memory", nargs="+", choices=MEMORIES, default=["bshd"], help="memory order of q and k")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()], help="threads of the CPU")
    parser.add_argument("--peers", action="store_true", help="also time other libraries that are installed")
    malloc = "memory of new results; pool: one more row, with set_output_pool; tuned: everything after tune_malloc"
    parser.add_argument("--malloc", nargs="+", choices=["default", "tuned", "pool"], default=["default"], help=malloc)
    parser.add_argument("--instructions", action="store_true", help="also count instructions per call by valgrind")
    parser.add_argument("--rounds", type=int, default=301, help="maximum per case; time per case is bounded too")
    parser.add_argument("--budget", type=float, help="seconds after which no further case begins")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    written = "name of the files NAME.md, .json, .png; default: cpu or gpu, with _norm and _quick"
    parser.add_argument("--name", help=written)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # one setting's rows, for the parent process
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, got none")
    if options.device == "cuda" and (options.malloc != ["default"] or options.instructions):
        parser.error("--malloc and --instructions are for --device cpu")
    if options.norm and options.peers:
        parser.error("--norm is for rope_ext and PyTorch: no peer normalizes heads")
    name = {"cpu": "cpu", "cuda": "gpu"}[options.device] + "_norm" * options.norm + "_quick" * options.quick
    options.name = options.name or name
    return options


def main():
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):  # even where a parent ignores them, so that the report is written
        signal.signal(number, signal.default_int_handler)
    options = parse()
    report = {"device": options.device, "machine": machine(options.device), "rows": [], "missing": {}}
    report |= {"failed": [], "not_measured": []}
    settings = settings_of(options)
    if len(settings) == 1:
        try:
            measure(options, *settings[0], started, report)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # `timeout` sends it twice
            report["not_measured"].append("all later cases: interrupted")
    else:  # the threads of some peers, and malloc, can be set once per process
        parts = [part_of_child(*setting, options) for setting in settings]
        report |= {"rows": [row for part in parts for row in part["rows"]], "missing": parts[0]["missing"]}
    if options.rows:
        options.rows.write_text(json.dumps(report))
        return
    if not report["rows"]:
        raise SystemExit("\n".join(["nothing was measured", *report["failed"]]))
    if options.instructions:
        report["instructions"] = instructions.count()
    path = options.output / options.name
    write(report, path)
    print(printed(report), end="")
    try:
        draw(report, path)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
    if report["failed"]:
        raise SystemExit("\n".join(["cases that failed:", *report["failed"]]))


def settings_of(options):
    """[(threads, malloc)]: the settings that hold for a whole process."""
    malloc = ["default"] if {"default", "pool"} & set(options.malloc) else []
    malloc += ["tuned"] if "tuned" in options.malloc else []
    return list(itertools.product(options.threads, malloc))


def part_of_child(threads, malloc, options):
    """The report of a child process with one setting."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        malloc = ["tuned"] if malloc == "tuned" else [m for m in options.malloc if m != "tuned"]
        setting = [
            "--threads",
            str(threads),
            "--malloc",
            *malloc,
            "--rows",
            str(path),
        ]  # the last value of an option wins
        subprocess.run([sys.executable, "-m", "benchmarks.bench", *sys.argv[1:], *setting], check=True)
        return json.loads(path.read_text())


def cases_of(options):
    """[(shape, dtype, pairing, pass, memory)]; on a GPU the most important first, as time may run out."""
    preset = PRESETS[options.device, options.quick]
    names, dtypes, pairings = (getattr(options, key) or preset[key] for key in ("shapes", "dtypes", "pairings"))
    shapes = [shape for shape in SHAPES if shape.name in names]
    order = PRESETS[options.device, False]["dtypes"]
    kinds = options.kinds or [f"{d}/{p}" for p in PAIRINGS if p in pairings for d in order if d in dtypes]
    every = itertools.product(shapes, order, PAIRINGS, PASSES, options.memory)
    cases = [case for case in every if "/".join(case[1:3]) in kinds]
    if options.device == "cuda":
        cases.sort(key=lambda case: kinds.index("/".join(case[1:3])))
    return cases


def measure(options, threads, malloc, started, report):
    """Add a row per case to the report, and the missing peers with the reasons."""
    from torch._inductor import config  # late: it takes seconds to import

    torch.set_num_threads(threads)
    config.compile_threads = 1  # no worker processes, which would use a core while variants are timed
    if malloc == "tuned":
        rope_ext.tune_malloc()
    clock = HostClock() if options.device == "cpu" else CudaClock()
    if options.device == "cuda":
        report["empty_launch"] = clock.empty_launch()
    variants, report["missing"] = chosen_variants(options, threads)
    bounds = PRESETS[options.device, options.quick]["bounds"]
    for arguments in (progress := tqdm(cases_of(options))):
        *of_case, memory = arguments
        if options.budget and time.monotonic() - started > options.budget:
            report["not_measured"].append(" ".join((of_case[0].name, *arguments[1:])))
            continue
        case = Case(*of_case, memory, threads, options.device, options.norm)
        progress.set_description(f"{case} {threads}t {malloc}")
        row = {"shape": dataclasses.asdict(case.shape), "dtype": case.dtype, "pairing": case.pairing}
        row |= {"pass": case.which, "memory": case.memory, "threads": threads, "malloc": malloc, "norm": case.norm}
        try:
            # GPU: the cost of launching a forward pass is measured without grad, apart from that in training.
            with torch.set_grad_enabled(case.which != "forward" or options.device == "cpu"):
                some = [v for v in variants if v.name != "torch.compile" or case.shape.name in options.compiled]
                report["rows"].append(row | run_case(case, some, clock, options.rounds, *bounds))
        except (Exception, SystemExit) as error:
            if options.device == "cpu":
                raise
            report["failed"].append(
                f"{case}: {' '.join(str(error).split())}"
            )  # GPU time is rare: go on with the other cases
        if options.budget:
            write(report, options.output / options.name)  # after each case, since the process may be killed


def chosen_variants(options, threads):
    """([Variant], {peer: reason why it is missing})."""
    variants, missing = list(VARIANTS), {}
    if "pool" in options.malloc:
        variants.insert(2, POOLED)
    if options.peers:
        found, missing = peers.find(peers_gpu.PEERS if options.device == "cuda" else peers_cpu.PEERS, threads)
        variants += found
        if missing:
            print("left out:", "; ".join(f"{name} ({why})" for name, why in missing.items()), file=sys.stderr)
    return variants, missing


if __name__ == "__main__":
    main()
