"""The benchmark on a GPU, as far as it goes without one. Every figure here is made up, and none is kept."""

import contextlib
import types

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks import bench
from benchmarks.baselines import VARIANTS, pytorch
from benchmarks.harness import cases, clocks, counters, exactness, measure
from benchmarks.harness.shapes import Shape
from benchmarks.harness.variants import Step, Variant
from benchmarks.report import files, targets

pytestmark = pytest.mark.devices("cpu")
SHAPE = Shape("decode", "for tests", batch=2, seqlen=16, heads_q=4, heads_k=2, head_dim=32, first_position=3)


class FakeGpu:
    """torch.cuda with a clock that only kernels move; what is captured moves it at each replay."""

    hertz = 2e9

    def __init__(self):
        self.now, self.captured, self.waited, self.idle, gpu = 0.0, None, [], False, self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                gpu.run(1e-6)
                self.time = gpu.now

            def query(self):
                return gpu.idle

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return 1e3 * (end.time - self.time)

        class CUDAGraph:
            def replay(self):
                gpu.run(self.seconds)

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def run(self, seconds):
        if self.captured is None:
            self.now += seconds
        else:
            self.captured += seconds

    @contextlib.contextmanager
    def graph(self, graph):
        self.captured = 0.0
        yield
        graph.seconds, self.captured = self.captured, None

    def _sleep(self, cycles):
        self.waited.append(cycles / self.hertz)
        self.run(cycles / self.hertz)

    def synchronize(self):
        pass

    def get_device_properties(self, device):
        return types.SimpleNamespace(L2_cache_size=1 << 16)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu()
    for name in ("Event", "CUDAGraph", "graph", "_sleep", "synchronize", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


# ---- the clock ----


def test_cuda_clock_times_the_call_alone_and_keeps_the_host_ahead(gpu):
    clock, order = clocks.CudaClock("cpu"), []
    clock.flush = lambda: order.append("flush") or gpu.run(40e-6)
    step = Step(
        call=lambda: order.append("call") or gpu.run(3e-3),
        before=lambda: order.append("before") or gpu.run(1.0),
        after=lambda: order.append("after") or gpu.run(1.0),
    )
    assert clock.hertz == pytest.approx(gpu.hertz, rel=1e-3)
    assert clock.sample(step, [300e-6]) == pytest.approx(3e-3, abs=2e-6)
    assert order == ["before", "flush", "call", "after"]
    assert gpu.waited[-1] == pytest.approx(600e-6, rel=1e-3)
    clock.sample(step, [9.0])
    assert gpu.waited[-1] == pytest.approx(clocks.MAX_LEAD, rel=1e-3)
    gpu.idle, gpu.waited = True, []  # it did not wait for the host: again, with a longer lead
    assert clock.sample(step, [1e-3]) == pytest.approx(3e-3, abs=2e-6)
    assert gpu.waited == pytest.approx([2e-3, 8e-3, clocks.MAX_LEAD], rel=1e-3)


def test_the_flush_reads_twice_the_l2_and_leaves_no_dirty_lines(gpu):
    """What is written lies in the L2 until other lines need its place: it would be written back in the timed region."""
    clock, touched = clocks.CudaClock("cpu"), []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, function, _types, given=(), options=None):
            touched.append((function.__name__, given[0].nbytes, options["out"].nbytes))
            return function(*given, **options)

    with Watched():
        clock.flush()
    assert touched == [("sum", 2 * (1 << 16), 4)]


def test_cuda_clock_takes_turns_among_more_inputs_than_the_l2_holds(gpu):
    case = cases.Case(SHAPE, "fp32", "half", "forward+backward", "qkv", threads=1)
    count = clocks.CudaClock("cpu").sets(case)
    others = case.again(count - 1)
    inputs = [x for c in (case, *others) for x in (*c.inputs, *c.grads)]
    assert sum(x.nbytes for x in inputs) >= 2 * (1 << 16) or count == clocks.MAX_SETS
    assert len({x.data_ptr() for x in inputs}) == len(inputs)
    for other in others:
        assert all(map(torch.equal, (*case.inputs, *case.grads), (*other.inputs, *other.grads)))


