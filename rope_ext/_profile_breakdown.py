"""Where the time of a call goes, by differences between calls: `python -m rope_ext.profile --breakdown`."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from ._profile_case import Case, Inputs
from ._profile_clock import Step, samples_of, seconds_of_host, seconds_on_cpu
from ._torch.arguments import PLAIN
from ._torch.flags import INTERLEAVED
from ._torch.library import torch_ops
from ._torch.private import below_autograd, function_of
from .ops import apply, apply_
from .reference import LAYOUTS

Times: TypeAlias = Mapping[str, float]  # seconds of each step of `_steps`
PARTS = {
    "front door": "the Python code around the op: the call minus the op with prepared arguments",
    "dispatcher": "torch's dispatcher and its stable ABI: an op that accepts the arguments of apply_ and does nothing",
    "checks": "the op that checks the arguments of apply_, minus the op that does nothing",
    "results": "the op of this form minus that of apply_: memory of the results, one more argument to pass and check",
    "plan": "the op of apply_ on one token, minus dispatcher and checks: the plan, and the kernel for one token",
    "kernel": "the rest of the op of apply_, on one thread; on a GPU, its launch",
    "threads": "the difference that the other threads make: negative if they help",
    "recording": "apply when x requires grad, minus apply when it does not",
    "backward": "forward and backward, minus the forward",
}


@dataclass(frozen=True)
class Part:
    """A share of a call, in seconds.

    Attributes:
        seconds: a difference of minima over the rounds, which noise can make negative.
        spread: half the interquartile range of the same difference within each round; NaN for a single round.
    """

    seconds: float
    spread: float


@dataclass(frozen=True)
class Breakdown:
    """The result of `rope_ext.profile.breakdown`; str() formats it as a table.

    Attributes:
        case: the `Case` that was measured.
        machine: versions, processor and threads.
        rounds: number of rounds that were timed.
        calls: `Part` of each form of the call, by its name.
        parts: `Part` by form and by name of the part; those of a form add up to its call.
    """

    case: Case
    machine: str
    rounds: int
    calls: dict[str, Part]
    parts: dict[str, dict[str, Part]]

    def __str__(self) -> str:
        line = ("{:<12}" + "{:>19}" * len(self.calls)).format
        lines = [self.machine, str(self.case), "", line("us", *self.calls)]
        lines.append(line("call", *map(_cell, self.calls.values())))
        found = [name for name in PARTS if any(name in parts for parts in self.parts.values())]
        for name in found:
            lines.append(line(name, *(_cell(parts.get(name)) for parts in self.parts.values())))
        legend = f"Minima of {self.rounds} rounds, threads awake. ±: half the interquartile range over the rounds."
        return "\n".join([*lines, "", legend, *(f"{name}: {PARTS[name]}." for name in found)])


def _cell(part: Part | None) -> str:
    return "" if part is None else f"{part.seconds * 1e6:.2f} ±{part.spread * 1e6:.2f}"


def measured(case: Case, machine: str, rounds: int) -> Breakdown:
    """Time all steps in the same rounds. rounds: an upper bound, since the total time is bounded too."""
    steps = _steps(case)
    clock = seconds_on_cpu if case.device == "cpu" else seconds_of_host

    def seconds(step: "_Step", calls: int) -> float:
        with step.inside():
            return clock(step.call, calls)

    samples = samples_of(list(steps.values()), seconds, rounds)
    minima = _parts_of_forms(dict(zip(steps, map(min, samples))))
    in_rounds = [_parts_of_forms(dict(zip(steps, times))) for times in zip(*samples)]

    def part(seconds: float, times: Sequence[float]) -> Part:
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else [math.nan] * 3
        return Part(seconds, (high - low) / 2)

    parts = {
        form: {name: part(t, [found[form][name] for found in in_rounds]) for name, t in named.items()}
        for form, named in minima.items()
    }
    calls = {
        form: part(sum(named.values()), [sum(found[form].values()) for found in in_rounds])
        for form, named in minima.items()
    }
    return Breakdown(case, machine, len(in_rounds), calls, parts)


def _parts_of_forms(t: Times) -> dict[str, dict[str, float]]:
    """{form: {name of the part: seconds}}. The parts of a form add up to the time of its call."""
    # The op that checks gets all arguments, the others no trailing defaults.
    checks, of_one = t["check"] - t["nothing of all"], t["check of one token"] - t["nothing of all"]
    plan = t["rotate_ of one token"] - t["nothing"] - of_one
    kernel = t.get("rotate_ in one thread", t["rotate_"]) - t["nothing"] - checks - plan
    op = {"dispatcher": t["nothing"], "checks": checks, "plan": plan, "kernel": kernel}
    if "rotate_ in one thread" in t:
        op["threads"] = t["rotate_"] - t["rotate_ in one thread"]

    def form(call: str, op_of_it: str) -> dict[str, float]:
        return {"front door": t[call] - t[op_of_it], **op}

    apply = {**form("apply", "rotate"), "results": t["rotate"] - t["rotate_"]}
    recorded = {**apply, "recording": t["recorded apply"] - t["apply"]}
    return {
        "apply": apply,
        "apply out=": {**form("apply out=", "rotate_out"), "results": t["rotate_out"] - t["rotate_"]},
        "apply_": form("apply_", "rotate_"),
        "recorded apply": recorded,
        "forward+backward": {**recorded, "backward": t["forward+backward"] - t["recorded apply"]},
    }


@dataclass(frozen=True)
class _Step:
    call: Step
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered before the clock starts


def _steps(case: Case) -> dict[str, _Step]:
    """{name: what is timed}: the forms of the public call, the ops behind them, and ops that do less work."""
    inputs = Inputs(case)
    x, own, out, options = inputs.x, inputs.own, inputs.out, inputs.options
    ready, one = _ready(case, inputs), replace(case, batch=1, seqlen=1)
    inputs_of_one = Inputs(one)
    own_of_one, ready_of_one = inputs_of_one.own, _ready(one, inputs_of_one)
    overload = "plain" if 1 + len(ready) <= PLAIN else "unrecorded"
    rotate, rotate_, rotate_out, nothing = (
        function_of(getattr(getattr(torch_ops, name), overload))
        for name in ("rotate", "rotate_", "rotate_out", "nothing")
    )
    nothing_of_all = function_of(torch_ops.nothing.unrecorded)
    check = function_of(torch_ops.check_in_place.default)
    steps = {
        "apply": _Step(lambda: apply(x, **options)),
        "apply out=": _Step(lambda: apply(x, **options, out=out)),
        "apply_": _Step(lambda: apply_(own, **options)),
        "recorded apply": _Step(lambda: apply(inputs.leaves, **options)),
        "forward+backward": _Step(inputs.forward_backward),
        "rotate": _Step(lambda: rotate(x, *ready)),
        "rotate_out": _Step(lambda: rotate_out(out, x, *ready)),
        "rotate_": _Step(lambda: rotate_(own, *ready)),
        "rotate_ of one token": _Step(lambda: rotate_(own_of_one, *ready_of_one)),
        "check": _Step(lambda: check(own, *ready), below_autograd),  # skips its Python kernel
        "check of one token": _Step(lambda: check(own_of_one, *ready_of_one), below_autograd),
        "nothing": _Step(lambda: nothing(own, *ready)),
        "nothing of all": _Step(lambda: nothing_of_all(own, *ready)),
    }
    if case.device == "cpu" and torch.get_num_threads() > 1:
        steps["rotate_ in one thread"] = replace(steps["rotate_"], inside=_one_thread)
    return steps


def _ready(case: Case, inputs: Inputs) -> tuple[Any, ...]:
    """The arguments of the ops after x, without trailing defaults (csrc/bindings/schema.cpp)."""
    cos, sin, cu_seqlens = (inputs.options.get(name) for name in ("cos", "sin", "cu_seqlens"))
    flags = LAYOUTS.index(case.layout) | INTERLEAVED * case.interleaved
    if cu_seqlens is not None:
        return cos, sin, 0, flags, case.rotary_dim, 0, 1.0, None, None, cu_seqlens
    if case.rotary_dim is not None:
        return cos, sin, 0, flags, case.rotary_dim
    return (cos, sin, 0, flags) if flags else (cos, sin)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
