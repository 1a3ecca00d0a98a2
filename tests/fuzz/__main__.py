"""Fuzzer of the public functions: random calls, valid and invalid, each a function of a seed and an index.

    python tests/fuzz --seed 0 --calls 100000 [--only apply_,compat] [--apart] [--keep-going]
    python tests/fuzz --seed 0 --index 4711                # one call, printed and made

A call that is valid must give the bits of the reference; any other one that, or an error "rope_ext: ..." of type
ValueError, TypeError or NotImplementedError. Nothing else may be written: not the arguments, not the memory around
them, and nothing at all where there is an error. Calls run in a process of their own, which says before each call which
one it makes, so that a crash or a call without an end has a number too.

Exit status 1 and the call as Python where one is wrong. --apart: each tensor has its own allocation, for
AddressSanitizer (`make fuzz-sanitized`). --keep-going: go on after a wrong call, and count its kinds at the end.
"""

import argparse
import mmap
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import configurations
import constructors
import libraries
import packings
import rotations
import torch
from calls import KINDS, PREFIX, NotMade, Unknown
from memory import Memory
from rotations import same_bits

import rope_ext

WRONG = 3  # exit status of the process that makes the calls
TARGETS = {
    "apply": (6, lambda r, memory: rotations.draw(r, memory, "apply")),
    "apply_": (4, lambda r, memory: rotations.draw(r, memory, "apply_")),
    "out": (3, lambda r, memory: rotations.draw(r, memory, "out")),
    "apply_qkv": (2, packings.draw),
    "cos_sin": (1, constructors.draw_cos_sin),
    "permute_weights": (1, constructors.draw_permute_weights),
    "RotaryEmbedding": (1, constructors.draw_rotary_embedding),
    "from_config": (1, configurations.draw_from_config),
    "compat": (2, libraries.draw_compat),
}


def drawn(seed, index, names, memory):
    """(target, Call) number `index`. Clears memory, which then holds the tensors of the call."""
    r = random.Random(seed * 1_000_003 + index)
    name = r.choices(names, [TARGETS[n][0] for n in names])[0]
    memory.clear()
    return name, TARGETS[name][1](r, memory)


def wrong(call, memory):
    """Makes the call and returns a sentence about what is wrong with it, or None."""
    shadow = memory.prepare()
    valid = call.is_valid()
    try:
        arguments = call.arguments(memory.buffers)
    except NotMade as caught:
        made, error = caught.args
        ours = made.text.startswith("rope_ext.") and not documented(error)
        return f"{made.text} raised {type(error).__name__}: {error}" if ours else None
    try:
        result, error = call.run(arguments), None
    except Exception as caught:
        result, error = None, caught
    if error is not None:
        kind = f"{type(error).__name__}: {error}"
        if not documented(error):
            return f"raised {kind}"
        if valid:
            return f"refused a valid call, {kind}"
        if not unchanged(memory.buffers, shadow):
            return f"wrote before it raised {kind}"
        return None
    if valid is False:
        return "accepted an invalid call"
    try:
        with torch.no_grad():
            expected = call.expected(call.arguments(shadow, plain=True))
    except Exception as error:  # Unknown, or what PyTorch says of a call that may not be valid
        if valid and not isinstance(error, Unknown):
            return f"the reference raised {type(error).__name__}: {error}"
        return None if call.written() or unchanged(memory.buffers, shadow) else "wrote to memory that it only reads"
    if (difference := differs(result, expected)) is not None:
        return difference if valid else f"(validity unknown) {difference}"
    if not unchanged(memory.buffers, shadow, call.written()):
        return "wrote to memory that is not its result" if valid else "(validity unknown) wrote wrongly"
    try:
        return call.after(arguments, result, shadow)
    except Exception as error:
        return f"afterwards {type(error).__name__}: {error}"


def documented(error):
    return isinstance(error, KINDS) and str(error).startswith(PREFIX)


def unchanged(buffers, shadow, written=()):
    """Whether the memory has the bytes of the copy; a NaN that was written may have any payload."""
    if all(map(torch.equal, buffers, shadow)):
        return True
    for drawn in written:
        got, expected = drawn.make(buffers, plain=True), drawn.make(shadow, plain=True)
        if not same_bits(got, expected):
            return False
        got.zero_()
        expected.zero_()
    return all(map(torch.equal, buffers, shadow))