def test_launches_of_a_graph_and_of_the_host(gpu):
    clock = clocks.CudaClock("cpu")
    found = clock.launches([Step(lambda: gpu.run(2e-6), forward=lambda: None)])
    assert found["graph_us"] == pytest.approx(2.01, abs=0.01)  # 0.01: an event, by 100 calls
    assert 0 < found["host_us"] < 1000 and 0 < found["host_forward_us"] < 1000

    def refuses():
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    steps = [Step(lambda: refuses() if gpu.captured is not None else None)]
    found = clock.launches(steps)
    assert found["graph_missing"] == "RuntimeError: operation not permitted when stream is capturing"
    assert clock.empty_launch()["graph_us"] < 1


@pytest.mark.parametrize("which", cases.PASSES)
def test_run_case_with_a_gpu_clock(gpu, which):
    case = cases.Case(SHAPE, "bf16", "interleaved", which, "bshd", threads=1)
    variants = [v for v in VARIANTS if v.name != "torch.compile"]
    found = measure.run_case(case, variants, clocks.CudaClock("cpu"), 5, 0.01, 1)["results"]
    assert {"copy", "rope_ext", "eager", "complex"} <= found.keys()
    for name, r in found.items():
        assert r["us"] == pytest.approx(1, abs=0.1), name  # that of an event: nothing else moves the clock
        assert r["host_us"] > 0 and "graph_us" in r and not r["wrong"]
        assert ("host_forward_us" in r) == (case.backward and name != "copy")


def test_copy_on_a_gpu_is_one_copy_per_direction():
    case = cases.Case(SHAPE, "fp16", "half", "forward+backward", "qkv", threads=1)
    case.device = "cuda"  # the tensors are not: the yardstick asks for nothing else
    step = pytorch.copy(case)
    copies = step.call()
    assert len(copies) == 2
    variant = Variant("copy", "copy", None, 0)
    assert not exactness.check(variant, step.fetch(copies), exactness.copied(case), case).wrong


# ---- reports ----


def made_up_row(name, dtype, which, copy, ours, peer, **launches):
    def result(form, mine, us):
        verdict = {"max_error": 0.0, "error_bound": 1.0, "correctly_rounded": None, "wrong": False}
        found = {"form": form, "ours": mine, "us": us, "gb_per_s": 1000.0, "copies": us / copy, "reads": ""}
        return found | verdict

    found = {"copy": result("copy", False, copy), "rope_ext": result("functional", True, ours) | launches}
    found["flash-attn"] = result("functional", False, peer) | {"reads": "a table in the dtype of x"}
    if which == "forward":
        found["rope_ext in place"] = result("in place", True, ours)
        found["Liger in place"] = result("in place", False, peer)
    shape = {**vars(SHAPE), "name": name}
    case = {"shape": shape, "dtype": dtype, "pairing": "half", "pass": which, "memory": "bshd"}
    return {**case, "threads": 1, "malloc": "default", "busy_elsewhere": 0.0, "left_out": {}, "results": found}


def made_up_report(*rows, **more):
    machine = {"gpu": "a made-up GPU", "driver": "1", "cuda": "13", "torch": "2", "commit": "none", "date": "never"}
    empty = {"graph_us": 1.5, "host_us": 3.0}
    return {"device": "cuda", "machine": machine, "missing": {}, "rows": list(rows), "empty_launch": empty, **more}


