"""The benchmark's judgements: a wrong result is found, leads are computed right. Nothing is timed here."""

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.baselines import POOLED, VARIANTS, peers_cpu, peers_gpu
from benchmarks.baselines.small_calls import ROWS, small_calls, tiny
from benchmarks.bench import RESULTS
from benchmarks.compiled import interval
from benchmarks.harness import cases, exactness, variants
from benchmarks.harness.shapes import Shape
from benchmarks.report import calls, files, page, summary

pytestmark = pytest.mark.devices("cpu")
SHAPE = Shape("small", "for tests", batch=2, seqlen=16, heads_q=4, heads_k=2, head_dim=32, first_position=3)
PEER = variants.Variant("peer", "functional", None, roundings=1, foreign=True)


def results_of(case):
    import rope_ext

    options = {"layout": "bhsd", "interleaved": case.interleaved, "offset": SHAPE.first_position}
    return [y.clone() for y in rope_ext.apply(case.inputs, case.tables.cos, case.tables.sin, **options)]


@pytest.mark.parametrize("memory", cases.MEMORIES)
@pytest.mark.parametrize("pairing", cases.PAIRINGS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_check_accepts_the_rotation_and_finds_one_wrong_element(dtype, pairing, memory):
    case = cases.Case(SHAPE, dtype, pairing, "forward", memory, threads=1)
    expected, results = exactness.expect(case), results_of(case)
    verdict = exactness.check(PEER, results, expected, case)
    assert not verdict.wrong
    assert verdict.correctly_rounded is None if dtype == "fp32" else verdict.correctly_rounded >= exactness.MIN_CORRECT
    results[1][1, 1, 5, 7] += 2.5 * verdict.error_bound
    assert exactness.check(PEER, results, expected, case).wrong
    results[1][1, 1, 5, 7] = float("nan")
    assert exactness.check(PEER, results, expected, case).wrong


def test_check_ends_the_program_for_ours_when_wrong_or_not_correctly_rounded():
    case = cases.Case(SHAPE, "bf16", "half", "forward", "bshd", threads=1)
    expected, results = exactness.expect(case), results_of(case)
    ours = variants.Variant("ours", "functional", None, roundings=1, ours=True)
    exactness.check(ours, results, expected, case)
    # small numbers: within the bound, which is that of the largest one
    neighbours = [torch.where(y.abs() < 0.1, torch.nextafter(y, torch.zeros_like(y)), y) for y in results]
    exactness.check(PEER, neighbours, expected, case)
    with pytest.raises(SystemExit):
        exactness.check(ours, neighbours, expected, case)
    exactness.check(replace(ours, roundings=3), neighbours, expected, case)  # the bits of eager code were asked for
    with pytest.raises(SystemExit):
        exactness.check(ours, [results[0] + 1, results[1]], expected, case)


def test_rounded_once_differs_from_two_roundings():
    tie = torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)  # above the middle; float32 puts it there
    assert tie.to(torch.float16).item() == 1
    assert exactness.rounded_once(tie, torch.float16).item() == 1 + 2.0**-10


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("memory", ["bshd", "qkv"])
@pytest.mark.parametrize("which", cases.PASSES)
@pytest.mark.parametrize("pairing", cases.PAIRINGS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_variants_do_what_they_are_measured_at(dtype, pairing, which, memory, norm):
    """Also with a norm, which some do not offer. Not torch.compile, which takes seconds."""
    case = cases.Case(SHAPE, dtype, pairing, which, memory, threads=1, norm=norm)
    expected, done = exactness.expect(case), set()
    for variant in VARIANTS:
        if variant.pairing in (None, pairing) and variant.name not in ("copy", "torch.compile"):
            try:
                step = variant.build(case)
            except variants.NotOffered:
                continue
            step.before()
            exactness.check(variant, step.fetch(step.call()), expected, case)
            step.after()
            done.add(variant.name)
    assert {"rope_ext", "eager"} <= done
    assert ("rope_ext packed" in done) == (memory == "qkv")
    assert ("rms_norm + apply" in done) == (norm and pairing == "half") and ("complex" in done) <= (not norm)


def row(name, busy=0.0, **us):
    """us: {variant: (form, ours, us)}."""
    results = {v: {"form": form, "ours": mine, "us": t, "wrong": False} for v, (form, mine, t) in us.items()}
    shape = {"name": name}
    case = {"shape": shape, "dtype": "bf16", "pairing": "half", "pass": "forward", "memory": "bshd"}
    return {**case, "threads": 1, "malloc": "default", "busy_elsewhere": busy, "results": results}


def test_summary_compares_with_the_same_form_only():
    rows = [
        row(
            "a",
            copy=("copy", False, 5.0),
            mine=("functional", True, 10.0),
            fast=("functional", False, 20.0),
            slow=("functional", False, 90.0),
            mine_in_place=("in place", True, 12.0),
            peer_in_place=("in place", False, 6.0),
        ),
        row(
            "b",
            copy=("copy", False, 5.0),
            mine=("functional", True, 10.0),
            fast=("functional", False, 40.0),
            slow=("functional", False, 30.0),
        ),
    ]
    found = summary.summary({"rows": rows})
    best = {s["ours"]: s for s in found["best_peer"]}
    assert (best["mine"]["smallest"], best["mine"]["median"], best["mine"]["cases"]) == (2.0, 2.5, 2)
    assert best["mine"]["smallest_at"] == "a bf16 half forward"
    assert best["mine_in_place"]["smallest"] == 0.5
    assert {(s["ours"], s["peer"]): s["smallest"] for s in found["peers"]} == {
        ("mine", "fast"): 2.0,
        ("mine", "slow"): 3.0,
        ("mine_in_place", "peer_in_place"): 0.5,
    }
    assert [(b["case"], b["ours"], b["peer"], b["lead"]) for b in found["behind"]] == [
        ("a bf16 half forward", "mine_in_place", "peer_in_place", 0.5)
    ]


def test_summary_counts_no_disturbed_case_but_lists_it_where_a_peer_is_ahead():
    flattering = row("a", busy=0.5, mine=("functional", True, 10.0), peer=("functional", False, 900.0))
    behind = row("b", busy=0.5, mine=("functional", True, 10.0), peer=("functional", False, 8.0))
    calm = row("c", mine=("functional", True, 10.0), peer=("functional", False, 9.6))  # within 5 %
    found = summary.summary({"rows": [flattering, behind, calm]})
    assert [(s["cases"], s["median"]) for s in found["best_peer"]] == [(1, 0.96)]
    assert [(b["case"], b["disturbed"]) for b in found["behind"]] == [("b bf16 half forward", True)]
    assert found["disturbed"] == 2


# ---- small calls ----


def test_small_calls_rotate():
    """Every call of ours returns the rotation by the angles of its position; the gradients of two forms are equal."""
    case, made = tiny(), small_calls(tiny())
    first = case.shape.first_position + 1 - ROWS
    positions = {"apply positions": first + 3, "apply layout, offset, inverse": -first - 7, "rope.apply": 0}
    positions |= {"op rotate, positions": first + 3, "apply inv_freq": 0}  # without a table it begins at 0
    ours = [name for name in made if name.startswith(("apply", "rope.apply", "compat", "op rotate"))]
    for name in ours:
        if name in ("op rotate_", "op rotate_out") or "backward" in name:  # they return nothing, or gradients
            continue
        by_head = name in ("apply layout, offset, inverse", "compat.transformers")
        for x, y in zip(case.inputs, made[name](), strict=True):
            wanted = exactness.exact(x, positions.get(name, first) * case.tables.inv_freq[None], interleaved=False)
            assert ((y if by_head else y.transpose(1, 2)) - wanted).abs().max() < 1e-5, name
    assert all(map(torch.equal, made["apply, forward+backward"](), made["apply learned tables, forward+backward"]()))


def test_targets_name_calls():
    rows, decode = small_calls(tiny()), ("copy", "rope_ext in place", "rope_ext out=")
    for target in calls.TARGETS:
        names = rows if target.section == calls.ONE else decode
        assert target.call in names and (target.yardstick in names or target.yardstick in peers_cpu.PEERS), target


def of_processes(*processes):
    """A report in which each process measured (us of apply_, us of two clones, us of the op)."""

    def section(names, minima):
        return {name: {"us_min": us, "us_median": 2 * us} for name, us in zip(names, minima)}

    made = [
        {
            "sections": {
                calls.ONE: section(("apply_", "two clones", "op rotate_"), minima),
                "decode fp32, 4 ms between calls": section(("copy", "rope_ext in place"), minima),
            },
            "busy": {calls.ONE: 0.0},
            "left_out": {"vLLM": "not installed"},
        }
        for minima in processes
    ]
    origin = {"cpu": "a processor", "capability": "AVX2", "torch": "2", "commit": "abc", "date": "today"}
    return {"machine": origin, "threads": 2, "processes": made}


def test_targets_take_the_median_of_ratios_within_a_process():
    text = calls.markdown(of_processes((4.0, 2.0, 3.0), (6.0, 2.0, 3.5), (5.0, 4.0, 4.5)))
    assert "| apply_ | two clones | 2.00, 3.00, 1.25 | 2.00 | 2.00 | 1.60 | **missed** |" in text
    assert "| apply_ | op rotate_ | +1.00 us, +2.50 us, +0.50 us | +1.00 us | +2.00 us | +1.50 us | met |" in text
    assert "| apply_ | 4.00, 6.00, 5.00 | 5.00 | 10.00 |" in text
    assert (
        "| decode fp32, 4 ms between calls: rope_ext in place | copy | 0.50, 0.33, 0.80 | 0.50 | 0.50 |  |  |" in text
    )
    assert "rope.apply" not in text  # it was not measured
    assert "* vLLM: not installed" in text


def test_interval_holds_the_median_with_95_percent():
    """Of n values of a distribution its median lies below all, or above all, with 2 / 2**n; and so on."""
    assert interval(range(10)) == (1, 8)  # 97.9 %; (2, 7) would be 89.1 %
    assert interval([3, 1, 2, 5, 4, 6]) == (1, 6)  # 96.9 %
    assert interval([1.0]) == (1.0, 1.0)


# ---- the committed report, on the page about speed and in pictures ----


def test_page_about_speed_has_the_table_of_the_committed_report():
    report, text = files.read(RESULTS / "cpu"), (RESULTS.parents[1] / "docs" / "performance.md").read_text()
    assert page.full_table(report) in text
    assert summary.title(report) in text
    forms = ("rope_ext out=", "rope_ext in place")
    found = [lead for _, ours, _, lead in summary.leads(report["rows"]) if ours in forms]
    assert f"in {sum(lead > 1 for lead in found)} of {len(found)} comparisons" in text


def test_pages_of_committed_reports_are_those_that_the_tools_write():
    """`python -m benchmarks.report --files` changes nothing."""
    report = files.read(RESULTS / "cpu")
    assert files.printed(report | {"summary": summary.summary(report)}) == (RESULTS / "cpu.md").read_text()
    assert calls.markdown(files.read(RESULTS / "calls")) == (RESULTS / "calls.md").read_text()


def test_each_implementation_has_a_marker_of_its_own():
    """Marker and filling tell implementations apart without color."""
    pytest.importorskip("matplotlib")
    from benchmarks.report.picture import STYLES

    ours_and_formulas = {v.name.removesuffix(" in place").removesuffix(" out=") for v in (*VARIANTS, POOLED)}
    assert {*ours_and_formulas, *peers_cpu.PEERS, *peers_gpu.PEERS} - {"copy"} <= STYLES.keys()
    assert len({(marker, filled) for _, marker, filled in STYLES.values()}) == len(STYLES)


def boxes_of(axis):
    """The extents of the labels and of the markers of a panel."""
    from matplotlib.transforms import Bbox

    points = axis.get_figure().dpi / 72
    markers = []
    for collection in axis.collections:
        ((x, y),) = axis.transData.transform(collection.get_offsets())
        side = collection.get_sizes()[0] ** 0.5 * points
        markers.append(Bbox.from_bounds(x - side / 2, y - side / 2, side, side))
    return [text.get_window_extent() for text in axis.texts], markers


def test_labels_and_markers_in_the_picture_of_the_committed_report_do_not_overlap():
    pytest.importorskip("matplotlib")
    from benchmarks.report.picture import picture, plt

    figure = picture(files.read(RESULTS / "cpu"))
    figure.canvas.draw()
    for axis in figure.axes:
        labels, markers = boxes_of(axis)
        assert labels and len(markers) >= len(labels)
        assert all(box.x1 <= axis.bbox.x1 for box in labels)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))
        assert not any(a.overlaps(b) for a, b in itertools.combinations(markers, 2))
        assert not any(a.overlaps(b) for a, b in itertools.product(labels, markers))
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))
    plt.close(figure)


def test_small_picture_shows_the_ratios_of_the_committed_report(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.report import small_picture
    from benchmarks.report.picture import plt

    report = files.read(RESULTS / "cpu")
    figure = small_picture.picture(report, rows := small_picture.rows_of(report))
    figure.canvas.draw()
    for shape, axis in zip(small_picture.SHAPES, figure.axes, strict=True):
        results = rows[shape, "fp32"]["results"]
        names = ("eager", "rope_ext"), ("torch.compile", "rope_ext"), ("ONNX Runtime", "rope_ext out=")
        ratios = [results[peer]["us"] / results[ours]["us"] for peer, ours in (*names, ("vLLM", "rope_ext in place"))]
        assert [text.get_text() for text in axis.texts[1:5]] == [f"{ratio:.1f}" for ratio in ratios]
        boxes = [text.get_window_extent() for text in (*axis.texts, axis.title)]
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    plt.close(figure)
    path = tmp_path / "small.png"
    small_picture.draw(report, path)
    assert path.stat().st_size > 10_000
    small_picture.draw({**report, "rows": report["rows"][:1]}, path)  # a shape is missing
    assert not path.exists()
