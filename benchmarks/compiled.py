"""Times of compiled layers of a Llama with transformers' rotation and with rope_ext's: `python -m benchmarks.compiled`.

Two layers of transformers' LlamaModel (hidden 1024, 16 query heads of 64, 8 key and value heads, random float32
weights, no cache) are compiled by torch.compile for the CPU, unmodified ("eager") and after `rope_ext.patch` ("ours").
A pair is one process of each, run back to back. The figure of a process is the median of its calls; a ratio is
ours / eager within a pair. The interval contains the median with a probability of at least 95 % (order statistics).
Ten pairs take 8 minutes.

`rope_ext.tune_malloc` keeps freed memory in the process. Without it the gradients of the weights get new pages in every
step, and their number depends on the neighboring allocations: 8,000 to 24,000 page faults, up to 25 % of the time.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import rope_ext
from benchmarks.harness.machine import machine

RESULT = Path(__file__).parent / "results" / "compiled.md"
SEQLENS, PASSES = (1, 128, 1024), ("forward", "forward + backward")
VARIANTS = "eager", "ours"
SECONDS, MIN_CALLS, WARM_UP = 1.0, 5, 2  # per case: seconds of timed calls, their minimum number, calls before them


def built(variant):
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2, "vocab_size": 1024}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**sizes, **heads))
    if variant == "ours":
        report = rope_ext.patch(model)
        assert len(report.replaced) == 1, report
    return model


def seconds_of_call(model, seqlen, backward):
    """The median time of the calls of one case."""
    torch._dynamo.reset()
    compiled, ids, times = torch.compile(model, dynamic=False), torch.randint(1024, (1, seqlen)), []
    with torch.set_grad_enabled(backward):
        while len(times) < WARM_UP + MIN_CALLS or sum(times[WARM_UP:]) < SECONDS:
            model.zero_grad()
            start = time.perf_counter()
            y = compiled(ids, use_cache=False).last_hidden_state
            if backward:
                y.sum().backward()
            times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def measured(variant):
    """{case: seconds} of this process."""
    from torch._inductor import config  # late: it takes seconds to import

    config.compile_threads = 1  # no worker processes, which would use a core meanwhile
    rope_ext.tune_malloc()
    model = built(variant)
    cases = itertools.product(SEQLENS, PASSES)
    return {f"{seqlen} {which}": seconds_of_call(model, seqlen, which != PASSES[0]) for seqlen, which in cases}


def child(variant):
    command = [sys.executable, "-m", "benchmarks.compiled", "--child", variant]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def interval(values):
    """(low, high): the narrowest order statistics that contain the median with a probability of at least 95 %."""
    values, n = sorted(values), len(values)
    outside = 0
    for i in range(n // 2):
        outside += 2 * math.comb(n, i) / 2**n
        if outside > 0.05:
            return values[max(i - 1, 0)], values[n - max(i, 1)]
    return values[0], values[-1]


def rows(pairs):
    yield "| tokens | pass | ms, eager | ms, ours | ours / eager | interval | ratios of the pairs |"
    yield "|---:|---|---:|---:|---:|---:|---|"
    for case in pairs[0]["eager"]:
        seqlen, which = case.split(maxsplit=1)
        ratios = [pair["ours"][case] / pair["eager"][case] for pair in pairs]
        ms = [f"{1e3 * statistics.median(pair[variant][case] for pair in pairs):.3g}" for variant in VARIANTS]
        low, high = interval(ratios)
        listed = " ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
        cells = [seqlen, which, *ms, f"{statistics.median(ratios):.3f}", f"{low:.3f}-{high:.3f}", listed]
        yield "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.child)))
        return
    for variant in VARIANTS:
        child(variant)  # fills the cache of Inductor
    orders = [VARIANTS, VARIANTS[::-1]]
    pairs = [{variant: child(variant) for variant in orders[i % 2]} for i in tqdm(range(options.pairs))]
    about = ", ".join(f"{name}: {value}" for name, value in machine("cpu").items())
    text = "\n".join(
        [
            "# A rotation in compiled layers\n",
            __doc__,
            *rows(pairs),
            "",
            f"{about}, threads: {torch.get_num_threads()}",
            "",
        ]
    )
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
