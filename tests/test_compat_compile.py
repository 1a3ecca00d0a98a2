"""rope_ext.compat under torch.compile and torch.export: one graph for all sizes, bit-identical to a call.

Each function is compiled by itself, in one process and without a reset, so that recompilations that functions share
would reach torch's limit.
"""

import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from rope_ext import compat
from tests.compat_cases import F32, module
from tests.conftest import assert_same_bits, random, random_integers
from tests.test_compat_errors import SIGNATURES

pytestmark = pytest.mark.devices("cpu")

# No two axes have one size, since a graph would take them for the same. rows: the rows of tables.
SIZES = [
    SimpleNamespace(b=4, s=14, h=9, k=5, d=32, rows=75),
    SimpleNamespace(b=6, s=18, h=10, k=7, d=40, rows=95),
    SimpleNamespace(b=11, s=26, h=12, k=8, d=48, rows=115),
]


def T(*shape):
    return random(shape, F32, math.prod(shape))


def Z(*shape):
    return torch.complex(T(*shape), 0.5 + T(*shape))


def packed(z):
    """Boundaries of b sequences of s tokens."""
    return torch.arange(z.b + 1, dtype=torch.int32) * z.s


def pairs(z):
    return {"cos": T(z.rows, z.d // 2), "sin": T(z.rows, z.d // 2)}


# (function, its arguments for given sizes).
CALLS = [
    (compat.apex.fused_apply_rotary_pos_emb, lambda z: {"t": T(z.s, z.b, z.h, z.d), "freqs": T(z.rows, 1, 1, z.d - 2)}),
    (
        compat.apex.fused_apply_rotary_pos_emb_cached,
        lambda z: {
            **{"t": T(z.s, z.b, z.h, z.d), "transpose_output_memory": True, "rounding": "eager"},
            **{name: T(z.rows, 1, 1, z.d) for name in ("cos_", "sin_")},
        },
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_thd,
        lambda z: {"t": T(z.b * z.s, z.h, z.d), "cu_seqlens": packed(z), "freqs": T(z.rows, 1, 1, z.d)},
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_2d,
        lambda z: {
            **{"t": T(z.b, z.s * z.k, z.h, z.d), "img_h": z.s, "img_w": z.k},
            **{name: T(1, z.rows, 1, z.d // 2) for name in ("cos_h", "sin_h", "cos_w", "sin_w")},
        },
    ),
    (
        compat.flash_attn.apply_rotary_emb,
        lambda z: {"x": T(z.b, z.s, z.h, z.d), **pairs(z), "seqlen_offsets": z.k, "inplace": True},
    ),
    (
        compat.flash_attn.apply_rotary_emb,
        lambda z: {
            **{"x": T(z.b * z.s, z.h, z.d), **pairs(z), "cu_seqlens": packed(z), "max_seqlen": z.s},
            "seqlen_offsets": torch.arange(z.b),
        },
    ),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        lambda z: {"qkv": T(z.b, z.s, z.h + 2 * z.k, z.d), **pairs(z), "num_heads_q": z.h, "seqlen_offsets": z.k},
    ),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        lambda z: {
            **{"qkv": T(z.b, z.s, 3, z.h, z.d), **pairs(z), "interleaved": True, "seqlen_offsets": torch.arange(z.b)},
            **{"cos_k": T(z.rows, z.d // 2), "sin_k": T(z.rows, z.d // 2)},
        },
    ),
    (compat.flash_attn.apply_rotary_emb_kv_, lambda z: {"kv": T(z.b, z.s, 2, z.h, z.d), **pairs(z)}),
    (
        compat.liger.liger_rotary_pos_emb,
        lambda z: {"q": T(z.b, z.h, z.s, z.d), "k": T(z.b, z.k, z.s, z.d), "cos": T(z.s, z.d), "sin": T(z.s, z.d)},
    ),
    (
        compat.meta_llama.apply_rotary_emb,
        lambda z: {"xq": T(z.b, z.s, z.h, z.d), "xk": T(z.b, z.s, z.k, z.d), "freqs_cis": Z(z.s, z.d // 2)},
    ),
    (
        compat.rotary_embedding_torch.apply_rotary_emb,
        lambda z: {"freqs": T(z.rows, z.d - 4), "t": T(z.b, z.h, z.s, z.d), "start_index": 2, "scale": 1 / z.s},
    ),
    (
        compat.rotary_embedding_torch.apply_rotary_emb,
        lambda z: {"freqs": T(z.s, z.k, z.d), "t": T(z.b, z.h, z.s, z.k, z.d)},
    ),
    (compat.timm.apply_rot_embed, lambda z: {"x": T(z.h, z.s, z.d), "sin_emb": T(z.s, z.d), "cos_emb": T(z.s, z.d)}),
    (
        compat.timm.apply_rot_embed_list,
        lambda z: {"x": [T(z.b, z.h, z.s, z.d)] * 2, "sin_emb": T(z.s, z.d), "cos_emb": T(z.s, z.d), "half": True},
    ),
    (compat.timm.apply_rot_embed_cat, lambda z: {"x": T(z.b, z.h, z.s, z.d), "emb": T(z.b, z.h, z.s, 2 * z.d)}),
    (
        compat.torchtitan.apply_rotary_emb_complex,
        lambda z: {
            **{"query": T(z.b, z.s, z.h, z.d), "key": T(z.b, z.s, z.k, z.d)},
            "rope_cache": Z(1, z.s, 1, z.d // 2),
        },
    ),
    (
        compat.torchtitan.apply_rotary_emb_cos_sin,
        lambda z: {
            **{"query": T(z.b, z.s, z.h, z.d), "key": T(z.b, z.s, z.k, z.d)},
            "rope_cache": T(z.b, z.s, 1, 2 * z.d),
        },
    ),
    (compat.torchtune.forward, lambda z: {"self": module(T(z.rows, z.d // 2, 2)), "x": T(z.b, z.s, z.h, z.d)}),
    (
        compat.torchtune.forward_half,
        lambda z: {
            **{"self": module(T(z.rows, 2 * z.d)), "x": T(z.b, z.s, z.h, z.d)},
            "input_pos": random_integers(z.rows, (z.b, z.s)),
        },
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda z: {"t": T(z.b, z.s, z.h, z.d), "freqs": T(z.rows, z.b, 1, z.d), "tensor_format": "bshd"},
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda z: {
            **{"t": T(z.b * z.s, z.h, z.d), "freqs": T(z.rows, 1, 1, z.d), "tensor_format": "thd", "fused": True},
            **{"start_positions": torch.arange(z.b), "cu_seqlens": 2 * packed(z), "cp_size": 2, "cp_rank": 1},
        },
    ),
    (
        compat.transformers.apply_rotary_pos_emb,
        lambda z: {
            "q": T(z.b, z.h, z.s, z.d),
            "k": T(z.b, z.k, z.s, z.d),
            "cos": T(z.b, z.s, z.d),
            "sin": T(z.b, z.s, z.d),
        },
    ),
    (
        compat.vllm.rotary_embedding,
        lambda z: {
            **{"positions": random_integers(z.rows, (z.b, z.s)), "query": T(z.b, z.s, z.h, z.d), "key": None},
            **{"head_size": z.d, "cos_sin_cache": T(z.rows, z.d - 4), "is_neox": False, "rope_dim_offset": 2},
            **{"inverse": True, "rounding": "eager"},
        },
    ),
    (
        compat.x_transformers.apply_rotary_pos_emb,
        lambda z: {"t": T(z.b, z.h, z.s, z.d), "freqs": T(1, z.rows, z.d - 2)},
    ),
]


@pytest.fixture(scope="module", autouse=True)
def no_reset_in_between():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def results(function, arguments):
    """The floating-point tensors among what the function returns and what it leaves in its arguments."""
    leaves = torch.utils._pytree.tree_leaves((function(**arguments), arguments))
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]


def graphs_made(function, calls, **options):
    """Number of graphs that the calls make; each call must be bit-identical to an uncompiled one."""
    before = counters["stats"]["unique_graphs"]
    compiled = torch.compile(function, fullgraph=True, **options)
    for make in calls:
        assert_same_bits(results(compiled, make()), results(function, make()))
    return counters["stats"]["unique_graphs"] - before


@pytest.mark.parametrize("function, make", CALLS, ids=[f"{f.__module__[16:]}.{f.__name__}" for f, _ in CALLS])
def test_one_graph_for_all_sizes(function, make):
    assert graphs_made(function, [partial(make, z) for z in SIZES], dynamic=True, backend="eager") == 1


def test_every_function_is_compiled():
    assert {function for function, _ in CALLS} == set(SIGNATURES)


def packed_qkv(z, axes, interleaved):
    qkv = T(z.b, z.s, 3, z.h, z.d) if axes == 5 else T(z.b, z.s, z.h + 2 * z.k, z.d)
    return {"qkv": qkv, **pairs(z), "interleaved": interleaved, "num_heads_q": None if axes == 5 else z.h}


def test_packed_qkv_in_one_process():
    """Eight graphs, as many as torch's limit allows: axes x pairing x static or dynamic, for any num_heads_q."""
    torch._dynamo.reset()
    for (dynamic, sizes), axes, interleaved in product(((True, SIZES), (False, SIZES[:1])), (5, 4), (False, True)):
        calls = [partial(packed_qkv, z, axes, interleaved) for z in sizes]
        options = {"dynamic": dynamic, "backend": "aot_eager"}
        assert graphs_made(compat.flash_attn.apply_rotary_emb_qkv_, calls, **options) == 1


def test_packed_qkv_compiles_with_inductor():
    calls = [partial(packed_qkv, z, 4, True) for z in SIZES[:2]]
    assert (
        graphs_made(lambda **arguments: compat.flash_attn.apply_rotary_emb_qkv_(**arguments), calls, dynamic=True) == 1
    )


# Numbers that are known only when the graph runs: (function of tensors, tensors).
FIRST = SIZES[0]
KNOWN_LATER = {
    "max_seqlen": (
        lambda x, cos, sin, cu: compat.flash_attn.apply_rotary_emb(
            x, cos, sin, cu_seqlens=cu, max_seqlen=cu.diff().max().item()
        ),
        lambda: (T(FIRST.b * FIRST.s, FIRST.h, FIRST.d), *pairs(FIRST).values(), packed(FIRST)),
    ),
    "scale": (
        lambda t, freqs, scale: compat.x_transformers.apply_rotary_pos_emb(t, freqs, scale=scale.item()),
        lambda: (T(FIRST.b, FIRST.h, FIRST.s, FIRST.d), T(1, FIRST.s, FIRST.d), torch.tensor(0.5)),
    ),
}


@pytest.mark.parametrize("name", KNOWN_LATER)
def test_numbers_known_only_at_run_time_compile(name):
    function, make = KNOWN_LATER[name]
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        got = torch.compile(function, fullgraph=True, backend="eager")(*make())
    assert_same_bits(got, function(*make()))


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.parametrize("name", KNOWN_LATER)
def test_numbers_known_only_at_run_time_are_exported(name):
    function, make = KNOWN_LATER[name]
    exported = torch.export.export(Module(function), make())
    assert_same_bits(exported.module()(*make()), function(*make()))


def test_export_of_packed_qkv():
    """num_heads_q comes from a size that the graph leaves open."""

    def function(qkv, cos, sin, k):
        return compat.flash_attn.apply_rotary_emb_qkv_(qkv * 1, cos, sin, num_heads_q=qkv.shape[2] - 2 * k.shape[0])

    def tensors(z):
        return T(z.b, z.s, z.h + 2 * z.k, z.d), *pairs(z).values(), T(z.k)

    auto = torch.export.Dim.AUTO
    open_sizes = ({0: auto, 1: auto, 2: auto}, {0: auto}, {0: auto}, {0: auto})
    exported = torch.export.export(Module(function), tensors(SIZES[0]), dynamic_shapes=(open_sizes,))
    assert_same_bits(exported.module()(*tensors(SIZES[0])), function(*tensors(SIZES[0])))
    other = SimpleNamespace(**{**vars(SIZES[1]), "d": SIZES[0].d})
    assert_same_bits(exported.module()(*tensors(other)), function(*tensors(other)))
