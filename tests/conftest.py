"""Shared by all tests: random inputs in every layout and memory order, and bitwise comparison."""

import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def pytest_configure():
    torch.set_num_threads(2)  # so that the parallel path runs wherever a tensor is large enough


def shape_of(layout, batch, seqlen, heads, head_dim):
    sizes = {"b": batch, "s": seqlen, "t": seqlen, "h": heads, "d": head_dim}
    return tuple(sizes[axis] for axis in layout)


def random(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def in_memory(x, order):
    """x again, with the strides that models produce: the values do not change."""
    if order == "contiguous":
        return x.clone()
    if order == "transposed":  # the axes before the last in another order in memory
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if order == "sliced":  # a slice of fused q, k, v
        packed = torch.cat([random(x.shape, x.dtype, seed=9), x, x], dim=-1)
        return packed[..., x.shape[-1] : 2 * x.shape[-1]]
    if order == "last stride 2":
        return torch.stack((x, x), dim=-1).flatten(-2)[..., ::2]
    assert order == "reversed strides"  # channels outermost
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def same_bits(a, b):
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.contiguous().view(BITS[t.dtype]) for t in (a, b)))
    )


def assert_same_bits(got, wanted):
    got, wanted = ([t] if isinstance(t, torch.Tensor) else t for t in (got, wanted))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        assert same_bits(a, b), (
            f"differs in {(a != b).sum()} of {a.numel()} elements, by up to {(a.double() - b.double()).abs().max()}"
        )
