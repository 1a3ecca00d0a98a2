"""How the benchmark calls other packages on a GPU. Stand-ins have their names and arguments, and rotate in PyTorch."""

import sys
import types

import pytest
import torch

from benchmarks.baselines import peers, peers_gpu
from benchmarks.harness import cases, clocks, measure
from benchmarks.harness.shapes import Shape

pytestmark = pytest.mark.devices("cpu")
SHAPE = Shape("decode", "for tests", batch=2, seqlen=16, heads_q=4, heads_k=2, head_dim=32, first_position=3)


def rotate(x, cos, sin, interleaved=False):
    """cos and sin are (..., seqlen, 1, head_dim / 2), or wide: then the first half or every second entry is read."""
    if cos.shape[-1] == x.shape[-1]:
        cos, sin = ((t[..., ::2] if interleaved else t.chunk(2, -1)[0]) for t in (cos, sin))
    wide = x.float()
    x1, x2 = (wide[..., ::2], wide[..., 1::2]) if interleaved else wide.chunk(2, -1)
    pair = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return (torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)).to(x.dtype)


def apply_rotary_emb(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0):
    assert x.dtype == cos.dtype and cos.dim() == 2
    cos, sin = (t[seqlen_offsets:][: x.shape[1], None].float() for t in (cos, sin))
    y = rotate(x, cos, sin, interleaved)
    return x.copy_(y) if inplace else y


def liger_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    with torch.no_grad():
        for x in (q, k):
            assert x.transpose(1, 2).is_contiguous()
            x.copy_(rotate(x, cos.float()[:, None], sin.float()[:, None]))
    return q, k


def apply_rotary_pos_emb(t, freqs, tensor_format="sbhd", start_positions=None, interleaved=False, fused=False):
    assert tensor_format == "bshd" and fused and freqs.dtype == torch.float32 and freqs.dim() == 4
    return rotate(t, freqs.cos()[:, 0], freqs.sin()[:, 0], interleaved)


def fused_apply_rotary_pos_emb_cached(t, cos_, sin_, transpose_output_memory=False):
    assert cos_.dtype == t.dtype and cos_.shape == (t.shape[0], 1, 1, t.shape[-1]) and transpose_output_memory
    return rotate(t, cos_.float(), sin_.float())


def apply_rope_with_cos_sin_cache(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    assert cos_sin_cache.dtype == torch.float32 and positions.shape == query.shape[:1]
    cos, sin = (t[:, None] for t in cos_sin_cache[positions].chunk(2, -1))
    q, k = (x.view(len(x), -1, head_size) for x in (query, key))
    return [rotate(x, cos, sin, not is_neox).flatten(1) for x in (q, k)]


def apply_rope_with_cos_sin_cache_inplace(positions, query, key, *rest):
    for x, y in zip((query, key), apply_rope_with_cos_sin_cache(positions, query, key, *rest)):
        x.copy_(y)


STUBS = {
    "flash_attn.layers.rotary": [apply_rotary_emb],
    "liger_kernel.transformers.rope": [liger_rotary_pos_emb],
    "transformer_engine.pytorch.attention.rope": [apply_rotary_pos_emb],
    "apex.transformer.functional": [fused_apply_rotary_pos_emb_cached],
    "flashinfer.rope": [apply_rope_with_cos_sin_cache, apply_rope_with_cos_sin_cache_inplace],
}


@pytest.fixture
def stubbed(monkeypatch):
    for path, functions in STUBS.items():
        names = path.split(".")
        for depth in range(1, len(names) + 1):
            monkeypatch.setitem(sys.modules, ".".join(names[:depth]), types.ModuleType(names[depth - 1]))
        for function in functions:
            setattr(sys.modules[path], function.__name__, function)
    monkeypatch.setattr(peers_gpu, "bare_package", lambda name: None)


@pytest.mark.parametrize("which", cases.PASSES)
@pytest.mark.parametrize("pairing", cases.PAIRINGS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_peers_on_a_gpu_are_called_with_their_arguments(stubbed, dtype, pairing, which):
    found, missing = peers.find(peers_gpu.PEERS, threads=1)
    assert list(missing) == ["vLLM"]  # a compiled library, called as FlashInfer is
    case = cases.Case(SHAPE, dtype, pairing, which, "bshd", threads=1)
    foreign = [v for v in found if not (v.name == "Liger" and case.backward)]  # the stub has no derivative
    _, verdicts, left_out = measure.prepare(case, foreign, clocks.HostClock())
    assert verdicts and not any(v.wrong for v in verdicts.values())
    reasons = {"no fp32", "no derivative", "forward: in place"}
    assert set(left_out.values()) <= reasons, left_out


def test_a_package_is_found_without_running_it(tmp_path, monkeypatch):
    inside = tmp_path / "some_package" / "inside"
    inside.mkdir(parents=True)
    (tmp_path / "some_package" / "__init__.py").write_text("raise ImportError('its compiled part')")
    (inside / "part.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(tmp_path)
    peers_gpu.bare_package("some_package")
    from some_package.inside import part

    assert part.answer == 42
    with pytest.raises(ModuleNotFoundError):
        peers_gpu.bare_package("a_package_that_is_not_there")
