"""The files of a report: NAME.md, NAME.json with all figures, NAME.png. path: folder and NAME.

`python -m benchmarks.report.files benchmarks/results/gpu` prints the short tables of a report from a GPU.
"""

import json
import sys
from pathlib import Path

from benchmarks.report.markdown import markdown
from benchmarks.report.summary import summary
from benchmarks.report.targets import brief, sections


def write(report, path):
    report["summary"] = summary(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    _file(path, ".md").write_text(markdown(report, sections(report)))
    _file(path, ".json").write_text(json.dumps(report, indent=1) + "\n")


def read(path):
    return json.loads(_file(path, ".json").read_text())


def draw(report, path):
    from benchmarks.report.picture import draw  # imports matplotlib, which takes its time

    draw(report, _file(path, ".png"))


def _file(path, suffix):
    return path.with_name(path.name + suffix)


if __name__ == "__main__":
    print(brief(read(Path(sys.argv[1]))), end="")
