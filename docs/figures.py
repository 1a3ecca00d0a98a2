"""The figures of docs/guide.md, drawn with the package.

`python docs/figures.py` redraws all of them in seconds, `python docs/figures.py clock` only that one. Needs the extra:
pip install ".[docs]". Every number that is drawn comes from rope_ext or is computed here from its tables.
"""

import argparse
import io
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Arc, Circle, FancyArrowPatch, Rectangle
from PIL import Image
from tqdm import tqdm

import rope_ext
from rope_ext import frequencies as f

FOLDER = Path(__file__).resolve().parent / "figures"

# Okabe and Ito's colors, which stay distinct for any kind of color vision. RoPE and queries are blue, keys orange.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
PAIRS = [BLUE, ORANGE, GREEN, PURPLE]
INK = {BLUE: BLUE, ORANGE: "#9a6a00", GREEN: "#007a59", PURPLE: "#a5527f"}  # darker, for text on white
GRAY, PALE = "#777777", "#e4e4e4"
TINT = 0.45  # opacity of a colored cell with black text in it
STYLE = {
    "figure.dpi": 190,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
WIDTH = 7.5  # inches: on a page 700 pixels wide, text of size 9 is 12 pixels high

# The sentence of the guide: tokens of two channels, and the order that swaps cat and dog.
WORDS = ["the", "cat", "saw", "the", "dog"]
TOKENS = [[1.0, 0.0], [0.0, 2.0], [-0.6, 0.8], [1.0, 0.0], [0.5, -1.5]]
ORDER = [0, 4, 2, 3, 1]


def tables(inv_freq, positions):
    """cos and sin, float32, a row for each of positions (integers) and a column for each pair."""
    angles = positions[:, None].double() * inv_freq
    return angles.cos().float(), angles.sin().float()


def rotated(vector, inv_freq, positions, **options):
    """(len(positions), channels): vector, rotated to each of positions."""
    x = torch.as_tensor(vector, dtype=torch.float32).expand(1, len(positions), 1, -1)
    return rope_ext.apply(x, *tables(inv_freq, positions), **options)[0, :, 0]


def waves(positions, inv_freq):
    """Sinusoidal position embedding: sines, then cosines."""
    cos, sin = tables(inv_freq, positions)
    return torch.cat((sin, cos), dim=-1)


def t5_bucket(distance):
    """Bucket of a distance back in the text: T5's decoder, 32 buckets, the last from 128 * 8 ** (-1 / 16) on."""
    if distance < 16:
        return distance
    return min(31, 16 + int(math.log(distance / 16) / math.log(128 / 16) * 16))


def subplots(rows, columns, height, **options):
    return plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)


def arrow(axis, vector, color, start=(0, 0), **options):
    options = {"arrowstyle": "-|>", "mutation_scale": 16, "linewidth": 2, "shrinkA": 0, "shrinkB": 0, **options}
    end = start[0] + vector[0], start[1] + vector[1]
    axis.add_patch(FancyArrowPatch(start, end, color=color, **options))


def plane(axis, low, high):
    """Axes through the origin, of equal scale."""
    axis.set(xlim=low, ylim=high, aspect="equal")
    axis.spines[["left", "bottom"]].set(position="zero", color="#aaaaaa")
    axis.tick_params(colors=GRAY, labelsize=9)


def degrees(vector):
    return math.degrees(math.atan2(vector[1], vector[0]))


def attention_weights(x, inv_freq):
    q = torch.stack([rotated(token, inv_freq, torch.tensor([m]))[0] for m, token in enumerate(x)])
    return (q @ q.T).softmax(dim=-1)


