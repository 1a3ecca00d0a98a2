"""The calls of gpu_check.sh, their parts, and how the parts share the clock."""

from dataclasses import dataclass

LEAST = 1.0  # seconds; with less, a part is not begun
GRACE = 10.0  # seconds between the interrupt, after which a part writes what it has, and its end


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float  # planned
    what: str
    needs_library: bool = True
    share: float = 0.0  # of all seconds: what it may take at the expense of the parts after it


BUILD = Part("build", 20, "rope_ext/_ops.so or that of build/gpu; compiled only if neither loads", False, 0.4)
CALLS = {
    "first": [
        BUILD,
        Part("smoke", 35, "every instance of the kernels against the CPU's bits, a CUDA graph, a side stream"),
        Part("tests", 85, "tests/test_cuda*.py: launches, streams, graphs, sizes, gradients"),
        Part("candidates", 40, "ways to launch the kernel beside a copy, without Python", needs_library=False),
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
    """The parts of a call that --only leaves; the build always, since the others need it."""
    named = [part for part in CALLS[call] if not only or part.name in only]
    return named if not named or BUILD in named else [BUILD, *named]


def play(parts, seconds, run, now):
    """Calls run(part, limit) for one part after the other, with limits that end by `seconds`; yields its results.

    A part may run until those after it have just their planned seconds left, all scaled to fill `seconds`. So what one
    leaves over goes to the next, and one that hangs costs the others nothing. A limit below LEAST: no time is left.
    """
    scale, end = seconds / planned(parts), now() + seconds
    for i, part in enumerate(parts):
        left, later = end - now(), scale * planned(parts[i + 1 :])
        needed = later + scale * part.seconds
        limit = left - later * min(1.0, left / needed)
        yield run(part, max(limit, min(left, part.share * seconds)))
