"""What a call of rope_ext costs, for your shapes and on your machine: `python -m rope_ext.profile --help`.

Every form of the call is timed beside a copy of the same tensors, and beside itself on one token. All take turns in the
same rounds, so the noise of the machine hits all alike. Calls repeat on the same memory: what fits in a cache stays
there, for the copy as for the rest.
"""

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import rope_ext

from ._profile_case import DTYPES, Case, check, check_file, check_names
from .reference import LAYOUTS

SHORTEST_SAMPLE = 200e-6  # seconds; shorter calls are timed in batches
SECONDS = 1.5  # no round begins after that, once MIN_ROUNDS are done
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One form of the call, measured. Times are medians, in seconds."""

    name: str
    seconds: float  # a call. CUDA: of the device, which may wait for the host, for calls queued one behind the other
    overhead_seconds: float  # the same call on one token: Python, checks, dispatch, launch, and next to no kernel
    kernel_seconds: float  # the rest, with the new pages of new results. CUDA, where the host works ahead: seconds
    payload_bytes: int  # tensors that are rotated, read once and written once in each pass; tables are not counted
    gb_per_s: float  # payload_bytes / seconds / 1e9
    percent_of_copy: float  # gb_per_s, of that of `y.copy_(x)` for the same tensors into memory that is there
    # Held at most beyond the inputs, results included, by torch's allocator. CPU: bytes requested, from a trace of
    # torch's profiler. CUDA: max_memory_allocated, which rounds each tensor up to 512 bytes.
    peak_bytes: int


@dataclass(frozen=True)
class Profile:
    """What `profile` returns; its str is a table."""

    case: Case
    machine: str
    rounds: int  # that were timed
    rows: list  # of Row; the first is the copy

    def __str__(self):
        line = "{:<16}{:>10}{:>13}{:>11}{:>8}{:>11}{:>10}".format
        head = line("", "call us", "overhead us", "kernel us", "GB/s", "% of copy", "peak MiB")
        lines = [self.machine, str(self.case), "", head]
        for row in self.rows:
            us = [s * 1e6 for s in (row.seconds, row.overhead_seconds, row.kernel_seconds)]
            cells = [f"{t:.{0 if t >= 1000 else 1}f}" for t in us]
            cells += [f"{row.gb_per_s:.1f}", f"{row.percent_of_copy:.0f}", f"{row.peak_bytes / 2**20:.1f}"]
            lines.append(line(row.name, *cells))
        legend = f"Medians of {self.rounds} rounds. overhead: the same call on one token. GB/s, %: of the whole call."
        return "\n".join([*lines, "", legend])


@torch.inference_mode(False)
@torch.enable_grad()
def profile(*, rounds=50, trace=None, **case):
    """Measure `rope_ext.apply`, with out=, in place, and forward + backward. CPU: in torch.get_num_threads() threads.

    case: the fields of `Case`, by name.
    rounds: at most; once 1.5 seconds are over only the first 5.
    trace: file to write, JSON for chrome://tracing or ui.perfetto.dev: a few calls of each form, with memory.

    Returns a `Profile`. Raises ValueError or TypeError, "rope_ext: <argument> must <rule>, got <value>", and OSError
    for a file that cannot be written, all before anything is measured. torch's profiler logs to stderr; with
    KINETO_LOG_LEVEL=99 in the environment before its first use it does not.

        print(rope_ext.profile.profile(seqlen=8192, heads=(32, 8), dtype=torch.float16, layout="bhsd"))
    """
    check_names(case)
    case = Case(**case)
    check(isinstance(rounds, int) and rounds > 0, "rounds", "be a positive int", rounds)
    if trace is not None:
        check_file(trace)
    on_cpu = case.device == "cpu"
    calls, on_one_token = _calls(case), _calls(replace(case, batch=1, seqlen=1))
    steps = [call for _, call in (*calls.values(), *on_one_token.values())]
    samples = _samples(steps, _seconds_on_cpu if on_cpu else _seconds_on_cuda, rounds)
    medians = [statistics.median(times) for times in samples]
    events = _trace(calls, on_cpu, trace)
    rows = []
    for (name, (payload, call)), seconds, overhead in zip(calls.items(), medians, medians[len(calls) :]):
        kernel = max(seconds - overhead, 0.0) if on_cpu else seconds
        speed = payload / seconds / 1e9
        percent = 100 * speed / (rows[0].gb_per_s if rows else speed)
        peak = _peak_on_cpu(events, name) if on_cpu else _peak_on_cuda(call)
        rows.append(Row(name, seconds, overhead, kernel, payload, speed, percent, peak))
    return Profile(case, _machine(on_cpu), len(samples[0]), rows)


def _calls(case):
    """{name of the row: (payload_bytes, function without arguments)}, the copy first."""
    tokens = case.batch * case.seqlen
    sizes = {"b": case.batch, "s": case.seqlen, "t": tokens, "d": case.head_dim}
    shapes = [[{**sizes, "h": heads}[axis] for axis in case.layout] for heads in case.heads]
    generator = torch.Generator(case.device).manual_seed(0)  # torch's own keeps its state
    x = [torch.randn(shape, generator=generator, device=case.device).to(case.dtype) for shape in shapes]
    leaves = [t.detach().requires_grad_() for t in x]
    grads, own, out = ([t.clone() for t in x] for _ in range(3))
    rope = rope_ext.RotaryEmbedding(case.head_dim, base=500_000.0, rotary_dim=case.rotary_dim)
    table_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    cos, sin = rope.tables(case.seqlen, dtype=table_dtype, device=case.device)
    options = {name: getattr(case, name) for name in ("layout", "interleaved", "rotary_dim")}
    options.update(cos=cos, sin=sin)
    if case.layout == "thd":
        options["cu_seqlens"] = torch.arange(0, tokens + 1, case.seqlen, dtype=torch.int32, device=case.device)
    once = 2 * case.dtype.itemsize * sum(t.numel() for t in x)
    rotated = once // case.head_dim * rope.rotary_dim  # in place, other channels are not touched
    return {
        "copy_": (once, lambda: [y.copy_(t) for y, t in zip(out, x)]),
        "apply": (once, lambda: rope_ext.apply(x, **options)),
        "apply out=": (once, lambda: rope_ext.apply(x, **options, out=out)),
        "apply_": (rotated, lambda: rope_ext.apply_(own, **options)),  # on and on, which keeps the norm
        # Of given gradients: nothing is accumulated, no loss is computed.
        "forward+backward": (2 * once, lambda: torch.autograd.grad(rope_ext.apply(leaves, **options), leaves, grads)),
    }


def _machine(on_cpu):
    versions = f"rope_ext {rope_ext.__version__}, torch {torch.__version__}"
    if not on_cpu:
        major, minor = torch.cuda.get_device_capability()
        return f"{versions}, {torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    model = models[0] if models else platform.processor() or platform.machine()
    isa = rope_ext.build_info()["cpu_isa"] if hasattr(rope_ext, "build_info") else "unknown"
    return f"{versions}, {model}, instruction set {isa}, threads {torch.get_num_threads()}"


def _samples(steps, clock, rounds):
    """For each step its seconds in each round. In a round all take turns."""
    samples = [[clock(step, 1)] for step in steps]
    end = time.perf_counter() + SECONDS
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for step, times in zip(steps, samples):
            times.append(clock(step, 1 + int(SHORTEST_SAMPLE / min(times))))
    return [times[1:] for times in samples]


def _seconds_on_cpu(step, calls):
    step()  # untimed: the clock finds caches, free memory and threads as this step leaves them, no other
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def _seconds_on_cuda(step, calls):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()  # untimed, and not waited for: while the device is at it, the host queues what is timed
    start.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _trace(calls, on_cpu, path):
    """Events of a few of each of calls, in Chrome's format; written to path too, unless that is None."""
    # Not torch.profiler.profile, which is this one and seconds of imports.
    with torch.autograd.profiler.profile(use_device=None if on_cpu else "cuda", profile_memory=True) as profiler:
        for name, (_, call) in calls.items():
            with torch.profiler.record_function(name):
                for _ in range(3):
                    call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))  # which, given a path that cannot be written, raises nothing
        text = file.read_text()
    if path is not None:
        Path(path).write_text(text)
    return json.loads(text)["traceEvents"]


