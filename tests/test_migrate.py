"""docs/migrate.md: each model of its table of families rotates as the table says; each function it names exists."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import rope_ext
from tests.conftest import random

DOC = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text()
B, S, H, D = 2, 5, 3, 16


def families():
    """One (interleaved, rotary_dim, layout, tables, remark) for each model of the table."""
    rows = DOC.split("| models | ")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [
        pytest.param(*(cell.strip("`") for cell in rest), id=model)
        for models, *rest in cells
        for model in re.findall(r"`(\w+)`", models)
    ]


def theirs(model, x, tables, layout):
    """x, rotated by the function of the model's modeling file."""
    found = pytest.importorskip(f"transformers.models.{model}.modeling_{model}", exc_type=ImportError)
    names = "apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb", "apply_rotary_emb"
    function = next(getattr(found, name) for name in names if hasattr(found, name))
    options = {"unsqueeze_dim": 2} if layout == "bshd" and len(tables) == 2 else {}
    if model in ("gptj", "codegen"):
        return function(x, *reversed(tables))
    if model in ("gemma3n", "gemma4", "deepseek_v4"):
        return function(x, *tables, **options)
    return function(x, x, *tables, **options)[0]


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("interleaved, rotary_dim, layout, kind, remark", families())
def test_models_rotate_as_the_table_says(interleaved, rotary_dim, layout, kind, remark, request):
    model = request.node.callspec.id
    head_dim = D
    whole = rotary_dim == "head_dim" or rotary_dim.startswith("qk_rope") or "slice there" in remark
    width = head_dim if whole else head_dim // 2
    x = random((B, H, S, D) if layout == "bhsd" else (B, S, H, D), torch.float32)
    angles = random((B, S, width // 2), torch.float32, 1)
    cos, sin = angles.cos(), angles.sin()
    tables = {
        "halves": lambda: (torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)),
        "repeated": lambda: (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)),
        "pairs": lambda: (cos, sin),
        "complex": lambda: (torch.complex(cos, sin),),
    }[kind]()
    offset = {"rotary_offset": head_dim - width} if "rotary_offset" in remark else {}
    got = rope_ext.apply(
        x,
        cos,
        sin,
        layout=layout,
        interleaved=interleaved == "True",
        rotary_dim=width,
        inverse="inverse=True" in remark,
        **offset,
    )
    if "channels as halves" in remark:
        got = torch.cat((got[..., 0::2], got[..., 1::2]), dim=-1)
    # One rounding: complex products may fuse a product and a sum.
    assert (got - theirs(model, x, tables, layout)).abs().max() <= torch.finfo(torch.float32).eps * got.abs().max()


def test_share_of_rotated_channels():
    """The page gives the share of the default configuration: a fraction of head_dim, or a number of channels."""
    transformers = pytest.importorskip("transformers")
    for model, value in re.findall(r"`(\w+)` \(([\d./]+)", DOC):
        config = transformers.AutoConfig.for_model(model)
        found = getattr(config, "rotary_dim", None) or config.rope_parameters["partial_rotary_factor"]
        numerator, _, denominator = value.partition("/")
        assert found == float(numerator) / float(denominator or 1), model


def test_functions_of_the_page_exist():
    for module, names in re.findall(r"from (rope_ext\.compat\.\w+) import ([\w, ]+)", DOC):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), (module, name)
    for path in re.findall(r"rope_ext\.(compat\.\w+\.\w+)", DOC):
        found = rope_ext
        for name in path.split("."):
            found = getattr(found, name)
