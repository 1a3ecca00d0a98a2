"""Run the test suite on each torch and each Python of some folders: `make matrix TORCHES=<folders>`.

    python -m tools.torch_matrix <folders> [--wheel <file>] [--table docs/support.md] [-- <options of pytest>]

A folder has any number of installations of torch for the Python that runs this program, and of virtual environments of
any Python, with torch and the packages that the Makefile installs for tests:

    pip install --target <folder>/2.15.0 torch==2.15.0
    python3.12 -m venv <folder>/3.12 && <folder>/3.12/bin/pip install torch==2.15.0 numpy pytest ...

The same _ops.so runs on all of them. A CUDA build of torch works on a machine without a GPU. Installations of torch are
tested with the package of the checkout, or with the wheel if one is given; environments are always tested with a wheel,
which is built if none is given, and without the tests of _introspect, a module for one Python. With a wheel and without
folders, the environment of this program is tested. The program prints the counts of each, writes them to the table, and
fails if a test fails; the output stays in build/matrix.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "matrix"
VERSIONS = "import platform, torch, rope_ext; print(platform.python_version(), torch.__version__, rope_ext.__file__)"
HEADER = ["| Python | torch | rope_ext from | commit | tests |", "|---|---|---|---|---|"]


def main(arguments):
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = arguments[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--table", type=Path)
    chosen = parser.parse_args(arguments[:end])
    found = [place for folder in chosen.folders for place in installations(folder)]
    if not chosen.folders and chosen.wheel:
        found = [(Path(sys.executable), None)]
    if not found:
        cure = "pip install --target <folder>/2.15.0 torch==2.15.0"
        sys.exit(f"folders must hold installations of torch or environments, got none: {cure}")
    if chosen.wheel or any(torch is None for _, torch in found):
        with_wheel = tree_with(chosen.wheel or build_wheel())
    failed, tested = 0, commit()
    for python, torch in found:
        from_wheel = chosen.wheel or torch is None
        row, code = run(python, torch, with_wheel if from_wheel else ROOT, options)
        failed += code != 0
        row = [*row[:2], "wheel" if from_wheel else "checkout", tested, *row[2:]]
        print(" | ".join(row), flush=True)
        if chosen.table:
            write(chosen.table, row)
    sys.exit(failed != 0)


def installations(folder):
    """[(python, torch)]: this Python with the folder of each torch, then the Python of each environment with None."""
    children = sorted((child for child in folder.resolve().iterdir() if child.is_dir()), key=release)
    environments = [(child / "bin" / "python", None) for child in children if (child / "bin" / "python").exists()]
    torches = [(sys.executable, child) for child in children if (child / "torch" / "version.py").exists()]
    return torches + environments


def release(place):
    return [int(part) for part in re.findall(r"\d+", place.name)]


def build_wheel():
    folder = LOGS / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def tree_with(wheel):
    """A copy of the checkout with the rope_ext of the wheel, without the tests of _introspect."""
    tree = LOGS / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    generated = {"rope_ext", ".git", ".venv", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache"}
    shutil.copytree(ROOT, tree, ignore=lambda folder, names: generated & set(names) if Path(folder) == ROOT else set())
    for path in (tree / "tests").glob("test_*.py"):
        if "import _introspect" in path.read_text():
            path.unlink()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(tree), str(wheel)], check=True)
    return tree


def run(python, torch, root, options):
    """([Python, torch, counts], exit status)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*([str(torch)] if torch else []), str(root)])}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    asked = subprocess.run([python, "-c", VERSIONS], env=environment, capture_output=True, text=True, cwd=root)
    if asked.returncode:
        name = (torch or python.parents[1]).name
        return [name, name, asked.stderr.strip().splitlines()[-1]], 1
    version, torch_version, file = asked.stdout.split()
    assert Path(file).is_relative_to(root), f"{file} is not in {root}"
    start = time.monotonic()
    log = LOGS / f"{version}-torch{torch_version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=root).returncode
    counts = log.read_text().strip().splitlines()[-1].strip("= ")
    print(f"{time.monotonic() - start:.0f} s, {log}", flush=True)
    counts = re.sub(r" in [\d.:s ()]+$", "", counts)
    return [version, torch_version, f"{' '.join(options)}: {counts}" if options else counts], code


def commit():
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() or "none"


def write(table, row):
    """Write the row into the table, replacing an older one for the same Python, torch and source of rope_ext."""
    text = table.read_text()
    before, rows, after = re.match(r"(.*<!-- matrix -->\n)(.*)(<!-- end of matrix -->.*)", text, re.DOTALL).groups()
    known = {tuple(cells[:3]): cells for line in rows.splitlines()[2:] if (cells := line.strip("| ").split(" | "))}
    known[tuple(row[:3])] = row
    lines = ["| " + " | ".join(cells) + " |" for _, cells in sorted(known.items(), key=lambda item: order(item[0]))]
    table.write_text(before + "\n".join([*HEADER, *lines, ""]) + after)


def order(key):
    return [[int(part) for part in re.findall(r"\d+", cell)] for cell in key[:2]] + [key[2]]


if __name__ == "__main__":
    main(sys.argv[1:])
