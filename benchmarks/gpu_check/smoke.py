"""Run every kernel once and compare it with the CPU bit for bit: `python -m benchmarks.gpu_check.smoke`.

It needs neither pytest nor the modules of the tests, and prints a line per call, so that a crash names the call.
"""

import itertools
import sys
from functools import partial

import torch

import rope_ext

DTYPES = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
HEAD_DIMS = [64, 20, 6]  # accesses of 16 bytes, of 4, of one element
SOURCES = ["per pair", "per channel", "positions"]  # of cos and sin


def random(shape, dtype, device, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(device)


def table_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def rotate(dtype, head_dim, source, device):
    """q and k in both pairings: whole heads in token order, and part of wider heads in place by positions."""
    if source == "positions":
        tables, options = (), {"inv_freq": torch.linspace(0.1, 1, head_dim // 2, dtype=torch.float64, device=device)}
    else:
        width = head_dim // 2 if source == "per pair" else head_dim
        tables = [random((9, width), table_dtype(dtype), device, seed) for seed in (1, 2)]
        options = {"per_channel": source == "per channel"}
    found = []
    for interleaved in (False, True):
        whole, wider = (
            [random((2, 5, heads, channels), dtype, device, heads) for heads in (4, 2)]
            for channels in (head_dim, head_dim + 16)
        )
        found += rope_ext.apply(whole, *tables, interleaved=interleaved, **options)
        positions = torch.tensor([[0, 3, 8, 1, 2], [7, 6, 5, 4, 2]], device=device)
        part = {"rotary_dim": head_dim, "positions": positions, "interleaved": interleaved}
        found += rope_ext.apply_(wider, *tables, **part, **options)
    return found


def table_grad(dtype, device):
    """The gradients of tables with a row per token, and of x."""
    x, grad = (random((2, 5, 4, 64), dtype, device, seed) for seed in (0, 1))
    tables = [random((2, 5, 32), table_dtype(dtype), device, seed) for seed in (2, 3)]
    inputs = [t.requires_grad_() for t in (x, *tables)]
    return torch.autograd.grad(rope_ext.apply(*inputs), inputs, grad)


def cos_sin(dtype, device):
    frequencies = torch.linspace(0.01, 1, 32, dtype=torch.float64, device=device)
    return rope_ext.cos_sin(torch.arange(-3, 1000, device=device), frequencies, dtype=dtype)


def calls():
    """{name: call(device) -> tensors}"""
    found = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for head_dim, source in itertools.product(HEAD_DIMS, SOURCES):
            found[f"rotate {name} head_dim {head_dim} {source}"] = partial(rotate, dtype, head_dim, source)
        found[f"table_grad {name}"] = partial(table_grad, dtype)
    return found | {f"cos_sin {dtype}": partial(cos_sin, dtype) for dtype in (torch.float32, torch.float64)}


def side_stream(call):
    """The call on a stream other than the default one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = call("cuda")
    stream.synchronize()
    return results


def replayed():
    """The results of a captured call, replayed after x and positions changed, and of the call on the new values."""
    x, other = (random((2, 5, 4, 64), torch.bfloat16, "cuda", seed) for seed in (0, 1))
    tables = [random((9, 32), torch.float32, "cuda", seed) for seed in (2, 3)]
    positions = torch.zeros(5, dtype=torch.int64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = rope_ext.apply(x, *tables, positions=positions)
    x.copy_(other)
    positions.copy_(torch.arange(5).flip(0))
    graph.replay()
    return [y], [rope_ext.apply(x, *tables, positions=positions)]


def bit_identical(results, expected):
    def bits(t):
        return t.detach().cpu().contiguous().view(torch.uint8)

    return all(a.dtype == b.dtype and torch.equal(bits(a), bits(b)) for a, b in zip(results, expected, strict=True))


def main():
    failed = []

    def report(name, same):
        print(f"{name}: {'bit-identical' if same else 'DIFFERENT'}", flush=True)
        failed.extend([] if same else [name])

    for name, call in calls().items():
        report(name, bit_identical(call("cuda"), call("cpu")))
    some = partial(rotate, torch.bfloat16, 64, "per pair")
    report("on a side stream", bit_identical(side_stream(some), some("cpu")))
    report("replay of a CUDA graph", bit_identical(*replayed()))
    print(f"{len(calls()) + 2 - len(failed)} of {len(calls()) + 2} are bit-identical to the CPU", *failed, sep=", ")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
