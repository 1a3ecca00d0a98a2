"""The clocks of the host and of the GPU: seconds per call, and how many sets of inputs rotate."""

import math
import os
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.variants import Step

SHORTEST_SAMPLE = 200e-6  # seconds; shorter calls are timed in batches
SLOW = 0.05  # seconds; a longer call needs no untimed call before it: caches and threads do not show in its time
MAX_SETS = 16  # sets of inputs; for the smallest shapes all sets fit in the L2, which is flushed anyway
LEAD, MIN_LEAD, MAX_LEAD = 2.0, 50e-6, 0.02  # lead of the host in multiples of a call; bounds in seconds
LAUNCHES, REPLAYS = 100, 21  # calls in a CUDA graph; replays of the graph
HOST_CALLS, HOST_ROUNDS = 20, 21  # calls per round, fewer than the driver queues; rounds


def seconds_for(call, calls):
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


class HostClock:
    """Times batches long enough for the timer; caches, memory and threads are as the variant's last call left them."""

    def sets(self, case):
        return 1

    def first(self, step):
        """A rough time of a call in seconds, the first entry of `times`."""
        return seconds_for(step.call, 1)

    def sample(self, step, times):
        """Seconds per call. times: results of `first` and of earlier samples."""
        step.before()
        if min(times) < SLOW:
            step.call()  # untimed
        calls = math.ceil(SHORTEST_SAMPLE / min(times))
        seconds = seconds_for(step.call, calls) / calls
        step.after()
        return seconds

    def busy_elsewhere(self):
        """CPU seconds since boot that other processes and guests of the host used; 0 where the system does not tell."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return 0.0
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()

    def launches(self, sets):
        return {}


class CudaClock:
    """Times a call by two CUDA events around it, with inputs in DRAM and all work queued before the GPU reaches it.

    The GPU first runs a kernel that counts cycles until the host has queued the rest, so the host's share of a call is
    not in its time, but in `launches`. Then a buffer of twice the size of the L2 is read: afterwards no input is in
    the cache, and everything written before is in DRAM. Writing such a buffer would only evict the inputs: up to an L2
    of dirty lines would be written back inside the timed region (60 MB take 14 us), at the expense of every variant.
    """

    def __init__(self, device="cuda"):
        self.flusher = torch.zeros(torch.cuda.get_device_properties(device).L2_cache_size // 2, device=device)
        self.sum_of_flusher = torch.zeros((), device=device)
        cycles = 10_000_000
        # The fastest of many: the first run loads the kernel, and an idle GPU takes a while to reach its full clock.
        self.hertz = cycles / min(self._timed(partial(torch.cuda._sleep, cycles)) for _ in range(30))

    def sets(self, case):
        """Enough sets of inputs that a set has left the L2 before it is used again."""
        payload = sum(x.nbytes for x in (*case.inputs, *case.grads))
        return min(MAX_SETS, math.ceil(self.flusher.nbytes / payload))

    def first(self, step):
        """Host seconds per call."""
        torch.cuda.synchronize()
        return min(seconds_for(step.call, 1) for _ in range(3))  # the first one may allocate from the driver

    def sample(self, step, times):
        """GPU seconds of one call. times: as in HostClock."""
        lead = max(LEAD * times[0], MIN_LEAD)
        while True:
            step.before()
            torch.cuda._sleep(int(min(lead, MAX_LEAD) * self.hertz))
            self.flush()
            start, end = self._queued(step.call)
            ahead = not start.query()
            step.after()
            if ahead or lead >= MAX_LEAD:  # a call that waits for the GPU is never ahead
                return self._seconds(start, end)
            lead *= 4

    def flush(self):
        torch.sum(self.flusher, 0, out=self.sum_of_flusher)

    def busy_elsewhere(self):
        """0: events do not show the CPU time of other processes, and other programs on the GPU cannot be observed."""
        return 0.0

    def launches(self, sets):
        """Microseconds of a call whose kernel takes next to no time.

        host_us: host time from the call in Python to its return, when all work is queued; includes backward.
        host_forward_us: with derivatives only, host time of the forward pass, which records them.
        graph_us: GPU time per call of 100 calls in one CUDA graph, without the host; or graph_missing: the error.
        """
        found = {"host_us": 1e6 * self._of_host(sets, lambda step: step.call)}
        if sets[0].forward:
            found["host_forward_us"] = 1e6 * self._of_host(sets, lambda step: step.forward)
        try:
            found["graph_us"] = 1e6 * self._in_graph(sets)
        except Exception as error:  # a peer that cannot be captured must not end the run
            found["graph_missing"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return found

    def empty_launch(self):
        """The lower bound of `launches`: a kernel that does nothing."""
        return self.launches([Step(partial(torch.cuda._sleep, 0))])

    def _queued(self, call):
        """Two events, recorded before and after the call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    def _seconds(self, start, end):
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _timed(self, call):
        return self._seconds(*self._queued(call))

    def _of_host(self, sets, part):
        times = []
        for _ in range(HOST_ROUNDS):
            for step in sets:
                step.before()
            torch.cuda.synchronize()
            calls = [part(sets[i % len(sets)]) for i in range(HOST_CALLS)]
            start = time.perf_counter()
            for call in calls:
                call()
            times.append((time.perf_counter() - start) / HOST_CALLS)
            for step in sets:
                step.after()
        torch.cuda.synchronize()
        return statistics.median(times[1:])

    def _in_graph(self, sets):
        graph = torch.cuda.CUDAGraph()
        for step in sets:
            step.before()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for i in range(LAUNCHES):
                sets[i % len(sets)].call()
        graph.replay()
        seconds = statistics.median(self._timed(graph.replay) for _ in range(REPLAYS)) / LAUNCHES
        for step in sets:
            step.after()
        return seconds
