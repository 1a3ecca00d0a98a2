"""The files of a report: NAME.md, NAME.json with all figures, NAME.png, NAME_small.png. path: folder and NAME."""

import json

from benchmarks.report.markdown import markdown
from benchmarks.report.summary import summary
from benchmarks.report.targets import brief, sections


def write(report, path):
    report["summary"] = summary(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".md", markdown(report, sections(report))), (".json", json.dumps(report, indent=1) + "\n")):
        temporary = _file(path, f"{suffix}.new")  # a process killed while it writes leaves the previous report intact
        temporary.write_text(text)
        temporary.replace(_file(path, suffix))


def read(path):
    return json.loads(_file(path, ".json").read_text())


def draw(report, path):
    from benchmarks.report import picture, small_picture  # late: they import matplotlib, which is slow and optional

    picture.draw(report, _file(path, ".png"))
    small_picture.draw(report, _file(path, "_small.png"))


def printed(report):
    """What a terminal shows: all of it, or the short tables of a GPU."""
    return brief(report) if report["device"] == "cuda" else markdown(report)


def _file(path, suffix):
    return path.with_name(path.name + suffix)
