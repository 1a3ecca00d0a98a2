"""What a call of rope_ext costs, for your shapes and on your machine: `python -m rope_ext.profile --help`.

Each form of the call is timed next to a copy of the same tensors, and next to the same call on a single token. All of
them alternate within each round, so that noise of the machine affects all alike. Calls reuse the same memory: data that
fits into a cache stays cached, for the copy as well::

    print(rope_ext.profile.profile(seqlen=8192, heads=(32, 8), dtype=torch.float16, layout="bhsd"))
    print(rope_ext.profile.breakdown(batch=1, heads=(8, 2), head_dim=64, dtype=torch.float32))
"""

import os
import platform
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ._profile_breakdown import Breakdown, Part, measured
from ._profile_case import DTYPES_BY_NAME, Case, Inputs, PackedInputs, check, check_file, check_names
from ._profile_clock import Step, samples_of, seconds_on_cpu, seconds_on_cuda
from ._profile_command import about_option, parser_of_command, sentence_of
from ._profile_memory import peak_on_cpu, peak_on_cuda, traced
from ._torch.library import build_info
from ._version import __version__
from .errors import ArgumentError, ArgumentTypeError
from .ops import apply, apply_
from .qkv import apply_qkv, apply_qkv_

__all__ = ["Breakdown", "Case", "Part", "Profile", "Row", "breakdown", "profile"]


@dataclass(frozen=True)
class Row:
    """The measurement of one form of the call. Times are medians, in seconds.

    Attributes:
        name: the form of the call.
        seconds: time per call. CUDA: device time of queued calls, including time spent waiting for the host.
        overhead_seconds: time of the same call on one token: Python, checks, dispatch, launch and almost no kernel.
        kernel_seconds: seconds - overhead_seconds, which includes page faults of results. CUDA: seconds.
        payload_bytes: size of the rotated tensors, counted as one read and one write in each pass, without tables.
        gb_per_s: payload_bytes / seconds / 1e9.
        percent_of_copy: gb_per_s as a percentage of that of `y.copy_(x)` for the same tensors into preallocated memory.
        peak_bytes: peak memory in addition to the inputs, including results, as PyTorch's allocator counts it. CPU:
            bytes requested, from a trace of torch's profiler. CUDA: max_memory_allocated, which rounds each tensor up
            to 512 bytes.
    """

    name: str
    seconds: float
    overhead_seconds: float
    kernel_seconds: float
    payload_bytes: int
    gb_per_s: float
    percent_of_copy: float
    peak_bytes: int


@dataclass(frozen=True)
class Profile:
    """The result of `profile`; str() formats it as a table.

    Attributes:
        case: the `Case` that was measured.
        machine: versions, processor and threads.
        rounds: number of rounds that were timed.
        rows: list of `Row`; the first is the copy.
    """

    case: Case
    machine: str
    rounds: int
    rows: list[Row]

    def __str__(self) -> str:
        line = "{:<16}{:>10}{:>13}{:>11}{:>8}{:>11}{:>10}".format
        head = line("", "call us", "overhead us", "kernel us", "GB/s", "% of copy", "peak MiB")
        lines = [self.machine, str(self.case), "", head]
        for row in self.rows:
            us = [s * 1e6 for s in (row.seconds, row.overhead_seconds, row.kernel_seconds)]
            cells = [f"{t:.{0 if t >= 1000 else 1}f}" for t in us]
            cells += [f"{row.gb_per_s:.1f}", f"{row.percent_of_copy:.0f}", f"{row.peak_bytes / 2**20:.1f}"]
            lines.append(line(row.name, *cells))
        legend = f"Medians of {self.rounds} rounds. overhead: the same call on one token. GB/s and %: the whole call."
        return "\n".join([*lines, "", legend])


@torch.inference_mode(False)
@torch.enable_grad()
def profile(*, rounds: int = 50, trace: str | os.PathLike[str] | None = None, **case: Any) -> Profile:
    """Measure `rope_ext.apply`, with out=, in place, and forward + backward; or `rope_ext.apply_qkv`, if packed.

    On a CPU, torch.get_num_threads() threads work. torch's profiler logs to stderr, unless KINETO_LOG_LEVEL=99 is in
    the environment before its first use.

    Args:
        rounds: upper bound of the number of rounds: after the fifth, none begins once 1.5 seconds are over. Default:
            50.
        trace: file to write, JSON for chrome://tracing or ui.perfetto.dev: a few calls of each form, with memory.
            Default: None.
        **case: the fields of `Case`, by name.

    Returns:
        A `Profile`.

    Raises:
        ArgumentError: a size or a value is wrong; raised before the measurement, like the others.
        ArgumentTypeError: a type or a name is wrong.
        OSError: the file cannot be written.
    """
    check_names(case, "rounds or trace")
    chosen = Case(**case)
    _check_rounds(rounds)
    if trace is not None:
        check_file(trace)
    on_cpu = chosen.device == "cpu"
    calls, on_one_token = _calls(chosen), _calls(replace(chosen, batch=1, seqlen=1))
    steps = [call for _, call in (*calls.values(), *on_one_token.values())]
    samples = samples_of(steps, seconds_on_cpu if on_cpu else seconds_on_cuda, rounds)
    medians = [statistics.median(times) for times in samples]
    events = traced(calls, on_cpu, trace)
    rows: list[Row] = []
    for (name, (payload, call)), seconds, overhead in zip(calls.items(), medians, medians[len(calls) :]):
        kernel = max(seconds - overhead, 0.0) if on_cpu else seconds
        speed = payload / seconds / 1e9
        percent = 100 * speed / (rows[0].gb_per_s if rows else speed)
        peak = peak_on_cpu(events, name) if on_cpu else peak_on_cuda(call)
        rows.append(Row(name, seconds, overhead, kernel, payload, speed, percent, peak))
    return Profile(chosen, _machine(on_cpu), len(samples[0]), rows)


