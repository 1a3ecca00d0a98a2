"""The calls of gpu_check.sh, their parts, and how the parts share the clock."""

from dataclasses import dataclass

MIN_SECONDS = 1.0  # with less time left, a part is not started
GRACE = 10.0  # seconds between the interrupt, on which a part writes its results, and its end


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float  # planned
    what: str
    needs_library: bool = True
    share: float = 0.0  # share of all seconds that it may use at the expense of later parts


BUILD = Part("build", 20, "rope_ext/_ops.so or the one in build/gpu; compiled only if neither loads", False, 0.4)
CALLS = {
    "first": [
        BUILD,
        Part("smoke", 35, "every instance of the kernels bit for bit against the CPU, a CUDA graph, a side stream"),
        Part("tests", 85, "tests/test_cuda*.py: launches, streams, graphs, sizes, gradients"),
        Part("candidates", 40, "candidate launches of the kernel beside a copy, without Python", needs_library=False),
        Part("bench", 150, "bf16, half pairing, forward and backward: copy, ours, eager, peers"),
    ],
    "second": [
        BUILD,
        Part("tests", 130, "the CUDA run of every other test"),
        Part("sanitizer", 60, "memcheck of compute-sanitizer on the tests marked `sanitizer`, in two files"),
        Part("bench", 105, "fp32 and fp16, then interleaved pairs in bf16"),
        Part("ncu", 45, "counters of Nsight Compute in two cases"),
    ],
}
PARTS = list(dict.fromkeys(part.name for parts in CALLS.values() for part in parts))


def planned(parts):
    return sum(part.seconds for part in parts)


def chosen(call, only):
    """The parts of a call that --only selects, and always the build, which the others need."""
    named = [part for part in CALLS[call] if not only or part.name in only]
    return named if not named or BUILD in named else [BUILD, *named]


def play(parts, seconds, run, now):
    """Call run(part, limit) for one part after the other, with limits that end by `seconds`; yield the results.

    A part may run until the later parts have exactly their planned seconds left, all scaled to fill `seconds`. Unused
    time goes to the next part, and a part that hangs costs the others nothing. A limit below MIN_SECONDS means that no
    time is left.
    """
    scale, end = seconds / planned(parts), now() + seconds
    for i, part in enumerate(parts):
        left, later = end - now(), scale * planned(parts[i + 1 :])
        needed = later + scale * part.seconds
        limit = left - later * min(1.0, left / needed)
        yield run(part, max(limit, min(left, part.share * seconds)))
