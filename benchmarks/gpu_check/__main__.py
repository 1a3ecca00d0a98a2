"""Everything that needs a GPU, in two calls: correctness, speed, and what limits the speed.

first     smoke, launches, candidates of the kernel, bench in bf16: 330 s
second    the other tests, memcheck, bench in fp32, fp16 and interleaved pairs, ncu: 360 s
          (without a name: both, one after the other)
prepare   on a machine with nvcc and no GPU: fills build/gpu with everything that the calls would build or download

Each call begins with `build`, which loads rope_ext/_ops.so or the library in build/gpu, and compiles only if neither
works. Each part has a time limit and keeps its results so far; a part that fails or hangs does not stop the others. A
tool that does not work on this machine is "not available", which is not a failure. Only prepare downloads anything.

Environment: OUT, the folder for gpu_CALL.log, gpu_CALL.parts.json, gpu_CALL.md, .json and .png, and candidates.jsonl
(default benchmarks/results); PYTHON (default python3); COMMIT, the measured commit, where git is missing.
Exit status: 0 all passed, 1 a part failed, 2 nothing could be run.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu_check import dry_run
from benchmarks.gpu_check.call import run_call
from benchmarks.gpu_check.carry import CARRIED, ROOT, prepare
from benchmarks.gpu_check.plan import CALLS, PARTS, chosen, planned
from benchmarks.gpu_check.programs import unpacked

GPU = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"gpu_check.sh: {message}\n")


def parse(arguments):
    parser = Parser("gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", nargs="?", choices=[*CALLS, "prepare"])
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART", help=f"{', '.join(PARTS)}; may be repeated"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="other libraries: wheels, for this run only, and unpacked packages"
    )
    parser.add_argument("--seconds", type=int, metavar="N", help="time limit of all parts together")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the files to copy; needs no GPU")
    parser.add_argument(
        "--python", default="python3.12", metavar="PATH", help="prepare: a Python of the version on the GPU machine"
    )
    parser.add_argument("--architecture", default="9.0", metavar="N.N", help="prepare: compute capability of the GPU")
    options = parser.parse_args(arguments)
    if options.seconds is not None and options.seconds < 1:
        parser.error(f"--seconds must be a positive integer, got {options.seconds}")
    if options.wheels and not options.wheels.is_dir():
        parser.error(f"--wheels must be a folder, got {options.wheels}")
    options.wheels = options.wheels and options.wheels.resolve()
    options.plan = {call: chosen(call, options.only) for call in CALLS if options.call in (None, call)}
    options.plan = {call: parts for call, parts in options.plan.items() if parts}
    if options.call != "prepare" and not options.plan:
        parser.error(f"{options.call} has no part {' or '.join(options.only)}")
    return parser, options


def main(arguments=None):
    began = time.monotonic()
    parser, options = parse(arguments)
    if options.call == "prepare":
        prepare(options.python, options.architecture)
        return print(dry_run.travel_text(dry_run.travelling()).splitlines()[-1])
    total = sum(map(planned, options.plan.values()))
    seconds = {call: planned(parts) * (options.seconds or total) / total for call, parts in options.plan.items()}
    if options.dry_run:
        for call, parts in options.plan.items():
            print(dry_run.plan_text(call, parts, seconds[call]), end="\n\n")
        return print(dry_run.travel_text(dry_run.travelling()))
    python = usable_python(parser)
    out = Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    if commit := carried_commit():
        os.environ.setdefault("COMMIT", commit)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        paths = unpacked(options.wheels or CARRIED / "wheels", bool(options.wheels), Path(folder))
        failed, late = [], time.monotonic() - began
        for call, parts in options.plan.items():
            failed += run_call(call, parts, seconds[call] - late, out, python, paths)
            late = 0.0
    print(f"gpu_check.sh: {'FAILED: ' + ', '.join(failed) if failed else 'all passed'}; files in {out}")
    return int(bool(failed))


def usable_python(parser):
    """The Python of all parts, with torch and a GPU. This process imports no torch and leaves the GPU to the parts."""
    python = os.path.abspath(shutil.which(os.environ.get("PYTHON", "")) or sys.executable)
    asked = subprocess.run([python, "-c", GPU], capture_output=True, text=True, check=False)
    if asked.returncode:
        parser.error(f"needs a Python with torch, got {python}, which cannot import it")
    if not asked.stdout.strip():
        parser.error("needs a GPU that torch can use, got none")
    print(f"gpu_check.sh: {asked.stdout.strip()}", flush=True)
    return python


def carried_commit():
    """The commit that prepare built; used where git is missing, see machine.commit."""
    file = CARRIED / "carried.json"
    return json.loads(file.read_text())["commit"] if file.exists() else None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("gpu_check.sh: interrupted; the results so far are kept")