@torch.inference_mode(False)
@torch.enable_grad()
def breakdown(*, rounds: int = 500, **case: Any) -> Breakdown:
    """Measure where the time of a call goes: Python, dispatcher, checks, results, plan, kernel; recording and backward.

    Args:
        rounds: as in `profile`. Default: 500.
        **case: the fields of `Case`, by name. The default is one decoding step: batch 32 (1 with "shd") and seqlen 1.

    Returns:
        A `Breakdown`. Its parts are differences of minima and add up to the call. On CUDA they are host time only.

    Raises:
        ArgumentError: a size or a value is wrong; raised before the measurement, like the other.
        ArgumentTypeError: a type or a name is wrong.
    """
    check_names(case, "rounds")
    chosen = Case(**{"batch": 1 if case.get("layout") == "shd" else 32, "seqlen": 1, **case})
    _check_rounds(rounds)
    for name in ("norm", "packed"):
        check(not getattr(chosen, name), name, "be False for a breakdown", True)
    return measured(chosen, _machine(chosen.device == "cpu"), rounds)


def _check_rounds(rounds: object) -> None:
    check(isinstance(rounds, int) and rounds > 0, "rounds", "be a positive int", rounds)


def _calls(case: Case) -> dict[str, tuple[int, Step]]:
    """{name of the row: (payload_bytes, call)}, the copy first."""
    if case.packed:
        return _packed_calls(case)
    inputs = Inputs(case)
    x, own, out, options = inputs.x, inputs.own, inputs.out, inputs.options
    once = 2 * case.dtype.itemsize * sum(t.numel() for t in x)
    in_place = once // case.head_dim * (case.head_dim if case.norm else inputs.rotary_dim)  # others are not touched
    return {
        "copy_": (once, lambda: [y.copy_(t) for y, t in zip(out, x)]),
        "apply": (once, lambda: apply(x, **options)),
        "apply out=": (once, lambda: apply(x, **options, out=out)),
        "apply_": (in_place, lambda: apply_(own, **options)),
        "forward+backward": (2 * once, inputs.forward_backward),
    }


def _packed_calls(case: Case) -> dict[str, tuple[int, Step]]:
    """The copy is a copy of qkv; the forward pass neither reads nor writes v."""
    inputs = PackedInputs(case)
    qkv, own, copied, options = inputs.qkv, inputs.own_qkv, inputs.copied, inputs.options
    once, rotated = 2 * qkv.nbytes, 2 * sum(t.nbytes for t in inputs.x)
    in_place = rotated // case.head_dim * (case.head_dim if case.norm else inputs.rotary_dim)
    return {
        "copy_": (once, lambda: [copied.copy_(qkv)]),
        "apply_qkv": (rotated, lambda: apply_qkv(qkv, **options)),
        "apply_qkv_": (in_place, lambda: apply_qkv_(own, **options)),
        "forward+backward": (rotated + once, inputs.forward_backward),
    }


def _machine(on_cpu: bool) -> str:
    versions = f"rope_ext {__version__}, torch {torch.__version__}"
    if not on_cpu:
        major, minor = torch.cuda.get_device_capability()
        return f"{versions}, {torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    model = models[0] if models else platform.processor() or platform.machine()
    isa = build_info()["cpu_isa"]
    return f"{versions}, {model}, instruction set {isa}, threads {torch.get_num_threads()}"


def main() -> None:
    """Run the command.

    Errors about arguments print one line to stderr. The exit status is 2, or 1 if memory ran out.
    """
    # Read by torch's profiler when it is first used; nothing is logged above its highest level.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    parser = parser_of_command()
    options = vars(parser.parse_args())
    threads, dtype = options.pop("threads"), DTYPES_BY_NAME[options.pop("dtype")]
    measure = breakdown if options.pop("breakdown") else profile
    try:
        check(0 < threads <= 1024, "threads", "be in 1 to 1024", threads)
        torch.set_num_threads(threads)
        print(measure(dtype=dtype, **options))
    except (ArgumentError, ArgumentTypeError) as error:
        parser.error(about_option(error) if error.argument in {*options, "threads", "dtype"} else sentence_of(error))
    except OSError as error:
        parser.error(sentence_of(error).replace("trace must", "--trace must", 1))
    except (NotImplementedError, TypeError, ValueError) as error:
        parser.error(sentence_of(error))
    except RuntimeError as error:  # torch has no type for a CPU allocation that fails
        if "allocate memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        parser.exit(1, f"{parser.prog}: error: out of memory: {error}\n")


if __name__ == "__main__":
    main()
