"""Every instruction set of this machine computes bit-identical norms and gradients, for heads of every size."""

import pytest
import torch

import rope_ext
from rope_ext import _introspect, _reference_norm, reference
from rope_ext._torch.arguments import transposed_flags
from tests.conftest import DTYPES, assert_same_bits, random
from tests.pairwise import pairwise
from tests.test_norm import CASES, test_every_form_of_a_call_has_the_bits_of_the_reference

pytestmark = pytest.mark.devices("cpu")
ops = torch.ops.rope_ext
BATCH, SEQLEN, EPS = 2, 19, 1e-6

SIZES = pairwise(
    {
        # (head_dim, rotary_dim, rotary_offset). Whole blocks of 32 channels, others; 200 heads pass what is kept at a time
        "channels": [
            (32, 32, 0), (64, 64, 0), (128, 128, 0), (256, 256, 0), (1024, 1024, 0), (576, 64, 512), (33, 32, 0),
            (72, 72, 0), (80, 80, 0), (96, 64, 8), (128, 64, 0), (128, 64, 64), (40, 20, 3), (300, 290, 10),
        ],
        "dtype": DTYPES,
        "interleaved": [False, True],
        "layout": ["bshd", "bhsd"],
        "heads": [(6, 1), (17, 16), (200, 1)],
        "threads": [1, 2, 3],
    }
)  # fmt: skip


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: "-".join(map(str, case.values())))
def test_sizes(case, use_kernels, threads):
    (head_dim, rotary_dim, rotary_offset), dtype, layout = case["channels"], case["dtype"], case["layout"]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    bshd = [(BATCH, SEQLEN, heads, head_dim) for heads in case["heads"]]
    shapes = [(b, h, s, d) if layout == "bhsd" else (b, s, h, d) for b, s, h, d in bshd]
    x, grads = ([random(shape, dtype, seed + i) for i, shape in enumerate(shapes)] for seed in (0, 7))
    norm = [random((head_dim,), arithmetic, 3), None]
    tables = random((SEQLEN, rotary_dim // 2), arithmetic, 4), random((SEQLEN, rotary_dim // 2), arithmetic, 5)
    flags = rope_ext.ops.flags_of(layout, case["interleaved"])
    others = rotary_dim, rotary_offset, 1.0, None, None, None, norm, EPS
    keywords = {"layout": layout, "interleaved": case["interleaved"], "rotary_dim": rotary_dim}
    keywords["rotary_offset"] = rotary_offset

    normalised = _reference_norm.normalise(x[0].to(arithmetic), norm[0], EPS)
    expected = [reference.apply(n, *tables, **keywords).to(dtype) for n in (normalised, x[1].to(arithmetic))]
    back = [reference.apply(g.to(arithmetic), *tables, **keywords, transposed=True) for g in grads]
    rows = [reference.as_bshd(t, layout).flatten(0, 1) for t in (x[0].to(arithmetic), back[0])]
    of_x, of_weight = _reference_norm.norm_gradients(rows[0], norm[0], EPS, rows[1])
    of_x = reference.from_bshd(of_x.unflatten(0, (BATCH, SEQLEN)), layout).to(dtype)

    threads(case["threads"])
    for isa in _introspect.supported_isas():
        use_kernels(_introspect.kernels(isa))
        y, inv_rms = ops.norm_rotate(x, *tables, 0, flags, *others)
        assert_same_bits(y, expected)
        transposed = grads, *tables, 0, transposed_flags(flags), *others
        found_x, found_weight = ops.norm_grad(x, inv_rms, 0x103, *transposed)
        assert_same_bits([*found_x, found_weight[0]], [of_x, back[1].to(dtype), of_weight])


@pytest.mark.parametrize("case", CASES[::3])
def test_forms_of_a_call(case, use_kernels):
    for isa in _introspect.supported_isas():
        use_kernels(_introspect.kernels(isa))
        test_every_form_of_a_call_has_the_bits_of_the_reference(case)
