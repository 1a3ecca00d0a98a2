"""Print an earlier report: `python -m benchmarks.report benchmarks/results/cpu`.

With --files it also rewrites the Markdown and the pictures beside the JSON in their current form, without measuring.
With --tables it prints the tables of docs/performance.md and README.md instead. Reports of benchmarks.bench and of
benchmarks.calls are accepted.
"""

import argparse
from pathlib import Path

from benchmarks.report import calls, page
from benchmarks.report.files import draw, printed, read, write


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="folder and name, without .json")
    parser.add_argument("--files", action="store_true", help="rewrite the .md and .png files")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/performance.md and README.md")
    options = parser.parse_args()
    report = read(options.path)
    if options.tables:
        text = f"{page.full_table(report)}\n\n{page.small_table(report)}\n"
    elif "processes" in report:  # of benchmarks.calls, which has no picture
        text = calls.markdown(report)
        if options.files:
            options.path.with_name(f"{options.path.name}.md").write_text(text)
    else:
        if options.files:
            write(report, options.path)
            draw(report, options.path)
        text = printed(report)
    print(text, end="")


if __name__ == "__main__":
    main()
