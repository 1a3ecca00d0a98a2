"""The picture: how fast, in percent of a copy of the same bytes, on a log axis; a line per case, a panel per form."""

import matplotlib
from matplotlib.patheffects import withStroke

from benchmarks.harness.cases import PAIRINGS
from benchmarks.report.summary import forms_of, label, title

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# (colour, marker) of each implementation, the same in every picture. No two share a colour. Within a case they lie
# in this order, from top to bottom.
STYLES = {
    "rope_ext": ("#0b4f8a", "o"),
    "rope_ext (pool)": ("#00a6b4", "D"),
    "rope_ext without table": ("#35a2e0", "D"),
    "rope_ext eager bits": ("#7fc4e8", "s"),
    "rope_ext packed": ("#12305a", "P"),
    "rms_norm + apply": ("#a0522d", "d"),
    "eager": ("#d9622b", "s"),
    "torch.compile": ("#3a8f4d", "^"),
    "complex": ("#8c6bb1", "v"),
    "transformers": ("#f0a35e", "s"),
    "transformers compiled": ("#7cc48a", "^"),
    "rotary-embedding-torch": ("#c2277a", "x"),
    "HF kernels": ("#6b4f3a", "P"),
    "ONNX Runtime": ("#333333", "*"),
    "JAX": ("#c9a400", "<"),
    "MLX": ("#8f8f8f", ">"),
    "vLLM": ("#b2182b", "h"),
    "SGLang": ("#ef8a9a", "p"),
    "flash-attn": ("#5e3c99", "X"),
    "Liger": ("#a6761d", "<"),
    "Transformer Engine": ("#1b7f79", "*"),
    "apex": ("#9a9a00", ">"),
    "FlashInfer": ("#e377c2", "P"),
}
LINE, LABEL = 0.46, 7.5  # inches per case; font size, in points, of the figures beside our dots


def draw(report, path):
    figure = picture(report)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def picture(report):
    """A row of panels per pairing, a column per pass and form."""
    pairings = [p for p in PAIRINGS if any(row["pairing"] == p for row in report["rows"])]
    columns = forms_of(report)
    cases = list(dict.fromkeys(_line(row, report) for row in report["rows"]))
    size = 4.6 * len(columns) + 1.5, len(pairings) * (LINE * len(cases) + 0.9) + 1.6
    options = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(pairings), len(columns), figsize=size, **options)
    used = {}
    for pairing, line in zip(pairings, axes):
        line[0].set_ylabel(f"{pairing} pairing", fontsize=13)
        for (which, form), axis in zip(columns, line):
            rows = [row for row in report["rows"] if row["pairing"] == pairing and row["pass"] == which]
            results = {cases.index(_line(row, report)): row["results"] for row in rows}
            used |= _panel(axis, results, form)
            axis.set_yticks(range(len(cases)), cases, fontsize=9)
            axis.tick_params(labelbottom=True)
    for (which, form), axis in zip(columns, axes[0]):
        axis.set_title(f"{form}, {which}", fontsize=13)
    axes[0, 0].set_ylim(len(cases) - 0.4, -0.6)
    shares = [100 / r["copies"] for row in report["rows"] for r in row["results"].values()]
    axes[0, 0].set_xlim(min(shares) / 1.4, max(shares) * 2.2)  # room for a label on the right
    used = {name: used[name] for name in sorted(used, key=_place)}
    figure.legend(used.values(), used, loc="outside lower center", ncols=min(len(used), 8), frameon=False, fontsize=11)
    figure.suptitle(
        f"Rotary embedding of q and k: speed in percent of a copy, log axis, right is better\n{title(report)}"
    )
    return figure


def _line(row, report):
    """The label of a case, without pairing and pass, which the panel names."""
    return label(row, report).replace(f" {row['pairing']} {row['pass']}", "")


def _implementation(name):
    """The key of a result in STYLES: forms of one implementation look alike, as each panel has one form."""
    return name.removesuffix(" in place").removesuffix(" out=")


def _place(implementation):
    return list(STYLES).index(implementation)


def _panel(axis, results_of, form):
    """Draws the results of that form, each implementation at a height of its own. {implementation: its dots}."""
    found = {_implementation(n) for results in results_of.values() for n, r in results.items() if r["form"] == form}
    heights = {name: (i + 0.5) / len(found) - 0.5 for i, name in enumerate(sorted(found, key=_place))}
    used = {}
    for y, results in results_of.items():
        if y % 2:
            axis.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", zorder=0)
        for name, r in results.items():
            if r["form"] == form:
                implementation = _implementation(name)
                place = 100 / r["copies"], y + 0.84 * heights[implementation]
                used[implementation] = _dot(axis, place, implementation, r["ours"])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g} %")
    axis.axvline(100, color="black", linewidth=0.8, zorder=1)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    return used


def _dot(axis, place, implementation, ours):
    color, marker = STYLES[implementation]
    if ours:
        text = axis.annotate(f"{place[0]:.0f}", place, (6, 0), textcoords="offset points", fontsize=LABEL, va="center")
        text.set(zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")])
    return axis.scatter(*place, 40 if ours else 34, color, marker=marker, zorder=3 + ours, linewidths=1.2)
