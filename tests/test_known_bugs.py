"""Bugs that shipped in other libraries, one test each. test_install.py has the bugs of installation."""

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import assert_same_bits, in_memory, random, shape_of

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
LONG = torch.tensor([4095, 16384, 131071, 1_000_000])


def tables(rows=9, width=4, dtype=F32):
    return random((rows, width), dtype, 1), random((rows, width), dtype, 2)


def angles_of(positions, head_dim, base):
    """cos and sin of positions * base ** -exponent in float64. The CPU makes the powers: a GPU's may differ in the last bit."""
    exponent = -torch.arange(0, head_dim, 2, dtype=F64, device="cpu") / head_dim
    angles = positions.to(F64)[:, None] * (base**exponent).to(positions.device)
    return angles.cos().float(), angles.sin().float()


# ---- numerics ----


def test_angles_stay_exact_in_a_half_precision_model():
    """gpt-neox#1003, HF#25681: inv_freq in 16 bits; a later .float() cannot repair it."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.rope = rope_ext.RotaryEmbedding(128, base=500000.0)
    model.to(BF16).half().float()
    assert_same_bits(model.rope(LONG), angles_of(LONG, 128, 500000.0))


def test_angles_under_autocast():
    """diffusers#13922: positions beyond 65536 collapse when autocast rounds them to bfloat16."""
    with torch.autocast(LONG.device.type, BF16):
        assert_same_bits(rope_ext.RotaryEmbedding(64)(LONG), angles_of(LONG, 64, 10000.0))


def test_angles_with_reduced_matmul_precision():
    """HF#48428: an outer product by matmul loses the bits of positions above 2048 in TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_same_bits(rope_ext.RotaryEmbedding(64)(LONG), angles_of(LONG, 64, 10000.0))
    finally:
        torch.set_float32_matmul_precision(before)


def test_module_boundaries_can_cast_only_integers():
    """torchtitan#2881: FSDP2 casts floating-point inputs of a module. Positions are integers, which it leaves alone."""
    assert_same_bits(rope_ext.RotaryEmbedding(64)(LONG.to(torch.int32)), angles_of(LONG, 64, 10000.0))


def test_no_fast_math_at_position_131071():
    """kekzl/imp#1325: fast sines are off by 1e-2 there; tests up to position 40 hid it."""
    x = random((1, 1, 2, 128), F32)
    cos, sin = rope_ext.RotaryEmbedding(128).tables(131072)
    exact = rope_ext.RotaryEmbedding(128).tables(131072, dtype=F64)
    expected = reference.apply(x.double(), *exact, offset=131071)
    # three roundings of 2^-24 relative to values below 4 plus tables rounded by 2^-25
    assert (rope_ext.apply(x, cos, sin, offset=131071).double() - expected).abs().max() < 4 * 4 * 2**-24


def test_exact_angles_are_not_those_of_fp32_arithmetic():
    """The float32 product is off by 2e-3 at position 131071: exact and "as Hugging Face" are two things; this is exact."""
    inv_freq = 1.0 / (10000.0 ** (torch.arange(0, 64, 2, dtype=F32) / 64))
    hf = (LONG[2:3, None].float() * inv_freq).cos()
    cos, _ = rope_ext.RotaryEmbedding(64)(LONG[2:3])
    assert 1e-4 < (cos - hf).abs().max() < 1e-2


def test_one_rounding_in_bf16():
    """FA#823: rotating in bfloat16 rounds three times. Against float64, each result is the nearest bfloat16."""
    x, (cos, sin) = random((1, 64, 4, 64), BF16), rope_ext.RotaryEmbedding(64).tables(64)
    exact = reference.apply(x.double(), cos.double(), sin.double()).to(BF16)
    three_roundings = reference.rotate(x, cos[:, None].to(BF16), sin[:, None].to(BF16))
    assert (
        (rope_ext.apply(x, cos, sin) == exact).double().mean()
        > 0.999
        > 0.9
        > (three_roundings == exact).double().mean()
    )


def test_result_keeps_the_dtype_of_x():
    """xformers#742, vllm#40180: float32 tables promoted the result."""
    q, k = random((1, 5, 2, 8), BF16), random((1, 5, 1, 8), BF16)
    assert [t.dtype for t in rope_ext.apply((q, k), *tables())] == [BF16, BF16]


@pytest.mark.parametrize("interleaved", [False, True])
def test_entries_that_differ_within_a_pair(interleaved):
    """unsloth#775: kernels read one half of a full-width table. In the gradient each channel meets its partner's sine."""
    x, (cos, sin) = random((1, 5, 2, 8), F64).requires_grad_(), tables(5, 8, F64)
    apply = [f(x, cos, sin, interleaved=interleaved) for f in (rope_ext.apply, reference.apply)]
    g = random(x.shape, F64, 5)
    assert_same_bits(apply[0].detach(), apply[1].detach())
    torch.testing.assert_close(*(torch.autograd.grad(y, x, g)[0] for y in apply), rtol=0, atol=1e-14)
    symmetric = (cos[:, :4], sin[:, :4])
    assert (apply[0] - rope_ext.apply(x, *symmetric, interleaved=interleaved)).abs().max() > 0.1


