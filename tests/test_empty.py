"""Tensors without elements, whatever their strides: they are checked, and no loop runs over their tokens."""

import pytest
import torch

import rope_ext
from rope_ext import _introspect, angles
from rope_ext._torch.library import torch_ops

pytestmark = pytest.mark.devices("cpu")
MANY = 2**40  # tokens that would take hours one by one


@pytest.fixture(params=[*_introspect.supported_isas(), "cuda"])
def kernels(request, use_kernels):
    """Runs the ops with the kernels of one instruction set, or with the CUDA kernels emulated on the CPU."""
    use_kernels(_introspect.kernels(request.param))


def every_call(x, *tables, **options):
    """apply, apply_ and out=, and all gradients, which are zeros."""
    assert rope_ext.apply(x, *tables, **options).shape == x.shape
    assert rope_ext.apply_(x.clone(), *tables, **options).shape == x.shape
    assert rope_ext.apply(x, *tables, out=torch.empty_like(x), **options).shape == x.shape
    inputs = [t.detach().clone().requires_grad_() for t in (x, *tables)]
    for t, expanded in zip(inputs[1:], tables):
        assert t.stride() == expanded.stride() or not t.numel()
    grads = torch.autograd.grad(rope_ext.apply(*inputs, **options).sum(), inputs)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, inputs))


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "thd"])
def test_tables_expanded_to_no_heads(kernels, layout):
    shape = {"bshd": (1, 2, 0, 64), "bhsd": (1, 0, 2, 64), "thd": (2, 0, 64)}[layout]
    x = torch.zeros(shape)
    for width in (32, 64):
        one = torch.ones(1, 1, 2, width) if layout == "bhsd" else torch.ones(1, 2, 1, width)
        sizes = (*(shape if layout != "thd" else (1, *shape))[:-1], width)
        every_call(x, one.expand(sizes), one.expand(sizes), layout=layout)


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8)])
def test_frequencies_expanded_to_no_heads(kernels, shape):
    x = torch.zeros(shape)
    high, low, scale = angles.revolutions(torch.ones(1, 4))
    heads = shape[2]
    rates = angles.Revolutions(high.expand(1, heads, 4), low.expand(1, heads, 4), scale)
    assert rope_ext.apply(x, inv_freq=rates).shape == shape
    assert rope_ext.apply_(x.clone(), inv_freq=rates).shape == shape
    inv_freq = torch.ones(heads, 4, requires_grad=True)
    y = rope_ext.apply(x.requires_grad_(), inv_freq=inv_freq)
    grads = torch.autograd.grad(y.sum(), (x, inv_freq))
    assert not grads[0].any() and not grads[1].any()


def test_frequencies_without_heads_may_have_any_strides(kernels):
    inv_freq = torch.empty(4, 0).t()  # contiguous() of nothing keeps its strides
    assert rope_ext.apply(torch.empty(2, 3, 0, 8), inv_freq=inv_freq).shape == (2, 3, 0, 8)


def test_positions_of_no_heads(kernels):
    """cos_sin writes its third result too, where the first two have no entries."""
    high, low, _ = angles.revolutions(torch.ones(1, 4))
    x = [torch.zeros(2, 3, 0, 8)]
    torch.full((64,), 7.0)  # freed at once, so that the result may lie in memory of sevens
    _, _, positions = torch_ops.cos_sin(x, high[:, :0], low[:, :0], 5, 64)
    assert torch.equal(positions, torch.arange(5.0, 8.0).reshape(1, 1, 3))


# ---- loops over nothing ----


def expanded(value, *sizes, dtype=torch.int64):
    return torch.tensor([value], dtype=dtype).expand(*sizes)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, MANY, 0, 8), {"positions": expanded(3, MANY)}),
        ((1, MANY, 0, 8), {"positions": expanded(3, 1, MANY), "offset": expanded(0, 1)}),
        ((MANY, 2, 0, 8), {"positions": expanded(3, MANY, 2)}),
        ((MANY, 2, 0, 8), {"offset": expanded(0, MANY)}),
        ((MANY, 2, 0, 8), {"positions": torch.arange(2), "offset": expanded(0, MANY)}),
        ((MANY, 0, 2, 8), {"positions": expanded(3, MANY, 0)}),
        ((0, MANY, 2, 8), {"positions": expanded(3, 0, MANY)}),
        ((MANY, 0, 8), {"cu_seqlens": expanded(0, MANY, dtype=torch.int32), "layout": "thd"}),
        ((MANY, 0, 8), {"cu_seqlens": torch.tensor([0, 3, 3], dtype=torch.int32), "layout": "thd"}),
        ((1, MANY, 0, 8), {"inv_freq": torch.ones(4)}),
        ((MANY, 0, 2, 8), {"inv_freq": torch.ones(4), "offset": expanded(0, MANY)}),
    ],
    ids=str,
)
def test_no_loop_runs_over_tokens_without_elements(shape, options):
    x = torch.empty(shape)
    tables = () if "inv_freq" in options else rope_ext.RotaryEmbedding(8).tables(4)
    assert rope_ext.apply(x, *tables, **options).shape == shape
    assert rope_ext.apply_(x, *tables, **options).shape == shape
    assert rope_ext.apply(x, *tables, out=torch.empty(shape), **options).shape == shape


def test_each_position_and_offset_is_checked_once():
    """2^20 positions and 2^20 offsets give 2^40 rows. Each number is read once, and a wrong one is found."""
    n = 2**20
    x = torch.empty(n, n, 0, 8)
    cos, sin = rope_ext.RotaryEmbedding(8).tables(4)
    positions, offset = torch.ones(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    assert rope_ext.apply(x, cos, sin, positions=positions, offset=offset).shape == x.shape
    offset[-1], positions[n // 2] = 2, 2
    with pytest.raises(ValueError, match=rf"positions must .* got row 4 for token {n // 2} of batch {n - 1}$"):
        rope_ext.apply(x, cos, sin, positions=positions, offset=offset)
    with pytest.raises(ValueError, match="positions must index rows 0 to 3 of the table, got row 4 for token 0"):
        rope_ext.apply(torch.empty(1, MANY, 0, 8), cos, sin, positions=expanded(4, MANY))


def test_gradients_of_a_table_without_rows():
    cos, sin = (torch.zeros(0, 4, requires_grad=True) for _ in range(2))
    for x, options in (
        (torch.zeros(0, 4, 2, 8), {}),
        (torch.zeros(3, 2, 8), {"layout": "thd", "cu_seqlens": torch.tensor([0], dtype=torch.int32)}),
    ):
        y = rope_ext.apply(x, cos, sin, **options)
        assert torch.equal(y, x)
        assert all(g.shape == (0, 4) for g in torch.autograd.grad(y.sum(), (cos, sin)))


def test_table_rows_refuses_frequencies():
    high, low, _ = angles.revolutions(torch.ones(4))
    with pytest.raises(ValueError, match=r"^rope_ext: inv_freq must be None when table rows are requested"):
        torch_ops.table_rows([torch.zeros(1, 2, 3, 8)], high, low, 0, 64)
