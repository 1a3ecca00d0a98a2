"""docs/migrate.md against the originals: its table of model families, and its examples for Qwen 3 and Flux.

tests/test_pages.py runs the blocks of the page.
"""

import importlib
import re
from pathlib import Path

import pytest
import torch

import rope_ext
from tests.conftest import random, random_integers

DOC = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text()
B, S, H, D = 2, 5, 3, 16


def families():
    """One (interleaved, rotary_dim, layout, tables, remark) for each model of the table."""
    rows = DOC.split("| models | ")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [
        pytest.param(*(cell.strip("`") for cell in rest), id=model)
        for models, *rest in cells
        for model in re.findall(r"`(\w+)`", models)
    ]


def theirs(model, x, tables, layout):
    """x, rotated by the function of the model's modeling file."""
    found = pytest.importorskip(f"transformers.models.{model}.modeling_{model}", exc_type=ImportError)
    names = "apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb", "apply_rotary_emb"
    function = next(getattr(found, name) for name in names if hasattr(found, name))
    options = {"unsqueeze_dim": 2} if layout == "bshd" and len(tables) == 2 else {}
    if model in ("gptj", "codegen"):
        return function(x, *reversed(tables))
    if model in ("gemma3n", "gemma4", "deepseek_v4"):
        return function(x, *tables, **options)
    return function(x, x, *tables, **options)[0]


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("interleaved, rotary_dim, layout, kind, remark", families())
def test_models_rotate_as_the_table_says(interleaved, rotary_dim, layout, kind, remark, request):
    model = request.node.callspec.id
    head_dim = D
    whole = rotary_dim == "head_dim" or rotary_dim.startswith("qk_rope") or "rotates a slice" in remark
    width = head_dim if whole else head_dim // 2
    x = random((B, H, S, D) if layout == "bhsd" else (B, S, H, D), torch.float32)
    angles = random((B, S, width // 2), torch.float32, 1)
    cos, sin = angles.cos(), angles.sin()
    tables = {
        "halves": lambda: (torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)),
        "repeated": lambda: (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)),
        "pairs": lambda: (cos, sin),
        "complex": lambda: (torch.complex(cos, sin),),
    }[kind]()
    offset = {"rotary_offset": head_dim - width} if "rotary_offset" in remark else {}
    got = rope_ext.apply(
        x,
        cos,
        sin,
        layout=layout,
        interleaved=interleaved == "True",
        rotary_dim=width,
        inverse="inverse=True" in remark,
        **offset,
    )
    if "channels as halves" in remark:
        got = torch.cat((got[..., 0::2], got[..., 1::2]), dim=-1)
    # One rounding: complex products may fuse a product and a sum.
    assert (got - theirs(model, x, tables, layout)).abs().max() <= torch.finfo(torch.float32).eps * got.abs().max()


def test_share_of_rotated_channels():
    """The page gives the share of the default configuration: a fraction of head_dim, or a number of channels."""
    transformers = pytest.importorskip("transformers")
    for model, value in re.findall(r"`(\w+)` \(([\d./]+)", DOC):
        config = transformers.AutoConfig.for_model(model)
        found = getattr(config, "rotary_dim", None) or config.rope_parameters["partial_rotary_factor"]
        numerator, _, denominator = value.partition("/")
        assert found == float(numerator) / float(denominator or 1), model


def test_functions_of_the_page_exist():
    for module, names in re.findall(r"from (rope_ext\.compat\.\w+) import ([\w, ]+)", DOC):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.split(" as ")[0].strip()), (module, name)
    for path in re.findall(r"rope_ext\.(compat\.\w+\.\w+)", DOC):
        found = rope_ext
        for name in path.split("."):
            found = getattr(found, name)


# ---- the norm and the rotation in one pass ----


def code_of(heading):
    """The first block of code below a heading of the page."""
    return re.search(r"^```py(?:thon)?\n(.*?)^```$", DOC.split(f"\n### {heading}")[1], re.DOTALL | re.MULTILINE)[1]


