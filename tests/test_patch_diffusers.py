"""rope_ext.patch on diffusers: each function of a known source against its dialect, and models of every kind of call."""

import importlib
from unittest import mock

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.models import embeddings
from torch.utils._pytree import tree_leaves

import rope_ext
from rope_ext.integrations import _find, _proof, _registry
from rope_ext.integrations.diffusers import DIALECTS
from tests.conformance.diffusers_timm import compare
from tests.conformance.diffusers_timm.models import DIFFUSERS
from tests.conformance.rotations import rotations
from tests.conftest import assert_same_bits, random

pytestmark = [
    pytest.mark.devices("cpu"),
    pytest.mark.skipif(diffusers.__version__ != "0.42.1", reason="knows the sources of diffusers 0.42.1"),
]
F32, BF16 = torch.float32, torch.bfloat16
TRANSFORMERS = "models.transformers.transformer_"
# dialect: modules that define a function of the dialect.
SOURCES = {
    "embeddings": ["models.embeddings"],
    "allegro": ["models.embeddings"],
    "mochi": ["models.attention_processor"],
    "stable_audio": ["models.attention_processor"],
    "anima": ["models.condition_embedders.condition_embedder_anima"],
    "ltx2_decoder": ["models.autoencoders.ltx2_diffusion_decoder"],
    "kolors": ["pipelines.kolors.text_encoder"],
    "stable_audio_3": ["models.autoencoders.autoencoder_same", TRANSFORMERS + "stable_audio3"],
    "complex": ["models.controlnets.controlnet_z_image", TRANSFORMERS + "z_image", TRANSFORMERS + "bria_fibo2"],
    "anyflow": [TRANSFORMERS + "anyflow", TRANSFORMERS + "anyflow_far"],
    "qwen": [TRANSFORMERS + name for name in ("qwenimage", "qwenimage21", "nucleusmoe_image")],
    "wan": [TRANSFORMERS + name for name in ("wan", "wan_animate", "skyreels_v2", "chronoedit", "sana_video")],
    "kandinsky6": [TRANSFORMERS + "kandinsky6", TRANSFORMERS + "kandinsky6_sr"],
    "kandinsky5": [TRANSFORMERS + "kandinsky"],
    "ltx": [TRANSFORMERS + name for name in ("ltx", "ltx2", "sana_wm_refiner")],
    "ltx2_split": [TRANSFORMERS + "ltx2", TRANSFORMERS + "sana_wm_refiner"],
    "joyimage": [TRANSFORMERS + "joyimage"],
    "joyimage_batched": [TRANSFORMERS + "joyimage_edit_plus"],
    "longcat_audio": [TRANSFORMERS + "longcat_audio_dit"],
    "hidream": [TRANSFORMERS + "hidream_image"],
} | {
    name: [TRANSFORMERS + name]
    for name in ("ernie_image", "helios", "minimax_h3", "minimax_music3", "prx", "sana_wm", "wan_animate_2")
}


def known_in(module):
    """{dialect: candidate} of the known functions that a module defines."""
    module = importlib.import_module("diffusers." + module)
    walk = _find.Walk({"diffusers"}, known=())
    for name, value in list(vars(module).items()):
        if not isinstance(value, type):
            walk.visit(value, (vars(module), name), _find.Reach())
        elif value.__module__ == module.__name__:
            walk.of_class(value)
    found = {_registry.known().get(c.fingerprint, "").removeprefix("diffusers."): c for c in walk.found.values()}
    return {name: c for name, c in found.items() if c.function.__module__ == module.__name__}


def test_every_dialect_has_a_source():
    assert {"diffusers." + name for name in SOURCES} == {d.name for d in DIALECTS}


@pytest.mark.parametrize("name, module", [(name, m) for name, modules in SOURCES.items() for m in modules])
def test_functions_are_recognised_and_equal(name, module):
    assert _proof.proof(known_in(module)[name], _registry.dialects()["diffusers." + name]) is None


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_no_example_is_left_to_the_original(dialect):
    for dtype in (F32, BF16):
        for args, kwargs in dialect.examples(0, dtype):
            dialect.call(None, "once", *args, **kwargs)


