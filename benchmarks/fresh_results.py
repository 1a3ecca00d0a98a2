"""The cost of new memory for results, and the memory that the output pool keeps: `python -m benchmarks.fresh_results`.

Writes the tables of docs/memory.md, which shows the ranges of three runs:

time: a prompt of 4096 tokens (q and k, 32 and 8 heads of 128), rotated on the CPU into new results; time relative to
    `copy_` of the same bytes into preallocated memory. "fresh" is a process that has just started, "used" one that has
    allocated and freed tensors of 1 KiB to 64 MiB for four seconds and kept a seventh of them.
resident: training steps of a stack of four layers with scaled_dot_product_attention, then the model is deleted, then
    the pool is emptied; resident memory in MiB.

Linux only (/proc). Each setting runs in its own process; figures are medians.
"""

import argparse
import gc
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import rope_ext
from benchmarks.harness.machine import machine

# {setting: (bytes of the pool, whether malloc is tuned, environment)}
SETTINGS = {
    "default": (0, False, {}),
    "ROPE_EXT_HUGEPAGES=0": (0, False, {"ROPE_EXT_HUGEPAGES": "0"}),
    "THP_MEM_ALLOC_ENABLE=1": (0, False, {"THP_MEM_ALLOC_ENABLE": "1"}),
    "set_output_pool(1 << 28)": (1 << 28, False, {}),
    "tune_malloc()": (0, True, {}),
}
POOLS = {"none": 0, "64 MiB": 1 << 26, "256 MiB": 1 << 28, "1 GiB": 1 << 30}
STATES = "fresh", "used"
ROUNDS, STEPS, USED_SECONDS, HELD_BYTES = 15, 6, 4.0, 1 << 30


# ---- time ----


def used_memory():
    """The tensors that a program still holds after allocating and freeing many for some seconds."""
    numbers, held, total, end = random.Random(0), [], 0, time.perf_counter() + USED_SECONDS
    while time.perf_counter() < end:
        held.append(torch.ones(int(2 ** numbers.uniform(8, 24))))
        total += held[-1].nbytes
        while total > HELD_BYTES:
            at = numbers.randrange(len(held))
            held[at], held[-1] = held[-1], held[at]
            total -= held.pop().nbytes
    return held[::7]


def time_of(pool, tuned, state):
    """{dtype: {call: time relative to `copy_` into preallocated memory}}, including the time to free the result."""
    if tuned:
        rope_ext.tune_malloc()
    rope_ext.set_output_pool(pool)
    _held = used_memory() if state == "used" else None
    cos, sin = rope_ext.RotaryEmbedding(128).tables(4096)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = [torch.randn(1, 4096, heads, 128).to(dtype) for heads in (32, 8)]
        out = [torch.zeros_like(t) for t in x]
        calls = {
            "copy": lambda x=x, out=out: [t.copy_(y) for t, y in zip(out, x)],
            "clone": lambda x=x: [t.clone() for t in x],
            "apply": lambda x=x: rope_ext.apply(x, cos, sin),
            "out=": lambda x=x, out=out: rope_ext.apply(x, cos, sin, out=out),
            "apply_": lambda out=out: rope_ext.apply_(out, cos, sin),
        }
        samples = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                samples[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(times[1:]) for name, times in samples.items()}
        found[str(dtype).removeprefix("torch.")] = {name: t / medians["copy"] for name, t in medians.items()}
    return found


# ---- resident memory ----


class Layer(nn.Module):
    """Attention with rotated q and k, and a feed-forward network; 8 query heads of 64, 4 key and value heads."""

    def __init__(self, hidden=512):
        super().__init__()
        self.qkv, self.o = nn.Linear(hidden, hidden * 2, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, hidden * 3, bias=False), nn.Linear(hidden * 3, hidden, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = self.qkv(x).unflatten(-1, (-1, 64)).split((8, 4, 4), dim=-2)
        q, k = rope_ext.apply((q, k), cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(-2))
        return x + self.down(functional.silu(self.up(x)))


def mib(name):
    """Resident memory of this process in MiB: the present one for `VmRSS`, its peak for `VmHWM`."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def resident(pool):
    """Seconds per step, and MiB: peak, after the last step, after deleting the model, after emptying the pool."""
    rope_ext.set_output_pool(pool)
    torch.manual_seed(0)
    layers = nn.ModuleList([Layer() for _ in range(4)])
    optimizer = torch.optim.SGD(layers.parameters(), lr=1e-3)
    cos, sin = rope_ext.RotaryEmbedding(64).tables(2048)
    data, times = torch.randn(2, 2048, 512), []
    for _ in range(STEPS):
        start, y = time.perf_counter(), data
        for layer in layers:
            y = layer(y, cos, sin)
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        del y
        times.append(time.perf_counter() - start)
    after = {"s per step": round(statistics.median(times[1:]), 3), "peak": mib("VmHWM"), "after a step": mib("VmRSS")}
    del layers, layer, optimizer, data
    gc.collect()
    after["idle"] = mib("VmRSS")
    rope_ext.set_output_pool(0)
    return after | {"emptied": mib("VmRSS")}


# ---- processes and tables ----


def child(what, *arguments, **environment):
    command = [sys.executable, "-m", "benchmarks.fresh_results", "--child", what, json.dumps(arguments)]
    return json.loads(subprocess.run(command, env=os.environ | environment, check=True, stdout=-1).stdout)


def table(heading, rows):
    print("|", " | ".join(heading), "|\n|---|" + "---:|" * (len(heading) - 1))
    for row in rows:
        print("|", " | ".join(str(cell) for cell in row), "|", flush=True)
    print()


def rows_of_time():
    child("time", 0, False, "fresh")  # not counted: a virtual machine may have returned its free memory to the host
    for (name, (pool, tuned, environment)), state in itertools.product(SETTINGS.items(), STATES):
        found = child("time", pool, tuned, state, **environment)
        yield f"`{name}`", state, *(f"{t:.2f}" for calls in found.values() for n, t in calls.items() if n != "copy")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["time", "resident"], help="of: time, resident")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, arguments = options.child
        print(json.dumps({"time": time_of, "resident": resident}[what](*json.loads(arguments))))
        return
    print(
        ", ".join(f"{name}: {value}" for name, value in machine("cpu").items()), f"threads: {torch.get_num_threads()}\n"
    )
    if "time" in options.parts:
        calls = [f"{call} {dtype}" for dtype in ("fp32", "bf16") for call in ("clone", "apply", "out=", "apply_")]
        table(["setting", "process", *calls], rows_of_time())
    if "resident" in options.parts:
        found = {name: child("resident", pool) for name, pool in POOLS.items()}
        table(["pool", *found["none"]], [(name, *values.values()) for name, values in found.items()])


if __name__ == "__main__":
    main()
