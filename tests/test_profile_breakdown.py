"""`rope_ext.profile.breakdown`: its parts add up to the call, and each is what its name says."""

import math
import re
import subprocess
import sys

import pytest
import torch

from rope_ext import _profile_breakdown
from rope_ext.profile import Case, breakdown
from tests.conftest import assert_same_bits
from tests.test_profile import failed

pytestmark = pytest.mark.devices("cpu")
TINY = {"batch": 1, "heads": (2, 1), "head_dim": 16, "dtype": torch.float32}
FORMS = ["apply", "apply out=", "apply_", "recorded apply", "forward+backward"]
PARTS = ["front door", "dispatcher", "checks", "plan", "kernel", "threads"]


def microseconds(parts):
    return {name: round(part.seconds * 1e6, 6) for name, part in parts.items()}


@pytest.fixture
def timed(monkeypatch):
    """A function that gives the steps these microseconds, in three rounds of which the first is the shortest."""

    def fake(us):
        def samples(steps, clock, rounds):
            return [[t * 1e-6, (t + 1) * 1e-6, (t + 2) * 1e-6] for t in us]

        monkeypatch.setattr(_profile_breakdown, "samples_of", samples)
        return breakdown(**TINY)

    return fake


def test_parts_are_differences(timed):
    """apply 10, out= 13, apply_ 9, recorded 20, forward + backward 50; ops 6, 7 and 5; 4 on one token; checks 4 and 3.5;
    nothing 2, and 3 with all arguments; in one thread 8."""
    found = timed([10, 13, 9, 20, 50, 6, 7, 5, 4, 4, 3.5, 2, 3, 8])
    op = {"dispatcher": 2, "checks": 1, "plan": 1.5, "kernel": 3.5, "threads": -3}
    apply = {"front door": 4, **op, "results": 1}
    assert {form: microseconds(parts) for form, parts in found.parts.items()} == {
        "apply": apply,
        "apply out=": {"front door": 6, **op, "results": 2},
        "apply_": {"front door": 4, **op},
        "recorded apply": {**apply, "recording": 10},
        "forward+backward": {**apply, "recording": 10, "backward": 30},
    }
    assert microseconds(found.calls) == dict(zip(FORMS, [10, 13, 9, 20, 50]))
    assert found.rounds == 3
    assert found.parts["apply"]["checks"].spread == pytest.approx(0)  # 1 us in every round
    assert found.calls["apply"].spread == pytest.approx(1e-6)


def test_a_negative_part_is_printed(timed):
    """The op with ready arguments took longer than the call: noise, which is shown."""
    found = timed([5, 13, 9, 20, 50, 6, 7, 5, 4, 4, 3.5, 2, 3, 8])
    assert microseconds(found.parts["apply"])["front door"] == -1
    assert re.search(r"^front door +-1\.00 ±0\.00 ", str(found), re.M)


def test_parts_of_a_measurement():
    """Every part lies between zero, up to the noise of this machine, and its call, to which they add up."""
    found = breakdown(**TINY, rounds=100)
    assert list(found.calls) == list(found.parts) == FORMS
    for form, parts in found.parts.items():
        whole = found.calls[form].seconds
        assert sum(part.seconds for part in parts.values()) == pytest.approx(whole)
        assert [name for name in parts if name in PARTS] == PARTS
        assert all(-0.3 * whole < part.seconds < 1.3 * whole and part.spread >= 0 for part in parts.values())
    steps = found.parts["forward+backward"]
    assert all(steps[name].seconds > 0 for name in ("front door", "dispatcher", "recording", "backward"))


def test_one_thread_has_no_part_for_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert "threads" not in breakdown(**TINY, rounds=1).parts["apply"]


def test_one_round_has_no_spread():
    assert math.isnan(breakdown(**TINY, rounds=1).calls["apply"].spread)


@pytest.mark.parametrize(
    "case",
    [
        {"layout": "bshd"},
        {"layout": "bhsd", "interleaved": True},
        {"layout": "sbhd", "rotary_dim": 8, "dtype": torch.bfloat16},
        {"layout": "thd", "interleaved": True, "rotary_dim": 8},
        {"layout": "thd", "dtype": torch.float64},
        {"layout": "shd", "batch": 1, "dtype": torch.float16},
    ],
)
def test_the_ops_do_what_the_calls_do(case):
    steps = _profile_breakdown._steps(Case(**{**TINY, "batch": 2, "seqlen": 3, **case}))
    rotated = steps["apply"].call()
    assert not torch.equal(rotated[0][..., 1:, :], torch.zeros_like(rotated[0][..., 1:, :]))
    assert_same_bits(steps["rotate"].call(), rotated)
    assert_same_bits([t.detach() for t in steps["recorded apply"].call()], rotated)
    written = steps["apply out="].call()
    assert_same_bits(written, rotated)
    for t in written:
        t.zero_()
    steps["rotate_out"].call()
    assert_same_bits(written, rotated)
    in_place = steps["apply_"].call()
    assert_same_bits(in_place, rotated)
    for name in ("nothing", "check", "check of one token", "rotate_ of one token"):
        with steps[name].inside():
            assert steps[name].call() is None
    assert_same_bits(in_place, rotated)
    steps["rotate_"].call()
    assert not torch.equal(in_place[0], rotated[0])


def test_default():
    assert breakdown(rounds=1).case == Case(batch=32, seqlen=1)
    assert breakdown(rounds=1, layout="shd").case == Case(batch=1, seqlen=1, layout="shd")


def test_threads_are_as_before():
    before = torch.get_num_threads()
    assert before > 1
    breakdown(**TINY, rounds=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("argument", "value", "error"), [("rounds", 0, ValueError), ("trace", "x", TypeError), ("heads", (), ValueError)]
)
def test_errors(argument, value, error):
    with pytest.raises(error, match=rf"^rope_ext: {argument} must .*, got "):
        breakdown(**{**TINY, argument: value})


def test_command():
    options = "--breakdown --batch 1 --heads 2 1 --head-dim 16 --dtype float32 --threads 1 --rounds 3"
    command = [sys.executable, "-m", "rope_ext.profile", *options.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert "batch 1, seqlen 1, heads 2 and 1" in lines[1]
    assert lines[3].split("  ")[0] == "us" and lines[3].endswith("forward+backward")
    table = {line[:12].strip(): re.findall(r"(-?[\d.]+) ±([\d.]+)", line[12:]) for line in lines[4:13]}
    assert {name: len(cells) for name, cells in table.items()} == {
        **dict.fromkeys(["call", "front door", "dispatcher", "checks", "plan", "kernel"], 5),
        **{"results": 4, "recording": 2, "backward": 1},
    }
    assert all(f"{name}: {_profile_breakdown.PARTS[name]}." in lines for name in table if name != "call")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--breakdown --trace t.json", "argument --trace: not allowed with argument --breakdown"),
        ("--breakdown --rounds 0", "--rounds must be a positive int, got 0"),
        ("--breakdown --layout shd --batch 2", "--batch must be 1 with layout shd, got 2"),
    ],
)
def test_the_command_refuses_in_one_line_with_status_2(options, message, monkeypatch, capsys):
    status, said = failed(options, monkeypatch, capsys)
    assert status == 2 and said.startswith(message)