def order():
    figure, axes = subplots(2, 2, 7.6)
    for row, (name, speed) in zip(axes, (("without positions", 0.0), ("with RoPE", 0.5))):
        for axis, places in zip(row, (range(5), ORDER)):
            weights = attention_weights([TOKENS[i] for i in places], torch.tensor([speed]))
            words = [WORDS[i] for i in places]
            axis.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1.15)
            for i in range(5):
                for j in range(5):
                    color = "white" if weights[i, j] > 0.65 else "black"
                    axis.text(j, i, f"{weights[i, j]:.2f}", ha="center", va="center", color=color, fontsize=10)
            cat = words.index("cat")
            axis.add_patch(Rectangle((cat - 0.5, 1.5), 1, 1, fill=False, edgecolor=RED, linewidth=3, clip_on=False))
            axis.set_xticks(range(5), words)
            axis.set_yticks(range(5), words)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(f"{name}:\n“{' '.join(words)}”")
    for axis in axes[:, 0]:
        axis.set_ylabel("query")
    for axis in axes[1]:
        axis.set_xlabel("key")
    return figure


def positions():
    figure, axes = subplots(1, 3, 3.2)
    integer, binary, sinusoidal = axes[0]
    place = torch.arange(33)
    integer.plot(place, place, color=GRAY, drawstyle="steps-post")
    integer.set(title="integer: grows", ylabel="value")
    integer.set_yticks(range(0, 33, 8))
    for bit in range(4):
        color, base = PAIRS[bit], 1.5 * bit
        binary.step(place, base + (place >> bit & 1), where="post", color=color)
        fine = torch.linspace(0, 32, 400)
        sinusoidal.plot(fine, base + 0.5 + 0.5 * waves(fine, f.default(8, base=16.0).inv_freq)[:, bit], color=color)
    binary.set(title="bits: jump", ylabel="value, each from 0 to 1")
    binary.set_yticks([1.5 * b + 0.5 for b in range(4)], [f"bit {b}" for b in range(4)])
    sinusoidal.set(title="waves: smooth", ylabel="value, each from -1 to 1")
    sinusoidal.set_yticks([1.5 * b + 0.5 for b in range(4)], [f"sin {b}" for b in range(4)])
    for axis in axes[0]:
        axis.set_xlabel("position")
        axis.set_xticks(range(0, 33, 8))
        axis.grid(axis="x", color=PALE)
    return figure


def rotation():
    figure, axes = subplots(1, 1, 4.4)
    axis = axes[0, 0]
    vector = torch.tensor([3.0, 1.0])
    after = rotated(vector, torch.tensor([math.pi / 4]), torch.tensor([1]))[0]
    plane(axis, (-0.9, 4.9), (-0.5, 3.6))
    axis.add_patch(Circle((0, 0), vector.norm(), fill=False, color=PALE, linewidth=1.2))
    arrow(axis, vector.tolist(), GRAY)
    arrow(axis, after.tolist(), BLUE)
    axis.add_patch(Arc((0, 0), 2.4, 2.4, theta1=degrees(vector), theta2=degrees(after), color=RED, linewidth=2))
    axis.text(1.12, 0.9, "45°", color=RED, fontsize=13)
    axis.text(3.15, 1.05, "x = (3, 1)", color="#555555", fontsize=13)
    axis.text(after[0] + 0.2, after[1] + 0.05, f"y = ({after[0]:.3f}, {after[1]:.3f})", color=BLUE, fontsize=13)
    axis.set(xticks=range(1, 5), yticks=range(1, 4))
    axis.text(4.9, 0.12, "first channel", ha="right")
    axis.text(0.1, 3.45, "second channel")
    return figure