def block_of_page(heading, **names):
    namespace = {"__name__": "migrate", **names}
    exec(compile(code_of(heading), "docs/migrate.md", "exec"), namespace)
    return namespace


def both(run, make, change):
    """The results of run(model) for two equal models, the second of which was changed."""
    results = []
    for changed in (False, True):
        torch.manual_seed(0)
        model = make()
        if changed:
            change(model)
        results.append(run(model))
    return results


def assert_few_roundings(got, expected, dtype):
    """A channel of q or k has up to four other roundings, each at most u = eps / 2 of it. Scores, at most
    sqrt(head_dim) = 4, differ by 8 u of that, attention weights by twice as much: 64 u = 32 eps of the largest result.
    """
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 32 * torch.finfo(dtype).eps * b.abs().max()


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen3_in_one_pass(dtype):
    """The attention layer with its gradients; then the logits of a prompt, and of a next token with the cache."""
    transformers = pytest.importorskip("transformers")
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    sizes = {"vocab_size": 32, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": D}
    config = transformers.Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "sdpa"
    x, ids = random((B, S, 48), dtype), torch.arange(S).expand(B, S)

    def trained(layer):
        leaf = x.clone().requires_grad_()
        tables = qwen3.Qwen3RotaryEmbedding(config)(x, ids)
        y, _ = layer(leaf, tables, None)
        norms = layer.q_norm.weight, layer.k_norm.weight
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), (leaf, *norms, layer.q_proj.weight))

    change = block_of_page("Qwen 3")["fuse"]

    def randomised(model):
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                torch.nn.init.normal_(parameter, 1.0, 0.3)
        return model.to(dtype)

    assert_few_roundings(*reversed(both(trained, lambda: randomised(qwen3.Qwen3Attention(config, 0)), change)), dtype)

    @torch.no_grad()
    def generated(model):
        prompt = model(ids, use_cache=True)
        return prompt.logits, model(ids[:, :1], past_key_values=prompt.past_key_values).logits

    found = both(generated, lambda: randomised(transformers.Qwen3ForCausalLM(config)).eval(), change)
    assert_few_roundings(*reversed(found), dtype)


def test_qwen3_of_the_page_is_that_of_the_example():
    example = (Path(__file__).parents[1] / "examples/train_tiny_qwen3.py").read_text()
    _, _, functions = code_of("Qwen 3").partition("def attention_in_one_pass")
    assert functions and functions in example


@pytest.mark.devices("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_in_one_pass(dtype):
    """Blocks with separate image and text tokens, blocks with both together, and gradients."""
    diffusers = pytest.importorskip("diffusers")
    sizes = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": D}
    sizes |= {
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (4, 4, 8),
    }

    def make():
        model = diffusers.FluxTransformer2DModel(**sizes)
        for name, parameter in model.named_parameters():
            if ".norm_" in name and parameter.dim() == 1 and len(parameter) == D:
                torch.nn.init.normal_(parameter, 1.0, 0.3)
        return model.to(dtype)

    inputs = {
        "hidden_states": random((B, S, 4), dtype),
        "encoder_hidden_states": random((B, 3, 8), dtype, 1),
        "pooled_projections": random((B, 8), dtype, 2),
        "timestep": torch.full((B,), 0.5, dtype=dtype),
        "img_ids": random_integers(9, (S, 3)).float(),
        "txt_ids": torch.zeros(3, 3),
    }

    def run(model):
        leaf = inputs["hidden_states"].clone().requires_grad_()
        y = model(**{**inputs, "hidden_states": leaf}).sample
        norm = model.transformer_blocks[0].attn.norm_added_k.weight
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), (leaf, norm))

    def change(model):
        block_of_page("Flux", transformer=model)

    assert_few_roundings(*reversed(both(run, make, change)), dtype)
