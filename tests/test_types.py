"""What type checkers, help() and dir() show of the functions of rope_ext. mypy --strict reads the programs below."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rope_ext

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]

GIVEN = """
import torch
from torch import Tensor
import rope_ext
from rope_ext import angles, errors, reference

x = torch.ones(1, 3, 2, 8)
cos, sin, at = torch.ones(3, 4), torch.zeros(3, 4), torch.arange(3)
"""
RIGHT = """
one: Tensor = rope_ext.apply(torch.nn.Parameter(x), cos, sin, layout="bhsd", offset=at, out=torch.empty_like(x))
two: tuple[Tensor, Tensor] = rope_ext.apply((x, x), cos, sin, positions=at, rounding="eager", out_interleaved=True)
three: tuple[Tensor, Tensor, Tensor] = rope_ext.apply_((x, x, x), cos, sin, rotary_dim=8, per_channel=False)
several: list[Tensor] = rope_ext.apply([x], inv_freq=angles.revolutions(cos[0]), attention_scaling=1.5)
tables: tuple[Tensor, Tensor] = rope_ext.cos_sin(at, cos[0], 1.5, dtype=torch.float64)
former: angles.Turns = angles.turns(cos[0])
plain: tuple[Tensor, ...] = reference.apply((x, x), cos, sin, layout="sbhd", transposed=True)
formula: Tensor = reference.rotate(x, *reference.cos_sin(at[None], cos[None], cos[None]))
rows: Tensor = reference.table_rows(1, 3, at)
cuda: str | None = rope_ext.build_info()["cuda"]
layouts: tuple[reference.Layout, ...] = reference.LAYOUTS


def unknown(t: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...] | list[Tensor]:
    try:
        return rope_ext.apply(t, cos, sin)
    except rope_ext.ArgumentError as error:
        raise SystemExit(error.argument + error.rule + error.got + error.cure)
"""
WRONG = {
    'rope_ext.apply(x, cos, sin, layout="hbsd")': 'Argument "layout"',
    'rope_ext.apply(x, cos, sin, layot="bshd")': 'keyword argument "layot"',
    'rope_ext.apply(x, cos, sin, interleaved="x")': 'Argument "interleaved"',
    'rope_ext.apply(x, cos, sin, rounding="twice")': 'Argument "rounding"',
    "rope_ext.apply(x, cos, sin, at)": "Argument 4",
    "rope_ext.apply([1.0], cos, sin)": "list[float]",
    "rope_ext.apply_(x, cos, sin, out=x)": 'keyword argument "out"',
    "pair: tuple[Tensor, Tensor] = rope_ext.apply(x, cos, sin)": "Tensor",
    'angles.cos_sin(at, "1")': "Argument 2",
}


def test_mypy_on_the_program_of_a_user(tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "user.py"
    program.write_text(GIVEN + RIGHT + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in run.stdout.splitlines() if ": error: " in line]
    first = (GIVEN + RIGHT).count("\n") + 1
    for line, error, words in zip(range(first, first + len(WRONG)), errors, WRONG.values()):
        assert error.startswith(f"{program}:{line}: error: ") and words in error, run.stdout
    assert len(errors) == len(WRONG), run.stdout + run.stderr


@pytest.mark.parametrize("function", [rope_ext.apply, rope_ext.apply_])
def test_a_signature_shows_types_and_no_parameter_that_is_refused(function):
    parameters = inspect.signature(function).parameters.values()
    assert all(p.annotation is not p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters)
    assert inspect.signature(function).return_annotation is rope_ext.reference.Tensors


def test_dir_shows_what_is_public():
    assert {name for name in dir(rope_ext) if not name.startswith("__")} == set(rope_ext.__all__)
