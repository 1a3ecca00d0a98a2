"""examples/serve_tiny_llama.py: its checks pass, and a wrong position would fail them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm")
pytestmark = pytest.mark.devices("cpu")
PROGRAM = Path(__file__).resolve().parents[1] / "examples/serve_tiny_llama.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("serve_tiny_llama", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_way_of_serving_agrees_in_one_compiled_graph():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, PROGRAM, "--tokens", "6"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    compared = [line.split()[-2] for line in ended.stdout.splitlines() if ", against " in line]
    assert compared == ["equal"] * 5
    assert "padded and packed: bit-identical to those of each prompt alone" in ended.stdout
    assert "compiled decode: offsets 5, graphs 1, recompilations 0" in ended.stdout


@torch.inference_mode()
def test_the_bound_is_far_below_what_a_wrong_position_changes(example):
    torch.manual_seed(0)
    prompts = example.Prompts([torch.tensor([*text.encode()]) for text in example.TEXTS])
    model = example.TinyLlama(example.Config(), max_position=64)

    def one_too_far(model, tokens, cache, slot, lengths):
        return example.decode(model, tokens, cache, slot, lengths + 1)

    right, wrong = (example.serve(model, prompts, 2, step=step) for step in (example.decode, one_too_far))
    assert torch.equal(right[:, 0], wrong[:, 0])
    assert (wrong - right).abs().max() > 100 * example.BOUND * right.abs().max()