def clock():
    figure, (axes,) = subplots(1, 2, 3.6)
    speed = torch.tensor([0.5])
    left, right = axes
    for axis in axes:
        plane(axis, (-1.45, 1.45), (-0.6, 1.3))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.add_patch(Circle((0, 0), 1, fill=False, color=PALE))
    for m, end in enumerate(rotated([1.0, 0.0], speed, torch.arange(8))):
        arrow(left, end.tolist(), plt.get_cmap("cividis")(m / 12), linewidth=1.8)
        left.text(*(1.15 * end).tolist(), str(m), ha="center", va="center" if m else "bottom")
    left.set_title("one vector\nat positions 0 to 7")
    left.add_patch(Arc((0, 0), 1.1, 1.1, theta1=0, theta2=math.degrees(0.5), color=RED, linewidth=2))
    step = f"{speed.item():g} radians = {math.degrees(speed):.1f}°"
    left.text(0, -0.7, f"from each position to the next:\n{step}", ha="center", va="top")
    q, k = [1.0, 0.0], [0.85, 0.1]
    scores = []
    for (m, n), style in (((2, 0), "solid"), ((7, 5), "dashed")):
        q_m, k_n = rotated(q, speed, torch.tensor([m]))[0], rotated(k, speed, torch.tensor([n]))[0]
        arrow(right, q_m.tolist(), BLUE, linestyle=style)
        arrow(right, k_n.tolist(), ORANGE, linestyle=style)
        right.text(*(1.2 * q_m).tolist(), f"q at {m}", color=BLUE, ha="center", va="center")
        right.text(*(1.4 * k_n).tolist(), f"k at {n}", color=INK[ORANGE], ha="center", va="center")
        first, last = degrees(k_n), degrees(q_m)
        right.add_patch(Arc((0, 0), 0.6, 0.6, theta1=first, theta2=last, color=RED, linewidth=2))
        middle = math.radians(first + (last - first) % 360 / 2)
        at = 0.5 * math.cos(middle), 0.5 * math.sin(middle)
        right.text(*at, f"{(last - first) % 360:.0f}°", color=RED, ha="center", va="center")
        scores.append(f"(q at {m}) · (k at {n}) = {q_m @ k_n:.2f}")
    right.text(0, -0.7, "score:\n" + "\n".join(scores), ha="center", va="top")
    right.set_title("the same distance twice:\nthe same angle, the same score")
    return figure


def dials():
    places = [0, 1, 2, 3, 6, 10, 30, 100, 1000]
    inv_freq = f.default(8).inv_freq
    figure, axes = subplots(1, 1, 3.3)
    axis = axes[0, 0]
    for pair in range(4):
        ends = rotated([1.0, 0.0], inv_freq[pair : pair + 1], torch.tensor(places))
        for column, (m, end) in enumerate(zip(places, ends.tolist())):
            axis.add_patch(Circle((column, -pair), 0.42, facecolor="#f7f7f7", edgecolor="#bbbbbb"))
            tip = [0.4 * e for e in end]
            arrow(axis, tip, PAIRS[pair], start=(column, -pair), mutation_scale=11)
            if pair == 0:
                axis.text(column, 0.62, f"{m}", ha="center")
        radians = inv_freq[pair].item()
        axis.text(-2.2, -pair, f"pair {pair}", ha="right", va="center", color=INK[PAIRS[pair]])
        axis.text(-0.65, -pair, f"{math.degrees(radians):.3g}°", ha="right", va="center", color=INK[PAIRS[pair]])
    axis.text(-0.65, 0.62, "degrees\nper position", ha="right")
    axis.text((len(places) - 1) / 2, 1.02, "position", ha="center")
    axis.set(xlim=(-3.2, 8.5), ylim=(-3.5, 1.35), aspect="equal")
    axis.axis("off")
    return figure


