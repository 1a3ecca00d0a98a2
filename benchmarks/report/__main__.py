"""Prints an earlier report: `python -m benchmarks.report benchmarks/results/cpu`.

With --files it also writes the Markdown and the picture beside the JSON again, in their current form.
"""

import argparse
from pathlib import Path

from benchmarks.report.files import draw, printed, read, write


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="folder and name, without .json")
    parser.add_argument("--files", action="store_true", help="write the .md and .png again")
    options = parser.parse_args()
    report = read(options.path)
    if options.files:
        write(report, options.path)
        draw(report, options.path)
    print(printed(report), end="")


if __name__ == "__main__":
    main()
