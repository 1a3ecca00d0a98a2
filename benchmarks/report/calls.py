"""The Markdown page of benchmarks/calls.py: the times of small calls relative to their yardsticks."""

import statistics
from dataclasses import dataclass

from benchmarks.harness.measure import BUSY
from benchmarks.report.markdown import grid


@dataclass(frozen=True)
class Target:
    """A call may take `limit` times as long as its yardstick, or with `added` `limit` microseconds longer.

    Without a limit the ratio is stated and not judged.
    """

    section: str
    call: str
    yardstick: str
    limit: float | None = None
    added: bool = False

    def of(self, sections, figure="us_min"):
        """The ratio or the difference in one process; None where one of the two was not measured."""
        found = sections.get(self.section, {})
        if self.call not in found or self.yardstick not in found:
            return None
        call, yardstick = found[self.call][figure], found[self.yardstick][figure]
        return call - yardstick if self.added else call / yardstick

    def text(self, value):
        return f"{value:+.2f} us" if self.added else f"{value:.2f}"


ONE = "one token"
DTYPES = ("fp32", "bf16")
TARGETS = [
    Target(ONE, "apply_", "two clones", 1.6),
    Target(ONE, "apply", "two clones", 1.9),
    Target(ONE, "apply out=", "two clones", 1.9),
    Target(ONE, "apply_", "op rotate_", 1.5, added=True),
    Target(ONE, "apply", "op rotate", 1.5, added=True),
    Target(ONE, "apply out=", "op rotate_out", 1.5, added=True),
    Target(ONE, "apply positions", "op rotate, positions", 1.5, added=True),
    Target(ONE, "apply, recorded", "two multiplications, recorded", 1.7),
    Target(ONE, "op rotate in a Function", "two multiplications, recorded"),
    Target(ONE, "apply, forward+backward", "two multiplications, forward+backward", 1.5),
    Target(ONE, "op rotate in a Function, forward+backward", "two multiplications, forward+backward"),
    Target(ONE, "rope.apply", "apply", 1.2),
    Target(ONE, "apply inv_freq", "apply", 1.8),
    Target("decode fp32", "rope_ext in place", "copy", 1.1),
    Target("decode bf16", "rope_ext in place", "copy", 1.5),
    *(Target(f"decode {dtype}, 4 ms between calls", "rope_ext in place", "copy") for dtype in DTYPES),
    Target(ONE, "apply_", "vLLM", 1.05),
    Target(ONE, "apply out=", "ONNX Runtime", 1.05),
    *(Target(f"decode {dtype}", "rope_ext in place", "vLLM", 1.05) for dtype in DTYPES),
    Target("decode fp32", "rope_ext out=", "ONNX Runtime", 1.05),
]


def markdown(report):
    parts = [f"# What a small call costs\n\n{_title(report)}", "## Targets", _targets_table(report)]
    for section in report["processes"][0]["sections"]:
        parts += [f"## {section[0].upper()}{section[1:]}", _calls_table(section, report)]
    left_out = {name: why for process in report["processes"] for name, why in process["left_out"].items()}
    if left_out:
        parts += ["## Left out", "\n".join(f"* {name}: {why}" for name, why in left_out.items())]
    return "\n\n".join(parts) + "\n"


def _title(report):
    m = report["machine"]
    origin = f"{m['cpu']} ({m['capability']}), torch {m['torch']}, commit {m['commit']}, {m['date']}."
    busy = max(cores for process in report["processes"] for cores in process["busy"].values())
    lines = [
        f"{origin} One token is measured on one thread, decode on {report['threads']}.",
        "Each process interleaves all calls of a section; times, in us, are minima and medians over its rounds.",
        "",
        "* *two clones*: `clone` of q and k. *op rotate*: the op `torch.ops.rope_ext.rotate`, called directly.",
        "* *op rotate in a Function*: that op in an `autograd.Function` that does nothing else.",
        "* *recorded*: q and k require grad, so that the call records its derivative.",
        "* *4 ms between calls*: each call follows a pause in which the threads fall asleep.",
    ]
    if busy > BUSY:
        lines.append(f"* Other processes used up to {busy:.1f} cores during a section.")
    return "\n".join(lines)


def _targets_table(report):
    """A line per target: its figure in each process, from minima, and the median of these beside the limit."""
    lines = []
    for target in TARGETS:
        values = [target.of(process["sections"]) for process in report["processes"]]
        if None in values:
            continue
        middle = statistics.median(values)
        by_medians = statistics.median(target.of(process["sections"], "us_median") for process in report["processes"])
        where = "" if target.section == ONE else f"{target.section}: "
        cells = [f"{where}{target.call}", target.yardstick, ", ".join(map(target.text, values))]
        cells += [target.text(middle), target.text(by_medians)]
        if target.limit is None:
            cells += ["", ""]
        else:
            cells += [target.text(target.limit), "met" if middle <= target.limit else "**missed**"]
        lines.append(cells)
    note = (
        "A figure is the time of a call divided by the time of its yardstick or, with the unit us, their difference.\n"
    )
    note += "The columns are the figure from the minima of each process, the median of these figures, the same median\n"
    note += "from medians over the rounds, and the limit that the project has set itself."
    head = ["call", "yardstick", "in each process", "median", "from medians", "limit", ""]
    return f"{note}\n\n{grid(head, 4, lines)}"


def _calls_table(section, report):
    found = [process["sections"][section] for process in report["processes"]]
    lines = []
    for call in found[0]:
        minima, medians = ([process[call][key] for process in found] for key in ("us_min", "us_median"))
        cells = [call, ", ".join(f"{us:.2f}" for us in minima)]
        lines.append([*cells, f"{statistics.median(minima):.2f}", f"{statistics.median(medians):.2f}"])
    return grid(["call", "minimum in each process", "median of minima", "median of medians"], 3, lines)
