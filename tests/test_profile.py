"""`rope_ext.profile`: its figures agree with one another and with what can be counted by hand."""

import collections
import json
import re
import subprocess
import sys
import types

import pytest
import torch

import rope_ext.profile
from rope_ext.profile import profile
from tests.conftest import DTYPES

pytestmark = pytest.mark.devices("cpu")
TINY = {"seqlen": 16, "heads": (3, 1), "head_dim": 8, "dtype": torch.float16, "rounds": 2}
ROWS = ["copy_", "apply", "apply out=", "apply_", "forward+backward"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(the rows by name, the events traced) of x (2, 16, 3, 8) and (2, 16, 1, 8) float16 with 4 of 8 channels rotated."""
    file = tmp_path_factory.mktemp("profile") / "trace.json"
    result = profile(batch=2, rotary_dim=4, trace=file, **TINY)
    assert result.rounds == 2
    return {row.name: row for row in result.rows}, json.loads(file.read_text())["traceEvents"]


def test_payload(found):
    """2 * 16 * (3 + 1) * 8 elements of 2 bytes, read and written; in place 4 of 8 channels; backward doubles it."""
    rows, _ = found
    assert list(rows) == ROWS
    assert [row.payload_bytes for row in rows.values()] == [4096, 4096, 4096, 2048, 8192]


def test_peak_memory(found):
    """The results take 2048 bytes, and those of the backward pass as many while the former are still allocated."""
    rows, _ = found
    assert [row.peak_bytes for row in rows.values()] == [0, 2048, 0, 0, 4096]


def test_peak_is_not_a_sum():
    """Memory that was freed does not count."""

    def call():
        for size in (100, 300, 200):
            torch.empty(size, dtype=torch.uint8)

    events = rope_ext._profile_memory.traced({"sizes": (0, call)}, True, None)
    assert rope_ext._profile_memory.peak_on_cpu(events, "sizes") == 300


def test_figures_agree(found):
    rows, _ = found
    for row in rows.values():
        assert row.seconds > 0 and row.overhead_seconds > 0
        assert row.kernel_seconds == max(row.seconds - row.overhead_seconds, 0.0)
        assert row.gb_per_s == pytest.approx(row.payload_bytes / row.seconds / 1e9)
        assert row.percent_of_copy == pytest.approx(100 * row.gb_per_s / rows["copy_"].gb_per_s)


def test_trace_names_the_ops(found):
    _, events = found
    names = {event["name"] for event in events}
    assert {"rope_ext::rotate", "rope_ext::rotate_", "rope_ext::rotate_out", *ROWS} <= names


def test_times(monkeypatch):
    """Only the calls move the clock. Some are slow and one is fast, which the medians do not show."""
    now, done = 0.0, collections.Counter()
    seconds = {"long": {16: 4e-3, 1: 1e-3}, "short": {16: 5e-5, 1: 6e-5}}  # by name and seqlen

    def calls(case):
        def call(name):
            nonlocal now
            done[name, case.seqlen] += 1
            now += seconds[name][case.seqlen] * {1: 10, 2: 10, 8: 10, 10: 0.1}.get(done[name, case.seqlen], 1)

        return {name: (10**6, lambda name=name: call(name)) for name in seconds}

    monkeypatch.setattr(rope_ext.profile, "_calls", calls)
    monkeypatch.setattr(rope_ext._profile_clock, "time", types.SimpleNamespace(perf_counter=lambda: now))
    long, short = profile(seqlen=16, rounds=7).rows
    assert [long.seconds, long.overhead_seconds, long.kernel_seconds] == pytest.approx([4e-3, 1e-3, 3e-3])
    assert [short.seconds, short.overhead_seconds, short.kernel_seconds] == pytest.approx([5e-5, 6e-5, 0.0])
    assert [long.gb_per_s, short.gb_per_s] == pytest.approx([0.25, 20.0])
    assert done["long", 16] == 2 + 7 * 2 + 3  # warm-up; one untimed and one timed in a round; traced
    assert done["short", 16] >= 7 * 200 / 50


def test_instruction_set(monkeypatch):
    monkeypatch.setattr(rope_ext.profile, "build_info", lambda: {"cpu_isa": "avx9"})
    assert "instruction set avx9" in profile(**TINY).machine


def test_rounds_end_with_the_time(monkeypatch):
    monkeypatch.setattr(rope_ext._profile_clock, "SECONDS", 0.0)
    assert profile(**{**TINY, "rounds": 50}).rounds == rope_ext._profile_clock.MIN_ROUNDS


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "sbhd", "thd", "shd"])
def test_layouts(layout):
    """Each layout is called with shapes that it accepts."""
    batch = 1 if layout == "shd" else 2
    rows = profile(**{**TINY, "rounds": 1}, batch=batch, layout=layout, interleaved=True).rows
    assert rows[1].payload_bytes == batch * 2048


@pytest.mark.parametrize("packed", [False, True])
def test_norm_and_packed(packed):
    """16 * (3 + 1) * 8 elements of 2 bytes; with v 16 * 5 * 8. The factors of a norm take 16 * 4 * 4 bytes, freed last."""
    result = profile(**TINY, norm=True, packed=packed)
    assert ("norm" in str(result)) and ("packed" in str(result)) == packed
    rows = {row.name: row for row in result.rows}
    assert list(rows) == (["copy_", "apply_qkv", "apply_qkv_", "forward+backward"] if packed else ROWS)
    payload = [row.payload_bytes for row in rows.values()]
    assert payload == ([2560, 2048, 2048, 4608] if packed else [2048] * 4 + [4096])
    assert [row.peak_bytes for row in result.rows[1:-1]] == [1024, *[0] * (len(rows) - 3)]
    assert result.rows[-1].peak_bytes >= 1024 + (1280 if packed else 1024)


def test_packed_needs_heads_of_q_and_k():
    for case, name in ({"heads": (3, 2)}, "heads"), ({"heads": (2,)}, "heads"), ({"layout": "bhsd"}, "layout"):
        with pytest.raises(ValueError, match=f"rope_ext: {name} must .* if packed, got"):
            profile(**{**TINY, **case, "packed": True})
    for name in ("norm", "packed"):
        with pytest.raises(ValueError, match=f"rope_ext: {name} must be False for a breakdown, got True"):
            rope_ext.profile.breakdown(**{**TINY, name: True})


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    rows = profile(**{**TINY, "rounds": 1, "dtype": dtype}).rows
    assert rows[1].payload_bytes == 1024 * dtype.itemsize


def test_modes_of_the_caller_do_not_matter():
    state = torch.get_rng_state()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert len(profile(**{**TINY, "rounds": 1}).rows) == len(ROWS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("batch", 0, ValueError),
        ("seqlen", -4, ValueError),
        ("seqlen", 2.0, ValueError),
        ("heads", (4, 0), ValueError),
        ("heads", (), ValueError),
        ("heads", 8, ValueError),
        ("heads", (1,) * 9, ValueError),
        ("head_dim", 0, ValueError),
        ("rotary_dim", 7, ValueError),
        ("dtype", torch.int8, TypeError),
        ("device", "tpu", ValueError),
        ("layout", "xyz", ValueError),
        ("interleaved", "half", TypeError),
        ("norm", 1, TypeError),
        ("packed", "qkv", TypeError),
        ("rounds", 0, ValueError),
    ],
)
def test_an_error_names_the_argument(name, value, error):
    with pytest.raises(error, match=rf"^rope_ext: {name} must .*, got "):
        profile(**{**TINY, name: value})


def test_shd_has_no_batch():
    with pytest.raises(ValueError, match="rope_ext: batch must be 1 with layout shd, got 2"):
        profile(**TINY, batch=2, layout="shd")


def test_a_wrong_name_is_answered_with_the_right_one():
    with pytest.raises(TypeError, match=r"rope_ext: seq_len must be one of .*\(is it seqlen\?\), got 8$"):
        profile(seq_len=8)


@pytest.mark.parametrize("trace", ["missing/trace.json", "", "long" * 100])
def test_a_trace_that_cannot_be_written_is_refused_before_the_measurement(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(rope_ext.profile, "_calls", lambda case: pytest.fail("measured"))
    with pytest.raises(OSError, match=r"^rope_ext: trace must be a file that can be written, got '"):
        profile(**TINY, trace=tmp_path / trace)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_a_path():
    with pytest.raises(TypeError, match=r"^rope_ext: trace must be a path or None, got True$"):
        profile(**TINY, trace=True)


def test_command(tmp_path):
    file = tmp_path / "trace.json"
    options = "--seqlen 4 --heads 2 1 1 --head-dim 8 --dtype float32 --layout bhsd --threads 1 --rounds 1"
    command = [sys.executable, "-m", "rope_ext.profile", *options.split(), "--trace", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")  # torch's profiler prints nothing
    assert re.search(rf"torch {re.escape(torch.__version__)}, .*instruction set \w+, threads 1\n", ended.stdout)
    assert "batch 1, seqlen 4, heads 2 and 1 and 1, head_dim 8, rotary_dim all," in ended.stdout
    table = {line[:16].strip(): line[16:].split() for line in ended.stdout.splitlines()}
    assert all(len(table[name]) == 6 and all(map(float, table[name][:2])) for name in ROWS)
    assert "rope_ext::rotate" in file.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device cuda", "--device must be cpu, or cuda where torch finds a GPU, got 'cuda'"),
        ("--trace missing/trace.json", "--trace must be a file that can be written, got 'missing/trace.json'"),
        ("--head-dim 8 --rotary-dim 7", "--rotary-dim must be even and in 2 to head_dim 8, got 7"),
        ("--threads 99999999999", "--threads must be in 1 to 1024, got 99999999999"),
        ("--seqlen 9999999999999", "--seqlen must be an int in 1 to 2^40 - 1, got 9999999999999"),
        ("--seqlen 999999999999 --batch 99999", "--seqlen must keep batch * seqlen * heads * head_dim below 2^56"),
        ("--seqlen x", "argument --seqlen: invalid int value: 'x'"),
        ("--dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("--seq-len 8", "unrecognized arguments: --seq-len 8"),
    ],
)
def test_the_command_refuses_in_one_line_with_status_2(options, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, said = failed(options, monkeypatch, capsys)
    assert status == 2 and said.startswith(message)


def test_the_command_runs_out_of_memory_in_one_line(monkeypatch, capsys):
    status, said = failed("--seqlen 99999999999", monkeypatch, capsys)
    assert status == 1 and said.startswith("out of memory: ")


def failed(options, monkeypatch, capsys):
    """(the exit status of the command, the one line on stderr behind "error: ")."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setattr(sys, "argv", ["profile", *options.split()])
    with pytest.raises(SystemExit) as ended:
        rope_ext.profile.main()
    line, rest = capsys.readouterr().err.split("\n")
    assert rest == ""
    return ended.value.code, line.removeprefix("python -m rope_ext.profile: error: ")
