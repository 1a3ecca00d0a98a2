"""An offset of one number in a tensor, as static caches hold it, equals an int; cu_seqlens of int64 equals int32."""

import pytest
import torch

import rope_ext
from rope_ext import reference
from rope_ext.compat import flash_attn, transformer_engine
from tests.conftest import assert_same_bits, random, random_integers

pytestmark = pytest.mark.devices("cpu")  # on a GPU: test_values.py, test_angles.py
SHAPES = {"bshd": (2, 5, 3, 8), "bhsd": (2, 3, 5, 8), "sbhd": (5, 2, 3, 8), "thd": (5, 3, 8), "shd": (5, 3, 8)}
ONE = [torch.tensor(3), torch.tensor([3]), torch.tensor(3, dtype=torch.int32)]
ROPES = [rope_ext.RotaryEmbedding(8, precision=precision) for precision in ("exact", "hf")]
TABLES = ROPES[0].tables(12)
IDS = {"ids": lambda value: str(value).replace("\n", "")[:30]}


@pytest.mark.parametrize("offset", ONE, **IDS)
@pytest.mark.parametrize("layout", reference.LAYOUTS)
def test_offset_of_one_number_equals_an_int(layout, offset):
    x = random(SHAPES[layout], torch.float32)
    expected = rope_ext.apply(x, *TABLES, layout=layout, offset=3)
    assert_same_bits(rope_ext.apply(x, *TABLES, layout=layout, offset=offset), expected)
    assert_same_bits(rope_ext.apply_(x.clone(), *TABLES, layout=layout, offset=offset), expected)
    assert_same_bits(reference.apply(x, *TABLES, layout=layout, offset=offset), expected)
    positions = random_integers(7, (5,))
    expected = rope_ext.apply(x, *TABLES, layout=layout, positions=positions, offset=3)
    assert_same_bits(rope_ext.apply(x, *TABLES, layout=layout, positions=positions, offset=offset), expected)
    for rope in ROPES:
        expected = rope.apply(x, layout=layout, offset=3)
        assert_same_bits(rope.apply(x, layout=layout, offset=offset), expected)


