"""rope_ext.patch on timm: its functions, forward and gradients, and models of every kind."""

import pytest
import torch

pytest.importorskip("timm", exc_type=ImportError)  # ImportError too: timm needs torchvision

import timm
from timm.layers import pos_embed_sincos
from timm.models import gemma4_vit
from torch.utils._pytree import tree_leaves, tree_map

import rope_ext
from rope_ext.integrations import _fingerprint, _registry
from tests.conformance.diffusers_timm import compare
from tests.conformance.diffusers_timm.models import TIMM
from tests.conformance.rotations import rotations
from tests.conftest import assert_same_bits

pytestmark = [
    pytest.mark.devices("cpu"),
    pytest.mark.skipif(timm.__version__ != "1.0.31", reason="knows the sources of timm 1.0.31"),
]
F32, BF16 = torch.float32, torch.bfloat16
FUNCTIONS = {
    "apply_rot_embed": pos_embed_sincos.apply_rot_embed,
    "apply_rot_embed_cat": pos_embed_sincos.apply_rot_embed_cat,
    "apply_rot_embed_list": pos_embed_sincos.apply_rot_embed_list,
    "gemma4": gemma4_vit.apply_rotary_pos_emb,
    "gemma4_axes": gemma4_vit.apply_multidimensional_rope,
}
MODELS = {
    "eva02_tiny_patch14_224": "interleaved",
    "vit_small_patch16_rope_mixed_224": "learned, of each head",
    "vit_tiny_patch16_dinov3_qkvb": "halves",
    "naflexvit_base_patch16_gap": "tables of each sequence",
    "gemma4_vit_167m": "halves of each axis",
}


def gradients(function, args, kwargs):
    """Gradients of everything that is differentiable: tensors of x, then tables."""
    args = tree_map(lambda t: t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t, args)
    generator = torch.Generator().manual_seed(0)
    y = tree_leaves(function(*args, **kwargs))
    sum((t * torch.randn(t.shape, generator=generator).to(t.dtype)).sum() for t in y).backward()
    return [[t.grad for t in tree_leaves(part) if isinstance(t, torch.Tensor)] for part in (args[0], args[1:])]


@pytest.mark.parametrize("dtype", [torch.float64, F32, BF16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_forward_and_gradients(name, dtype):
    original, dialect = FUNCTIONS[name], _registry.dialects()["timm." + name]
    assert _registry.known()[_fingerprint.fingerprint(original)] == dialect.name

    def ours(*args, **kwargs):
        return dialect.call(original, "eager", *args, **kwargs)

    for args, kwargs in dialect.examples(1, dtype):
        for one, other in zip(tree_leaves(ours(*args, **kwargs)), tree_leaves(original(*args, **kwargs)), strict=True):
            assert_same_bits(one, other)
        (x, tables), (expected_x, expected_tables) = gradients(ours, args, kwargs), gradients(original, args, kwargs)
        unit = torch.finfo(dtype).eps
        promoted = tree_leaves(original(*args, **kwargs))[0].dtype != dtype
        for one, other in zip(x, expected_x, strict=True):
            if promoted:  # eager code rounds both terms to 16 bits, and then their sum
                assert (one - other).abs().max() <= 2 * unit * other.abs().max()
            else:
                assert_same_bits(one, other)
        for one, other in zip(tables, expected_tables, strict=True):
            # Gradients of tables sum over batch and heads (at most 6 products, or 12 tensors) in another order; 16-bit
            # products are rounded.
            assert (one - other).abs().max() <= 16 * max(unit, torch.finfo(one.dtype).eps) * other.abs().max()


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_bits_of_eager_code(name, dtype):
    config = TIMM[name]
    size = config.get("img_size", 64)
    model = compare.made(lambda: timm.create_model(name, **config), dtype)

    def run():
        return compare.run(model, lambda r: {"x": r(2, 3, size, size)}, dtype)

    eager = run()
    with rope_ext.patched(model) as report, rotations() as counted:
        patched = run()
    assert report.replaced and not report.left_alone and counted
    assert_same_bits(patched[0], eager[0])
    with rope_ext.patched(model), rotations(change=lambda y, x: x):
        assert compare.difference(run(), eager)
    with rotations() as counted:
        run()
    assert not counted  # the functions are restored
