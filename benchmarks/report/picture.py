"""The picture: how fast, in percent of a copy of the same bytes, on a log axis; a line per case, a panel per form."""

import matplotlib
from matplotlib.patheffects import withStroke

from benchmarks.harness.cases import PAIRINGS
from benchmarks.report.summary import forms_of, label, title

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OURS = {"rope_ext (pool)": ("#35a2e0", "D"), "other": ("#0b4f8a", "o")}
# Okabe-Ito-like colours, each with a marker of its own: shapes tell variants apart where colours do not.
PEERS = {
    "eager": ("#d9622b", "s"),
    "torch.compile": ("#3a8f4d", "^"),
    "complex": ("#8c6bb1", "v"),
    "transformers": ("#f0a35e", "s"),
    "transformers compiled": ("#7cc48a", "^"),
    "rotary-embedding-torch": ("#c2277a", "x"),
    "HF kernels": ("#6b4f3a", "P"),
    "ONNX Runtime": ("#555555", "*"),
    "JAX": ("#c9a400", "<"),
    "MLX": ("#7f7f7f", ">"),
    "vLLM": ("#b2182b", "h"),
    "SGLang": ("#d6604d", "p"),
    "flash-attn": ("#c2277a", "x"),
    "Liger": ("#c9a400", "<"),
    "Transformer Engine": ("#555555", "*"),
    "apex": ("#7f7f7f", ">"),
    "FlashInfer": ("#6b4f3a", "P"),
}


def draw(report, path):
    """A row of panels per pairing, a column per pass and form."""
    pairings = [p for p in PAIRINGS if any(row["pairing"] == p for row in report["rows"])]
    columns = forms_of(report)
    cases = list(dict.fromkeys(_line(row, report) for row in report["rows"]))
    figure, axes = plt.subplots(
        len(pairings),
        len(columns),
        figsize=(4.6 * len(columns) + 1.5, len(pairings) * (0.26 * len(cases) + 0.9) + 1.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    used = {}
    for pairing, line in zip(pairings, axes):
        line[0].set_ylabel(f"{pairing} pairing", fontsize=13)
        for (which, form), axis in zip(columns, line):
            rows = [row for row in report["rows"] if row["pairing"] == pairing and row["pass"] == which]
            _panel(axis, {cases.index(_line(row, report)): row["results"] for row in rows}, form, used)
            axis.set_yticks(range(len(cases)), cases, fontsize=9)
            axis.tick_params(labelbottom=True)
    for (which, form), axis in zip(columns, axes[0]):
        axis.set_title(f"{form}, {which}", fontsize=13)
    axes[0, 0].set_ylim(len(cases) - 0.4, -0.6)
    figure.legend(used.values(), used, loc="outside lower center", ncols=min(len(used), 8), frameon=False, fontsize=11)
    figure.suptitle(
        f"Rotary embedding of q and k: speed in percent of a copy, log axis, right is better\n{title(report)}"
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _line(row, report):
    """A label without what the panel says."""
    return label(row, report).replace(f" {row['pairing']} {row['pass']}", "")


def _panel(axis, results_of, form, used):
    for y, results in results_of.items():
        if y % 2:
            axis.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", zorder=0)
        for name, r in results.items():
            if r["form"] != form:
                continue
            peer = name.removesuffix(" in place")
            color, marker = OURS.get(name, OURS["other"]) if r["ours"] else PEERS.get(peer, ("black", "."))
            size = 22 if name.endswith("(pool)") else 75 if r["ours"] else 38  # it lies on the row without
            percent = 100 / r["copies"]
            dots = axis.scatter(percent, y, size, color, marker=marker, zorder=3 + r["ours"], linewidths=1.2)
            used.setdefault("rope_ext" if r["ours"] and name in ("rope_ext out=", "rope_ext in place") else peer, dots)
            if r["ours"] and not name.endswith("(pool)"):
                text = axis.annotate(f"{percent:.0f}", (percent, y), (7, -3), textcoords="offset points", fontsize=8)
                text.set(zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g} %")
    axis.axvline(100, color="black", linewidth=0.8, zorder=1)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
