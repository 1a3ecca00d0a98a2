"""The measurement of a case: variants are interleaved, figures are medians, disturbed cases are repeated."""

import gc
import statistics
import time

import torch

from benchmarks.harness.cases import DTYPES
from benchmarks.harness.exactness import check, copied, expect
from benchmarks.harness.variants import NotOffered

MIN_ROUNDS = 5
PATIENCE = 1.0  # seconds after which two rounds of a variant are enough: so slow a call needs no precision
LONGEST = 15.0  # seconds; a longer case is not repeated, only marked
BUSY = 0.1  # cores; if other processes use more, the case is repeated, and marked if that does not help
SMALL = 4 << 20  # bytes read and written, below which the cost of a launch is reported too


def run_case(case, variants, clock, rounds, seconds, attempts):
    """Figures of a case: results {variant: figures}, left_out {peer: why}, payload_bytes, busy_elsewhere, seconds."""
    torch.compiler.reset()  # otherwise the shapes would exceed the limit of recompilations
    start = time.perf_counter()
    steps, verdicts, left_out = prepare(case, variants, clock)
    gc.collect()
    gc.disable()
    busy, samples = measure_undisturbed(steps, clock, rounds, seconds, attempts)
    # Read and written, in each direction.
    payload = case.shape.elements * DTYPES[case.dtype].itemsize * (4 if case.backward else 2)
    launches = {name: clock.launches(sets) for name, sets in steps.items() if payload < SMALL}
    gc.enable()
    us = {name: statistics.median(times) * 1e6 for name, times in samples.items()}
    results = {
        v.name: {
            **{"form": v.form, "ours": v.ours, "reads": v.reads, "us": us[v.name]},
            **{"us_min": min(samples[v.name]) * 1e6, "us_max": max(samples[v.name]) * 1e6},
            **{"rounds": len(samples[v.name]), "gb_per_s": payload / us[v.name] / 1e3},
            "copies": us[v.name] / us["copy"],  # time relative to copy_ into preallocated memory
            **launches.get(v.name, {}),
            **verdicts[v.name].as_dict(),
        }
        for v in variants
        if v.name in us
    }
    took = time.perf_counter() - start
    more = {"payload_bytes": payload, "busy_elsewhere": busy, "seconds": took, "left_out": left_out}
    return {**more, "results": results}


def prepare(case, variants, clock):
    """({variant: [Step per set of inputs]}, {variant: Verdict}, {peer: reason}). The first calls compile."""
    rotated, before, others = expect(case), case.fresh_inputs(), case.again(clock.sets(case) - 1)
    steps, verdicts, left_out = {}, {}, {}
    for variant in variants:
        if variant.pairing not in (None, case.pairing):
            continue
        try:
            step = variant.build(case)
            step.before()
            results = step.fetch(step.call())
            step.after()
            if not all(map(torch.equal, case.inputs, before)):
                raise SystemExit(f"{variant.name}: {case}: overwrites its inputs, which other variants read too")
            wanted = copied(case) if variant.name == "copy" else rotated
            verdicts[variant.name] = check(variant, results, wanted, case)
            steps[variant.name] = [step, *map(variant.build, others)]
        except NotOffered as reason:
            if variant.foreign:
                left_out[variant.name] = str(reason)
        except Exception as error:
            if not variant.foreign:
                raise
            left_out[variant.name] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return steps, verdicts, left_out


def measure(steps, clock, rounds, seconds):
    """{variant: seconds per call in each round}: MIN_ROUNDS rounds, more until the share of `seconds` is spent."""

    def wants_more(name):
        done = len(samples[name]) - 1
        return done < 2 or (done < MIN_ROUNDS and spent[name] < PATIENCE) or spent[name] < seconds / len(steps)

    samples = {name: [clock.first(sets[0])] for name, sets in steps.items()}
    spent = dict.fromkeys(steps, 0.0)
    for i in range(rounds):
        active = [name for name in steps if wants_more(name)]
        if not active:
            break
        for name in active:
            start, sets = time.perf_counter(), steps[name]
            samples[name].append(clock.sample(sets[i % len(sets)], samples[name]))
            spent[name] += time.perf_counter() - start
    return {name: times[1:] for name, times in samples.items()}


def measure_undisturbed(steps, clock, rounds, seconds, attempts):
    """The quietest attempt: (cores used by others, result of `measure`). Waiting for a busy core costs 8 ms."""
    found, begin = [], time.perf_counter()
    while not found or (len(found) < attempts and found[-1][0] > BUSY and time.perf_counter() - begin < LONGEST):
        start, before = time.perf_counter(), clock.busy_elsewhere()
        samples = measure(steps, clock, rounds, seconds)
        found.append(((clock.busy_elsewhere() - before) / (time.perf_counter() - start), samples))
    return min(found, key=lambda attempt: attempt[0])