def pairings():
    figure, axes = subplots(2, 2, 5.9, height_ratios=[1, 3.0])
    for (top, bottom), interleaved in zip(axes.T, (True, False)):
        pair_of = [c // 2 if interleaved else c % 4 for c in range(8)]
        top.set_title(f"interleaved={interleaved}", family="monospace")
        for channel, pair in enumerate(pair_of):
            top.add_patch(Rectangle((channel - 0.45, -0.45), 0.9, 0.9, color=PAIRS[pair], alpha=TINT))
            top.text(channel, 0, str(channel), ha="center", va="center", fontsize=12)
        for pair in range(4):
            first, second = (c for c in range(8) if pair_of[c] == pair)
            middle, width = (first + second) / 2, second - first
            height = 1.0 if interleaved else 2.6
            arc = Arc((middle, 0.5), width, height, theta1=0, theta2=180, color=PAIRS[pair], linewidth=2.2)
            top.add_patch(arc)
        top.set(xlim=(-0.6, 7.6), ylim=(-0.6, 2.1), aspect="equal")
        top.axis("off")
        _matrix(bottom, interleaved, pair_of)
    figure.supxlabel(
        "top: channels 0 to 7 and their pairs; $a_i$: the angle of pair $i$", fontsize=11, math_fontfamily="stix"
    )
    return figure


def _matrix(axis, interleaved, pair_of):
    """The rotation as an 8 x 8 matrix: column c is what becomes of channel c alone."""
    cos, sin = tables(f.default(8).inv_freq, torch.tensor([1]))
    for column, one in enumerate(torch.eye(8)):
        y = rope_ext.apply(one.view(1, 1, 1, 8), cos, sin, interleaved=interleaved).flatten()
        for row in range(8):
            used = y[row] != 0
            pair = pair_of[row]
            color = PAIRS[pair] if used else "#f4f4f4"
            axis.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=color, alpha=TINT if used else 1))
            function = r"\cos" if row == column else r"{-}\sin" if y[row] < 0 else r"\sin"
            name = rf"${function}\,a_{pair}$" if used else "$0$"
            color = "black" if used else GRAY
            axis.text(column, row, name, ha="center", va="center", color=color, fontsize=10, math_fontfamily="stix")
    axis.set(xlim=(-0.6, 7.6), ylim=(7.6, -0.6), aspect="equal")
    axis.axis("off")


def places():
    figure, axes = subplots(1, 1, 3.0)
    axis = axes[0, 0]
    a, b = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    inv_freq = f.default(8, base=16.0).inv_freq
    n = torch.arange(120)
    added = ((a + waves(n + 3, inv_freq)) * (b + waves(n, inv_freq))).sum(-1)
    with_rope = (rotated(a, inv_freq, n + 3) * rotated(b, inv_freq, n)).sum(-1)
    axis.plot(n, added, color=RED, linestyle="--", label="added waves")
    axis.plot(n, with_rope, color=BLUE, label="RoPE")
    axis.set(
        xlabel="position of the key (the query is 3 positions later)",
        ylabel="score",
        xlim=(0, 119),
        yticks=range(-2, 11, 2),
    )
    axis.margins(y=0.15)
    axis.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.16))
    return figure


def distance():
    figure, axes = plt.subplot_mosaic([["rope", "rope"], ["added", "t5"]], figsize=(WIDTH, 6.2))
    rope, added, t5 = (axes[name] for name in ("rope", "added", "t5"))
    inv_freq, d = f.default(128).inv_freq, torch.arange(600)
    generator = torch.Generator().manual_seed(1)
    for i in range(3):
        q, k = torch.randn(2, 128, generator=generator)
        scores = rotated(q, inv_freq, d) @ rotated(k, inv_freq, torch.tensor([0]))[0] / 128
        rope.plot(d, scores, color=SKY, linewidth=0.8, label="random q and k" if i == 0 else None)
    ones = torch.ones(128)
    rope.plot(d, rotated(ones, inv_freq, d) @ ones / 128, color=BLUE, label="q = k, all channels 1")
    rope.set(title="RoPE", ylabel="score / 128", ylim=(-0.35, 1.05), xlim=(-5, 605))
    rope.legend(loc="upper right")
    token = torch.randn(128, generator=generator)
    d = d[:150]
    for n, color, style in ((0, ORANGE, "-"), (40, GREEN, "--"), (400, PURPLE, ":")):
        key = token + waves(torch.tensor([n]), inv_freq)[0]
        scores = (token + waves(n + d, inv_freq)) @ key
        added.plot(d, scores / scores[0], color=color, linestyle=style, linewidth=1.5, label=f"key at {n}")
    added.set(title="sinusoidal addition", ylabel="score / score at distance 0", ylim=(0.72, 1.05))
    added.legend(loc="upper right", fontsize=10)
    d = torch.arange(200)
    bias = [-0.12 * t5_bucket(x) for x in d.tolist()]
    t5.step(d, bias, where="post", color=GRAY)
    t5.axvline(113, color=RED, linewidth=1, linestyle="--")
    t5.text(118, -0.5, "113 and more:\none bucket", color=RED, fontsize=10, va="top")
    t5.set(title="T5's bias (heights made up)", ylabel="added to the score", yticks=[])
    for axis in (rope, added, t5):
        axis.set_xlabel("distance")
    return figure