def test_an_example_tells_each_dialect_from_its_neighbours():
    """The proof refuses a function for the dialect of another one that takes the same calls."""
    named = {d.name.removeprefix("diffusers."): d for d in DIALECTS}
    candidates = {name: known_in(modules[0])[name] for name, modules in SOURCES.items()}
    for one, other in [
        ("kandinsky5", "kandinsky6"),
        ("embeddings", "qwen"),
        ("anyflow", "sana_wm"),
        ("ltx", "ltx2_split"),
    ]:
        assert _proof.proof(candidates[one], named[other]) is not None, (one, other)
        assert _proof.proof(candidates[other], named[one]) is not None, (other, one)


def gradients_of_states(function, args, kwargs, dtype):
    leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) and t.dtype == dtype else t for t in args[:2]]
    y = tree_leaves(function(*leaves, *args[2:], **kwargs))
    sum((t * random(t.shape, t.dtype, 3)).sum() for t in y).backward()
    return y, [t.grad for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", SOURCES)
def test_gradients_have_the_bits_of_eager_code(name, dtype):
    """Compares gradients of x, or of q and k. Gradients of tables are sums over batch and heads in another order."""
    dialect, original = _registry.dialects()["diffusers." + name], known_in(SOURCES[name][0])[name].original
    for args, kwargs in dialect.examples(2, dtype):
        y, expected = gradients_of_states(original, args, kwargs, dtype)
        _, ours = gradients_of_states(
            lambda *args, **kwargs: dialect.call(original, "eager", *args, **kwargs), args, kwargs, dtype
        )
        fused = dtype == F32 and dialect.bound is not None
        for one, other, result in zip(ours, expected, [*y, None], strict=False):
            if fused or result is None or result.dtype != one.dtype or one.shape != result.shape:
                # Fused products, float32 results of 16-bit states, and tables: another rounding, or another order of
                # 15 products.
                assert (one - other).abs().max() <= 16 * torch.finfo(dtype).eps * other.abs().max()
            else:
                assert_same_bits(one, other)


# One model for each kind of call and of tables.
MODELS = {
    "FluxTransformer2DModel": "bound at import",
    "CogVideoXTransformer3DModel": "imported when called, assigned to slices",
    "WanTransformer3DModel": "nested in a processor",
    "MochiTransformer3DModel": "nested, learned tables of each head",
    "StableAudioDiTModel": "method of a processor",
    "HiDreamImageTransformer2DModel": "2x2 matrices",
    "AllegroTransformer3DModel": "tables of three axes",
    "LTXVideoTransformer3DModel": "all heads in one axis",
    "ErnieImageTransformer2DModel": "angles",
    "MiniMaxH3Transformer3DModel": "tables in the dtype of x",
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_bits_of_eager_code(name, dtype):
    config, inputs = DIFFUSERS[name]
    model = compare.made(lambda: getattr(diffusers, name)(**config), dtype)
    eager = compare.run(model, inputs, dtype)
    with rope_ext.patched(model) as report, rotations() as counted:
        patched = compare.run(model, inputs, dtype)
    assert report.replaced and not report.left_alone and counted
    for ours, theirs in zip(patched, eager, strict=True):
        assert_same_bits(ours, theirs)
    with rope_ext.patched(model), rotations(change=lambda y, x: x):
        assert compare.difference(compare.run(model, inputs, dtype), eager)
    with rotations() as counted:
        compare.run(model, inputs, dtype)
    assert not counted  # the functions are restored


@pytest.mark.parametrize("name", ["ZImageTransformer2DModel", "LTX2VideoTransformer3DModel split"])
def test_fused_products_are_replaced_with_once_only(name):
    config, inputs = DIFFUSERS[name]
    model = compare.made(lambda: getattr(diffusers, name.split()[0])(**config), F32)
    eager = compare.run(model, inputs, F32)
    with rope_ext.patched(model) as report, rotations() as counted:
        assert compare.difference(compare.run(model, inputs, F32), eager) is None
    assert not counted and "once" in report.left_alone[0].reason
    with rope_ext.patched(model, "once") as report, rotations() as counted:
        off = compare.difference(compare.run(model, inputs, F32), eager)
    assert counted and not report.left_alone
    assert off is None or off < 1e-5


@pytest.fixture
def apply_rotary_emb():
    """(original, replacement) of the function that most models share."""
    original, dialect = embeddings.apply_rotary_emb, _registry.dialects()["diffusers.embeddings"]
    return original, lambda *args, rounding="eager", **kwargs: dialect.call(original, rounding, *args, **kwargs)


def test_the_complex_branch_is_ours_with_once_only(apply_rotary_emb):
    original, ours = apply_rotary_emb
    x, freqs = random((2, 5, 3, 8), F32, 0), torch.view_as_complex(random((2, 5, 4, 2), F32, 1))
    expected = original(x, freqs, use_real=False)
    assert_same_bits(ours(x, freqs, use_real=False), expected)
    once = ours(x, freqs, False, rounding="once")
    size = torch.maximum(freqs.real.abs(), freqs.imag.abs())[:, :, None].repeat_interleave(2, -1)
    size = size * x.abs().unflatten(-1, (-1, 2)).sum(-1).repeat_interleave(2, -1)
    assert ((once - expected).abs() <= 1.5 * torch.finfo(F32).eps * size).all()  # one of three roundings is missing


@pytest.mark.parametrize(
    "x, table, kwargs",
    [
        ((2, 3, 5, 8), (5, 4), {}),  # a table per pair: eager code refuses it
        ((2, 3, 5, 8), (4, 8), {}),
        ((2, 3, 5, 8), (5, 8), {"sequence_dim": 3}),
        ((2, 3, 5, 8), (5, 8), {"use_real_unbind_dim": 0}),
    ],
)
def test_errors_are_those_of_diffusers(apply_rotary_emb, x, table, kwargs):
    original, ours = apply_rotary_emb
    args = random(x, F32, 0), (random(table, F32, 1), random(table, F32, 2))
    with pytest.raises(Exception) as expected:
        original(*args, **kwargs)
    with pytest.raises(type(expected.value)) as raised:
        ours(*args, **kwargs)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(
    "x, table, dtypes",
    [
        ((3, 5, 8), (5, 8), (F32, F32)),  # three axes: the result has four
        ((2, 3, 5, 8), (1, 8), (F32, F32)),
        ((2, 3, 5, 8), (5, 8), (torch.float64, F32)),
        ((2, 3, 5, 8), (5, 8), (F32, torch.float64)),
        ((2, 3, 5, 8), (5, 8), (torch.float16, BF16)),
    ],
)
def test_unusual_calls_have_the_bits_of_eager_code(apply_rotary_emb, x, table, dtypes):
    original, ours = apply_rotary_emb
    args = random(x, dtypes[0], 0), (random(table, dtypes[1], 1), random(table, dtypes[1], 2))
    assert_same_bits(ours(*args, use_real_unbind_dim=-2), original(*args, use_real_unbind_dim=-2))


def test_learned_tables_get_their_gradients():
    original, dialect = (
        known_in("models.attention_processor")["mochi"].function,
        _registry.dialects()["diffusers.mochi"],
    )
    gradients = []
    for function in (original, lambda *args: dialect.call(original, "eager", *args)):
        leaves = [
            random(shape, F32, i).requires_grad_() for i, shape in enumerate([(2, 5, 3, 8), (5, 3, 4), (5, 3, 4)])
        ]
        (function(*leaves) * random((2, 5, 3, 8), F32, 3)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert_same_bits(gradients[0][0], gradients[1][0])
    for ours, theirs in zip(gradients[1][1:], gradients[0][1:]):  # sums of 4 products, in another order
        assert torch.allclose(ours, theirs, rtol=0, atol=8 * torch.finfo(F32).eps * theirs.abs().max().item())


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel"])
def test_compiled_models_take_one_graph(name):
    config, inputs = DIFFUSERS[name]
    model = compare.made(lambda: getattr(diffusers, name)(**config), F32)
    eager = compare.run(model, inputs, F32)
    kind = next(type(m) for m in model.modules() if type(m).__name__ in ("FluxAttention", "WanAttention"))
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(kind.forward, fullgraph=True, backend=backend)
    with mock.patch.object(kind, "forward", compiled), rope_ext.patched(model):
        patched = compare.run(model, inputs, F32)
    torch._dynamo.reset()
    assert any("rope_ext.rotate" in str(node.target) for graph in graphs for node in graph.graph.nodes)
    for ours, theirs in zip(patched, eager, strict=True):
        assert_same_bits(ours, theirs)
