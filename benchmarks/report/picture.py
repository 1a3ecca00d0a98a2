"""The picture of a whole report: speed in percent of `copy_` on a log axis, one panel per pairing and form of call."""

import matplotlib
from matplotlib.patheffects import withStroke

from benchmarks.harness.cases import PAIRINGS
from benchmarks.report.summary import forms_of, label, title

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# The colors of Okabe and Ito, which color-blind readers can tell apart.
BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
RED, PINK, BLACK, GRAY = "#d55e00", "#cc79a7", "#000000", "#767676"

# (color, marker, whether the marker is filled) of each implementation, the same in every picture. Marker and filling
# identify an implementation even without color. Within a case, implementations are drawn in this order from the top.
STYLES = {
    "rope_ext": (BLUE, "o", True),
    "rope_ext (pool)": (BLUE, "o", False),
    "rope_ext without table": (SKY, "D", True),
    "rope_ext eager rounding": (SKY, "s", False),
    "rope_ext packed": (BLUE, "P", True),
    "rms_norm + apply": (GREEN, "d", True),
    "eager": (RED, "s", True),
    "torch.compile": (GREEN, "^", True),
    "complex": (PINK, "v", True),
    "transformers": (ORANGE, "D", False),
    "transformers compiled": (GREEN, "^", False),
    "rotary-embedding-torch": (PINK, "X", False),
    "HF kernels": (ORANGE, "P", False),
    "ONNX Runtime": (BLACK, "*", True),
    "JAX": (ORANGE, "<", True),
    "MLX": (GRAY, ">", True),
    "vLLM": (BLACK, "h", False),
    "SGLang": (RED, "p", False),
    "flash-attn": (PINK, "X", True),
    "Liger": (ORANGE, "<", False),
    "Transformer Engine": (GRAY, "*", False),
    "apex": (GRAY, ">", False),
    "FlashInfer": (PINK, "v", False),
}
WIDTH, DPI = 7.6, 140  # inches; shown 700 pixels wide, a point is 1.3 pixels
FONT, LABEL = 9, 7  # points: of the text, and of the percentages beside the markers of rope_ext
MARKER, LABELED, CASE = 5.2, 7.6, 13.0  # points of height: of a marker, of one with its percentage, minimum of a case
AREA, SPREAD = 17, 0.94  # of a marker, in square points; share of a case's height that its markers use
TITLES = {"functional": "", "out=": " with out=", "in place": " in place"}


def draw(report, path):
    figure = picture(report)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def picture(report):
    """A column of panels per pairing, a row per form and pass; every row is as high as its implementations need."""
    pairings = [p for p in PAIRINGS if any(row["pairing"] == p for row in report["rows"])]
    lines = forms_of(report)
    cases = list(dict.fromkeys(_case(row, report) for row in report["rows"]))
    heights = [len(cases) * _points_of_case(report, which, form) / 72 for which, form in lines]
    size = WIDTH, sum(heights) + 0.5 * len(lines) + 1.7
    options = {"sharex": True, "squeeze": False, "layout": "constrained", "height_ratios": heights}
    figure, axes = plt.subplots(len(lines), len(pairings), figsize=size, **options)
    used = {}
    for (which, form), line in zip(lines, axes):
        for pairing, axis in zip(pairings, line):
            rows = [row for row in report["rows"] if row["pairing"] == pairing and row["pass"] == which]
            used |= _panel(axis, {cases.index(_case(row, report)): row["results"] for row in rows}, form)
            axis.set_yticks(range(len(cases)), cases if axis is line[0] else [], fontsize=FONT)
            axis.set_ylim(len(cases) - 0.5, -0.5)
            axis.tick_params(labelbottom=True, labelsize=FONT)
            name = which.replace("+", " + ") + TITLES[form]
            axis.set_title(f"{name}, {pairing}", fontsize=FONT, fontweight="bold")
    shares = [100 / r["copies"] for row in report["rows"] for r in row["results"].values()]
    axes[0, 0].set_xlim(min(shares) / 1.4, max(shares) * 2.4)  # room for a percentage on the right
    used = {name: used[name] for name in sorted(used, key=_place)}
    figure.legend(used.values(), used, loc="outside lower center", ncols=3, frameon=False, fontsize=FONT)
    what = "Rotation of q and k: speed in % of copy_ into preallocated memory (log axis, right is faster)"
    figure.suptitle(f"{what}\n{title(report)}", fontsize=FONT)
    return figure


def _case(row, report):
    """The name of a case without pairing and pass, which the panel names."""
    return label(row, report).replace(f" {row['pairing']} {row['pass']}", "")


def _implementation(name):
    """The key of a result in STYLES: the forms of an implementation share one style, since a panel has one form."""
    return name.removesuffix(" in place").removesuffix(" out=")


def _place(implementation):
    return list(STYLES).index(implementation)


def _implementations(results_of_cases, form):
    """{implementation: whether it is ours} in one form of call, in the order of STYLES."""
    found = [(_implementation(n), r) for results in results_of_cases for n, r in results.items()]
    found = {name: r["ours"] for name, r in found if r["form"] == form}
    return {name: found[name] for name in sorted(found, key=_place)}


def _points_of_case(report, which, form):
    """The height of a case in points, at which no marker or percentage touches another one."""
    of_rows = [_implementations([row["results"]], form) for row in report["rows"] if row["pass"] == which]
    ours = max(sum(found.values()) for found in of_rows)
    return max(CASE, (LABELED if ours > 1 else MARKER) * (0.4 + max(map(len, of_rows))))


def _panel(axis, results_of, form):
    """Draws the results of one form. Returns {implementation: its marker}."""
    names = _implementations(results_of.values(), form)
    used = {}
    for y, results in results_of.items():
        if y % 2:
            axis.axhspan(y - 0.5, y + 0.5, color="#f0f0f0", zorder=0)
        found = {_implementation(n): r for n, r in results.items() if r["form"] == form}
        for i, name in enumerate(name for name in names if name in found):
            place = 100 / found[name]["copies"], y + SPREAD * ((i + 0.5) / len(found) - 0.5)
            used[name] = _marker(axis, place, name, found[name]["ours"])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g} %")
    axis.axvline(100, color="black", linewidth=0.8, zorder=1)
    axis.grid(axis="x", color="#d0d0d0", linewidth=0.6, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    return used


def _marker(axis, place, implementation, ours):
    color, marker, filled = STYLES[implementation]
    if ours:
        text = axis.annotate(f"{place[0]:.0f}", place, (5, 0), textcoords="offset points", fontsize=LABEL, va="center")
        text.set(zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")])
    faces = color if filled else "white"
    return axis.scatter(*place, AREA, faces, marker=marker, edgecolors=color, zorder=3 + ours, linewidths=1)