def test_targets_are_reported_as_met_or_missed():
    good = made_up_row("prefill", "bf16", "forward", copy=100.0, ours=101.0, peer=150.0)
    slow = made_up_row("video", "fp32", "forward+backward", copy=100.0, ours=125.0, peer=120.0)
    other = made_up_row("video", "fp16", "forward", copy=100.0, ours=125.0, peer=200.0)  # no target
    decode = made_up_row("decode", "bf16", "forward", copy=3.0, ours=3.0, peer=9.0, graph_us=2.4, host_us=9.0)
    of_copy, of_launch, of_peers = targets.verdicts(made_up_report(good, other, decode))
    assert "met, all 2" in of_copy and "met, all 1" in of_launch and "met, all 6" in of_peers
    late = made_up_row("decode", "bf16", "forward", copy=3.0, ours=3.0, peer=9.0, graph_us=2.6, host_us=9.0)
    found = made_up_report(good, slow, late)
    of_copy, of_launch, of_peers = targets.verdicts(found)
    assert of_copy.endswith("MISSED in 1 of 3: video fp32 half forward+backward rope_ext: 80 %")
    assert of_launch.endswith("MISSED in 1 of 1: decode bf16 half forward rope_ext: +1.1 us")
    assert of_peers.endswith("video fp32 half forward+backward rope_ext: flash-attn 0.96x")
    assert [(row["shape"]["name"], name) for row, name in targets.below_copy(found)] == [("video", "rope_ext")]
    assert all("not measured" in line for line in targets.verdicts(made_up_report()))


