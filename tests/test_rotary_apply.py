"""RotaryEmbedding.apply: rotations from positions, without a table."""

import pytest
import torch

import rope_ext
from tests.conftest import assert_same_bits, random


@pytest.mark.parametrize("precision", ["exact", "hf"])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_rope_apply_equals_apply_with_its_frequencies(precision, layout):
    """With precision "exact" the kernel computes the angles: close to the tables. With "hf" it has their bits."""
    options = {"schedule": "yarn", "factor": 4.0, "original_max_position": 64, "rotary_dim": 8}
    rope = rope_ext.RotaryEmbedding(12, precision=precision, **options)
    x = torch.randn(2, 5, 3, 12).clamp(-5, 5)
    x = x if layout == "bshd" else x.transpose(1, 2)
    positions, offset = torch.tensor([[0, 9, 5, 100, 7], [1, 2, 3, 4, 70000]]), torch.tensor([3, 0])
    cos, sin = rope(positions + offset[:, None])
    expected = rope_ext.apply(x, cos, sin, layout=layout, rotary_dim=8)
    got = rope.apply(x, positions=positions, offset=offset, layout=layout)
    if precision == "hf":
        assert_same_bits(got, expected)
        assert_same_bits(
            rope.apply(x, offset=7, layout=layout),
            rope_ext.apply(x, *rope.tables(12), offset=7, layout=layout, rotary_dim=8),
        )
        return
    same = {"inv_freq": rope.inv_freq, "attention_scaling": rope.attention_scaling, "rotary_dim": 8, "layout": layout}
    assert_same_bits(got, rope_ext.apply(x, positions=positions, offset=offset, **same))
    # Two products of |x| <= 5 with cos and sin that are off by 1.5e-7 each, the roundings of both, and that of the sum.
    torch.testing.assert_close(got, expected, rtol=0, atol=1.14 * 2 * 5 * (1.5e-7 + 2**-24) + 2**-21)


def test_apply_on_several_axes_and_by_length():
    rope = rope_ext.RotaryEmbedding(12, pair_axis=(0, 0, 1, 1, 2, 2))
    x, positions = torch.randn(2, 5, 3, 12), torch.arange(30).reshape(3, 2, 5)
    same = {"inv_freq": rope_ext.frequencies.per_axis(rope_ext.frequencies.default(12).inv_freq, (0, 0, 1, 1, 2, 2))}
    assert_same_bits(rope.apply(x, positions=positions), rope_ext.apply(x, positions=positions, **same))
    text = rope_ext.RotaryEmbedding(12).apply(x, offset=4)
    assert_same_bits(rope.apply(x, offset=4), text)
    dynamic = rope_ext.RotaryEmbedding(12, schedule="dynamic_ntk", factor=2.0, max_position=8)
    assert not torch.equal(dynamic.apply(x, seqlen=8), dynamic.apply(x, seqlen=64))
    with pytest.raises(ValueError, match="seqlen must be given for schedule 'dynamic_ntk', got None"):
        dynamic.apply(x)
    with pytest.raises(TypeError, match="x must be a Tensor or a tuple or list of Tensors"):
        rope.apply(None)


@pytest.mark.parametrize("seqlen", [8, 9])
def test_seqlen_chooses_the_frequencies_and_positions_do_not(seqlen):
    """The positions are beyond the length of the training, seqlen may be within."""
    rope = rope_ext.RotaryEmbedding(12, schedule="dynamic_ntk", factor=2.0, max_position=8, precision="hf")
    x, positions = torch.randn(2, 5, 3, 12), torch.arange(100, 105)
    cos, sin = rope(positions[None], seqlen=seqlen)
    assert_same_bits(rope.apply(x, positions=positions, seqlen=seqlen), rope_ext.apply(x, cos, sin))
    compiled = torch.compile(rope.apply, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(x, positions=positions, seqlen=seqlen), rope_ext.apply(x, cos, sin))


def test_apply_compiles_and_leaves_inference_mode():
    rope = rope_ext.RotaryEmbedding(16, base=12345.0)
    x = torch.randn(1, 5, 2, 16)
    with torch.inference_mode():
        expected = rope.apply(x, offset=3)
    leaf = x.clone().requires_grad_()
    y = rope.apply(leaf, offset=3)
    y.sum().backward()
    assert_same_bits(y.detach(), expected)
    compiled = torch.compile(lambda x, offset: rope.apply(x, offset=offset), fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x, 3), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_hf_positions_do_not_wrap(dtype):
    rope, x = rope_ext.RotaryEmbedding(8, precision="hf"), random((1, 2, 3, 8), torch.float32)
    largest = torch.iinfo(torch.int32).max
    positions = torch.tensor([100, largest], dtype=dtype)
    for offset in (1, 2**40 + 3, torch.tensor([2**40 + 3])):
        expected = rope.apply(x, positions=positions.to(torch.int64) + offset)
        assert_same_bits(rope.apply(x, positions=positions, offset=offset), expected)


def test_rope_apply_refuses_another_rotary_dim():
    rope, x = rope_ext.RotaryEmbedding(8), random((1, 2, 3, 8), torch.float32)
    assert_same_bits(rope.apply(x, rotary_dim=8), rope.apply(x))
    with pytest.raises(ValueError, match=r"^rope_ext: rotary_dim must equal that of the frequencies, 8, got 4$"):
        rope.apply(x, rotary_dim=4)
