"""The test suite on each torch of a folder: `make matrix TORCHES=<folder>`, or python tools/torch_matrix.py <folder>.

The folder holds one installation per release, for the Python that runs this program:
    pip install --target <folder>/2.15.0 torch==2.15.0
The same rope_ext, and so the same _ops.so, runs on all of them; the other packages are those of this Python. A CUDA
build of torch serves on a machine without a GPU. What follows the folder goes to pytest, for example -k transforms.
Prints the counts of each release, and fails where one of them does.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = "import torch; print(torch.__version__, torch.__file__)"


def main(folder, *options):
    torches = sorted((p.parent.parent for p in Path(folder).resolve().glob("*/torch/version.py")), key=release)
    if not torches:
        sys.exit(
            f"{folder} must hold installations of torch, got none: pip install --target {folder}/2.15.0 torch==2.15.0"
        )
    failed = 0
    for place in torches:
        start = time.monotonic()
        version, counts, code = run(place, options)
        failed += code != 0
        print(f"torch {version:16} {time.monotonic() - start:5.0f} s   {counts}", flush=True)
    sys.exit(failed != 0)


def release(place):
    return [int(part) for part in re.findall(r"\d+", place.name)]


def run(place, options):
    """(version, pytest's last line, exit status). The output of a run that fails stays in build/matrix."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
    imported = subprocess.run(
        [sys.executable, "-c", VERSION], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    if imported.returncode:
        return place.name, imported.stderr.strip().splitlines()[-1], 1
    version, file = imported.stdout.split()
    assert Path(file).is_relative_to(place), f"{file} is not in {place}"
    log = ROOT / "build" / "matrix" / f"{version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    return version, log.read_text().strip().splitlines()[-1], code


if __name__ == "__main__":
    main(*sys.argv[1:])
