"""Every instruction set of this machine gives the reference's bits: kernels called by name, on raw pointers."""

import itertools

import pytest
import torch

import rope_ext
from rope_ext import _introspect, reference
from tests.conftest import BITS, DTYPES, assert_same_bits, random
from tests.test_values import CASES, test_equals_reference

pytestmark = pytest.mark.devices("cpu")


def dtype_name(t):
    return getattr(_introspect.DType, str(t.dtype).removeprefix("torch."))


def fields_of(x, cos, sin, interleaved, table):
    """The fields that RotateParams and TableGradParams share. table: the type of cos and sin, (rows, pairs)."""
    cos_table, sin_table = (table(t.data_ptr(), t.data_ptr(), 0, t.stride(0), 0, t.stride(1)) for t in (cos, sin))
    return {
        "dtype": dtype_name(x),
        "table_dtype": dtype_name(cos),
        "batch": x.shape[0],
        "seqlen": x.shape[1],
        "rotary_offset": 0,
        "pairs": cos.shape[1],
        "interleaved": interleaved,
        "cos": cos_table,
        "sin": sin_table,
    }


def params_of(x, y, cos, sin, interleaved, positions=None, **more):
    """x, y: (batch, seqlen, heads, channels); positions: int64 (batch, seqlen), else one row per token."""
    i = _introspect
    strides, out_strides = (i.Strides(*t.stride()) for t in (x, y))
    return i.RotateParams(
        x=[i.RotatedTensor(x.data_ptr(), y.data_ptr(), strides, out_strides, *x.shape[2:])],
        rows=cos.shape[0],
        positions=0 if positions is None else positions.data_ptr(),
        **fields_of(x, cos, sin, interleaved, i.Table),
        **more,
    )


def table_grad_params_of(x, grad, cos, sin, interleaved):
    """x, grad: (batch, seqlen, heads, channels) contiguous. cos and sin, (seqlen, pairs), are written."""
    i, strides = _introspect, _introspect.Strides(*x.stride())
    return i.TableGradParams(
        x=[i.GradTensor(x.data_ptr(), grad.data_ptr(), strides, strides, *x.shape[2:])],
        **fields_of(x, cos, sin, interleaved, i.WrittenTable),
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_give_the_same_bits(dtype, interleaved):
    table = torch.float64 if dtype == torch.float64 else torch.float32
    assert "default" in _introspect.supported_isas()
    for pairs in (1, 7, 36, 64, 130):
        x, g = random((2, 5, 3, 2 * pairs + 1), dtype, 0), random((2, 5, 3, 2 * pairs + 1), dtype, 3)
        cos, sin = random((5, pairs), table, 1), random((5, pairs), table, 2)
        expected = reference.apply(x, cos, sin, interleaved=interleaved, rotary_dim=2 * pairs)
        gradients = []
        for isa in _introspect.supported_isas():
            y = torch.full_like(x, torch.nan)
            _introspect.rotate(isa, params_of(x, y, cos, sin, interleaved))
            assert_same_bits(y, expected)
            grad_cos, grad_sin = torch.full_like(cos, torch.nan), torch.full_like(sin, torch.nan)
            _introspect.table_grad(isa, table_grad_params_of(x, g, grad_cos, grad_sin, interleaved))
            gradients.append((grad_cos, grad_sin))
        for other in gradients[1:]:
            assert_same_bits(other, gradients[0])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_of_each_dtype_and_stride(dtype, interleaved):
    """cos and sin in the type of arithmetic and in that of x, with entries next to each other and apart."""
    types = {dtype, torch.float64 if dtype == torch.float64 else torch.float32}
    for pairs, table, step in itertools.product((7, 64), types, (1, 3)):
        x = random((2, 5, 3, 2 * pairs), dtype, 0)
        cos, sin = (random((5, step * pairs), table, seed)[:, ::step] for seed in (1, 2))
        expected = reference.apply(x, cos, sin, interleaved=interleaved, inverse=True)
        for isa in _introspect.supported_isas():
            y = torch.full_like(x, torch.nan)
            _introspect.rotate(isa, params_of(x, y, cos, sin, interleaved, negate_sin=True))
            assert_same_bits(y, expected)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c["rounding"] == "eager" or c["out_interleaved"] is not None][::4]
)
def test_options_of_every_instruction_set(case, use_kernels):
    """Rounded products, and results in the other pairing."""
    for isa in _introspect.supported_isas():
        use_kernels(_introspect.kernels(isa))
        assert rope_ext.build_info()["cpu_isa"] == isa
        test_equals_reference(case)


