"""The clocks of `rope_ext.profile`: steps alternate in rounds, and short steps are timed in batches."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

Step: TypeAlias = Callable[[], object]
_Timed = TypeVar("_Timed")

SHORTEST_SAMPLE = 200e-6  # seconds; shorter calls are timed in batches
SECONDS = 1.5  # after MIN_ROUNDS rounds, none begins later than this
MIN_ROUNDS = 5


def samples_of(steps: Sequence[_Timed], clock: Callable[[_Timed, int], float], rounds: int) -> list[list[float]]:
    """[[seconds in each round] for each step]. A round times every step once."""
    samples = [[clock(step, 1)] for step in steps]
    end = time.perf_counter() + SECONDS
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for step, times in zip(steps, samples):
            times.append(clock(step, 1 + int(SHORTEST_SAMPLE / min(times))))
    return [times[1:] for times in samples]


def seconds_on_cpu(step: Step, calls: int) -> float:
    step()  # untimed warm-up: brings caches, free memory and threads into the state that this step leaves
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def seconds_on_cuda(step: Step, calls: int) -> float:
    event: Any = torch.cuda.Event  # torch does not annotate it
    start, end = event(enable_timing=True), event(enable_timing=True)
    step()  # untimed and asynchronous: meanwhile the host enqueues the timed calls
    start.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3 / calls


def seconds_of_host(step: Step, calls: int) -> float:
    """The host's share of a call on a GPU: the queue is empty at the start; what it holds at the end is not timed."""
    torch.cuda.synchronize()
    seconds = seconds_on_cpu(step, calls)
    torch.cuda.synchronize()
    return seconds