def differs(result, expected):
    if type(result) is not type(expected) and not isinstance(result, torch.Tensor):
        return f"returned {type(result).__name__}, not {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        if isinstance(result, torch.Tensor) and same_bits(result.detach(), expected):
            return None
        return f"returned {result}, not {expected}"
    if isinstance(expected, (tuple, list)):
        if len(result) != len(expected):
            return f"returned {len(result)} values, not {len(expected)}"
        return next(filter(None, map(differs, result, expected)), None)
    return None if result == expected else f"returned {result!r}, not {expected!r}"


# ---- the process that makes the calls ----


def work(options):
    torch.set_num_threads(1)
    if not options.apart:  # AddressSanitizer maps more memory than there is, and has a limit of its own
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (2 << 30)  # a call that asks for more fails, and the machine survives
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    warnings.simplefilter("ignore")
    names, memory = options.only, Memory(options.apart)
    print(f"calls of {Path(rope_ext.__file__).parent}", flush=True)
    with open(options.counter, "r+b") as file:
        counter = mmap.mmap(file.fileno(), 8)
    started = said = time.monotonic()
    count, kinds, examples = Counter(), Counter(), {}
    for done, index in enumerate(range(options.start, options.start + options.calls), 1):
        struct.pack_into("<q", counter, 0, index)
        name, call = drawn(options.seed, index, names, memory)
        found = wrong(call, memory)
        count[name] += 1
        if found is not None:
            report(options.seed, index, name, call, found, options.keep_going)
            if not options.keep_going:
                return WRONG
            kind = f"{name}: {re.sub('[0-9]+', '#', found)[:160]}"
            kinds[kind] += 1
            examples.setdefault(kind, index)
        if (now := time.monotonic()) > said + 5:
            said = now
            print(f"{done} calls, {done / (now - started):.0f}/s", flush=True)
    seconds = time.monotonic() - started
    print(f"{done} calls in {seconds:.1f} s, {done / seconds:.0f}/s: {dict(count)}", flush=True)
    for kind, times in kinds.most_common():
        print(f"{times:6} first {examples[kind]}: {kind}", flush=True)
    return WRONG if kinds else 0


def report(seed, index, name, call, found, short=False):
    found = found if len(found) < 1500 else f"{found[:1500]} ..."
    print(f"seed {seed} index {index} ({name}): {found}", flush=True)
    if not short:
        print(f"    {call!r}", flush=True)


# ---- the process that watches it ----


def watch(options):
    """Run `work` in another process; returns its exit status, and names the call that ended it."""
    failed, end = 0, options.start + options.calls
    while options.start < end:
        with tempfile.NamedTemporaryFile() as file:
            file.write(struct.pack("<q", options.start))
            file.flush()
            flags = [f"--{name.replace('_', '-')}" for name in ("apart", "keep_going") if getattr(options, name)]
            flags += ["--seed", str(options.seed), "--start", str(options.start), "--calls", str(end - options.start)]
            flags += ["--only", ",".join(options.only), "--counter", file.name]
            process = subprocess.Popen([sys.executable, str(Path(__file__).parent), *flags])
            index, since, ending = -1, time.monotonic(), None
            while process.poll() is None:
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    now = struct.unpack("<q", Path(file.name).read_bytes())[0]
                    if now != index:
                        index, since = now, time.monotonic()
                    elif time.monotonic() > since + options.patience:
                        process.kill()
                        ending = f"did not end in {options.patience} s"
            status, index = process.wait(), struct.unpack("<q", Path(file.name).read_bytes())[0]
        if ending is None and status in (0, WRONG):
            return failed or int(status == WRONG)
        name, call = drawn(options.seed, index, options.only, Memory(options.apart))
        ending = ending or (f"killed by signal {-status}" if status < 0 else f"ended the process with status {status}")
        report(options.seed, index, name, call, ending)
        failed, options.start = 1, index + 1
        if not options.keep_going:
            break
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first call")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--index", type=int, help="print and make this one call")
    parser.add_argument("--only", default=",".join(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--patience", type=float, default=60, help="seconds that a call may take")
    parser.add_argument("--counter", help=argparse.SUPPRESS)  # file of the watching process
    options = parser.parse_args()
    options.only = options.only.split(",")
    if options.index is not None:
        options.start, options.calls = options.index, 1
        print(f"    {drawn(options.seed, options.index, options.only, Memory(options.apart))[1]!r}", flush=True)
    sys.exit(work(options) if options.counter else watch(options))


if __name__ == "__main__":
    main()