def longer_context():
    """Schedules that make 4096 positions 16384: name -> [(label, Frequencies)]. The lists of longrope are made up."""
    longer = {"factor": 4.0, "original_max_position": 4096}
    lists = {"short_factor": [1.0] * 64, "long_factor": torch.linspace(1, 4, 64).tolist()}
    return {
        "default": [("", f.default(128))],
        "linear": [("", f.linear(128, factor=4.0))],
        "ntk": [("", f.ntk(128, alpha=4.0))],
        "dynamic_ntk": [
            (f"{n:,} positions", f.dynamic_ntk(128, factor=1.0, max_position=4096, seqlen=n))
            for n in (16384, 8192, 4096)
        ],
        "yarn": [("", f.yarn(128, **longer))],
        "longrope": [(f"{n:,} positions", f.longrope(128, **longer, **lists, seqlen=n)) for n in (16384, 4096)],
        "llama3": [("", f.llama3(128, **longer))],
        "proportional": [("", f.proportional(128, partial_rotary_factor=0.25))],
        "warped": [("", f.warped(128, factor=4.0))],
    }


def schedules():
    figure, axes = subplots(3, 3, 7.0, sharex=True, sharey=True)
    default = f.default(128).inv_freq
    revolutions = 4096 * default / (2 * math.pi)
    for axis, (name, lines) in zip(axes.flat, longer_context().items()):
        fast = axis.axvspan(-0.5, (revolutions > 32).sum() - 0.5, color="#f7e6bd")
        slow = axis.axvspan((revolutions >= 1).sum() - 0.5, 63.5, color="#dddddd")
        for (label, schedule), color, style in zip(lines, (BLUE, GREEN, RED), ("-", "--", ":")):
            axis.plot(schedule.inv_freq / default, color=color, linestyle=style, linewidth=2.2, label=label)
        if len(lines) > 1:
            axis.legend(loc="lower left", fontsize=9, borderaxespad=0.1, handlelength=1.7)
        axis.set_title(name, family="monospace")
        scaling = lines[0][1].attention_scaling
        if scaling != 1:
            axis.text(62, 0.86, f"scaling {scaling:.3f}", ha="right", va="top", fontsize=9.5)
        axis.set(
            xlim=(-0.5, 63.5),
            ylim=(-0.05, 1.12),
            yticks=[0, 0.25, 0.5, 0.75, 1],
            yticklabels=["0", "1/4", "1/2", "3/4", "1"],
        )
        axis.set_xticks(range(0, 64, 16))
        axis.grid(axis="y", color="#cccccc", linewidth=0.6)
    figure.supylabel("speed relative to default", fontsize=11)
    axes[2, 1].set_xlabel("pair, from fast to slow")
    figure.legend(
        (fast, slow),
        ("more than 32 revolutions in 4096 positions", "less than one"),
        loc="outside lower center",
        ncols=2,
        fontsize=10,
    )
    return figure


