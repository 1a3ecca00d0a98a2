"""Count the instructions of small calls: `python -m benchmarks.instructions`; `make instructions` writes the table.

Counts belong to one Python, torch, C library, compiler and valgrind, which the table names. tests/test_instructions.py
compares them where all of these are the same; elsewhere they are only printed.
"""

import argparse
import json

from benchmarks.bench import RESULTS
from benchmarks.harness.instructions import NotCounted, counted

TABLE = RESULTS / "instructions.json"
TOLERANCE = 0.03  # counts vary by half of that, see benchmarks/harness/instructions.py
RENEW = "`make instructions` rewrites the table"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite {TABLE.name}")
    options = parser.parse_args()
    table = read()
    try:
        found, environment = counted("forms")
    except NotCounted as why:
        raise SystemExit(str(why)) from None
    print(*printed(table, found, environment), sep="\n")
    if options.write:
        instructions = {name: round(n) for name, n in found.items()}
        TABLE.write_text(json.dumps({"environment": environment, "instructions": instructions}, indent=1) + "\n")


def read():
    return json.loads(TABLE.read_text()) if TABLE.exists() else {"environment": {}, "instructions": {}}


def printed(table, found, environment):
    """The lines of the output: the counts beside those of the table, then differences of the environment."""
    before = table["instructions"]
    yield f"{'instructions of a call':<32}{'now':>10}{'table':>10}"
    for name, n in found.items():
        change = f"{before[name]:>10}{n / before[name] - 1:>+9.1%}" if name in before else ""
        yield f"{name:<32}{n:>10.0f}{change}"
    yield from differences(table, environment)


def differences(table, environment):
    """A line per difference between this environment and that of the table; missing keys are not compared."""
    for key, value in table["environment"].items():
        if environment.get(key, value) != value:
            yield f"{key} is {environment[key]}, in the table {value}"


def complaints(table, found, renew=RENEW):
    """A sentence per form whose count differs from the table by more than TOLERANCE. renew: how to rewrite it."""
    before = table["instructions"]
    for name, n in found.items():
        if name not in before:
            yield f"{name}: {n:.0f} instructions, not in the table: {renew}"
        elif n > before[name] * (1 + TOLERANCE):
            change = f"{n / before[name] - 1:+.1%}"
            yield f"{name}: {n:.0f} instructions, {before[name]} before ({change}): if it is worth them, {renew}"
        elif n < before[name] * (1 - TOLERANCE):
            change = f"{n / before[name] - 1:+.1%}"
            yield f"{name}: {n:.0f} instructions, {before[name]} before ({change}): to keep the gain, {renew}"
    for name in before.keys() - found.keys():
        yield f"{name}: in the table, but no longer counted: {renew}"


if __name__ == "__main__":
    main()
