"""Measure the share of rotary position embedding in a transformers model, before and after `rope_ext.patch`.

    python -m tools.model_share            # two to three minutes; CPU time of one thread, undisturbed by others
    python -m tools.model_share --threads 2 --seconds 20

The model is a Llama of 8 layers (hidden 1024, 16 query heads of 64, 8 key and value heads) with random weights and
without an LM head, on the CPU. The function is timed where the model calls it, and in backward between two marks in the
graph. Eager and patched runs alternate. Columns: share is the median and range over the runs; faster is the ratio of
whole times, median and range over the pairs of runs.
"""

import argparse
import copy
import itertools
import statistics
import time

import torch
from tqdm import tqdm

import rope_ext
from benchmarks.harness.machine import machine

CACHED = 512  # tokens in the KV cache when one token is decoded
SEQLENS = 1, 128, 1024
MIN_PAIRS = 3


class Clock:
    """Wraps a function and adds up the seconds spent in it, forward and backward."""

    def __init__(self, function, now):
        self.function, self.now = function, now
        self.spent = 0.0

    def __call__(self, q, k, cos, sin):
        records = torch.is_grad_enabled() and q.requires_grad
        if records:  # in backward, this node runs right after those of the function
            q, k = Mark.apply(self, +1, q, k)
        start = self.now()
        q, k = self.function(q, k, cos, sin)
        self.spent += self.now() - start
        return Mark.apply(self, -1, q, k) if records else (q, k)


class Mark(torch.autograd.Function):
    """The identity; in backward it adds (sign +1) or subtracts (-1) the time at which the gradients pass."""

    @staticmethod
    def forward(ctx, clock, sign, *tensors):
        ctx.clock, ctx.sign = clock, sign
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *gradients):
        ctx.clock.spent += ctx.sign * ctx.clock.now()
        return None, None, *gradients


def built(dtype):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=1024,
    )
    torch.manual_seed(0)
    return LlamaModel(config).to(dtype)


def prepared(model, seqlen, backward):
    """(prepare, run): prepare() returns a new KV cache or None, untimed; run(cache) is timed."""
    ids = torch.randint(1024, (1, seqlen))
    cache = None
    if seqlen == 1:
        with torch.no_grad():
            cache = model(torch.randint(1024, (1, CACHED)), use_cache=True).past_key_values

    def prepare():
        model.zero_grad(set_to_none=False)  # as in a training loop that keeps its gradients' memory
        return copy.deepcopy(cache)

    def run(cache):
        with torch.set_grad_enabled(backward):
            y = model(ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        if backward:
            y.sum().backward()

    return prepare, run


def measured(model, seqlen, backward, now, seconds):
    """(eager, patched), each [(seconds of a run, share of rotary functions), ...]; their runs alternate."""
    from transformers.models.llama import modeling_llama

    prepare, run = prepared(model, seqlen, backward)

    def one():
        function = modeling_llama.apply_rotary_pos_emb
        clock = modeling_llama.apply_rotary_pos_emb = Clock(function, now)
        try:
            cache = prepare()
            start = now()
            run(cache)
            took = now() - start
        finally:
            modeling_llama.apply_rotary_pos_emb = function
        return took, clock.spent / took

    def pair():
        eager = one()
        with rope_ext.patched(model) as report:
            assert len(report.replaced) == 1, report
            return eager, one()

    end = time.perf_counter() + seconds
    pairs = [pair()]
    while len(pairs) < MIN_PAIRS or time.perf_counter() < end:
        pairs.append(pair())
    return tuple(
        zip(*pairs[len(pairs) > MIN_PAIRS :])
    )  # drop the first pair, which allocates memory, if there are enough


def row(dtype, seqlen, backward, eager, patched):
    shares = [[share * 100 for _, share in runs] for runs in (eager, patched)]
    cells = [f"{statistics.median(s):.2f} % ({min(s):.2f}-{max(s):.2f})" for s in shares]
    faster = [a / b for (a, _), (b, _) in zip(eager, patched)]
    times = [f"{1e3 * statistics.median(t for t, _ in runs):.1f}" for runs in (eager, patched)]
    cells += [*times, f"{statistics.median(faster):.3f} ({min(faster):.3f}-{max(faster):.3f})", str(len(eager))]
    what = "forward + backward" if backward else "forward"
    tokens = f"1, after {CACHED}" if seqlen == 1 else str(seqlen)
    return "| " + " | ".join([str(dtype).removeprefix("torch."), tokens, what, *cells]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time of the process; more: wall-clock time")
    parser.add_argument("--seconds", type=float, default=5.0, help=f"per line, and at least {MIN_PAIRS} pairs of runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    now = time.process_time if options.threads == 1 else time.perf_counter
    lines = []
    models = {dtype: built(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, seqlen, backward in tqdm(list(itertools.product(models, SEQLENS, (False, True)))):
        eager, patched = measured(models[dtype], seqlen, backward, now, options.seconds)
        lines.append(row(dtype, seqlen, backward, eager, patched))
    print("| dtype | tokens | | share, eager | share, patched | ms, eager | ms, patched | faster | pairs |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|", *lines, sep="\n")
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine("cpu").items()), f"threads: {options.threads}")


if __name__ == "__main__":
    main()
