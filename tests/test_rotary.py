"""RotaryEmbedding: exact angles, whatever is done to the model that holds it."""

import math

import pytest
import torch

import rope_ext

POSITIONS = [0, 1, 4095, 16384, 131071, 1_000_000]


def exact(base, rotary_dim, position, pair):
    """(cos, sin) by integer arithmetic of 60 digits: an oracle that shares nothing with the code under test."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    angle = Decimal(position) * Decimal(base) ** (Decimal(-2 * pair) / Decimal(rotary_dim))
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    angle %= 2 * pi
    term, cos, sin, n = Decimal(1), Decimal(0), Decimal(0), 0
    while abs(term) > Decimal(10) ** -40:
        cos, sin = (cos + (-1) ** (n // 2) * term, sin) if n % 2 == 0 else (cos, sin + (-1) ** (n // 2) * term)
        n += 1
        term *= angle / n
    return float(cos), float(sin)


@pytest.mark.parametrize(("head_dim", "rotary_dim", "base"), [(128, None, 10000.0), (64, 16, 500000.0)])
def test_tables_are_exact(head_dim, rotary_dim, base):
    """One rounding to float32: half an ulp, 2^-25 for values below 1, plus the error of the float64 angle, 1e-9 at
    position 1,000,000 (2^-53 relative)."""
    rope = rope_ext.RotaryEmbedding(head_dim, base=base, rotary_dim=rotary_dim)
    width = (rotary_dim or head_dim) // 2
    cos, sin = rope(torch.tensor(POSITIONS))
    for row, position in enumerate(POSITIONS):
        for pair in range(0, width, 5):
            wanted_cos, wanted_sin = exact(base, 2 * width, position, pair)
            assert abs(cos[row, pair].item() - wanted_cos) <= 2**-25 + 1e-9
            assert abs(sin[row, pair].item() - wanted_sin) <= 2**-25 + 1e-9


def test_shapes_dtypes_and_agreement():
    rope = rope_ext.RotaryEmbedding(head_dim=16, base=1000.0)
    cos, sin = rope.tables(10)
    assert cos.shape == sin.shape == (10, 8) and cos.dtype == sin.dtype == torch.float32
    positions = torch.tensor([[3, 0, 9], [1, 1, 2]], dtype=torch.int32)
    cos_at, sin_at = rope(positions)
    assert torch.equal(cos_at, cos[positions]) and torch.equal(sin_at, sin[positions])
    assert rope(positions, dtype=torch.float64)[0].dtype == torch.float64
    negative_cos, negative_sin = rope(-positions)
    assert torch.equal(negative_cos, cos_at) and torch.equal(negative_sin, -sin_at)


def test_inv_freq():
    rope = rope_ext.RotaryEmbedding(8, base=10000.0)
    wanted = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64, device="cpu")
    torch.testing.assert_close(rope.inv_freq, wanted, rtol=1e-15, atol=0)
    assert math.isclose(rope_ext.frequencies.default(4, 7.0).inv_freq[1].item(), 7**-0.5)


def test_tables_per_token_equal_lookup():
    x = torch.randn(2, 3, 4, 16)
    rope, positions = rope_ext.RotaryEmbedding(16), torch.tensor([[5, 6, 7], [0, 1, 99]])
    looked_up = rope_ext.apply(x, *rope.tables(100), positions=positions)
    assert torch.equal(rope_ext.apply(x, *rope(positions)), looked_up)


def test_nothing_in_the_state_dict():
    model = torch.nn.Module()
    model.rope = rope_ext.RotaryEmbedding(8)
    assert not model.state_dict() and not list(model.buffers()) and not list(model.children())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16).float(),
        lambda m: m.to("meta").to_empty(device="cpu"),
        lambda m: m.double(),
    ],
)
def test_survives_what_is_done_to_models(change):
    class Model(torch.nn.Module):
        def __init__(self, *_, device=None):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4, device=device)
            self.rope = rope_ext.RotaryEmbedding(128, base=500000.0)

    model = Model()
    wanted = model.rope.tables(2048)
    model = change(model)
    got = model.rope.tables(2048)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


def test_on_the_meta_device():
    with torch.device("meta"):
        rope = rope_ext.RotaryEmbedding(8)
        assert rope.tables(4)[0].device.type == "meta"
    assert rope.tables(4, device="meta")[1].device.type == "meta"
    assert rope.tables(4)[0].device.type == torch.get_default_device().type


def test_compiles():
    rope = rope_ext.RotaryEmbedding(16)

    def function(x, positions):
        return rope_ext.apply(rope_ext.apply(x, *rope(positions)), *rope.tables(x.shape[1]))

    x, positions = torch.randn(1, 6, 2, 16), torch.arange(6).unsqueeze(0)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, positions), function(x, positions))