def pruned():
    figure, (axes,) = subplots(1, 1, 3.9)
    axis = axes[0]
    rest = torch.zeros(384)
    partial, gemma = f.default(128, base=1e6), f.proportional(512, base=1e6, partial_rotary_factor=0.25)
    rows = (
        ("all channels", "default(512)", f.default(512, base=1e6).inv_freq.repeat(2), 256),
        ("the first 128", "default(128)", torch.cat((partial.inv_freq.repeat(2), rest)), 64),
        ("Gemma 4", "proportional(512)", gemma.inv_freq.repeat(2), 256),
    )
    colors = plt.get_cmap("viridis").with_extremes(bad="#dddddd")
    for row, (name, call, inv_freq, partner) in enumerate(rows):
        period = torch.where(inv_freq > 0, 2 * math.pi / inv_freq, torch.nan)
        y = -1.5 * row
        image = axis.imshow(
            period[None].numpy(),
            cmap=colors,
            norm=LogNorm(6, 6e6),
            extent=(-0.5, 511.5, y - 0.35, y + 0.35),
            aspect="auto",
        )
        axis.text(-10, y + 0.16, name, ha="right", va="center")
        axis.text(-10, y - 0.22, call, ha="right", va="center", fontsize=9, family="monospace", color="#555555")
        middle, width = 32 + partner / 2, partner
        axis.add_patch(Arc((middle, y + 0.38), width, 0.5, theta1=0, theta2=180, color=RED, linewidth=2))
        axis.text(middle, y + 0.68, f"pair ({32}, {32 + partner})", color=RED, ha="center", va="bottom", fontsize=10)
    axis.set(xlim=(-0.5, 511.5), ylim=(-3.45, 1.1), yticks=[], xlabel="channel (gray: not rotated)")
    axis.set_xticks([0, 64, 128, 256, 320, 511])
    axis.spines["left"].set_visible(False)
    figure.colorbar(image, ax=axis, label="positions per revolution", pad=0.02, aspect=16)
    return figure


def warped():
    figure, (axes,) = subplots(1, 2, 4.1)
    left, right = axes
    frequency = torch.linspace(0, math.pi - 1e-6, 300, dtype=torch.float64)
    factors = ((1, GRAY, "-"), (2, SKY, "-."), (4, BLUE, "-"), (8, PURPLE, "--"))
    for factor, color, style in factors:
        after = 2 * torch.atan(torch.tan(frequency / 2) / factor)
        left.plot(frequency, after, color=color, linestyle=style, label=f"warped, factor {factor}")
    left.plot(frequency, frequency / 4, color=RED, linestyle=":", label="linear, factor 4")
    left.set_yticks([0, math.pi / 2, math.pi], ["0", "π/2", "π"])
    left.set(title="frequency after warping", ylabel="radians per position, after", ylim=(0, 3.3))
    left.legend(fontsize=9, loc="upper left", borderaxespad=0.1, labelspacing=0.3)
    # The package's own function on frequencies up to 1, and the formula beyond.
    inv_freq = f.default(128).inv_freq
    after = 2 * torch.atan(torch.tan(frequency / 2) / 4)
    right.plot(frequency[1:], after[1:] / frequency[1:], color=BLUE, linewidth=1.2)
    ratio = f.warped(128, factor=4.0).inv_freq / inv_freq
    right.plot(inv_freq, ratio, ".", color=BLUE, label="warped, factor 4")
    ratio = f.linear(128, factor=4.0).inv_freq / inv_freq
    right.plot(inv_freq, ratio, "x", color=RED, markersize=4, label="linear, factor 4")
    right.set(title="ratio of after to before", ylabel="after / before", ylim=(0, 1.05))
    right.legend(fontsize=9, loc="upper left", borderaxespad=0.1, labelspacing=0.3)
    for axis in axes:
        span = axis.axvspan(0, 1, color="#e3eef6")
        axis.set(xlabel="radians per position, before", xlim=(0, 3.2))
        axis.set_xticks([0, 1, math.pi / 2, math.pi], ["0", "1", "π/2", "π"])
    note = "range of RoPE's own pairs (dots and crosses: the 64 pairs for D = 128)"
    figure.legend((span,), (note,), loc="outside lower center", fontsize=10)
    return figure


