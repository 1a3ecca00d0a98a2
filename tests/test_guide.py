"""docs/guide.md: the code prints what the page shows, the figures exist, and the sentences are true.

Where a sentence states a number, the test computes that number and then finds the sentence with `says`.
"""

import importlib.util
import itertools
import math
import re
import struct
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import frequencies as f
from tests.pages import FENCE, blocks_of, run_blocks

pytestmark = pytest.mark.devices("cpu")

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
BLOCKS = blocks_of(TEXT)
PROSE = " ".join(re.sub(r"^```.*?^```\n", "", TEXT, flags=re.DOTALL | re.MULTILINE).split())


FORMULAS = re.findall(r"^```\n(.*?)^```\n", re.sub(FENCE, "", TEXT), re.DOTALL | re.MULTILINE)


def says(sentence):
    """The guide contains this sentence, in its prose or in the alternative text of a figure."""
    assert " ".join(sentence.split()) in PROSE
    return True


def formula(left, **names):
    """Evaluate the right side of `left = ...`, a formula in a block without a language."""
    (right,) = re.findall(rf"^{re.escape(left)}\s+=\s+(.*?)(?:   .*)?$", "".join(FORMULAS), re.MULTILINE)
    right = re.sub(r"\b(2|x1|x2) (?=\w)", r"\1 * ", right.replace("·", "@"))
    functions = {"cos": torch.cos, "sin": torch.sin, "tan": torch.tan, "atan": torch.atan}
    return eval(right, functions, names)


@pytest.fixture(scope="module")
def run():
    return run_blocks(BLOCKS, "guide")


@pytest.fixture(scope="module")
def figures():
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotate(x, inv_freq, positions, **options):
    """x (..., channels) of float64, rotated to positions, a tensor of the shape of x without the channels."""
    angles = positions.reshape(-1, 1).double() * inv_freq
    rows = x.expand(*positions.shape, x.shape[-1]).reshape(1, -1, 1, x.shape[-1])
    return rope_ext.apply(rows, angles.cos(), angles.sin(), **options).view(*positions.shape, -1)


def rotation(inv_freq, position, **options):
    """The rotation matrix of all channels."""
    eye = torch.eye(2 * len(inv_freq), dtype=torch.float64)
    return rotate(eye, inv_freq, torch.full((len(eye),), position), **options).T


def close(a, b, bound=1e-9):
    return (torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)).abs().max() <= bound


# The guide as a document


@pytest.mark.parametrize("block", range(len(BLOCKS)), ids=[f"line{line}" for line, *_ in BLOCKS])
def test_code_prints_what_the_guide_shows(run, block):
    assert run[1][block] == BLOCKS[block][2]


def test_every_block_of_output_follows_code():
    assert len(BLOCKS) >= 30
    assert len(re.findall("^```text", TEXT, re.MULTILINE)) == sum(shown != "" for *_, shown in BLOCKS)


def test_figures_are_there_and_small():
    named = re.findall(r"!\[[^]]+\]\(figures/(\w+)\.png\)", TEXT)
    files = {path.stem: path.stat().st_size for path in (ROOT / "docs/figures").iterdir()}
    assert sorted(named) == sorted(files)
    assert sum(files.values()) < 1.5e6


def test_every_figure_of_the_guide_is_drawn(figures):
    assert list(figures.FIGURES) == re.findall(r"\(figures/(\w+)\.png\)", TEXT)


