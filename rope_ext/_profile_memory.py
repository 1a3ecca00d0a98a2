"""The trace of `rope_ext.profile`, and the peak memory of each form of the call."""

import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ._profile_clock import Step


def traced(
    calls: Mapping[str, tuple[int, Step]], on_cpu: bool, path: str | os.PathLike[str] | None
) -> list[dict[str, Any]]:
    """Events of three calls of each form, in Chrome's format; also written to path unless it is None."""
    # Not torch.profiler.profile, which adds nothing here but seconds of imports.
    with torch.autograd.profiler.profile(use_device=None if on_cpu else "cuda", profile_memory=True) as profiler:
        for name, (_, call) in calls.items():
            with torch.profiler.record_function(name):
                for _ in range(3):
                    call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))  # raises nothing for a path that cannot be written
        text = file.read_text()
    if path is not None:
        Path(path).write_text(text)
    events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    return events


def peak_on_cpu(events: Iterable[dict[str, Any]], name: str) -> int:
    """The maximum of allocations minus frees, in bytes, in the part of the trace that has this name."""
    events = list(events)
    (part,) = (event for event in events if event.get("cat") == "user_annotation" and event["name"] == name)
    memory = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    inside = [event for event in memory if part["ts"] <= event["ts"] <= part["ts"] + part["dur"]]
    changes: list[int] = [event["args"]["Bytes"] for event in sorted(inside, key=lambda event: event["ts"])]
    return max(itertools.accumulate(changes, initial=0))


def peak_on_cuda(call: Step) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
