"""Run candidates.cu, keep its lines in FILE, and print a table: `python -m benchmarks.gpu_check.candidates FILE`.

The programs come from build/gpu, where `prepare` left them; otherwise nvcc compiles them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_check.carry import CARRIED, PROGRAMS, compile_candidates
from benchmarks.gpu_check.run import UNAVAILABLE


def main(path):
    with tempfile.TemporaryDirectory() as folder:
        programs = [CARRIED / name for name in PROGRAMS]
        if not all(program.exists() for program in programs):
            if not shutil.which("nvcc"):
                print("candidates: build/gpu has no programs, and nvcc is not installed")
                return UNAVAILABLE
            programs = compile_candidates(Path(folder), "native")
        return timed(programs, path)


def timed(programs, path):
    """Run the programs and return the exit status. Each line is written as it arrives."""
    rows, code = [], 0
    with path.open("w") as file:
        for program in programs:
            program.chmod(0o755)  # a copy may have dropped the permission
            process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
            for line in process.stdout:
                print(line, end="", file=file, flush=True)
                rows.append(json.loads(line))
            code |= process.wait()
    wrong = [f"{row['shape']} {row['dtype']} {row['candidate']}" for row in rows if row.get("same_bits") is False]
    print(table(rows))
    if wrong:
        print("not bit-identical to the shipped kernel:", ", ".join(wrong))
    return int(bool(code or wrong))


def table(rows):
    """A line per case: the shipped kernel, and the times of the four fastest others relative to it.

    Times of different programs are first divided by the time of each program's own copy.
    """
    lines = [f"an empty kernel: {row['empty_launch_us']:.2f} us" for row in rows if "empty_launch_us" in row][:1]
    cases = {}
    for row in rows:
        if "us" in row:
            cases.setdefault((row["shape"], row["dtype"]), []).append(row)
    for (shape, dtype), found in cases.items():
        shipped = found[0]
        others = sorted(
            (row["us"] / row["copy_us"] * shipped["copy_us"] / shipped["us"], label(row)) for row in found[1:]
        )
        cells = [f"{shape} {dtype}: {shipped['us']:.2f} us, {shipped['copy_percent']:.0f} % of a copy"]
        lines.append("; ".join([*cells, *(f"{name} {ratio:.3f}" for ratio, name in others[:4])]))
    return "\n".join(lines)


def label(row):
    return row["candidate"] if row["stores"] == "default" else f"{row['candidate']}, {row['stores']}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
