"""Instructions of a call, which no other process disturbs: `bench.py --instructions`, by valgrind's callgrind.

Run as a program, it is what callgrind watches. Each call of getppid, which nothing else makes, ends a count: of n calls
of a variant, then of 2 n more. Their difference, divided by n, has no start-up or warm-up in it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPES, CALLS = ["decode", "tiny"], 50
DTYPE, PAIRING = "bf16", "half"
VARIANTS = ["rope_ext", "rope_ext out=", "rope_ext in place", "eager"]
FLOOR = "torch.add of q, out="  # one op of PyTorch, into preallocated memory


def count():
    """{"rows": [...]}, or {"missing": a line}."""
    if not shutil.which("valgrind"):
        return {"missing": "valgrind is not installed: no instruction counts"}
    with tempfile.TemporaryDirectory() as folder:
        options = ["--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={folder}/counts"]
        command = ["valgrind", *options, sys.executable, "-m", "benchmarks.harness.instructions"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            return {"missing": f"valgrind failed: {run.stderr.strip().splitlines()[-1:]}"}
        dumps = [
            int(re.search(r"^totals: (\d+)", _dump(folder, i), re.M)[1]) for i in range(1, 1 + run.stdout.count("."))
        ]
    rows = []
    for i, (shape, variant) in enumerate((s, v) for s in SHAPES for v in [*VARIANTS, FLOOR]):
        _before, once, twice = dumps[3 * i : 3 * i + 3]
        rows.append({"shape": shape, "dtype": DTYPE, "variant": variant, "instructions": (twice - once) / CALLS})
    return {"rows": rows}


def _dump(folder, number):
    return Path(folder, f"counts.{number}").read_text()


def watched():
    import torch

    from benchmarks.baselines import VARIANTS as ALL
    from benchmarks.harness.cases import Case
    from benchmarks.harness.shapes import SHAPES as ALL_SHAPES

    torch.set_num_threads(1)
    for shape in (s for name in SHAPES for s in ALL_SHAPES if s.name == name):
        case = Case(shape, DTYPE, PAIRING, "forward", "bshd", threads=1)
        builders = {v.name: v.build for v in ALL if v.name in VARIANTS and v.pairing in (None, PAIRING)}
        calls = [builders[name](case).call for name in VARIANTS]
        q, out = case.inputs[0], torch.empty_like(case.inputs[0])
        for call in [*calls, lambda q=q, out=out: torch.add(q, q, out=out)]:
            call()  # caches of the dispatcher and the allocator
            _mark()
            for n in (CALLS, 2 * CALLS):
                for _ in range(n):
                    call()
                _mark()


def _mark():
    os.getppid()
    print(".", end="")


if __name__ == "__main__":
    watched()