@pytest.mark.parametrize("offset", [2, torch.tensor(2), torch.tensor([2], dtype=torch.int32)], **IDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_boundaries_of_either_type(dtype, offset):
    x = random((7, 3, 8), torch.float32)
    cu_seqlens = torch.tensor([0, 0, 3, 5], dtype=dtype)
    options = {"layout": "thd", "cu_seqlens": cu_seqlens, "offset": offset}
    positions = torch.tensor([2, 3, 4, 2, 3, 0, 0])
    expected = rope_ext.apply(x, *TABLES, layout="thd", positions=positions)
    expected[5:] = x[5:]
    assert_same_bits(rope_ext.apply(x, *TABLES, **options), expected)
    assert_same_bits(reference.apply(x, *TABLES, **options), expected)
    strided = cu_seqlens.repeat_interleave(2)[::2]
    assert_same_bits(rope_ext.apply(x, *TABLES, **options | {"cu_seqlens": strided}), expected)
    frequencies = ROPES[0].inv_freq
    expected = rope_ext.apply(x, inv_freq=frequencies, layout="thd", positions=positions)
    expected[5:] = x[5:]
    assert_same_bits(rope_ext.apply(x, inv_freq=frequencies, **options), expected)


def test_boundaries_of_either_type_in_functions_of_other_libraries():
    x, cu_seqlens, offsets = random((8, 3, 8), torch.float32), torch.tensor([0, 0, 4, 8]), torch.tensor([0, 3, 1])
    freqs = ROPES[0].inv_freq.float().repeat(2) * torch.arange(8.0)[:, None, None, None]

    def results(cu_seqlens):
        options = {"cu_seqlens": cu_seqlens, "max_seqlen": 4, "seqlen_offsets": offsets}
        yield flash_attn.apply_rotary_emb(x, *TABLES, **options)
        options = {"tensor_format": "thd", "cu_seqlens": cu_seqlens, "cp_size": 2}
        yield transformer_engine.apply_rotary_pos_emb(x[:4], freqs, **options)

    for of_int64, of_int32 in zip(results(cu_seqlens), results(cu_seqlens.int())):
        assert_same_bits(of_int64, of_int32)


@pytest.mark.parametrize("of", ["tables", "frequencies"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("offset", [torch.tensor(3), torch.tensor([3])], **IDS)
def test_derivatives_equal_those_of_an_int(offset, packed, of):
    options = {"layout": "thd", "cu_seqlens": torch.tensor([0, 3, 4])} if packed else {}
    x = random((5, 3, 8) if packed else (2, 5, 3, 8), torch.float64).requires_grad_()
    if of == "tables":
        leaves = {"cos": random((12, 4), torch.float64, 1), "sin": random((12, 4), torch.float64, 2)}
    else:
        leaves = {"inv_freq": ROPES[0].inv_freq.clone()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}

    def gradients(offset):
        y = rope_ext.apply(x, **leaves, **options, offset=offset)
        return torch.autograd.grad(y, (x, *leaves.values()), torch.ones_like(y) * x.detach())

    assert_same_bits(gradients(offset), gradients(3))


def test_under_vmap_each_sample_has_its_own_offset():
    x, offsets = random((3, 2, 5, 1, 8), torch.float32), torch.tensor([0, 4, 7])
    got = torch.func.vmap(lambda t, offset: rope_ext.apply(t, *TABLES, offset=offset))(x, offsets)
    assert_same_bits(got, torch.stack([rope_ext.apply(t, *TABLES, offset=int(o)) for t, o in zip(x, offsets)]))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("tables_need", [False, True])
def test_offset_of_one_number_compiles_into_one_graph(tables_need, dynamic):
    cos, sin = (t.clone().requires_grad_(tables_need) for t in TABLES)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, offset: rope_ext.apply(x, cos, sin, offset=offset),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for batch, seqlen in ((2, 5), (3, 4)):
        x = random((batch, seqlen, 2, 8), torch.float32)
        for offset in (torch.tensor(3), torch.tensor([3]), torch.full((batch,), 3)):
            assert_same_bits(compiled(x, offset).detach(), rope_ext.apply(x, *TABLES, offset=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"offset": torch.tensor(8)},
            "offset must index rows 0 to 11 of the table, got row 12 for token 4 of batch 0",
        ),
        (
            {"offset": torch.tensor([-1])},
            "offset must index rows 0 to 11 of the table, got row -1 for token 0 of batch 0",
        ),
        ({"offset": torch.zeros(3).long()}, "offset must be an int or have shape (1,), got (3,)"),
        (
            {"offset": torch.zeros(1, 1).long()},
            "offset must be an int or have shape (1,), got (1, 1): offset.flatten() fits",
        ),
        ({"cu_seqlens": torch.tensor([0, 2**40])}, "cu_seqlens must end within the 5 tokens of x, got 1099511627776"),
        (
            {"cu_seqlens": torch.tensor([0, -(2**63)])},
            "cu_seqlens must ascend, got -9223372036854775808 after 0 at [1]",
        ),
        ({"cu_seqlens": torch.tensor([2**32, 5])}, "cu_seqlens must start at 0, got 4294967296"),
        (
            {"cu_seqlens": torch.tensor([0, 5]), "offset": torch.tensor(8)},
            "offset must index rows 0 to 11 of the table, got row 12 for sequence 0",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 5]), "offset": torch.tensor([2**63 - 1])},
            "offset must index rows 0 to 11 of the table, got row 9223372036854775807 for sequence 0",
        ),
    ],
    **IDS,
)
def test_rows_outside_are_refused(options, message):
    x = random((5, 3, 8), torch.float32)
    for function in (rope_ext.apply, rope_ext.apply_):
        with pytest.raises(ValueError) as caught:
            function(x, *TABLES, layout="thd", **options)
        assert str(caught.value) == "rope_ext: " + message
    assert torch.equal(x, random((5, 3, 8), torch.float32))
