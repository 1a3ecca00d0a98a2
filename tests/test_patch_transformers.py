"""rope_ext.patch on models of transformers, and every function of it that is known against its dialect."""

import importlib
import inspect

import pytest
import torch
from torch.utils._pytree import tree_flatten

import rope_ext
from rope_ext.integrations import _proof, _registry

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
INSTALLED = transformers.__version__ == "5.23.0"  # the release whose functions _known.json names
KNOWN = {key: e for key, e in _registry.read_known().items() if e["seen"].startswith("transformers.models.")}

# Tiny models, one for each convention that a language model can have.
SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 0}
MODELS = {
    "Llama": {},  # halves
    "NanoChat": {},  # the inverse
    "GPTNeoX": {"rotary_pct": 0.5},  # leading channels
    "Glm": {"head_dim": 8},  # leading channels, neighbours, half of the table
    "Olmo2": {},  # float32 tables, cast back
    "Cohere": {},  # neighbours, float32
    "Gemma3nText": {
        "head_dim": 8,
        "num_hidden_layers": 2,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 2,
    },
    "GptOss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},  # an entry per pair
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
    },
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 32},  # sin first
    "RoFormer": {"rotary_value": True, "type_vocab_size": 1},  # a static method, values too
}


def model_of(name):
    config = {k: v for k, v in SIZES.items() if name != "GPTJ" or not k.startswith(("hidden", "num_"))} | MODELS[name]
    config = getattr(transformers, name.removesuffix("Text") + ("TextConfig" if name.endswith("Text") else "Config"))(
        **config
    )
    torch.manual_seed(0)
    for suffix in ("ForCausalLM", "Model"):
        kind = getattr(transformers, name.removesuffix("Text") + suffix, None)
        if kind is not None:
            return kind(config)
    raise AssertionError(name)


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same_bits(name):
    ids = torch.arange(14).reshape(2, 7) + 1  # 0 is padding
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(name).to(dtype).eval()

        def run(model=model):
            model.zero_grad()
            y = model(ids, attention_mask=torch.ones_like(ids))[0]
            y.float().square().mean().backward()
            return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

        expected = run()
        with rope_ext.patched(model) as report:
            assert report.replaced and all(e.uses == 2 for e in report.replaced) and not report.left_alone
            result = run()
        assert all(map(torch.equal, result, expected))


def found(entry):
    """The function that an entry of _known.json names."""
    parts = entry["seen"].split(".")
    value = importlib.import_module(".".join(parts[:4]))
    for name in parts[4:]:
        value = getattr(value, name)
    return value


def refuses(*args, **kwargs):
    raise AssertionError("an example went to the original")


@pytest.mark.skipif(not INSTALLED, reason="_known.json is of transformers 5.23.0")
@pytest.mark.parametrize("key", KNOWN)
def test_every_known_function_is_its_dialect(key):
    from rope_ext.integrations._fingerprint import fingerprint

    function, dialect = found(KNOWN[key]), _registry.dialects()[KNOWN[key]["dialect"]]
    assert fingerprint(function) == key
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for args, kwargs in dialect.examples(1, dtype):
            bound = dialect.bound and dialect.bound(args, kwargs, function(*args, **kwargs))
            result = dialect.call(refuses, "eager", *args, **kwargs)
            assert _proof._equal(result, function(*args, **kwargs), bound)


@pytest.mark.skipif(not INSTALLED, reason="_known.json is of transformers 5.23.0")
@pytest.mark.parametrize("key", KNOWN)
def test_gradients_of_every_known_function(key):
    """Bit-equal, except for a float32 result of 16-bit states: eager code rounds each term, rope_ext their sum."""
    function, dialect = found(KNOWN[key]), _registry.dialects()[KNOWN[key]["dialect"]]
    for dtype in (torch.float32, torch.bfloat16):
        for args, kwargs in dialect.examples(2, dtype):
            outputs = tree_flatten(function(*args, **kwargs))[0]
            expected, result = (
                grad(f, args, kwargs, states(function))
                for f in (function, lambda *a, **k: dialect.call(refuses, "eager", *a, **k))
            )
            rounded = dtype != torch.float32 and any(t is not None and t.dtype == torch.float32 for t in outputs)
            if dialect.bound is None and not rounded:
                assert torch.equal(result, expected)
            else:
                error = (result.float() - expected.float()).abs().max()
                assert error <= 3 * torch.finfo(dtype).eps * expected.float().abs().max()


def states(function):
    """Position of the first argument that is rotated."""
    names = {"q", "x", "xq", "query", "query_layer", "hidden_states", "tensor"}
    return next(i for i, name in enumerate(inspect.signature(function).parameters) if name in names)


def grad(function, args, kwargs, position):
    args = [t.clone() if isinstance(t, torch.Tensor) else t for t in args]
    args[position].requires_grad_()
    outputs = [t for t in tree_flatten(function(*args, **kwargs))[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    return torch.autograd.grad(outputs, args[position], directions)[0]
