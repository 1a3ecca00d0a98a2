"""positions, offset and cu_seqlens that another thread writes after they were checked: nothing outside a table is read.

The kernels are called below the checks, with the values that such a write would leave. The rows before and after the
table hold numbers, so that reading one of them shows.
"""

import ctypes

import pytest
import torch

import rope_ext
from rope_ext import _introspect, reference
from tests.conftest import DTYPES, assert_same_bits, random
from tests.test_instruction_sets import params_of

pytestmark = pytest.mark.devices("cpu")
ISAS = [*_introspect.supported_isas(), "cuda"]
ROWS, GUARD = 4, 3
FAR = [-(2**63), -(2**62), -1, -2, -GUARD, ROWS, ROWS + GUARD - 1, 2**40, 2**62, 2**63 - 1]


def guarded_tables(pairs, dtype):
    tables = [torch.ones(GUARD + ROWS + GUARD, pairs, dtype=dtype) for _ in range(2)]
    return [t[GUARD : GUARD + ROWS].copy_(random((ROWS, pairs), dtype, seed)) for seed, t in enumerate(tables)]


def test_every_row_outside_is_nan():
    """For all element types, tables in the dtype of x and in float32, both pairings, forward and backward."""
    positions = torch.tensor([[*FAR, 0, ROWS - 1]])
    inside = torch.zeros_like(positions, dtype=torch.bool)
    inside[:, -2:] = True
    for number, dtype in enumerate(DTYPES):
        for table in {dtype, torch.float64 if dtype == torch.float64 else torch.float32}:
            cos, sin = guarded_tables(130, table)
            x = random((1, positions.shape[1], 2, 2 * 130 + 3), dtype)
            for interleaved in (False, True):
                inverse = bool(number % 2) != interleaved
                options = {"interleaved": interleaved, "inverse": inverse, "rotary_dim": 260}
                expected = reference.apply(x, cos, sin, positions=positions.clamp(0, ROWS - 1), **options)
                for isa in ISAS:
                    y = torch.full_like(x, 7.0)
                    params = params_of(x, y, cos, sin, interleaved, positions=positions, negate_sin=inverse)
                    _introspect.rotate(isa, params)
                    assert y[~inside][..., :260].isnan().all()
                    assert_same_bits(y[..., 260:], x[..., 260:])
                    assert_same_bits(y[inside], expected[inside])


@pytest.mark.parametrize("isa", ISAS)
def test_positions_that_wrap_around_int64_are_outside(isa):
    """positions + offset is a row of the table only modulo 2^64."""
    cos, sin = guarded_tables(4, torch.float32)
    x = random((3, 2, 1, 8), torch.float32)
    lowest, highest = -(2**63), 2**63 - 1
    positions = torch.tensor([[lowest, lowest + 1], [highest, 3], [1, 2]])
    offsets = torch.tensor([lowest, -3, 1])
    y = torch.full_like(x, 7.0)
    _introspect.rotate(isa, params_of(x, y, cos, sin, False, positions=positions, offsets=offsets.data_ptr()))
    outside = torch.tensor([[True, True], [True, False], [False, False]])
    assert y[outside].isnan().all() and not y[~outside].isnan().any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "boundaries",
    [
        [0, 2, 5],
        [0, 5, 2],
        [-(2**31), -(2**31), -(2**31)],
        [2**31 - 1, 2**31 - 1, 2**31 - 1],
        [5, 4, 3, 2, 1, 0, -1, -2],
        [-1, 2**31 - 1, -(2**31), 0, 3],
        [-2, -2, 9],
        [7],
        [],
    ],
    ids=str,
)
def test_boundaries_of_any_value(isa, boundaries):
    """Each token is copied, rotated by a row of the table, or NaN; the search ends."""
    cos, sin = guarded_tables(4, torch.float32)
    x, cu_seqlens = random((1, 6, 1, 8), torch.float32), torch.tensor([*boundaries, -3, -3], dtype=torch.int32)
    y = torch.full_like(x, 7.0)
    nseq = max(len(boundaries) - 1, 0)
    params = params_of(x, y, cos, sin, False, cu_seqlens=cu_seqlens.data_ptr(), nseq=nseq)
    _introspect.rotate(isa, params)
    rotated = [reference.apply(x, cos, sin, positions=torch.full((6,), row)) for row in range(ROWS)]
    for token in range(6):
        assert y[0, token].isnan().all() or any(torch.equal(y[0, token], t[0, token]) for t in (x, *rotated))


class Kernels(ctypes.Structure):
    """cpu::Kernels (csrc/cpu/isa.h)"""

    _fields_ = [("isa", ctypes.c_char_p), *((name, ctypes.c_void_p) for name in ("rotate", "table_grad", "cos_sin"))]


KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)


@pytest.mark.parametrize("boundary", [-1, -2, -3, -(2**63)])
@pytest.mark.parametrize("isa", ISAS)
def test_a_sequence_that_begins_at_a_negative_boundary_is_nan(isa, boundary, use_kernels):
    """From tables, from frequencies and in cos_sin. -1 and -2 are the kernels' own marks (csrc/core/positions.h)."""
    x, frequencies = random((6, 1, 8), torch.float32), torch.linspace(0.1, 1, 4, dtype=torch.float64)
    cos, sin = rope_ext.cos_sin(torch.arange(6), frequencies)
    compiled, cu_seqlens = Kernels.from_address(_introspect.kernels(isa)), torch.tensor([0, 2, 4])

    def after_the_checks(kernel):
        def changed(params, num_threads):
            cu_seqlens[1] = boundary
            KERNEL(kernel)(params, num_threads)
            cu_seqlens[1] = 2

        return KERNEL(changed)

    rotate, cos_sin = after_the_checks(compiled.rotate), after_the_checks(compiled.cos_sin)
    addresses = (ctypes.cast(function, ctypes.c_void_p) for function in (rotate, cos_sin))
    kernels = Kernels(compiled.isa, next(addresses), compiled.table_grad, next(addresses))
    use_kernels(ctypes.addressof(kernels))
    lookup = {"layout": "thd", "cu_seqlens": cu_seqlens}
    for y in (rope_ext.apply(x, cos, sin, **lookup), rope_ext.apply(x, inv_freq=frequencies, **lookup)):
        assert y[:4].isnan().all()
        assert_same_bits(y[4:], x[4:])
    leaves = x.requires_grad_(), frequencies.requires_grad_()
    y = rope_ext.apply(x, inv_freq=frequencies, **lookup)
    grad_x, grad_frequencies = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert (
        grad_x[:4].isnan().all() and torch.equal(grad_x[4:], torch.ones_like(x[4:])) and grad_frequencies.isnan().all()
    )


@pytest.mark.parametrize("isa", ISAS)
def test_a_table_without_rows_is_not_read(isa):
    x = random((1, 2, 2, 8), torch.float32)
    empty, y = torch.empty(0, 4), torch.full_like(x, 7.0)
    _introspect.rotate(isa, params_of(x, y, empty, empty, False, positions=torch.zeros(1, 2, dtype=torch.int64)))
    assert y.isnan().all()
