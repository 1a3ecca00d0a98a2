"""What `make known` lists: rotary functions of installed libraries that rope_ext.patch does not know."""

import importlib.metadata
import inspect

import pytest

from rope_ext.integrations import _registry, known
from tests import test_patch
from tools import known_functions

pytestmark = pytest.mark.devices("cpu")
remote = test_patch.remote
RENAMED = test_patch.ROTARY.replace("q_embed", "q_rotated")  # names count: another fingerprint
UNKNOWN = test_patch.UNKNOWN.replace("apply_rotary_pos_emb", "apply_rotary_to_q_and_k")


def test_functions_that_are_known_or_called_by_one_are_not_listed(remote):
    assert known.missing(remote(blocks="").__name__.partition(".")[0]) == []
    reason = "transformers is not installed"
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss", reason=reason)
    functions = gpt_oss._apply_rotary_emb, gpt_oss.apply_rotary_pos_emb  # the second calls the first
    bodies = ["def " + inspect.getsource(f).partition("def ")[2] for f in functions]  # without their decorators
    source = "\n".join(("import torch", *bodies))
    assert known.missing(remote(blocks=source).__name__.partition(".")[0]) == []


def test_functions_that_are_missing(remote):
    before = _registry.KNOWN.read_bytes()
    name = remote(rotary=RENAMED, blocks=UNKNOWN).__name__.partition(".")[0]
    signature = "(q: torch.Tensor, k, cos, sin, unsqueeze_dim: int = 1)"
    assert sorted(known.missing(name)) == [
        f"{name}.blocks.apply_rotary_to_q_and_k{signature}: equal to no dialect",
        f"{name}.rotary.apply_rotary_pos_emb{signature}: equal to transformers.llama",
    ]
    assert _registry.KNOWN.read_bytes() == before


def test_the_lines_of_a_library(remote, monkeypatch):
    name = remote(blocks=UNKNOWN).__name__.partition(".")[0]
    assert known_functions.listed(name) == [f"{name}: not installed"]
    monkeypatch.setattr(importlib.metadata, "version", lambda library: "7.0")
    listed = known_functions.listed(name)
    assert listed[0] == f"{name} 7.0: 1 new" and listed[1].startswith(f"  {name}.blocks.apply_rotary_to_q_and_k(")
    name = remote(blocks="").__name__.partition(".")[0]
    assert known_functions.listed(name) == [f"{name} 7.0: none new"]