def _peak_on_cpu(events, name):
    """Largest sum of allocations less frees in the part of the trace that has this name."""
    (part,) = (event for event in events if event.get("cat") == "user_annotation" and event["name"] == name)
    memory = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    inside = [event for event in memory if part["ts"] <= event["ts"] <= part["ts"] + part["dur"]]
    changes = [event["args"]["Bytes"] for event in sorted(inside, key=lambda event: event["ts"])]
    return max(itertools.accumulate(changes, initial=0))


def _peak_on_cuda(call):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, without the usage: --help shows that."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main():
    # Read by torch's profiler when it is first used; above all its levels nothing is logged.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    parser = _Parser(
        prog="python -m rope_ext.profile",
        description="What a call of rope_ext costs, next to a copy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch", type=int, help="sequences")
    parser.add_argument("--seqlen", type=int, help="tokens of a sequence")
    parser.add_argument("--heads", type=int, nargs="+", help="one number per tensor, such as those of q and k")
    parser.add_argument("--head-dim", type=int, help="channels of a head")
    parser.add_argument("--rotary-dim", type=int, help="rotated channels; None: all")
    parser.add_argument("--dtype", choices=DTYPES, metavar="DTYPE", help=", ".join(DTYPES))
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--layout", choices=LAYOUTS, metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument("--interleaved", action="store_true", help="pairs are channels (2i, 2i + 1)")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--rounds", type=int, help="at most; their time is bounded too")
    parser.add_argument("--trace", metavar="FILE", help="write a few calls for chrome://tracing or ui.perfetto.dev")
    parser.set_defaults(**vars(Case()) | {"dtype": "bfloat16"}, threads=torch.get_num_threads(), rounds=50)
    arguments = parser.parse_args()
    options = dict(vars(arguments))
    threads, dtype = options.pop("threads"), DTYPES[options.pop("dtype")]
    try:
        check(0 < threads <= 1024, "threads", "be in 1 to 1024", threads)
        torch.set_num_threads(threads)
        print(profile(dtype=dtype, **options))
    except (NotImplementedError, OSError, TypeError, ValueError) as error:  # about arguments: a sentence says it
        message = str(error).removeprefix("rope_ext: ")
        name = message.partition(" ")[0]
        parser.error(message.replace(name, f"--{name.replace('_', '-')}", 1) if hasattr(arguments, name) else message)
    except RuntimeError as error:
        if "allocate memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        parser.exit(1, f"{parser.prog}: error: out of memory: {error}\n")


if __name__ == "__main__":
    main()
