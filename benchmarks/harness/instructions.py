"""Instructions per call, counted by valgrind's callgrind; other processes do not disturb them.

Run as a program, this module is the process that callgrind observes. A call of getppid, which nothing else calls, ends
a window of a few calls; the count of a variant is the median of WINDOWS windows, since Python specializes its code in
the first ones and others contain rare events. `callgrind_control` starts counting after the imports, which run four
times as fast uncounted.

Hash order, addresses, garbage collection (off), the number of threads and the environment (paths only) are fixed, so
that they do not change a count from run to run. The C library's heap after the imports is not fixed: it depends even on
the length of a path, and malloc searches longer or shorter for free memory, up to 1.8 % of a count. Therefore two
processes with different hash seeds, and so with different heaps, count, and the smaller count is used.
"""

import concurrent.futures
import gc
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

CALLS, WINDOWS = 16, 7  # calls per window; windows per variant
SEEDS = ("0", "1")  # hash seed of each process
SHAPES, DTYPE, PAIRING = ["decode", "tiny"], "bf16", "half"
VARIANTS = ["rope_ext", "rope_ext out=", "rope_ext in place", "eager"]
FLOOR = "torch.add of q, out="  # one op of PyTorch, writing into preallocated memory
# Calls of baselines/small_calls.py for the table of benchmarks/instructions.py.
FORMS = [
    "apply",
    "apply out=",
    "apply_",
    "apply positions",
    "apply layout, offset, inverse",
    "rope.apply",
    "apply, recorded",
    "apply, forward+backward",
]


class NotCounted(Exception):
    """Counting failed; the message says why."""


def count():
    """The counts of SHAPES for bench.py: {"rows": [...]}, or {"missing": reason}."""
    try:
        found, _ = counted("shapes")
    except NotCounted as why:
        return {"missing": str(why)}
    rows = [(*name.split(": "), n) for name, n in found.items()]
    return {"rows": [{"shape": s, "dtype": DTYPE, "variant": v, "instructions": n} for s, v, n in rows]}


def counted(what):
    """({name: instructions per call}, the environment as valgrind presents it). what: "shapes" or "forms"."""
    if not shutil.which("valgrind") or not shutil.which("callgrind_control"):
        raise NotCounted("valgrind is not installed: no instruction counts")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = list(threads.map(partial(_counted_once, what), SEEDS))
    counts = [counts for counts, _ in found]
    least = {name: min(count[name] for count in counts) for name in counts[0]}
    return least, environment() | {"cpu_isa": found[0][1]}


def _counted_once(what, seed):
    """({name: instructions per call}, instruction set) of one process."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--instr-atstart=no", "--dump-before=getppid", f"--callgrind-out-file={folder}/counts"]
        command = ["valgrind", "--tool=callgrind", *options, sys.executable, "-m", __name__, what]
        if shutil.which("setarch"):
            command = ["setarch", "--addr-no-randomize", *command]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
        fixed = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(command, env=kept | fixed, capture_output=True, text=True, check=False)
        if run.returncode:
            raise NotCounted(f"valgrind failed: {' '.join(run.stderr.strip().splitlines()[-1:])}")
        said = json.loads(run.stdout)
        dumps = [_total(Path(folder, f"counts.{i}")) for i in range(1, 1 + (1 + WINDOWS) * len(said["names"]))]
    windows = [windows for _before, *windows in zip(*[iter(dumps)] * (1 + WINDOWS))]
    counts = [statistics.median(w) / CALLS for w in windows]
    return dict(zip(said["names"], counts)), said["cpu_isa"]


def environment():
    """The versions that counts depend on, besides the code of this repository, as far as known without valgrind."""
    import torch

    from rope_ext import (
        _introspect,
    )  # built by the compiler of _ops.so; with CUDA, _ops.so also holds objects of other compilers

    library = Path(_introspect.__file__).read_bytes()
    compilers = {found.decode() for found in re.findall(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", library)}
    valgrind = shutil.which("valgrind") and subprocess.run(["valgrind", "--version"], capture_output=True, text=True)
    return {
        "python": f"{platform.python_version()}, {platform.python_build()[1]}, {platform.python_compiler()}",
        "torch": torch.__version__,
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "compiler": ", ".join(sorted(compilers)),
        "valgrind": valgrind.stdout.strip().removeprefix("valgrind-") if valgrind else None,
    }


def _total(dump):
    return int(re.search(r"^totals: (\d+)", dump.read_text(), re.M)[1])


# ---- the program that callgrind observes ----


def watched(what):
    import torch

    import rope_ext

    torch.set_num_threads(1)
    calls = _forms() if what == "forms" else _shapes()
    gc.collect()
    gc.disable()
    switch = ["callgrind_control", "--instr=on", str(os.getpid())]
    subprocess.run(switch, capture_output=True, check=True)
    for call in calls.values():
        call()  # fills caches of the dispatcher and the allocator
        os.getppid()
        for _ in range(WINDOWS):
            for _ in range(CALLS):
                call()
            os.getppid()
    print(json.dumps({"names": list(calls), "cpu_isa": rope_ext.build_info()["cpu_isa"]}), flush=True)
    os._exit(0)  # finalization of Python would take seconds


def _forms():
    from benchmarks.baselines.small_calls import small_calls, tiny

    calls = small_calls(tiny())
    return {name: calls[name] for name in FORMS}


def _shapes():
    import torch

    from benchmarks.baselines import VARIANTS as ALL
    from benchmarks.harness.cases import Case
    from benchmarks.harness.shapes import SHAPES as ALL_SHAPES

    calls = {}
    for shape in (s for name in SHAPES for s in ALL_SHAPES if s.name == name):
        case = Case(shape, DTYPE, PAIRING, "forward", "bshd", threads=1)
        builders = {v.name: v.build for v in ALL if v.name in VARIANTS and v.pairing in (None, PAIRING)}
        calls |= {f"{shape.name}: {name}": builders[name](case).call for name in VARIANTS}
        q, out = case.inputs[0], torch.empty_like(case.inputs[0])
        calls[f"{shape.name}: {FLOOR}"] = lambda q=q, out=out: torch.add(q, q, out=out)
    return calls


if __name__ == "__main__":
    watched(sys.argv[1])