def axes():
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.9), width_ratios=[1.15, 1])
    colors = {"time": BLUE, "height": ORANGE, "width": GREEN, "row": ORANGE, "column": GREEN}
    thw, grid = ("time", "height", "width"), ("row", "column")
    rows = (
        ("image", grid, _axis_of(f.axial(128).inv_freq)),
        ("image,\nalternate", grid, _axis_of(f.axial(128, alternate=True).inv_freq)),
        ("Qwen2-VL", thw, f.mrope_pair_axis((16, 24, 24))),
        ("Qwen3-VL", thw, f.mrope_pair_axis((24, 20, 20), interleaved=True)),
    )
    for row, (name, names, pair_axis) in enumerate(rows):
        palette = ListedColormap([colors[n] for n in names])
        box = (-0.5, 63.5, -row - 0.32, -row + 0.32)
        left.imshow([pair_axis], cmap=palette, vmin=0, vmax=len(names) - 1, extent=box, aspect="auto")
        left.text(-2, -row, name, ha="right", va="center", fontsize=10)
    left.set(xlim=(-0.5, 63.5), ylim=(-3.5, 0.5), yticks=[], xlabel="pair", title="axis that each pair follows")
    left.set_xticks([0, 16, 32, 48, 63])
    left.spines["left"].set_visible(False)
    names = ("row or height", "column or width", "time")
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in (ORANGE, GREEN, BLUE)]
    figure.legend(handles, names, loc="outside lower left", ncols=3, fontsize=10)
    side = torch.arange(33)
    scores = grid_scores(f.axial(128).inv_freq, side, 16)
    image = right.imshow(scores.numpy(), cmap="cividis", extent=(-16.5, 16.5, 16.5, -16.5))
    right.set(title="score with the middle patch", xlabel="columns to the right", ylabel="rows down")
    right.set_xticks(range(-15, 16, 5))
    figure.colorbar(image, ax=right, shrink=0.7, label="score, 1 = with itself")
    return figure


def _axis_of(inv_freq):
    """(axes, 1, pairs) -> the axis that each pair follows."""
    return inv_freq[:, 0].argmax(dim=0).tolist()


def grid_scores(inv_freq, side, center):
    """(rows, columns): score of equal tokens, all channels 1, with the one in the center; 1 = with itself."""
    where = torch.stack([t.flatten() for t in torch.meshgrid(side, side, indexing="ij")])
    angles = (where[:, :, None] * inv_freq).sum(0)
    x = torch.ones(1, where.shape[1], 1, 2 * inv_freq.shape[-1])
    y = rope_ext.apply(x, angles.cos().float(), angles.sin().float())[0, :, 0]
    return (y @ y[center * len(side) + center] / x.shape[-1]).view(len(side), len(side))


def angle_errors(ends):
    """Largest error of cos over the last 256 positions before each of ends, D = 128: dict of name -> list."""
    ropes = {name: rope_ext.RotaryEmbedding(head_dim=128, precision=name) for name in ("hf", "exact")}
    inv_freq = f.default(128).inv_freq
    errors = {"bfloat16": [], "hf": [], "exact": []}
    for end in ends:
        where = torch.arange(end - 256, end)
        true = (where[:, None].double() * inv_freq).cos()
        product = where[:, None].to(torch.bfloat16) * inv_freq.to(torch.bfloat16)
        found = {"bfloat16": product.double().cos()} | {name: rope(where)[0] for name, rope in ropes.items()}
        for name, cos in found.items():
            errors[name].append((cos - true).abs().max().item())
    return errors


def exactness():
    figure, axes = subplots(1, 1, 3.8)
    axis = axes[0, 0]
    ends = [2**n for n in range(8, 25)]
    errors = angle_errors(ends)
    for name, color, marker, label, up in (
        ("bfloat16", ORANGE, "s", "angle is a bfloat16 product", -20),
        ("hf", GREEN, "^", "angle is a float32 product", -30),
        ("exact", BLUE, "o", "exact angle, cos rounded to float32", 9),
    ):
        axis.loglog(ends, errors[name], color=color, marker=marker, markersize=5)
        at = (ends[6], errors[name][6])
        axis.annotate(label, at, (0, up), textcoords="offset points", color=INK[color])
    marked = {256: "256", 2048: "2,048", 32768: "32,768", 131072: "131,072", 2**20: "1M", 2**24: "16M"}
    axis.set_xticks(list(marked), list(marked.values()))
    axis.set_xticks([], minor=True)
    axis.grid(axis="x", color=PALE)
    axis.set(xlabel="position", ylabel="largest error of cos", ylim=(1e-8, 4), xlim=(200, 2.2e7))
    return figure


