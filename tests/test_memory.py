"""Any strides in, nothing written outside, and overlapping memory refused."""

import itertools

import pytest
import torch

import rope_ext
from rope_ext import reference
from tests.conftest import DTYPES, assert_same_bits, in_memory, random

COS, SIN = random((9, 4), torch.float32, 1), random((9, 4), torch.float32, 2)


def guarded(shape, dtype, strides=None):
    """A tensor between two bands of a sentinel, and a function that tells whether all that surrounds it is intact."""
    size = torch.Size(shape).numel() * (1 if strides is None else 3)
    memory = torch.full((size + 256,), 7.0, dtype=dtype)
    inside = memory[128 : 128 + size]
    view = inside.view(shape) if strides is None else inside.as_strided(shape, strides, 128)
    written = torch.zeros(size + 256, dtype=torch.bool)
    (written[128 : 128 + size].view(shape) if strides is None else written.as_strided(shape, strides, 128)).fill_(True)
    return view, lambda: bool((memory[~written] == 7.0).all())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim", [2, 6, 20, 72, 80, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_outside(dtype, head_dim, interleaved):
    """Sentinels lie around the output and between heads: no vector may write past the last channel."""
    x = random((2, 5, 3, head_dim), dtype)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = random((5, head_dim // 2), table, 1), random((5, head_dim // 2), table, 2)
    expected = reference.apply(x, cos, sin, interleaved=interleaved)
    for strides in (None, (15 * head_dim + 40, 3 * head_dim + 6, head_dim + 1, 1)):
        out, whole = guarded(x.shape, dtype, strides)
        rope_ext.apply(x, cos, sin, interleaved=interleaved, out=out)
        assert whole()
        assert_same_bits(out, expected)
        out.copy_(x)
        rope_ext.apply_(out, cos, sin, interleaved=interleaved)
        assert whole()
        assert_same_bits(out, expected)


def test_nothing_is_read_outside_the_tables():
    """The rows before and after the table are NaN."""
    memory = torch.full((64, 6), torch.nan)
    memory[8:16] = 0.5
    cos = memory[8:16, :5].as_strided((8, 5), (6, 1), 48)
    x = random((1, 8, 2, 10), torch.float32)
    assert not rope_ext.apply(x, cos, cos).isnan().any()


def test_expanded_inputs():
    """Stride 0 in x, in the tables, and in both."""
    x = random((1, 5, 1, 8), torch.bfloat16).expand(3, 5, 4, 8)
    cos, sin = COS[:1].expand(5, 4), SIN[:1].expand(5, 4)
    got = rope_ext.apply(x, cos, sin)
    assert_same_bits(got, reference.apply(x.clone(), cos.clone(), sin.clone()))
    assert 0 not in got.stride()


@pytest.mark.parametrize("layout", ["bshd", "shd"])
def test_results_have_the_strides_of_empty_like(layout):
    """Dense or not, expanded, and of axes of one element, whose strides may look like channels last."""
    memory = torch.zeros(400)
    for sizes in itertools.product((0, 1, 2), *[(1, 3)] * (len(layout) - 2), (2, 4)):
        for strides in itertools.product((1, 0, 2, 4, 25), repeat=len(layout)):
            x = memory.as_strided(sizes, strides)
            y = rope_ext.apply(x, COS[:, : sizes[-1] // 2], SIN[:, : sizes[-1] // 2], layout=layout)
            assert y.stride() == torch.empty_like(x).stride(), (sizes, strides)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", [(9,), (2, 5), (2, 5, 3)])
def test_cos_and_sin_of_different_strides(shape, width):
    """Each of the two has strides of its own, on every axis."""
    x = random((2, 5, 3, 8), torch.float32)
    cos = in_memory(random((*shape, width), torch.float32, 1), "reversed strides")
    sin = in_memory(random((*shape, width), torch.float32, 2), "sliced")
    assert cos.stride() != sin.stride()
    for interleaved in (False, True):
        got = rope_ext.apply(x, cos, sin, interleaved=interleaved)
        assert_same_bits(got, reference.apply(x, cos, sin, interleaved=interleaved))
    expanded = sin[:1].expand_as(sin)
    assert_same_bits(rope_ext.apply(x, cos, expanded), reference.apply(x, cos, expanded))
    assert_same_bits(rope_ext.apply(x, expanded, cos), reference.apply(x, expanded, cos))


@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_per_channel_that_repeat(interleaved):
    """Stride 0 along the channels: the two entries of a pair are one in cos and two in sin, or the other way round."""
    x, one, many = random((1, 9, 2, 8), torch.float32), COS[:, :1].expand(9, 8), random((9, 8), torch.float32, 3)
    for cos, sin in ((one, many), (many, one), (one, one)):
        got = rope_ext.apply(x, cos, sin, interleaved=interleaved)
        assert_same_bits(got, reference.apply(x, cos, sin, interleaved=interleaved))


def test_tables_per_head_that_repeat():
    x, many = random((2, 5, 3, 8), torch.float32), random((2, 5, 3, 4), torch.float32, 3)
    one = many[:, :, :1].expand_as(many)
    for cos, sin in ((one, many), (many, one)):
        assert_same_bits(rope_ext.apply(x, cos, sin), reference.apply(x, cos, sin))


def test_copy_on_write_memory_is_not_shared():
    x = random((1, 5, 2, 8), torch.float32)
    kept = x.clone()
    lazy = torch._lazy_clone(x)
    rope_ext.apply_(lazy, COS, SIN)
    assert_same_bits(x, kept)
    assert_same_bits(lazy, reference.apply(kept, COS, SIN))


def test_strided_positions_offsets_and_boundaries():
    def every_second(*values):
        return torch.tensor([[v, 99] for v in values], dtype=torch.int32)[:, 0]

    x = random((2, 5, 3, 8), torch.float32)
    for keywords in ({"positions": every_second(3, 1, 4, 1, 5)}, {"offset": every_second(1, 3)}):
        assert_same_bits(rope_ext.apply(x, COS, SIN, **keywords), reference.apply(x, COS, SIN, **keywords))
    keywords = {"cu_seqlens": every_second(0, 2, 5), "layout": "thd"}
    assert_same_bits(rope_ext.apply(x[0], COS, SIN, **keywords), reference.apply(x[0], COS, SIN, **keywords))


def test_negative_and_swapped_table_views():
    """Complex, 2x2, stacked and concatenated tables are views, and so cost no copy."""
    x = random((1, 5, 2, 8), torch.float32)
    expected = reference.apply(x, COS, SIN)
    as_complex = torch.complex(COS, SIN)
    two_by_two = torch.stack((COS, -SIN, SIN, COS), dim=-1).unflatten(-1, (2, 2))
    both = torch.cat((COS, SIN), dim=-1)
    assert_same_bits(
        rope_ext.apply(x, torch.view_as_real(as_complex)[..., 0], torch.view_as_real(as_complex)[..., 1]), expected
    )
    assert_same_bits(rope_ext.apply(x, as_complex.real, as_complex.imag), expected)
    assert_same_bits(rope_ext.apply(x, two_by_two[..., 0, 0], two_by_two[..., 1, 0]), expected)
    assert_same_bits(rope_ext.apply(x, both[:, :4], both[:, 4:]), expected)
    # a conjugate is a view with a flag ("negative bit") that the ops never see resolved by themselves
    assert_same_bits(
        rope_ext.apply(x, as_complex.real, as_complex.conj().imag), reference.apply(x, COS, SIN, inverse=True)
    )


@pytest.mark.parametrize("shape", [(0, 5, 2, 8), (2, 0, 2, 8), (2, 5, 0, 8)])
def test_zero_sizes(shape):
    x = torch.empty(shape)
    assert rope_ext.apply(x, COS, SIN).shape == shape
    assert rope_ext.apply_(x, COS, SIN).shape == shape
    x.requires_grad_()
    cos = COS.clone().requires_grad_()
    grad_x, grad_cos = torch.autograd.grad(rope_ext.apply(x, cos, SIN).sum(), (x, cos))
    assert grad_x.shape == shape and not grad_cos.any()


def test_size_one_dimensions_with_any_stride():
    x = random((5, 8), torch.float32).as_strided((1, 5, 1, 8), (3, 8, 5, 1))
    assert_same_bits(rope_ext.apply(x, COS, SIN), reference.apply(x.clone(), COS, SIN))
    y = x.clone().as_strided((1, 5, 1, 8), (0, 8, 0, 1))
    assert_same_bits(rope_ext.apply_(y, COS, SIN), reference.apply(x.clone(), COS, SIN))


def test_packed_qkv_in_place():
    """q and k interleave in one buffer without sharing an element; v stays unmodified."""
    packed = random((2, 5, 3, 4, 8), torch.float16)
    expected = packed.clone()
    expected[:, :, 0], expected[:, :, 1] = reference.apply((expected[:, :, 0], expected[:, :, 1]), COS, SIN)
    rope_ext.apply_((packed[:, :, 0], packed[:, :, 1]), COS, SIN)
    assert_same_bits(packed, expected)


def test_in_place_on_transposed_memory():
    x = in_memory(random((2, 5, 3, 8), torch.float32), "reversed strides")
    expected = reference.apply(x, COS, SIN)
    rope_ext.apply_(x, COS, SIN)
    assert_same_bits(x, expected)


def test_out_may_be_x():
    x = random((2, 5, 3, 8), torch.float32)
    expected = reference.apply(x, COS, SIN)
    assert rope_ext.apply(x, COS, SIN, out=x) is x
    assert_same_bits(x, expected)


def test_channels_that_are_not_rotated_are_bit_identical():
    """NaN keep their payloads, which arithmetic would change."""
    x = torch.randint(-(2**31), 2**31, (2, 5, 3, 24), dtype=torch.int32).view(torch.float32)
    y = rope_ext.apply(x, COS, SIN, rotary_dim=8, rotary_offset=5)
    assert torch.equal(y.view(torch.int32)[..., :5], x.view(torch.int32)[..., :5])
    assert torch.equal(y.view(torch.int32)[..., 13:], x.view(torch.int32)[..., 13:])


def test_tokens_past_the_last_boundary_are_bit_identical():
    x = torch.randint(-(2**15), 2**15, (7, 2, 8), dtype=torch.int16).view(torch.bfloat16)
    cu_seqlens = torch.tensor([0, 2, 4], dtype=torch.int32)
    for cos in (COS, COS.clone().requires_grad_()):  # recorded or not
        y = rope_ext.apply(x, cos, SIN, layout="thd", cu_seqlens=cu_seqlens).detach()
        assert torch.equal(y.view(torch.int16)[4:], x.view(torch.int16)[4:])


def overlapping():
    memory = random((4096,), torch.float32)
    x, half = memory[:80].view(1, 5, 2, 8), memory.view(torch.bfloat16)
    return {
        "an expanded x": lambda: rope_ext.apply_(memory[:8].expand(1, 5, 2, 8), COS, SIN),
        "rows that overlap": lambda: rope_ext.apply_(memory.as_strided((1, 5, 2, 8), (80, 15, 8, 1)), COS, SIN),
        "one tensor twice": lambda: rope_ext.apply_((x, x), COS, SIN),
        "k one element into q": lambda: rope_ext.apply_((x, memory[79:159].view(1, 5, 2, 8)), COS, SIN),
        "out shifted against x": lambda: rope_ext.apply(x, COS, SIN, out=memory[8:88].view(1, 5, 2, 8)),
        "out of q is k": lambda: rope_ext.apply(
            (x, memory[80:160].view(1, 5, 2, 8)), COS, SIN, out=(memory[80:160].view(1, 5, 2, 8), x)
        ),
        "out holds sin": lambda: rope_ext.apply(
            x, COS, memory[160:196].view(9, 4), out=memory[100:180].view(1, 5, 2, 8)
        ),
        "out holds the positions": lambda: rope_ext.apply(
            x, COS, SIN, positions=memory[200:205].view(torch.int32).zero_(), out=memory[140:220].view(1, 5, 2, 8)
        ),
        "out holds the offset": lambda: rope_ext.apply(
            x, COS, SIN, offset=memory[200:201].view(torch.int32).zero_(), out=memory[140:220].view(1, 5, 2, 8)
        ),
        "out holds cu_seqlens": lambda: rope_ext.apply(
            x[0],
            COS,
            SIN,
            layout="thd",
            cu_seqlens=memory[200:202].view(torch.int32).zero_(),
            out=memory[140:220].view(5, 2, 8),
        ),
        "out one element into x": lambda: rope_ext.apply(
            half[:160].view(1, 10, 2, 8), COS.repeat(2, 1), SIN.repeat(2, 1), out=half[1:161].view(1, 10, 2, 8)
        ),
        "out holds the table": lambda: rope_ext.apply(
            x, memory[160:196].view(9, 4), SIN, out=memory[100:180].view(1, 5, 2, 8)
        ),
    }


@pytest.mark.parametrize("name", overlapping())
def test_overlap_is_refused(name):
    with pytest.raises(ValueError, match=r"rope_ext: (x|out) must (not overlap|have no internal overlap)"):
        overlapping()[name]()


@pytest.mark.devices("cpu")
def test_overlap_of_random_views_is_found_exactly():
    """In place on (a, b) is refused if and only if they share an element."""
    generator = torch.Generator().manual_seed(0)

    def random_view(memory):
        factors = torch.randint(1, 4, (3,), generator=generator).tolist()
        strides = (0, 12 * factors[0], 4 * factors[1], factors[2])
        return memory.as_strided((1, 2, 2, 2), strides, int(torch.randint(60, (), generator=generator)))

    def elements(view):
        return set(torch.arange(400).as_strided(view.shape, view.stride(), view.storage_offset()).flatten().tolist())

    refused = accepted = 0
    while refused + accepted < 200:
        memory = torch.zeros(400)
        a, b = random_view(memory), random_view(memory)
        if min(len(elements(a)), len(elements(b))) < 8:
            continue  # a view that overlaps itself is refused anyway
        shared = bool(elements(a) & elements(b))
        refused, accepted = refused + shared, accepted + (not shared)
        if shared:
            with pytest.raises(ValueError, match="overlap"):
                rope_ext.apply_((a, b), COS[:, :1], SIN[:, :1])
        else:
            rope_ext.apply_((a, b), COS[:, :1], SIN[:, :1])
    assert min(refused, accepted) > 50
