"""The picture for the README: forward time of others relative to rope_ext, half pairing, three shapes, two dtypes."""

from matplotlib.ticker import NullLocator

from benchmarks.report.markdown import microseconds
from benchmarks.report.picture import BLACK, BLUE, GREEN, RED, plt
from benchmarks.report.summary import title

SHAPES, DTYPES = ["prefill", "decode", "tiny"], ["fp32", "bf16"]
# (name in a report, name of rope_ext's call of the same form, name of that call in the picture, color)
BARS = [
    ("rope_ext", "rope_ext", "", BLUE),
    ("eager", "rope_ext", "apply", RED),
    ("torch.compile", "rope_ext", "apply", GREEN),
    ("ONNX Runtime", "rope_ext out=", "apply(out=)", BLACK),
    ("vLLM", "rope_ext in place", "apply_", "#888888"),
]
WIDTH, HEIGHT, DPI = 7.6, 3.7, 140  # inches; shown 700 pixels wide, a point is 1.3 pixels
FONT, GAP = 9, 0.8  # points; space between dtypes, in bars


def draw(report, path):
    """Writes the picture where the report has all its shapes and dtypes, and removes an older one where it has not."""
    rows = rows_of(report)
    if len(rows) < len(SHAPES) * len(DTYPES):
        path.unlink(missing_ok=True)
        return
    figure = picture(report, rows)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def rows_of(report):
    """{(shape, dtype): row} of the cases in the picture."""
    usual = {"pairing": "half", "pass": "forward", "memory": "bshd", "malloc": "default"}
    found = {}
    for row in report["rows"]:
        key = row["shape"]["name"], row["dtype"]
        if key[0] in SHAPES and key[1] in DTYPES and usual.items() <= row.items() and not row.get("norm"):
            found.setdefault(key, row)
    return found


def picture(report, rows):
    """A panel per shape, a bar per dtype and implementation, from 1 (rope_ext) to the ratio of the times."""
    bars = [(dtype, *bar) for dtype in DTYPES for bar in BARS if bar[0] in rows[SHAPES[0], dtype]["results"]]
    places = [i + GAP * DTYPES.index(bar[0]) for i, bar in enumerate(bars)]
    size = {"figsize": (WIDTH, HEIGHT), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(SHAPES), sharex=True, sharey=True, **size)
    for shape, axis in zip(SHAPES, axes):
        for y, (dtype, name, ours, _, color) in zip(places, bars):
            results = rows[shape, dtype]["results"]
            if name in results:
                ratio = results[name]["us"] / results[ours]["us"]
                text = f"{microseconds(results[ours])} us" if name == ours else f"{ratio:.1f}"
                axis.barh(y, ratio - 1, left=1, height=0.74, color=color)
                offset = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "fontsize": FONT}
                axis.annotate(text, (max(ratio, 1), y), **offset)
        axis.axvline(1, color=BLUE, linewidth=1.5)
        axis.set_xscale("log")
        axis.set_xlim(0.4, 36)
        axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"], fontsize=FONT)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_title(_sizes(rows[shape, DTYPES[0]]["shape"]), fontsize=FONT)
    labels = [f"{name} / {call}  {dtype}" if call else f"rope_ext: apply  {dtype}" for dtype, name, _, call, _ in bars]
    axes[0].set_yticks(places, labels, fontsize=FONT)
    axes[0].invert_yaxis()
    figure.supxlabel("time relative to rope_ext's call of the same form (log axis, rope_ext = 1)", fontsize=FONT)
    figure.suptitle(f"Rotation of q and k, forward, half pairing\n{title(report)}", fontsize=FONT)
    return figure


def _sizes(shape):
    heads = f"{shape['heads_q']} + {shape['heads_k']} heads of {shape['head_dim']}"
    return f"{shape['name']}: {shape['batch']} x {shape['seqlen']} tokens\n{heads}"
