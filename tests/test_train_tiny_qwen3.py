"""examples/train_tiny_qwen3.py: the losses of a few steps agree, and a fused layer keeps less memory."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = pytest.mark.devices("cpu")


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).resolve().parents[1] / "examples/train_tiny_qwen3.py"
    spec = importlib.util.spec_from_file_location("train_tiny_qwen3", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_agree_and_the_command_prints_them(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_tiny_qwen3.py", "--steps", "3"])
    example.main()
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line[:4].strip().isdigit()]
    assert [row[0] for row in rows] == ["1", "3"]
    # Steps are small, so rounding errors have hardly grown: the loss is a mean of 1000 logarithms of sums.
    for _, eager, fused in rows:
        assert abs(float(eager) - float(fused)) < 1e-4 * float(eager)
    assert "one attention layer" in printed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_less_for_its_backward(example, dtype):
    eager, fused = (example.memory_of_layer(fused, dtype, seqlen=64) for fused in (False, True))
    assert all(ours < theirs for ours, theirs in zip(fused, eager))
