"""Out of memory raises the error of torch, of its type and with its words, by which code that retries recognises it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import rope_ext
from rope_ext._torch import errors
from rope_ext._torch.library import torch_ops
from rope_ext.compat import flash_attn, rotary_embedding_torch
from tests.conftest import random

ROPE = rope_ext.RotaryEmbedding(8)
X, COS, SIN = random((1, 3, 2, 8), torch.float32), *ROPE.tables(3)


def vast(*shape, dtype=torch.float32):
    """One element of memory. A result of this shape exceeds the address space."""
    return torch.zeros((), dtype=dtype).expand(shape)


X_VAST = 2**45, 3, 1, 8


def apply_to_vast(cos=None, **keywords):
    return rope_ext.apply(vast(*X_VAST), COS if cos is None else cos, SIN, **keywords)


def cos_sin_of_positions():
    return ROPE(vast(2**48, dtype=torch.int64))


def learned_rows():
    return apply_to_vast(COS.clone().requires_grad_(), positions=vast(2**45, 3, dtype=torch.int64))


def raw_cos_sin():
    high = torch.ones(1, 1, 4)
    return torch_ops.cos_sin([vast(1, 2**48, 1, 8)], high, torch.zeros_like(high), 0, 64)


OUT_OF_MEMORY = {
    "apply": apply_to_vast,
    "inference mode": torch.inference_mode()(apply_to_vast),
    "x recorded": lambda: rope_ext.apply(vast(*X_VAST).requires_grad_(), COS, SIN),
    "cos recorded": lambda: apply_to_vast(COS.clone().requires_grad_()),
    "rows of a table recorded": learned_rows,
    "vmap": lambda: torch.func.vmap(lambda x: rope_ext.apply(x, COS, SIN))(vast(1, *X_VAST)),
    "grad": lambda: torch.func.grad(lambda x: rope_ext.apply(x, COS, SIN).sum())(vast(*X_VAST)),
    "compiled": lambda: torch.compile(rope_ext.apply, backend="eager")(vast(*X_VAST), COS, SIN),
    "positions": cos_sin_of_positions,
    "positions, inference mode": torch.inference_mode()(cos_sin_of_positions),
    "raw rotate": lambda: torch_ops.rotate([vast(*X_VAST)], COS, SIN),
    "raw cos_sin": raw_cos_sin,
    "compat": lambda: flash_attn.apply_rotary_emb(vast(*X_VAST), COS, SIN),
    "compat, scale": lambda: rotary_embedding_torch.apply_rotary_emb(
        torch.ones(3, 8), X.transpose(1, 2), scale=vast(2**46, 1, 1)
    ),
}


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
def test_out_of_memory_raises_the_error_of_torch(name):
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty_like(vast(*X_VAST))
    with pytest.raises(RuntimeError) as caught:
        OUT_OF_MEMORY[name]()
    assert type(caught.value) is type(of_torch.value)
    words = "CUDA out of memory" if X.is_cuda else "DefaultCPUAllocator: can't allocate memory"
    assert words in str(of_torch.value) and words in str(caught.value)
    assert "rope_ext" not in str(caught.value)


def test_an_op_called_by_itself_says_out_of_memory():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"^rope_ext: out of memory for a result: "):
        torch_ops.rotate([vast(*X_VAST)], COS, SIN)


LIMITED = """
import resource, torch, rope_ext

def fails(call):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), limits[1]))
    try:
        call()
    except RuntimeError as error:
        assert type(error) is RuntimeError and "DefaultCPUAllocator: can't allocate memory" in str(error), error
    else:
        raise AssertionError("it fits")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)

cos, sin = rope_ext.RotaryEmbedding(128).tables(1024)
x = torch.ones(1, 1024, 128, 128, requires_grad=True)  # 64 MiB
y = rope_ext.apply(x, cos, sin)
grad = torch.ones_like(y)
y.backward(grad, retain_graph=True)  # imports modules
fails(lambda: y.backward(grad))
written = x * 1
version = written._version
fails(lambda: rope_ext.apply_(written, cos.clone().requires_grad_(), sin))  # rotates a copy, which table_grad reads
assert torch.equal(written, x) and written._version == version
rope_ext.set_output_pool(1 << 30)
fails(lambda: rope_ext.apply(grad, cos, sin))
print("done")
"""


@pytest.mark.devices("cpu")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_out_of_memory_leaves_x_unchanged_in_training():
    ended = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert ended.stdout == "done\n", ended.stderr


def test_out_of_memory_keeps_the_type_of_the_device(monkeypatch):
    """torch raises another type on a GPU; whatever the type is, ours is the same."""

    def fail(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 PiB.")

    monkeypatch.setitem(errors.allocators, "rotate", fail)
    for call in (apply_to_vast, OUT_OF_MEMORY["x recorded"], OUT_OF_MEMORY["raw rotate"]):
        with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate 4\.00 PiB\.$"):
            call()


def test_out_of_memory_is_reported_although_torch_finds_memory_later(monkeypatch):
    monkeypatch.setattr(errors, "native", SimpleNamespace(rope_ext_take_error_type=lambda: 3))
    on_cpu = RuntimeError("rope_ext: out of memory for a result: DefaultCPUAllocator: can't allocate memory")
    assert errors.typed(on_cpu) is on_cpu
    found = errors.typed(RuntimeError("rope_ext: CUDA out of memory. No room for a kernel"))
    assert type(found) is torch.OutOfMemoryError and str(found).startswith("rope_ext: CUDA out of memory. ")
