"""Memory of results: strides, huge pages, the pool, malloc, and non-temporal stores into large outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import _introspect, reference
from tests.conftest import assert_same_bits, in_memory, random
from tests.pages import blocks_of, run_blocks

pytestmark = pytest.mark.devices("cpu")
COS, SIN = rope_ext.RotaryEmbedding(64).tables(8192)


@pytest.fixture
def pool():
    rope_ext.set_output_pool(64 << 20)
    yield
    rope_ext.set_output_pool(0)


def child(program, **environment):
    """What `program` prints as JSON, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", "import json, torch, rope_ext\n" + program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    return json.loads(run.stdout)


# ---- the pool ----


def test_pool_reuses_memory_when_the_last_view_is_gone(pool):
    x = random((1, 4096, 4, 64), torch.float32)
    y = rope_ext.apply(x, COS, SIN)
    address, view = y.data_ptr(), y[:, 1:]
    del y
    z = rope_ext.apply(x, COS, SIN)
    assert z.data_ptr() != address  # `view` still holds the first
    assert_same_bits(view, z[:, 1:])
    del view
    assert rope_ext.apply(x, COS, SIN).data_ptr() == address


@pytest.mark.parametrize("order", ["contiguous", "transposed", "sliced", "last stride 2"])
def test_pooled_results_are_like_others(pool, order):
    x = in_memory(random((2, 2048, 4, 64), torch.bfloat16), order)
    y = rope_ext.apply(x, COS, SIN)
    assert_same_bits(y, reference.apply(x, COS, SIN))
    assert y.stride() == torch.empty_like(x).stride()
    assert torch.autograd.grad(rope_ext.apply(x.requires_grad_(), COS, SIN).sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("hold", [torch.Tensor.numpy, torch.utils.dlpack.to_dlpack, torch.Tensor.untyped_storage])
def test_pool_waits_for_other_holders_of_the_memory(pool, hold):
    x = random((1, 4096, 4, 64), torch.float32)
    y = rope_ext.apply(x, COS, SIN)
    address, held = y.data_ptr(), hold(y)
    del y
    assert rope_ext.apply(x, COS, SIN).data_ptr() != address
    del held
    assert address in {y.data_ptr() for y in [rope_ext.apply(x, COS, SIN) for _ in range(2)]}


def test_page_about_memory_shows_what_its_code_prints():
    text = (Path(__file__).parents[1] / "docs/memory.md").read_text(encoding="utf-8")
    blocks = blocks_of(text)
    assert blocks and run_blocks(blocks, "memory")[1] == [shown for *_, shown in blocks]


def test_pool_keeps_no_more_than_its_limit():
    resident = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
x = torch.ones(1, 8192, 16, 64)  # 32 MiB
cos, sin = rope_ext.RotaryEmbedding(64).tables(8192)
rope_ext.apply(x[:, :8], cos, sin)
before = resident()
found = []
for limit in (0, 40 << 20, 0):
    rope_ext.set_output_pool(limit)
    rope_ext.apply(x, cos, sin), rope_ext.apply(x, cos, sin)
    found.append((resident() - before) >> 20)
print(json.dumps(found))
"""
    without, kept, freed = child(resident)
    assert without < 8 and 24 < kept < 40 and freed < 8


@pytest.mark.parametrize(
    ("value", "exception"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError)]
)
def test_pool_refuses_invalid_limits(value, exception):
    with pytest.raises(exception, match=r"^rope_ext: max_bytes must be .*, got"):
        rope_ext.set_output_pool(value)


# ---- pages ----

FLAGS_OF_RESULT = """
import re
x = torch.ones(1, 8192, 32, 64)  # 64 MiB: above what malloc keeps
cos, sin = rope_ext.RotaryEmbedding(64).tables(8192)
y = rope_ext.apply(x, cos, sin)
blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.MULTILINE)[1:]
inside = y.data_ptr() + (32 << 20)
found = [b for b in blocks if int(b.split("-")[0], 16) <= inside < int(re.match(r"\\S+-(\\S+)", b)[1], 16)]
print(json.dumps(re.search("VmFlags: (.*)", found[0])[1].split()))
"""


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="no huge pages on this system")
def test_large_results_ask_for_huge_pages_unless_told_not_to():
    assert "hg" in child(FLAGS_OF_RESULT)
    assert "hg" not in child(FLAGS_OF_RESULT, ROPE_EXT_HUGEPAGES="0")


def test_tune_malloc_keeps_pages():
    program = """
import resource
done = rope_ext.tune_malloc()
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
print(json.dumps([done, [faults() for _ in range(12)][-1]]))  # the heap grows at first, until chunks fit
"""
    done, faults = child(program)
    if not done:
        pytest.skip("no mallopt here")
    assert faults < 1000  # 16384 pages


# ---- non-temporal stores: outputs above 16 MiB ----


@pytest.mark.parametrize(
    ("dtype", "interleaved"), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)]
)
@pytest.mark.parametrize("shift", [0, 1])  # in elements: only aligned vectors are stored non-temporally
def test_large_outputs_have_the_bits_of_the_reference(dtype, interleaved, shift):
    tokens = 2064 if dtype == torch.float32 else 4128
    x = random((2, tokens, 16, 64), dtype)
    memory = torch.full((x.numel() + 128,), 7.0, dtype=dtype)
    out = memory[64 + shift :][: x.numel()].view(x.shape)
    rope_ext.apply(x, COS, SIN, interleaved=interleaved, out=out)
    assert_same_bits(out, reference.apply(x, COS, SIN, interleaved=interleaved))
    assert (memory[: 64 + shift] == 7).all() and (memory[64 + shift + x.numel() :] == 7).all()


# ---- what runs ----


def test_build_info():
    info = rope_ext.build_info()
    assert info["version"] == rope_ext.__version__ and info["torch"] == torch.__version__
    assert info["cpu_isa"] == _introspect.best_isa()
    program = "print(json.dumps(rope_ext.build_info()['cpu_isa']))"
    assert child(program, ATEN_CPU_CAPABILITY="default") == "default"
    if info["cpu_isa"].startswith("avx"):
        assert child(program, ATEN_CPU_CAPABILITY="avx2") == "avx2"