@pytest.mark.parametrize("name", re.findall(r"\(figures/(\w+)\.png\)", TEXT))
def test_text_in_figures_is_readable(figures, name, monkeypatch):
    """On a page 700 pixels wide text is at least 11 pixels high, and no text covers another or leaves the figure."""
    drawn = set()
    draw = figures.matplotlib.text.Text.draw
    monkeypatch.setattr(
        figures.matplotlib.text.Text, "draw", lambda text, renderer: drawn.add(text) or draw(text, renderer)
    )
    with figures.plt.rc_context(figures.STYLE):
        figure = figures.FIGURES[name]()
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        boxes = {text: text.get_window_extent(renderer) for text in drawn if text.get_visible() and text.get_text()}
        figures.plt.close(figure)
    assert len(boxes) > 10
    assert min(text.get_fontsize() for text in boxes) / 72 * 700 / figures.WIDTH >= 11
    assert not [text for text, box in boxes.items() if (box.min < 0).any() or (box.max > figure.bbox.size).any()]
    overlapping = [(a, b) for a, b in itertools.combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert not overlapping
    assert not [text for text in boxes if re.search(r"\bturn|grey|colour", text.get_text())]


@pytest.mark.parametrize("name", ["rotation", "axes"])
def test_the_command_draws_a_figure(figures, name, tmp_path):
    figures.main([name, "--out", str(tmp_path)])
    (drawn,) = tmp_path.iterdir()
    sizes = [struct.unpack(">II", path.read_bytes()[16:24]) for path in (drawn, ROOT / "docs/figures" / drawn.name)]
    assert drawn.name == f"{name}.png"
    assert sizes[0] == sizes[1]


def test_the_command_refuses_an_unknown_figure(figures, capsys):
    with pytest.raises(SystemExit):
        figures.main(["nothing"])
    assert "name must be one of order, positions" in capsys.readouterr().err


def test_headings_and_contents_agree():
    *headings, last = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert last == "Sources"
    anchors = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    contents = re.findall(r"^(\d+\. )\[(.+)\]\(#(.+)\)$", TEXT, re.MULTILINE)
    assert [(number + title, anchor) for number, title, anchor in contents] == list(zip(headings, anchors))


def test_the_guide_can_be_found_and_drawn():
    assert "(docs/guide.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert says('`pip install ".[docs]"`, then `python docs/figures.py`')
    docs = re.search(r"^docs = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert '"matplotlib"' in docs[1] and '"tqdm"' in docs[1]


# 1. Attention does not see order


def test_attention_is_permutation_equivariant(run):
    attention = run[0]["attention"]

    def learned(x):
        q, k, v = x @ random(3, 2, 2, seed=9)
        return (q @ k.T).softmax(dim=-1) @ v

    for seed in range(5):
        x = random(1, 5, 2, seed=seed)
        shuffle = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        assert close(attention(x[:, shuffle]), attention(x)[:, shuffle])
        assert (attention(x[:, shuffle]) - attention(x)).abs().max() > 0.1
        assert close(learned(x[0, shuffle]), learned(x[0])[shuffle])


def test_without_positions_equal_words_get_equal_results(run, figures):
    x = torch.tensor([figures.TOKENS])
    plain, shuffled = run[0]["attention"](x), run[0]["attention"](x[:, figures.ORDER])
    assert run[0]["order"] == figures.ORDER and [run[0][word] for word in figures.WORDS] == figures.TOKENS
    assert close(plain[0, 2], shuffled[0, 2], 1e-6)
    assert close(plain[0, 0], plain[0, 3], 1e-6)


def test_weight_of_saw_on_cat_with_and_without_positions(figures):
    shuffled = [figures.TOKENS[i] for i in figures.ORDER]
    weights = []
    for speed, same in ((0.0, True), (0.5, False)):
        first, second = (figures.attention_weights(x, torch.tensor([speed])) for x in (figures.TOKENS, shuffled))
        assert close(first.sum(-1), 1, 1e-6)
        assert close(first[2, 1], second[2, 4], 1e-6) == same
        assert close(first[0], first[3], 1e-6) == same  # the two "the"
        weights += [round(first[2, 1].item(), 2), round(second[2, 4].item(), 2)]
    assert weights[0] == weights[1]
    assert says(f'Without positions, "saw" gives "cat" the weight {weights[0]:.2f} in both sentences.')
    assert says(f'With RoPE, it gives {weights[2]:.2f} in "the cat saw the dog" and {weights[3]:.2f} in "the dog')


# 2. Three ways to encode a position


def test_integers_outweigh_the_token():
    cat, dog = torch.tensor([0.0, 2.0]), torch.tensor([0.5, -1.5])
    assert torch.cosine_similarity(cat, dog, dim=0) < -0.9
    assert torch.cosine_similarity(cat + 100, dog + 100, dim=0) > 0.999
    assert says("At position 100 a cat is a dog.")


def test_bits(run):
    bits = run[0]["bits"]
    assert says(
        "four channels are enough for 16 positions. But bits jump. From 7 to its neighbor 8 all four bits change"
    )
    assert set(bits.flatten().tolist()) == {0, 1} and len(set(map(tuple, bits.tolist()))) == 16
    flips = bits.diff(dim=0) != 0
    for bit in range(4):  # at every step, at every other, at every fourth
        assert flips[:, bit].nonzero().flatten().tolist() == list(range(2**bit - 1, 15, 2**bit))


def test_waves_are_bounded_without_jumps_and_see_the_distance(run):
    waves = run[0]["waves"]
    all_waves = torch.stack([waves(m) for m in range(400)]).double()
    assert all_waves.abs().max() <= 1
    frequency = run[0]["frequency"]
    assert (frequency[1:] / frequency[:-1]).tolist() == [0.5] * 3
    assert (all_waves.diff(dim=0).abs().amax(0) <= frequency.repeat(2)).all()
    for distance in (1, 3, 50):
        assert close(
            (all_waves[distance:] * all_waves[: 400 - distance]).sum(-1), all_waves[0] @ all_waves[distance], 1e-3
        )
    assert close(frequency, f.default(8, base=16.0).inv_freq)  # those of the figures


def test_added_waves_give_four_terms(run):
    waves = run[0]["waves"]
    a, b = random(2, 8)
    p_m, p_n = waves(105).double(), waves(102).double()
    assert close((a + p_m) @ (b + p_n), formula("(a + p_m) · (b + p_n)", a=a, b=b, p_m=p_m, p_n=p_n))


# 3. Rotate a vector, 4. The position becomes an angle


def test_rotations_keep_lengths_and_dot_products_and_add_up():
    x = random(20, 2)
    one, two = torch.tensor([0.7], dtype=torch.float64), torch.tensor([1.9], dtype=torch.float64)
    at_one = torch.ones(20)
    y = rotate(x, one, at_one)
    assert close(y.norm(dim=-1), x.norm(dim=-1))
    assert close(y @ y.T, x @ x.T)
    assert close(rotate(y, two, at_one), rotate(x, one + two, at_one))
    assert close(rotate(x, one, at_one, inverse=True), rotate(x, -one, at_one))


def test_apply_computes_the_formula_of_a_rotation():
    x = random(20, 2)
    angle = torch.tensor([0.7], dtype=torch.float64)
    x1, x2 = x.T
    expected = [formula(y, x1=x1, x2=x2, angle=angle) for y in ("y1", "y2")]
    assert close(rotate(x, angle, torch.ones(20)), torch.stack(expected, dim=-1))


def test_one_revolution():
    assert says(f"One revolution is 2 pi = {2 * math.pi:.3f} radians or {math.degrees(2 * math.pi):.0f} degrees.")


def test_the_clock_shows_one_angle_and_one_score(figures):
    figure = figures.clock()
    texts = [text.get_text() for text in figure.axes[1].texts]
    speed = torch.tensor([0.5], dtype=torch.float64)
    q, k = torch.tensor([[1.0, 0.0], [0.85, 0.1]], dtype=torch.float64)
    for m, n in ((2, 0), (7, 5)):
        q_m, k_n = rotate(q, speed, torch.tensor([m]))[0], rotate(k, speed, torch.tensor([n]))[0]
        angle = math.degrees(torch.acos(q_m @ k_n / q_m.norm() / k_n.norm()))
        assert says(f"Both times the angle between them is {angle:.0f} degrees and the score is {q_m @ k_n:.2f}.")
        assert texts.count(f"{angle:.0f}°") == 2
        assert f"(q at {m}) · (k at {n}) = {q_m @ k_n:.2f}" in texts[-1]


def test_score_is_constant_along_diagonals():
    q, k = random(2, 2)
    inv_freq = torch.tensor([0.5], dtype=torch.float64)
    scores = rotate(q, inv_freq, torch.arange(30)) @ rotate(k, inv_freq, torch.arange(30)).T
    for diagonal in range(-29, 30):
        along = scores.diagonal(diagonal)
        assert close(along, along[0])


# 5. Many pairs, many speeds


def test_one_pair_is_back_after_seven_revolutions():
    assert says(
        "by 1 radian per position is almost exactly back where it started after"
        f" {round(7 * 2 * math.pi)} positions, or seven revolutions"
    )
    assert 1 - math.cos(44) < 2e-4


def test_frequencies():
    for head_dim, base in ((8, 10000.0), (128, 500000.0)):
        expected = [formula("inv_freq[i]", base=base, i=i, D=head_dim) for i in range(head_dim // 2)]
        assert close(f.default(head_dim, base).inv_freq, expected, 1e-15)
    assert f.default(8).inv_freq.tolist() == f.default(8, 10000.0).inv_freq.tolist()
    assert says(f"The hand of pair 0 moves by {math.degrees(1):.0f} degrees per position.")
    ratio = f.default(8).inv_freq[:-1] / f.default(8).inv_freq[1:]
    assert says("Each further pair is ten times slower") and close(ratio, 10, 1e-12)


def test_slowest_revolutions():
    slow, slower = (2 * math.pi / f.default(128, base).inv_freq[-1].item() for base in (10000.0, 500000.0))
    assert says(f"With D = 128 and base 10000, the slowest pair needs {slow:,.0f} positions for one revolution.")
    assert says(f"With Llama 3's base of 500000, it needs {slower / 1e6:.1f} million.")


# 6. Which channels form a pair, 7. One rotation, three notations


@pytest.mark.parametrize("interleaved", [True, False])
def test_pairings(interleaved):
    assert says("(2i, 2i + 1): `interleaved=True`")
    assert says("(i, i + D/2): `interleaved=False`, the default")
    matrix = rotation(f.default(8).inv_freq, 5, interleaved=interleaved)
    pair_of = [c // 2 if interleaved else c % 4 for c in range(8)]
    for row in range(8):
        for column in range(8):
            assert (matrix[row, column] != 0) == (pair_of[row] == pair_of[column])
    assert (matrix != 0).sum() == 16


def test_pairings_agree_at_position_0_only():
    x, inv_freq = random(6, 8), f.default(8).inv_freq
    differ = rotate(x, inv_freq, torch.arange(6), interleaved=True) != rotate(x, inv_freq, torch.arange(6))
    assert differ.any(-1).tolist() == [False] + [True] * 5
    scores = [rotate(x, inv_freq, torch.arange(6), interleaved=pairing) @ x.T for pairing in (True, False)]
    assert close(scores[0][0], scores[1][0]) and not close(scores[0][1:], scores[1][1:], 0.1)


def test_shape_and_size_of_the_matrices(run):
    B, S, D = (run[0][name] for name in "BSD")
    assert tuple(run[0]["matrices"].shape) == (B, 1, S, D // 2, 2, 2)
    assert says("in a tensor of shape [B, 1, S, D/2, 2, 2]")
    assert says(f"D * D entries, {8 * 8} for D = 8")
    assert says(f"4 multiplications per pair, {4 * (8 // 2)} in all")


# 8. Only the distance counts


def test_only_the_distance_counts():
    inv_freq = f.default(16).inv_freq
    for m, n in ((5, 2), (0, 9), (1000, 123)):
        assert close(rotation(inv_freq, m).T @ rotation(inv_freq, n), rotation(inv_freq, n - m))
        assert close(rotation(inv_freq, m).T, rotation(inv_freq, -m))
        assert close(rotation(inv_freq, m) @ rotation(inv_freq, n), rotation(inv_freq, m + n))


def test_scores_along_the_text_in_the_figure(figures):
    added, with_rope = (line.get_ydata() for line in figures.places().axes[0].lines)
    assert says(f"With added waves the score swings between {min(added):.0f} and {max(added):.0f};")
    assert says("with RoPE it is a horizontal line.") == close(with_rope, with_rope[0], 1e-5)


# 9. Score against distance


def test_score_of_equal_channels_is_the_mean_cosine_and_falls_with_wiggles():
    inv_freq, distances = f.default(128).inv_freq, torch.arange(600)
    ones = torch.ones(128, dtype=torch.float64)
    scores = rotate(ones, inv_freq, distances) @ ones / 128
    assert close(scores, torch.outer(distances, inv_freq).cos().mean(-1))
    smooth = scores.view(6, 100).mean(-1)
    assert (smooth.diff() < 0).all()
    assert (scores.diff() > 0).sum() > 100
    assert says(f"for equal q and k it falls from 1 to about {scores[-50:].mean():.2f} at 600")


def test_random_scores_start_anywhere_and_a_distance_can_be_learned():
    inv_freq, distances = f.default(128).inv_freq, torch.arange(600)
    starts = torch.stack([q @ k / 128 for q, k in (random(2, 128, seed=seed) for seed in range(50))])
    assert starts.min() < -0.1 and starts.max() > 0.1
    q = random(128)
    k = rotate(q, inv_freq, torch.tensor([50]))  # asks for the token 50 before
    scores = rotate(q, inv_freq, distances) @ k[0]
    assert scores.argmax() == 50


def test_added_waves_have_a_curve_for_each_place(figures):
    token, inv_freq, distances = random(128), f.default(128).inv_freq, torch.arange(100)
    curves = []
    for n in (0, 40):
        keys = token + figures.waves(torch.tensor([n]), inv_freq)[0]
        curves.append((token + figures.waves(n + distances, inv_freq)) @ keys)
    assert not close(*curves, 1.0)


def test_t5_buckets(figures):
    buckets = [figures.t5_bucket(distance) for distance in range(300)]
    far = torch.arange(300)
    # As in T5 (relative_position_bucket of its decoder), in float32.
    log = 16 + (torch.log(far.float().clamp(min=1) / 16) / math.log(128 / 16) * 16).long()
    assert buckets == torch.where(far < 16, far, log.clamp(max=31)).tolist()
    assert buckets[:16] == list(range(16)) and buckets[-1] == 31
    assert says(
        f"Distances share {len(set(buckets))} such numbers in buckets: 0 to {buckets.count(0) * 15} have one each"
    )
    assert says(f"from {buckets.index(31)} on all share the last")


# 10. Longer texts: frequency schedules


DEFAULT = f.default(128).inv_freq
REVOLUTIONS = 4096 * DEFAULT / (2 * math.pi)


@pytest.fixture(scope="module")
def schedules(run):
    return run[0]["schedules"]


def speed(schedule):
    return schedule.inv_freq / DEFAULT


def test_pairs_without_a_full_revolution():
    assert says(
        f"{(REVOLUTIONS < 1).sum()} of the {len(REVOLUTIONS)} pairs do not complete one revolution in 4096 positions"
    )
    assert ((4095 * DEFAULT)[REVOLUTIONS < 1] < 2 * math.pi).all()


def test_every_schedule_is_in_the_table_and_the_figure(schedules, figures):
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert rows == list(schedules) == list(figures.longer_context())
    for name, ((_, drawn), *_) in figures.longer_context().items():
        assert torch.equal(drawn.inv_freq, schedules[name].inv_freq)
        assert drawn.attention_scaling == schedules[name].attention_scaling


def test_linear_squeezes_positions(schedules):
    assert torch.equal(schedules["default"].inv_freq, DEFAULT)
    assert close(schedules["linear"].inv_freq * 4 * 123, DEFAULT * 123, 1e-12)


def test_ntk(schedules):
    ratio = speed(schedules["ntk"])
    assert ratio[0] == 1 and close(ratio[-1], 0.25, 1e-12)
    assert (ratio.diff() < 0).all()
    exponent = torch.arange(64) / 64  # a larger base is a power of the same exponents
    assert close(schedules["ntk"].inv_freq, (4 ** (128 / 126) * 10000.0) ** -exponent.double(), 1e-12)


def test_dynamic_ntk_follows_the_length(schedules):
    assert close(schedules["dynamic_ntk"].inv_freq, schedules["ntk"].inv_freq, 1e-15)
    for seqlen in (1, 4096):
        assert torch.equal(f.dynamic_ntk(128, factor=1.0, max_position=4096, seqlen=seqlen).inv_freq, DEFAULT)


@pytest.mark.parametrize("name, many", [("yarn", 32), ("llama3", 4)])
def test_yarn_and_llama3_keep_fast_pairs_and_slow_the_slow_ones(schedules, name, many):
    ratio = speed(schedules[name])
    assert close(ratio[REVOLUTIONS.gt(many)], 1, 1e-12)
    assert close(ratio[REVOLUTIONS.lt(1)], 0.25, 1e-12)
    between = ratio[REVOLUTIONS.ge(1) & REVOLUTIONS.le(many)]
    assert between.max() < 1 and between.min() > 0.25 and (between.diff() < 0).all()
    assert says("keeps pairs with more than 32 revolutions within 4096, divides those with less than one by 4")
    assert says("like yarn with other limits (4 revolutions and 1)")


def test_llama3_follows_the_number_of_revolutions(schedules):
    between = (REVOLUTIONS > 1) & (REVOLUTIONS < 4)
    assert close(speed(schedules["llama3"])[between], 0.25 + 0.75 * (REVOLUTIONS[between] - 1) / 3, 1e-12)
    assert schedules["llama3"].attention_scaling == 1


def test_yarn_raises_scores_by_the_square_of_its_scaling(schedules):
    scaling = schedules["yarn"].attention_scaling
    q, k = random(2, 1, 1, 1, 128)
    ones, zeros = torch.ones(1, 64, dtype=torch.float64), torch.zeros(1, 64, dtype=torch.float64)
    scaled_q, scaled_k = rope_ext.apply((q, k), ones * scaling, zeros)
    assert close((scaled_q * scaled_k).sum() / (q * k).sum(), scaling**2)
    assert says(f"It therefore multiplies a score by its square: {scaling**2:.3f} for yarn with factor 4.")


def test_longrope_has_two_lists(run):
    invented = run[0]["invented"]
    for seqlen, factors in ((4096, "short_factor"), (4097, "long_factor")):
        schedule = f.longrope(128, **run[0]["longer"], **invented, seqlen=seqlen)
        assert close(1 / speed(schedule), torch.tensor(invented[factors], dtype=torch.float64), 1e-6)


def test_proportional_stops_the_slow_pairs(schedules):
    inv_freq = schedules["proportional"].inv_freq
    assert torch.equal(inv_freq[:16], DEFAULT[:16]) and not inv_freq[16:].any()


# 11. Pruned channels: Gemma 4


def test_numbers_of_gemma_4(run):
    pruned = run[0]["pruned"]
    assert len(pruned) == 256 and pruned.count_nonzero() == 64 and pruned[:64].all()
    assert 2 * 64 / 512 == 0.25 and says("heads of 512 channels, and RoPE rotates a quarter of them")
    assert torch.equal(pruned[:64], f.default(512, 1e6).inv_freq[:64])
    assert says("down to one revolution in 5.1 million positions") == (
        f"{2 * math.pi / f.default(128, 1e6).inv_freq[-1].item() / 1e6:.1f}" == "5.1"
    )
    assert says(f"the slowest of these needs {2 * math.pi / pruned[63].item():.0f} positions for a revolution")
    assert says("the channels that rotate are 0 to 63 and 256 to 319")
    matrix = rotation(pruned, 1)
    assert all(matrix[i, i + 256] != 0 for i in range(64))


# 12. A warped frequency axis


def test_a_rotation_by_more_than_pi_looks_like_one_in_the_other_direction():
    more = torch.tensor([math.pi + 0.3], dtype=torch.float64)
    less = torch.tensor([-(math.pi - 0.3)], dtype=torch.float64)
    assert close(rotate(random(9, 2), more, torch.arange(9)), rotate(random(9, 2), less, torch.arange(9)))


def test_warped_is_a_division_on_the_bilinear_axis(schedules):
    def mapped(frequency):
        return 2 * (frequency / 2).tan()

    warped = schedules["warped"].inv_freq
    assert close(warped, formula("warped", inv_freq=DEFAULT, factor=4), 1e-15)
    assert close(mapped(warped) * 4, mapped(DEFAULT), 1e-12)
    ratio = speed(schedules["warped"])
    assert says(f"The fastest pair keeps {100 * ratio[0]:.0f} % of its speed instead of {100 / 4:.0f} %")
    assert DEFAULT.max() == 1 and says("RoPE's own pairs start at 1 radian per position")
    assert close(ratio[20:], 0.25, 1e-3)
    assert mapped(torch.tensor(math.pi - 1e-9, dtype=torch.float64)) > 1e9  # an axis without end


# 13. Rows, columns and time


@pytest.mark.parametrize("alternate", [False, True])
def test_scores_on_a_grid_see_the_difference_of_both_axes(alternate):
    inv_freq = f.axial(16, alternate=alternate).inv_freq
    assert inv_freq.shape == (2, 1, 8)
    assert ((inv_freq != 0).sum(0) == 1).all() and (inv_freq != 0).sum(-1).flatten().tolist() == [4, 4]
    positions = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    angles = (positions[:, :, None] * inv_freq).sum(0)
    q, k = (random(1, 1, 1, 16, seed=seed).expand(1, 25, 1, 16) for seed in (1, 2))
    q, k = (t[0, :, 0] for t in rope_ext.apply((q, k), angles.cos(), angles.sin()))
    scores = {}
    for i, (row, column) in enumerate(positions.T.tolist()):
        for j, (row_k, column_k) in enumerate(positions.T.tolist()):
            scores.setdefault((row - row_k, column - column_k), []).append(q[i] @ k[j])
    assert len(scores) == 81 and all(close(torch.stack(s), s[0]) for s in scores.values())


def test_axes_of_an_image():
    blocks, alternate = (f.axial(16, alternate=alternate).inv_freq[:, 0] for alternate in (False, True))
    assert says("`f.axial` gives the first half of the pairs to the rows.")
    assert blocks.argmax(0).tolist() == [0] * 4 + [1] * 4
    assert says("With `alternate=True`, rows and columns alternate.")
    assert alternate.argmax(0).tolist() == [0, 1] * 4


def test_axes_of_qwen():
    for sections, interleaved in (((16, 24, 24), False), ((24, 20, 20), True)):
        pair_axis = f.mrope_pair_axis(sections, interleaved)
        assert [pair_axis.count(axis) for axis in range(3)] == list(sections)
        runs = 1 + sum(a != b for a, b in itertools.pairwise(pair_axis))
        assert (runs == 3) == (not interleaved)
        # fast and slow pairs for each axis, or not
        assert (set(pair_axis[:16]) == set(pair_axis[-16:]) == {0, 1, 2}) == interleaved


# 14. Why angles must be exact


def test_float32_at_131072():
    below = torch.tensor(131_071.0)
    gap = (torch.nextafter(below, torch.tensor(math.inf)) - below).item()
    assert says(f"neighboring float32 numbers are {gap:.3f} radians apart")
    assert says("A float32 has 24 significant bits.") == (torch.finfo(torch.float32).eps == 2.0**-23)
    assert says("A bfloat16 has 8 significant bits. In bfloat16, not even the position survives: 257 becomes 256.")
    assert torch.finfo(torch.bfloat16).eps == 2.0**-7 and torch.tensor(257).to(torch.bfloat16) == 256


def test_exact_angles_are_exact_at_every_position():
    mpmath = pytest.importorskip("mpmath")
    rope = rope_ext.RotaryEmbedding(head_dim=128)
    positions = [1, 2_047, 131_071, 1_048_575, 2**24 - 1]
    cos, sin = rope(torch.tensor(positions))
    with mpmath.workdps(40):
        for row, position in enumerate(positions):
            for pair in range(0, 64, 7):
                angle = position * mpmath.mpf(10000) ** (-mpmath.mpf(pair) / 64)
                assert abs(cos[row, pair].item() - mpmath.cos(angle)) < 3.1e-8
                assert abs(sin[row, pair].item() - mpmath.sin(angle)) < 3.1e-8
    assert says("Its error is essentially that one rounding: 3e-8, at every position up to 16 million.")


def test_hf_is_the_float32_product():
    rope = rope_ext.RotaryEmbedding(head_dim=128, precision="hf")
    positions = torch.arange(131_000, 131_072)
    angles = positions[:, None].float() * f.default(128, dtype=torch.float32).inv_freq
    assert torch.equal(rope(positions)[0], angles.cos())


def test_errors_in_the_figure_grow_with_the_position_but_for_exact_angles(figures):
    errors = figures.angle_errors([256, 131_072, 2**24])
    assert errors["hf"] == sorted(errors["hf"]) and errors["hf"][1] > 1e-3
    assert max(errors["exact"]) < 3.1e-8
    assert errors["bfloat16"] == pytest.approx([1, 2, 2], abs=0.3)
    assert says("With bfloat16 angles it is about 1 at first and 2 soon after.")
    assert says("With float32 angles it grows from 1e-5 at position 256 to 1 at 16 million.")
    assert [f"{error:.0e}" for error in errors["hf"][::2]] == ["1e-05", "1e+00"]


# 16. Left padding, and a cache that shifts


def test_positions_of_left_padding():
    rope, mask = rope_ext.RotaryEmbedding(64), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    tables, q = rope.tables(8), random(2, 6, 4, 64, dtype=torch.float32)
    assert says("the position would be -1, which no table has. On a CPU that is an error.")
    with pytest.raises(ValueError, match=r"^rope_ext: positions must .* got row -1 for token 0 of batch 0$"):
        rope_ext.apply(q[:, :5], *tables, positions=mask.cumsum(dim=-1) - 1)
    assert says("since 0 times NaN is NaN") == math.isnan(0 * math.nan)
    assert says("`positions = mask.sum(dim=-1, keepdim=True) - 1`, of shape (batch, 1)")
    grown = torch.cat((mask, torch.ones(2, 1, dtype=torch.int64)), dim=-1)  # one token later
    last = rope_ext.apply(q[:, 5:], *tables, positions=grown.sum(dim=-1, keepdim=True) - 1)
    for row, first in enumerate((2, 0)):
        alone = rope_ext.apply(q[row : row + 1, first:], *tables)
        assert torch.equal(last[row], alone[0, -1:])


@pytest.mark.parametrize("schedule", ["yarn", "longrope", "dynamic_ntk"])
def test_a_cache_shifts_with_the_frequencies_alone(schedule):
    longer = {
        "yarn": {"factor": 4.0, "original_max_position": 64},
        "longrope": {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "factor": 4.0, "original_max_position": 64},
        "dynamic_ntk": {"factor": 4.0, "max_position": 64},
    }[schedule]
    rope = rope_ext.RotaryEmbedding(16, schedule=schedule, **longer)
    inv_freq, scaling = rope.frequencies(100)
    assert (scaling > 1) == (schedule != "dynamic_ntk")
    k = random(1, 8, 2, 16)
    cached = rope.apply(k, seqlen=100)
    back = torch.full((5,), -3)
    shifted = rope_ext.apply(cached[:, 3:], inv_freq=inv_freq, positions=back)
    assert close(shifted, rope.apply(k[:, 3:], seqlen=100), 1e-12)
    twice = rope.apply(cached[:, 3:], positions=back, seqlen=100)
    assert close(twice, scaling * shifted, 1e-12)
    assert says("`rope.apply` and `rope.tables` would multiply by it again, at every shift.")
    if schedule != "yarn":
        assert not close(rope_ext.apply(cached[:, 3:], inv_freq=rope.inv_freq, positions=back), shifted, 1e-3)
        assert says("rotate back with the frequencies that the keys were cached with: `rope.frequencies(seqlen)`")


# 17. QK-norm and packed projections


def test_the_norm_covers_the_whole_head():
    assert says("The norm covers the whole head, even where only a part of it is rotated.")
    x, weight = random(1, 4, 2, 16), random(16, seed=1)
    angles = torch.arange(4)[:, None] * f.default(8).inv_freq
    cos, sin = angles.cos(), angles.sin()
    normalized = torch.nn.functional.rms_norm(x, (16,), weight, eps=1e-6)
    rotated = rope_ext.apply(x, cos, sin, norm=weight, eps=1e-6, rotary_dim=8)
    assert close(rotated, rope_ext.apply(normalized, cos, sin, rotary_dim=8), 1e-12)
    assert says("None in a tuple leaves a tensor unnormalized")
    _, plain = rope_ext.apply((x, x), cos, sin, norm=(weight, None), eps=1e-6, rotary_dim=8)
    assert torch.equal(plain, rope_ext.apply(x, cos, sin, rotary_dim=8))


def test_grouped_heads():
    assert says("a key head follows the query heads that share it, and its value head comes next.")
    angles = torch.arange(4)[:, None] * f.default(8).inv_freq
    cos, sin = angles.cos(), angles.sin()
    q, k, v = random(1, 4, 4, 8), random(1, 4, 2, 8, seed=1), random(1, 4, 2, 8, seed=2)
    order = [q[:, :, :2], k[:, :, :1], v[:, :, :1], q[:, :, 2:], k[:, :, 1:], v[:, :, 1:]]
    packed = torch.cat(order, dim=2).flatten(2)
    got = rope_ext.apply_qkv(packed, cos, sin, num_heads=4, num_kv_heads=2, grouped=True)
    for a, b in zip(got, (*rope_ext.apply((q, k), cos, sin), v)):
        assert torch.equal(a.reshape(b.shape), b)


# 18. A memory that fades: xPos


def test_xpos_keeps_the_distance_and_fades():
    positions, inv_freq = torch.arange(200), f.default(8, base=100.0).inv_freq
    q, k = random(2, 8)
    scores = {}
    for center in (0, 150):
        scale = f.xpos_scale(positions, 8, scale_base=16, center=center, dtype=torch.float64)
        assert (scale.diff(dim=0) < 0).all() and close(scale[center], 1, 1e-12)
        ratio = scale[1:] / scale[:-1]
        assert (ratio < 1).all() and close(ratio, ratio[0], 1e-6)
        q_rotated = rotate(q, inv_freq, positions) * scale.repeat(1, 2)
        k_rotated = rotate(k, inv_freq, positions) / scale.repeat(1, 2)
        scores[center] = q_rotated @ k_rotated.T
        for distance in (0, 1, 17, 100):
            along = scores[center].diagonal(-distance)
            assert close(along / along[0], 1, 1e-6)
        assert scores[center][100, 0].abs() <= ratio.max() ** 100 * q.norm() * k.norm()
    for distance in (0, 1, 17, 100):
        assert close(scores[0][distance, 0] / scores[150][distance, 0], 1, 1e-6)
    assert says("Scores do not change, as long as q and k use the same center.")


def test_the_filter_remembers_an_impulse_as_a_damped_wave_for_ever_or_for_the_window(run):
    response, poles, window = (run[0][name] for name in ("response", "poles", "window"))
    for last in (None, window):
        states = [0j] * 4
        for m in range(90):
            states = [
                p * s + (m == 0) - (p**last if last is not None and m == last else 0) for p, s in zip(poles, states)
            ]
            expected = 0 if last is not None and m >= last else response(m)
            assert sum(s.real for s in states) / 4 == pytest.approx(expected, abs=1e-12)
    assert response(89) != 0


@pytest.mark.parametrize(
    "scale_base, sentence",
    [(16, "With `scale_base=16` this happens after position {:,}"), (512, "with xPos's own 512 after {:,}")],
)
def test_where_xpos_leaves_float32(scale_base, sentence):
    scale = f.xpos_scale(torch.tensor([0, 1]), 8, scale_base=scale_base, dtype=torch.float64)
    last = math.floor(math.log(torch.finfo(torch.float32).max) / -scale[1].min().log().item())
    assert says(sentence.format(last))
    tables = 1 / f.xpos_scale(torch.tensor([last, last + 1]), 8, scale_base=scale_base, dtype=torch.float64)
    assert tables[:, 0].float().isinf().tolist() == [False, True]