def memory():
    panels = [["score", "matrix"], ["output", "output"]]
    figure, axes = plt.subplot_mosaic(panels, figsize=(WIDTH, 6.4), height_ratios=[1, 0.9])
    steps, window = torch.arange(96), 24
    inv_freq = f.default(8, base=100.0).inv_freq
    cos, sin = tables(inv_freq, steps)
    scale = f.xpos_scale(steps, 8, scale_base=16)
    ones = torch.ones(1, 96, 1, 8)
    q = rope_ext.apply(ones, cos * scale, sin * scale)[0, :, 0]
    k = rope_ext.apply(ones, cos / scale, sin / scale)[0, :, 0]
    scores = q @ k.T / 8
    apart = steps[:, None] - steps
    inside = (apart >= 0) & (apart < window)
    axes["score"].plot(scores[:, 0], color=GRAY, linewidth=1.2, label="fades forever")
    axes["score"].plot(scores[:window, 0], "o", color=BLUE, markersize=4, label=f"window of {window}")
    axes["score"].set(title="score against distance", xlabel="distance", ylabel="score", xlim=(-1, 60))
    axes["score"].legend()
    image = axes["matrix"].imshow(torch.where(inside, scores, torch.nan).numpy(), cmap="cividis", vmin=0, vmax=1)
    axes["matrix"].set(title="scores in the window", xlabel="position of the key", ylabel="position of the query")
    figure.colorbar(image, ax=axes["matrix"], label="score")
    signal = torch.randn(96, generator=torch.Generator().manual_seed(3)) + (steps > 40)
    direct = [sum(scores[n, 0] * signal[m - n] for n in range(min(window, m + 1))) for m in range(96)]
    decay = f.xpos_scale(torch.tensor(1), 8, scale_base=16, dtype=torch.float64)
    poles = decay * torch.complex(inv_freq.cos(), inv_freq.sin())
    states, filtered = torch.zeros(4, dtype=torch.complex128), []
    for m in range(96):
        leaves = signal[m - window] if m >= window else 0.0
        states = poles * states + signal[m] - poles**window * leaves
        filtered.append(states.real.mean())
    axis = axes["output"]
    axis.plot(signal, color="#aaaaaa", linewidth=1, label="input")
    axis.plot(direct, color=SKY, linewidth=5, alpha=0.6, label="direct sum")
    axis.plot((scores * inside) @ signal, color=BLUE, linewidth=1.5, label="attention")
    axis.plot(filtered, ".", color=RED, markersize=4, label="filter")
    axis.set(title="three ways to the same output", xlabel="position", ylabel="value", xlim=(-1, 96))
    axis.legend(loc="upper left", ncols=2)
    return figure


FIGURES = {
    draw.__name__: draw
    for draw in (
        order,
        positions,
        rotation,
        clock,
        dials,
        pairings,
        places,
        distance,
        schedules,
        pruned,
        warped,
        axes,
        exactness,
        memory,
    )
}


def save(figure, path):
    """256 colors, which are all that the figures need, in a third of the bytes; no date and no version in the file."""
    memory = io.BytesIO()
    figure.savefig(memory)
    plt.close(figure)
    Image.open(memory).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(FIGURES)}; default all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the PNG files")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"name must be one of {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(options.names or FIGURES, desc="figures", unit="figure"):
        with plt.rc_context(STYLE):
            figure = FIGURES[name]()
            save(figure, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
