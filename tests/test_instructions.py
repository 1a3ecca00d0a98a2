"""Small calls take as many instructions as the committed table says: no noise, so 3 % are seen.

Counts are compared on the Python, torch, C library, compiler and valgrind of the table (benchmarks/instructions.py); the
build is that of `make test`: Release, where test hooks and warnings change no instruction of a call.
"""

import pytest

from benchmarks import instructions
from benchmarks.harness.instructions import FORMS, counted, environment

pytestmark = pytest.mark.devices("cpu")
TABLE = {"environment": {"python": "3", "cpu_isa": "avx2"}, "instructions": {"apply": 1000, "apply_": 2000}}


def test_counts_are_those_of_the_table():
    table = instructions.read()
    assert list(table["instructions"]) == FORMS
    skip_elsewhere(table, environment())
    found, where = counted("forms")
    print(*instructions.printed(table, found, where), sep="\n")
    skip_elsewhere(table, where)
    complaints = "\n".join(instructions.complaints(table, found))
    assert not complaints, complaints


def skip_elsewhere(table, where):
    differences = list(instructions.differences(table, where))
    if differences:
        pytest.skip(f"the table is of another environment: {'; '.join(differences)}")


def test_a_change_beyond_the_tolerance_is_a_sentence():
    assert list(instructions.complaints(TABLE, {"apply": 1029.0, "apply_": 1941.0})) == []
    assert list(instructions.complaints(TABLE, {"apply": 1031.0, "apply_": 1930.0})) == [
        "apply: 1031 instructions, 1000 before (+3.1%): if it is worth them, `make instructions` rewrites the table",
        "apply_: 1930 instructions, 2000 before (-3.5%): to keep the gain, `make instructions` rewrites the table",
    ]


def test_a_form_without_a_count_is_a_sentence():
    assert list(instructions.complaints(TABLE, {"apply": 1000.0, "rope.apply": 5.0})) == [
        "rope.apply: 5 instructions, not in the table: `make instructions` rewrites the table",
        "apply_: in the table, but no longer counted: `make instructions` rewrites the table",
    ]


def test_another_environment_is_named():
    assert list(instructions.differences(TABLE, {"python": "3"})) == []
    assert list(instructions.differences(TABLE, {"python": "4", "cpu_isa": "default"})) == [
        "python is 4, in the table 3",
        "cpu_isa is default, in the table avx2",
    ]