def placed(step, order):
    """A function that makes (2, 17, 2, channels) sevens with tokens or heads innermost and channels `step` apart."""

    def tensor(channels, dtype):
        sizes = [2, 17, 2] if order == "bshd" else [2, 2, 17]
        t = torch.full((*sizes, channels, step), 7.0, dtype=dtype)[..., 0]
        return t if order == "bshd" else t.transpose(1, 2)

    return tensor


@pytest.mark.parametrize("order", ["bshd", "bhsd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_of_different_strides(dtype, order):
    """Two tensors in one launch, each read and written with contiguous channels or with a stride of 2."""
    i, table = _introspect, torch.float64 if dtype == torch.float64 else torch.float32
    for pairs, interleaved, steps in itertools.product((5, 33), (False, True), itertools.product((1, 2), repeat=4)):
        x = [random((2, 17, 2, 2 * pairs), dtype, seed) for seed in (0, 1)]
        cos, sin = random((17, pairs), table, 2), random((17, pairs), table, 3)
        expected = reference.apply(x, cos, sin, interleaved=interleaved)
        ins = [placed(step, order)(2 * pairs, dtype).copy_(t) for step, t in zip(steps[:2], x)]
        for isa in i.supported_isas():
            outs = [placed(step, order)(2 * pairs, dtype) for step in steps[2:]]
            both = [
                i.RotatedTensor(
                    a.data_ptr(), b.data_ptr(), i.Strides(*a.stride()), i.Strides(*b.stride()), 2, 2 * pairs
                )
                for a, b in zip(ins, outs)
            ]
            i.rotate(isa, i.RotateParams(x=both, **fields_of(x[0], cos, sin, interleaved, i.Table)))
            assert_same_bits(outs, expected)
            for t in outs:  # the elements between the channels keep their sevens
                whole = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
                assert (whole == 7.0).sum() >= whole.numel() - t.numel()


def special(shape, dtype, seed):
    """Numbers of all magnitudes, with -0, infinity, what overflows float16, and NaN whose low bits are all ones."""
    t = random(shape, torch.float64, seed) * 10.0 ** torch.arange(-42, 6).repeat(shape[-1])[: shape[-1]]
    t = t.to(dtype)
    t[..., 1::11], t[..., 2::13] = -0.0, torch.inf
    t[..., 3::17] = torch.tensor(65520.0).to(
        dtype
    )  # becomes infinity in float16; torch may refuse to assign the number itself
    t.view(BITS[dtype])[..., 4::19] = torch.iinfo(BITS[dtype]).max
    t.view(BITS[dtype])[..., 5::23] = -1
    return t


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype, interleaved):
    """They include bfloat16 results below 2^-126, which AVX512-BF16 instructions would flush to 0."""
    table = torch.float64 if dtype == torch.float64 else torch.float32
    for pairs in (33, 130):
        x = special((2, 5, 3, 2 * pairs), dtype, 0)
        cos, sin = special((5, pairs), table, 1), special((5, pairs), table, 2)
        expected = reference.apply(x, cos, sin, interleaved=interleaved)
        for isa in _introspect.supported_isas():
            y = torch.full_like(x, 7.0)
            _introspect.rotate(isa, params_of(x, y, cos, sin, interleaved))
            assert torch.equal(y.isnan(), expected.isnan())  # with any payload
            assert_same_bits(*(t.nan_to_num(0.0, torch.inf, -torch.inf) for t in (y, expected)))