def test_a_report_writes_its_files(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [made_up_row("prefill", "bf16", which, 100.0, 101.0, 150.0) for which in cases.PASSES]
    rows.append(made_up_row("decode", "bf16", "forward", 3.0, 3.0, 9.0, graph_us=2.4, host_us=9.0, host_forward_us=5.0))
    counted = [{"case": "prefill", "kernel": "rotate", "metrics": {"DRAM Throughput": "91 %"}}]
    more = {"counters": {"rows": counted}, "not_measured": ["video fp16"], "failed": ["long fp32: wrong"]}
    found = made_up_report(*rows, **more)
    path = tmp_path / "some.gpu"
    files.write(found, path)
    files.draw(found, path)
    text = path.with_name("some.gpu.md").read_text()
    for part in (
        "a made-up GPU, driver 1",
        "## Targets",
        "## Launches",
        "| +0.9 | 9.0 | 5.0 |",
        "91 %",
        "for lack of time: video",
    ):
        assert part in text
    assert "flash-attn reads a table in the dtype of x" in text
    assert path.with_name("some.gpu.png").stat().st_size > 10_000
    brief = targets.brief(files.read(path))
    assert "101 1000 99%" in brief and "flash-attn 1.49x" in brief and "failed: long fp32: wrong" in brief
    assert brief.splitlines()[-1].startswith("* ahead of every peer of the same form: met")
    assert targets.sections({"machine": {"cpu": "any"}}) == []


def test_brief_fits_the_end_of_an_output():
    names = ["prefill", "train", "decode", "tiny", "long", "video"]
    of_launch = {"graph_us": 12.3, "host_us": 45.6}
    rows = [
        made_up_row(name, dtype, which, 1000.0, 1100.0, 1500.0, **(of_launch if name in ("decode", "tiny") else {}))
        for name in names
        for dtype in ("bf16", "fp32", "fp16")
        for which in cases.PASSES
    ]
    assert len(targets.brief(made_up_report(*rows, *rows))) < 12_000


def test_counters_of_each_case():
    def lines(kernel, number, *metrics):
        return [f'"{number}","{kernel}","Section","{name}","{unit}","{value}"' for name, unit, value in metrics]

    text = [
        "==PROF== Connected",
        '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"',
        *lines("spin_kernel(long)", 0, ("Duration", "us", "1")),
        *lines(
            "rotate<float>(Params)", 1, ("Duration", "us", "41.5"), ("Registers Per Thread", "register/thread", "40")
        ),
        *lines("spin_kernel(long)", 2, ("Duration", "us", "1")),
        *lines("rotate<half>(Params)", 3, ("DRAM Throughput", "%", "88.1"), ("Executed Ipc", "inst/cycle", "1")),
    ]
    assert counters.rows_of("\n".join(text), ["first", "second"]) == [
        {"case": "first", "kernel": "rotate<float>", "metrics": {"Duration": "41.5 us", "Registers Per Thread": "40"}},
        {"case": "second", "kernel": "rotate<half>", "metrics": {"DRAM Throughput": "88.1 %"}},
    ]


# ---- the command ----


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        bench.parse(["--device", "cuda"])
    assert ended.value.code == 2
    assert "--device cuda needs a GPU that torch can use, got none" in capsys.readouterr().err


def test_cases_of_a_gpu_come_in_the_order_of_their_importance(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = bench.cases_of(bench.parse(["--device", "cuda"]))
    assert len(found) == 6 * 3 * 2 * 2
    assert [case[0].name for case in found[:12:2]] == bench.GPU_NAMES
    assert list(dict.fromkeys(case[1:3] for case in found))[:3] == [
        (dtype, "half") for dtype in ("bf16", "fp32", "fp16")
    ]
    assert [case[1:4] for case in found[:2]] == [("bf16", "half", which) for which in cases.PASSES]
    kinds = ["fp32/half", "fp16/half", "bf16/interleaved"]
    found = bench.cases_of(bench.parse(["--device", "cuda", "--kinds", *kinds]))
    assert list(dict.fromkeys("/".join(case[1:3]) for case in found)) == kinds and len(found) == 6 * 3 * 2
    of_cpu = bench.cases_of(bench.parse([]))
    assert [case[1:3] for case in of_cpu[:12:2]] == [(d, p) for d in cases.DTYPES for p in cases.PAIRINGS]
    assert "video" not in {case[0].name for case in of_cpu}
    assert bench.parse(["--device", "cuda", "-q"]).name == "gpu_quick" and bench.parse([]).name == "cpu"
    with pytest.raises(SystemExit):
        bench.parse(["--device", "cuda", "--malloc", "pool"])


def test_other_cases_survive_a_failure_and_the_end_of_the_time(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "CudaClock", lambda: clocks.CudaClock("cpu"))
    monkeypatch.setattr(
        bench,
        "Case",
        lambda *case: types.SimpleNamespace(
            shape=case[0], dtype=case[1], pairing=case[2], which=case[3], memory=case[4], norm=False
        ),
    )

    timed = set()

    def run_case(case, variants, *_):
        timed.update(variant.name for variant in variants)
        if case.which == "forward":
            raise SystemExit("wrong\nby much")
        return {
            key: made_up_row("decode", "bf16", case.which, 1.0, 2.0, 3.0)[key]
            for key in ("results", "left_out", "busy_elsewhere")
        }

    monkeypatch.setattr(bench, "run_case", run_case)
    arguments = [
        "--device",
        "cuda",
        "--shapes",
        "decode",
        "--dtypes",
        "bf16",
        "--pairings",
        "half",
        "--output",
        str(tmp_path),
    ]
    found = made_up_report(failed=[], not_measured=[])
    bench.measure(
        bench.parse([*arguments, "--budget", "100", "--compiled"]), 2, "default", bench.time.monotonic(), found
    )
    assert "eager" in timed and "torch.compile" not in timed
    assert len(found["rows"]) == 1 and found["failed"][0].endswith("wrong by much")
    assert (tmp_path / "gpu.md").exists() and files.read(tmp_path / "gpu")["rows"] == found["rows"]
    late = made_up_report(failed=[], not_measured=[])
    bench.measure(bench.parse([*arguments, "--budget", "1"]), 2, "default", bench.time.monotonic() - 2, late)
    assert late["not_measured"] == [f"decode bf16 half {which} bshd" for which in cases.PASSES] and not late["rows"]
