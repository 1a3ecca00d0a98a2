"""The CPU kernels for 64-bit ARM are bit-identical to those for x86: cross-compiled, and run by qemu-user.

tests/aarch64/cases.cpp makes the arguments of a case, calls the kernels and hashes what they wrote, on either machine.
ROPE_EXT_REQUIRE_AARCH64=1: a session without the cross compiler or qemu fails.
"""

import ctypes
import itertools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rope_ext import _introspect
from tests.pairwise import pairwise

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "aarch64"
BUILD = ROOT / "build" / "aarch64"  # kept: a second run compiles only what changed
PREFIX, QEMU = "aarch64-linux-gnu", "qemu-aarch64"
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # pip installs cmake there
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fopenmp", "-I", ROOT / "csrc", SOURCES / "cases.cpp"]

# ---- cases ----

OPS = {"rotate": 0, "norm": 0, "norm_grad": 1, "table_grad": 2, "cos_sin": 3}
DTYPES = {"float64": 0, "float32": 1, "bfloat16": 2, "float16": 3}
FLAG = [0, 1]
OF_EVERY_OP = {
    "channels": [  # (head_dim, rotary_dim, rotary_offset)
        (128, 128, 0), (64, 64, 0), (256, 256, 0), (32, 32, 0), (2, 2, 0), (14, 14, 0), (33, 32, 0), (72, 72, 0),
        (96, 64, 8), (128, 64, 64), (40, 20, 3), (300, 290, 10),
    ],
    "dtype": DTYPES.values(),
    "interleaved": FLAG,
    "values": range(3),  # ordinary, of all magnitudes, with infinity and NaN
    "order": range(4),  # bshd, bhsd, channels apart, a slice of each token
    "out_order": range(4),
    "heads": [3, 1, 17],
    "source": range(3),  # tables with an entry per pair, per channel; frequencies
    "positions": range(5),  # an offset, of tokens, of the sequence, boundaries of sequences, fractional
    "axes": [1, 3],
    "scaled": FLAG,
    "narrow_tables": FLAG,
    "inverse": FLAG,
    "own_angles": FLAG,  # of each head
    "tokens": [(2, 19), (1, 1)],  # (batch, seqlen)
    "threads": [1, 2],
}  # fmt: skip
OF_OP = {
    "rotate": ["other_pairing", "in_place", "round_products"],
    "norm": ["in_place", "round_products", "round_weighted", "round_unweighted"],
    "norm_grad": ["round_weighted", "without_grad_x", "without_grad_weight"],
    "table_grad": ["other_pairing", "own_batch"],
    "cos_sin": [],
}


def text(op, channels=(128, 128, 0), tokens=(1, 1), **more):
    """The line that cases.cpp reads."""
    sizes = dict(zip(("head_dim", "rotary_dim", "rotary_offset", "batch", "seqlen"), (*channels, *tokens)))
    case = {"op": OPS[op], "norm": int(op.startswith("norm")), **sizes, "axes": 1, "threads": 1, **more}
    return " ".join(f"{name}={value}" for name, value in case.items())


def cases():
    for op, flags in OF_OP.items():
        parameters = {name: list(values) for name, values in {**OF_EVERY_OP, **dict.fromkeys(flags, FLAG)}.items()}
        for seed, case in enumerate(pairwise(parameters)):
            yield text(op, seed=seed, **case)
    # Large enough for two threads, for prefetches, and one of 17 MiB for non-temporal stores.
    large = {"tokens": (1, 1024), "heads": 16, "positions": 2, "threads": 2}
    yield text("rotate", dtype=DTYPES["float64"], **large)
    yield text("rotate", dtype=DTYPES["bfloat16"], order=1, **large)
    yield text("norm_grad", dtype=DTYPES["float16"], interleaved=1, **large)


# ---- builds and runs ----


def run(*command, **keywords):
    command, environment = [str(part) for part in command], {**os.environ, "PATH": TOOLS}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **keywords)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program():
    """The program for ARM that runs the cases of its standard input."""
    missing = [tool for tool in (f"{PREFIX}-g++", QEMU, "g++", "cmake") if not shutil.which(tool, path=TOOLS)]
    if missing or platform.machine() != "x86_64":
        refuse = pytest.fail if os.environ.get("ROPE_EXT_REQUIRE_AARCH64") == "1" else pytest.skip
        refuse(f"aarch64: not run, no {' and no '.join(missing or ['x86-64 to compare with'])}")
    (BUILD / "CMakeCache.txt").unlink(missing_ok=True)  # it may name tools that are gone
    options = ["-DROPE_EXT_TORCH=OFF", "-DROPE_EXT_WERROR=ON"]
    run("cmake", "--toolchain", SOURCES / "toolchain.cmake", "-S", ROOT, "-B", BUILD, *options)
    run("cmake", "--build", BUILD, "--target", "kernels", "--parallel", "2")
    run(f"{PREFIX}-g++", *FLAGS, SOURCES / "main.cpp", BUILD / "libkernels.a", "-static", "-o", BUILD / "cases")
    return BUILD / "cases"