def test_tables_are_never_written():
    """sglang#33117: a shared cache was cast down on first use."""
    cos, sin = tables()
    kept = cos.clone(), sin.clone()
    x = random((1, 5, 2, 8), BF16).requires_grad_()
    rope_ext.apply(x, cos, sin).sum().backward()
    rope_ext.apply_(x.detach(), cos, sin)
    assert_same_bits((cos, sin), kept)
    assert cos._version == sin._version == 0


# ---- semantics ----


def test_pairings_differ_beyond_position_0():
    x, (cos, sin) = random((1, 1, 1, 8), F32), rope_ext.RotaryEmbedding(8).tables(1001)
    both = [[rope_ext.apply(x, cos, sin, interleaved=i, offset=o) for i in (False, True)] for o in (0, 1000)]
    assert torch.equal(*both[0]) and not torch.equal(*both[1])


def test_partial_rotary_on_applied_q():
    """cascadia#69: cos and sin were right and 112 of 128 channels of q wrong; pie#603: the frequencies' denominator."""
    rope = rope_ext.RotaryEmbedding(128, rotary_dim=32)
    assert torch.equal(rope.inv_freq, rope_ext.RotaryEmbedding(32).inv_freq)
    q, (cos, sin) = random((1, 3, 2, 128), F32), rope.tables(50)
    for offset in (0, 96):
        y = rope_ext.apply(q, cos, sin, rotary_dim=32, rotary_offset=offset, offset=47)
        inside = slice(offset, offset + 32)
        assert_same_bits(y[..., inside], reference.apply(q[..., inside], cos, sin, offset=47))
        untouched = torch.ones(128, dtype=torch.bool)
        untouched[inside] = False
        assert torch.equal(y[..., untouched], q[..., untouched])


@pytest.mark.parametrize("heads", [1, 3])
def test_packed_sequences_restart(heads):
    """Megatron-LM#5243: later sequences reused positions of the first; Automodel#2674: one head; tokens past the end."""
    x, (cos, sin) = random((7, heads, 8), F32), tables()
    y = rope_ext.apply(x, cos, sin, layout="thd", cu_seqlens=torch.tensor([0, 2, 2, 5], dtype=torch.int32))
    for begin, end in ((0, 2), (2, 5)):
        assert_same_bits(y[begin:end], reference.apply(x[begin:end], cos, sin, layout="shd"))
    assert_same_bits(y[5:], x[5:])


def test_decode_one_token_of_many_sequences():
    """mlx#3795: wrong for batch > 1; mlx-rs#357: all heads but the first were not rotated; emlx#121: position + head."""
    x, (cos, sin) = random((3, 1, 4, 8), F32), tables()
    y = rope_ext.apply(x, cos, sin, offset=torch.tensor([2, 7, 4]))
    for batch, position in enumerate((2, 7, 4)):
        for head in range(4):
            one = x[batch : batch + 1, :, head : head + 1]
            assert_same_bits(
                y[batch : batch + 1, :, head : head + 1],
                reference.apply(one, cos[position : position + 1], sin[position : position + 1]),
            )


