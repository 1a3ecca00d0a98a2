"""The clocks: the host's and the GPU's. Both tell the seconds of one call, and how many sets of inputs take turns."""

import math
import os
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.variants import Step

SHORTEST_SAMPLE = 200e-6  # seconds; shorter calls are timed in batches
SLOW = 0.05  # seconds; a call that takes longer is not repeated untimed first: caches and threads no longer show in it
MOST_SETS = 16  # of inputs; those of the smallest shapes together still fit in the L2, which is flushed anyway
LEAD, LEAST_LEAD, MOST_LEAD = 2.0, 50e-6, 0.02  # of the host over the GPU: in times of a call, in seconds
LAUNCHES, REPLAYS = 100, 21  # calls in a graph; replays of it
HOST_CALLS, HOST_ROUNDS = 20, 21  # calls in a row, fewer launches than the driver queues; rounds of them


def seconds_for(call, calls):
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


class HostClock:
    """Calls in batches that the timer resolves. They find caches, memory and threads as their variant left them."""

    def sets(self, case):
        return 1

    def first(self, step):
        """Seconds of a call, roughly, for the start of `times`."""
        return seconds_for(step.call, 1)

    def sample(self, step, times):
        """Seconds of a call. times: what first and earlier samples gave."""
        step.before()
        if min(times) < SLOW:
            step.call()  # untimed
        calls = math.ceil(SHORTEST_SAMPLE / min(times))
        seconds = seconds_for(step.call, calls) / calls
        step.after()
        return seconds

    def busy_elsewhere(self):
        """CPU seconds since boot of other processes and other guests of the host; 0 where the system does not tell."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return 0.0
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()

    def launches(self, sets):
        return {}


class CudaClock:
    """Each call between two CUDA events of its own, inputs in DRAM, and all of it queued before the GPU gets there.

    The GPU first waits (a kernel that counts cycles) until the host has queued the rest; so what a call costs the host
    is not in its time, but in `launches`. Then a buffer of twice the L2 is written: no input is in the cache. It leaves
    lines that the timed kernel has to write back, as that leaves some of its own to the next: copies, ours and peers
    alike.
    """

    def __init__(self, device="cuda"):
        self.flushed = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8)
        self.flushed = self.flushed.to(device)
        cycles = 10_000_000
        # The fastest of many: the first loads the kernel, and it takes a while until an idle GPU has its full clock.
        self.hertz = cycles / min(self._timed(partial(torch.cuda._sleep, cycles)) for _ in range(30))

    def sets(self, case):
        """Enough sets of inputs that one is out of the L2 by the time it is used again."""
        payload = sum(x.nbytes for x in (*case.inputs, *case.grads))
        return min(MOST_SETS, math.ceil(self.flushed.nbytes / payload))

    def first(self, step):
        """Seconds of the host."""
        torch.cuda.synchronize()
        return min(seconds_for(step.call, 1) for _ in range(3))  # the first may have to ask the driver for memory

    def sample(self, step, times):
        """Seconds of the GPU. times: as for HostClock."""
        lead = max(LEAD * times[0], LEAST_LEAD)
        while True:
            step.before()
            torch.cuda._sleep(int(min(lead, MOST_LEAD) * self.hertz))
            self.flushed.zero_()
            start, end = self._queued(step.call)
            ahead = not start.query()
            step.after()
            if ahead or lead >= MOST_LEAD:  # what itself waits for the GPU is never ahead
                return self._seconds(start, end)
            lead *= 4

    def busy_elsewhere(self):
        """Other processes' CPU does not show in events, and other programs on the GPU cannot be seen from here."""
        return 0.0

    def launches(self, sets):
        """What a call costs where its kernel costs next to nothing. In microseconds, where it applies:

        host_us: of the host, from the call in Python to its return, by which everything is queued; backward too.
        host_forward_us: with derivatives, of the forward alone, which records them.
        graph_us: of the GPU, a call of 100 in one CUDA graph, where the host has no part; graph_missing: why not.
        """
        found = {"host_us": 1e6 * self._of_host(sets, lambda step: step.call)}
        if sets[0].forward:
            found["host_forward_us"] = 1e6 * self._of_host(sets, lambda step: step.forward)
        try:
            found["graph_us"] = 1e6 * self._in_graph(sets)
        except Exception as error:  # a peer that cannot be captured is no reason to end
            found["graph_missing"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return found

    def empty_launch(self):
        """The floor of `launches`: a kernel that does nothing."""
        return self.launches([Step(partial(torch.cuda._sleep, 0))])

    def _queued(self, call):
        """The events around the call."""
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