def emulated(program, processor, lines, *options):
    """The instruction set that is chosen on a processor, and {instruction set: hashes} of those that run there."""
    output = run(QEMU, "-cpu", processor, *options, program, input="".join(f"{line}\n" for line in lines))
    chosen, *rows = output.splitlines()
    return chosen, {isa: [int(number) for number in numbers] for isa, *numbers in map(str.split, rows)}


def test_bits_are_those_of_x86(program, tmp_path, capsys):
    lines = list(cases())
    run("g++", *FLAGS, "-shared", "-fPIC", "-o", tmp_path / "cases.so")
    hash_of_case = ctypes.CDLL(str(tmp_path / "cases.so")).hash_of_case
    hash_of_case.argtypes, hash_of_case.restype = (ctypes.c_void_p, ctypes.c_char_p), ctypes.c_uint64
    x86 = {
        isa: [hash_of_case(_introspect.kernels(isa), line.encode()) for line in lines]
        for isa in _introspect.supported_isas()
    }
    _, arm = emulated(program, "max", lines)
    assert set(arm) == {"neon_bf16", "default"} and len(set(x86["default"])) == len(lines)
    for machine, found in (("x86", x86), ("aarch64", arm)):
        for isa, numbers in found.items():
            differing = [line for line, a, b in zip(lines, numbers, x86["default"]) if a != b]
            assert len(numbers) == len(lines) and not differing, f"{machine}, {isa}: {differing[:5]}"
    with capsys.disabled():
        print(f"\naarch64: ran, {len(lines)} cases on each of {', '.join(arm)}")


def test_instruction_set_is_that_of_the_processor(program):
    line = text("rotate", heads=1)
    chosen, ran = emulated(program, "max", [line])
    assert chosen == "neon_bf16"
    assert emulated(program, "cortex-a57", [line]) == ("default", {"default": ran["default"]})
    assert emulated(program, "max", [line], "-E", "ATEN_CPU_CAPABILITY=default") == ("default", ran)


# ---- instructions ----


def instructions_per_row(program, log):
    """{instruction set: {(dtype, interleaved): instructions for one more head of 128 channels}}, as qemu runs them."""
    kinds = list(itertools.product(("float32", "bfloat16", "float16"), FLAG))
    lines = [
        text("rotate", dtype=DTYPES[dtype], interleaved=interleaved, heads=heads)
        for (dtype, interleaved), heads in itertools.product(kinds, (1, 2))
    ]
    symbols = [line.split() for line in run(f"{PREFIX}-nm", program).splitlines()]
    kernels = sorted(at for at, kind, name in symbols if kind == "t" and name.startswith("_ZN4rope3cpu"))
    (entry,) = (at for at, _, name in symbols if name == "hash_of_case")
    logged = f"0x{entry}+4,0x{kernels[0]}..0x{kernels[-1]}"
    step = "-one-insn-per-tb" if "one-insn-per-tb" in run(QEMU, "--help") else "-singlestep"
    _, ran = emulated(program, "max", lines, step, "-d", "nochain,exec", "-dfilter", logged, "-D", log)
    # A line for each instruction, "Trace 0: host [flags/address/flags] symbol".
    counts = [part.count("\n") for part in log.read_text().split(" hash_of_case\n")[1:]]
    per_row = iter(two - one for one, two in zip(counts[::2], counts[1::2]))
    return {isa: dict(zip(kinds, per_row)) for isa in ran}


def test_native_conversions_take_fewer_instructions(program, tmp_path):
    """Integer code takes 1400 instructions per row of float16, and for bfloat16 half as many again as BFCVTN."""
    found = instructions_per_row(program, tmp_path / "instructions")
    for isa, rows in found.items():
        for (dtype, interleaved), count in rows.items():
            print(f"{isa}, {dtype}, {'interleaved' if interleaved else 'half'}: {count} instructions per row")
    before, native = found["default"], found["neon_bf16"]
    for interleaved in FLAG:
        assert before["float16", interleaved] < 1.5 * before["float32", interleaved]
        assert native["bfloat16", interleaved] < 0.75 * before["bfloat16", interleaved]