@pytest.mark.parametrize("sizes", [(1, 5, 3, 8), (2, 1, 3, 8), (2, 5, 1, 8), (2, 5, 3, 2), (1, 1, 1, 2)])
def test_dimensions_of_size_one(sizes):
    """Liger#342: with one head k was not rotated at all."""
    x, (cos, sin) = random(sizes, F32), tables(9, sizes[3] // 2)
    y = rope_ext.apply(x, cos, sin, offset=1)
    assert_same_bits(y, reference.apply(x, cos, sin, offset=1))
    assert not torch.equal(y, x)


@pytest.mark.parametrize("layout", reference.LAYOUTS)
def test_axes_are_named_not_guessed(layout):
    """xformers#841: rotated along the heads. With seqlen equal to heads, shapes cannot tell."""
    for heads in (3, 5):
        x, (cos, sin) = random(shape_of(layout, 2, 5, heads, 8), F32), tables()
        token_axis = layout.index("t" if "t" in layout else "s")
        y = rope_ext.apply(x, cos, sin, layout=layout).movedim(token_axis, 0)
        for token in range(5):
            rotated = reference.rotate(x.movedim(token_axis, 0)[token], cos[token], sin[token])
            assert_same_bits(y[token], rotated)


def test_tables_made_in_inference_mode_do_not_stick():
    """FA#299: a cache made in inference mode broke training later."""
    rope = rope_ext.RotaryEmbedding(8)
    with torch.inference_mode():
        rope.tables(5)
        rope(torch.arange(5))
    x = random((1, 5, 2, 8), F32).requires_grad_()
    cos, sin = rope.tables(5)
    assert not cos.is_inference() and not rope(torch.arange(5))[0].is_inference()
    rope_ext.apply(x, cos, sin).sum().backward()
    assert x.grad is not None


def test_positions_written_between_forward_and_backward():
    """mlx-lm#1713: the position variable was changed before it was used. Backward refuses instead of rotating by wrong angles."""
    x, positions = random((1, 5, 2, 8), F32).requires_grad_(), torch.arange(5)
    y = rope_ext.apply(x, *tables(), positions=positions)
    positions += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.devices("cpu")  # on a GPU such rows give NaN: test_cuda_positions.py
def test_left_padding_by_a_negative_offset_is_refused():
    """fla#902: rows before the table were read."""
    with pytest.raises(ValueError, match="offset must index rows 0 to 8 of the table, got row -2"):
        rope_ext.apply(random((2, 5, 2, 8), F32), *tables(), offset=torch.tensor([0, -2]))


def test_float_positions_are_refused():
    """prime-rl#518: float positions were truncated."""
    with pytest.raises(TypeError, match="positions must be int32 or int64, got float32"):
        rope_ext.apply(random((1, 5, 2, 8), F32), *tables(), positions=torch.arange(5.0))


# ---- autograd ----


def test_backward_uses_every_argument_of_forward():
    """llama.cpp#3974: scaling was added to the forward only. Each keyword changes the gradient as it changes the result."""
    g, (cos, sin) = random((1, 4, 2, 8), F64), tables(dtype=F64)
    for keywords in (
        {"offset": 3},
        {"interleaved": True},
        {"inverse": True},
        {"positions": torch.tensor([8, 0, 1, 1])},
    ):
        x = random(g.shape, F64, 4).requires_grad_()
        (got,) = torch.autograd.grad(rope_ext.apply(x, cos, sin, **keywords), x, g)
        assert_same_bits(got, reference.apply(g, cos, sin, **keywords, transposed=True))
        assert not torch.equal(got, reference.apply(g, cos, sin, transposed=True))


@pytest.mark.parametrize("use", ["sum", "cat", "transpose", "expand", "slice of packed qkv"])
def test_incoming_gradients_of_any_stride(use):
    """pytorch#194719: first row right, second wrong. gradcheck feeds contiguous gradients and cannot see it."""
    x, (cos, sin) = random((2, 5, 3, 8), F32).requires_grad_(), tables()
    g = random((2, 5, 3, 8), F32, 7)
    strided = {
        "sum": torch.ones(()).expand(2, 5, 3, 8),
        "cat": torch.cat((g, g), dim=1)[:, 5:],
        "transpose": g.transpose(1, 2).contiguous().transpose(1, 2),
        "expand": g[:, :, :1].expand(2, 5, 3, 8),
        "slice of packed qkv": in_memory(g, "sliced"),
    }[use]
    (got,) = torch.autograd.grad(rope_ext.apply(x, cos, sin), x, strided)
    assert_same_bits(got, reference.apply(strided.contiguous(), cos, sin, transposed=True))


def test_each_tensor_that_needs_a_gradient_gets_one():
    """candle#3568: detached results, no error. Every tensor alone: q, k, cos, sin."""
    for needing in range(4):
        inputs = [random((1, 5, 2, 8), F32), random((1, 5, 1, 8), F32), *tables(5)]
        inputs[needing].requires_grad_()
        q, k = rope_ext.apply(inputs[:2], *inputs[2:])
        (q.sum() + k.sum()).backward()
        assert [t.grad is not None and bool(t.grad.any()) for t in inputs] == [i == needing for i in range(4)]


def test_functional_calls_leave_x_alone():
    """unsloth#837: an equivalence script reused the tensor that the first call had overwritten."""
    x, (cos, sin) = random((1, 5, 2, 8), F32), tables()
    kept = x.clone()
    assert_same_bits(rope_ext.apply(x, cos, sin), rope_ext.apply(x, cos, sin))
    assert_same_bits(x, kept)


def test_composes_with_torch_func():
    """FA#2071: an autograd.Function without setup_context does not work under torch.func."""
    (cos, sin), x = tables(dtype=F64), random((3, 5, 2, 8), F64)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: rope_ext.apply(x, cos, sin, layout="shd").pow(2).sum()))(x)
    torch.testing.assert_close(
        per_sample[1], torch.func.grad(lambda x: reference.apply(x, cos, sin, layout="shd").pow(2).sum())(x[1])
    )


