"""A few seconds of the fuzzer (tests/fuzz), and that it finds what it looks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rope_ext

pytestmark = pytest.mark.devices("cpu")
FUZZ = Path(__file__).with_name("fuzz")


def run(*arguments):
    """In a process of its own, with the package that is tested here."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rope_ext.__file__).parents[1])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def test_random_calls():
    """Where this fails, its output has the seed, the index and the call: python tests/fuzz --index N makes it again."""
    result = run(FUZZ, "--seed", 0, "--calls", 3000)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


BROKEN = """
import os, runpy, sys, tempfile
import rope_ext

program, original = sys.argv[1], rope_ext.apply

def zeros(x, *arguments, **options):
    y = original(x, *arguments, **options)
    return y.zero_() if hasattr(y, "zero_") else y

def writes(x, *arguments, **options):
    if hasattr(x, "numel") and x.device.type == "cpu" and x.numel():
        x.detach().flatten()[:1].zero_()
        x.untyped_storage()[0] ^= 1
    return original(x, *arguments, **options)

def raises(*arguments, **options):
    raise ValueError("rope_ext: x must be something else, got this")

def says(*arguments, **options):
    try:
        return original(*arguments, **options)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("rope_ext: "))

def accepts(x, *arguments, **options):
    try:
        return original(x, *arguments, **options)
    except Exception:
        return x

with tempfile.NamedTemporaryFile() as counter:
    counter.write(bytes(8))
    counter.flush()
    for broken in (original, zeros, writes, raises, says, accepts):
        rope_ext.apply = broken
        sys.argv = [program, "--only", "apply", "--calls", "60", "--counter", counter.name]
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as done:
            print(f"{broken.__name__} ended with {done.code}", flush=True)
"""


def test_finds_what_is_wrong():
    """An apply that is broken in each of the ways that the fuzzer looks for, beside the one that is not."""
    result = run("-c", BROKEN, FUZZ)
    assert "apply ended with 0" in result.stdout, result.stdout[-4000:] + result.stderr[-2000:]
    for name, sentence in (
        ("zeros", "returned "),
        ("writes", "wrote "),
        ("raises", "refused a valid call"),
        ("says", "raised ValueError"),
        ("accepts", "accepted an invalid call"),
    ):
        before, _, _ = result.stdout.partition(f"{name} ended with 3\n")
        assert before != result.stdout and sentence in before.rpartition(" ended with ")[2], result.stdout[-4000:]