# ---- kernel ----


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_offsets_beyond_2_to_the_31(axis):
    """fla#1080, mamba#1015: finite, plausible, wrong. Memory that is not touched costs nothing."""
    far = 2**31 + 64
    memory = torch.empty(far + 4096, dtype=BF16)
    sizes, strides = [1, 1, 1, 8], [256, 64, 16, 1]
    sizes[axis], strides[axis] = 2, far
    x = memory.as_strided(sizes, strides)
    x.copy_(random(sizes, BF16))
    expected = reference.apply(x.clone(), *tables())
    assert_same_bits(rope_ext.apply(x, *tables()), expected)
    rope_ext.apply_(x, *tables())
    assert_same_bits(x, expected)


def test_many_heads_times_batch():
    """FastVideo#1245: batch times heads exceeded 65535, the most blocks on an axis of a CUDA grid."""
    x, (cos, sin) = random((70000, 1, 1, 4), BF16), tables(9, 2)
    assert_same_bits(rope_ext.apply(x, cos, sin, offset=4), reference.apply(x, cos, sin, offset=4))


@pytest.mark.parametrize("head_dim", [2, 6, 20, 72, 80, 96])
def test_head_dims_that_no_vector_fits(head_dim):
    """FA#1195 (72), sglang#4064 (80), aiter#3078: the last lane ran over the row of the table, NaN here."""
    memory = torch.full((5, head_dim), torch.nan)
    cos, sin = memory[:, : head_dim // 2].fill_(0.6), torch.full((5, head_dim // 2), 0.8)
    x = random((2, 5, 3, head_dim), F32)
    assert_same_bits(rope_ext.apply(x, cos, sin), reference.apply(x, cos, sin))


def test_grouped_heads_and_different_strides_of_q_and_k():
    """sglang#20559: k read with q's head index; vllm#17091: one stride for both."""
    q, k = (
        in_memory(random((2, 5, 8, 16), F32, 0), "sliced"),
        in_memory(random((2, 5, 2, 16), F32, 1), "reversed strides"),
    )
    cos, sin = tables(9, 8)
    got = rope_ext.apply((q, k), cos, sin)
    assert_same_bits(got, (reference.apply(q, cos, sin), reference.apply(k, cos, sin)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place_reads_both_channels_before_it_writes(interleaved):
    """FlagGems#5143: one element per lane reads what its neighbour has overwritten."""
    for head_dim in (2, 16, 130):
        x, (cos, sin) = random((1, 5, 2, head_dim), F32), tables(9, head_dim // 2)
        expected = reference.apply(x, cos, sin, interleaved=interleaved)
        assert_same_bits(rope_ext.apply_(x, cos, sin, interleaved=interleaved), expected)


@pytest.mark.devices("cpu")  # on a GPU such rows give NaN: test_cuda_positions.py
@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 9], [-1, 0, 1, 2, 3]])
def test_positions_outside_the_table_are_refused(positions):
    """vllm#47407: a position beyond the cache crashed the server."""
    with pytest.raises(ValueError, match="rope_ext: positions must"):
        rope_ext.apply(random((1, 5, 2, 8), F32), *tables(), positions=torch.tensor(positions))


def test_positions_of_three_axes_are_refused():
    """sgl-kernel-xpu#202: a 1-D kernel took positions of shape (3, T)."""
    with pytest.raises(ValueError, match="rope_ext: positions must"):
        rope_ext.apply(random((1, 5, 2, 8), F32), *tables(), positions=torch.zeros(3, 1, 5, dtype=torch.int64))


@pytest.mark.parametrize("memory", ["contiguous", "transposed", "sliced", "last stride 2", "reversed strides"])
def test_fake_strides_equal_real_strides(memory):
    """pytorch#177115: the compiled program asserts the strides that the fake kernel promised."""
    inputs = (in_memory(random((2, 5, 3, 8), F32), memory), *tables())
    with torch._subclasses.FakeTensorMode() as mode:
        fake = rope_ext.apply(*map(mode.from_tensor, inputs))
    assert fake.stride() == rope_ext.apply(*inputs).stride()


@pytest.mark.parametrize("shape", [(0, 5, 2, 8), (2, 0, 2, 8), (2, 5, 0, 8)])
def test_zero_sizes(shape):
    assert rope_ext.apply(torch.empty(shape), *tables()).shape == shape


def test_no_sequences_and_empty_ones():
    x, (cos, sin) = random((4, 2, 8), F32), tables()
    for boundaries in ([0], [0, 0, 0]):
        cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
        assert_same_bits(rope_ext.apply(x, cos, sin, layout="thd", cu_seqlens=cu_seqlens), x)
    assert rope_ext.apply(x[:0], cos, sin, layout="thd", cu_seqlens=torch.tensor([0, 0], dtype=torch.int32)).shape == (
        0,
        2,
        8,
    )
