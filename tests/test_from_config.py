"""RotaryEmbedding.from_config without transformers: the config.json of every release, and the errors.

That the result is the model's rotation is tested against transformers in test_transformers_frequencies.py.
"""

import json
import math
import re
import types
import warnings

import pytest
import torch

import rope_ext

pytestmark = pytest.mark.devices("cpu")
HEADS = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 4096}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONG = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
NESTED = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "no_rope": None,
}


def rope(head_dim=128, base=10000.0, **keywords):
    return rope_ext.RotaryEmbedding(head_dim, base=base, **keywords)


READ = [
    # transformers 4 and 5, and a base in several places
    ({**HEADS, "rope_theta": 5e5}, rope(base=5e5)),
    ({**HEADS, "rope_theta": 5e5, "rope_scaling": None}, rope(base=5e5)),
    ({**HEADS, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, rope(base=5e5)),
    ({**HEADS, "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_theta": 5e5}}, rope(base=5e5)),
    ({**HEADS, "model_type": "llama"}, rope()),
    ({"head_dim": 64, "rope_theta": 1e4, **HEADS}, rope(64)),
    ({"head_dim": None, "rope_theta": 1e4, **HEADS}, rope()),
    ({"model_type": "gptj", "n_embd": 4096, "n_head": 16, "rotary_dim": 64}, rope(256, rotary_dim=64)),
    (
        {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 25000, **HEADS},
        rope(base=25000, rotary_dim=32),
    ),
    ({**HEADS, "rope_theta": 1e4, "partial_rotary_factor": 0.5}, rope(rotary_dim=64)),
    ({**HEADS, "rope_theta": 1e4, "rope_pct": 0.25}, rope(rotary_dim=32)),
    ({**HEADS, "rope_theta": 1e4, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}, rope(64)),
    # schedules
    ({**HEADS, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}}, rope(schedule="linear", factor=2)),
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2}},
        rope(schedule="dynamic_ntk", factor=2, max_position=4096),
    ),
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1}},
        rope(schedule="ntk", alpha=1000.0),
    ),
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 512}},
        rope(schedule="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position=512),
    ),
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {**YARN, "truncate": False, "beta_fast": None, "mscale": 0.7}},
        rope(schedule="yarn", factor=4, original_max_position=1024, truncate=False, mscale=0.7),
    ),
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {**YARN, "factor": None}},
        rope(schedule="yarn", max_position=4096, original_max_position=1024),
    ),
    (
        {**HEADS, "rope_theta": 1e4, "original_max_position_embeddings": 99, "rope_scaling": {"type": "su", **LONG}},
        rope(schedule="longrope", max_position=4096, original_max_position=99, **LONG),
    ),
    (
        {
            **HEADS,
            "rope_theta": 1e4,
            "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.3, "factor": 2},
        },
        rope(schedule="proportional", partial_rotary_factor=0.3, factor=2),
    ),
    # axes
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        rope(pair_axis=[0] * 16 + [1] * 24 + [2] * 24),
    ),
    (
        {**HEADS, "rope_theta": 1e4, "rope_scaling": {"mrope_interleaved": True, "mrope_section": [62, 1, 1]}},
        rope(pair_axis=[0, 1, 2] + [0] * 61),
    ),
    ({**HEADS, "rope_parameters": {"rope_type": "axial", "rope_theta": 100}}, rope(base=100, schedule="axial")),
    (
        {**HEADS, "model_type": "pixtral", "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}},
        rope(schedule="axial", divide=True),
    ),
]


@pytest.mark.parametrize(("config", "expected"), READ)
def test_reads(config, expected):
    """A dict and an object give the same rotation."""
    assert rope_ext.RotaryEmbedding.from_config(config) == expected
    assert rope_ext.RotaryEmbedding.from_config(types.SimpleNamespace(**config)) == expected


def test_reads_one_of_several_layer_types():
    config = {**HEADS, "rope_parameters": NESTED, "global_head_dim": 256}
    read = rope_ext.RotaryEmbedding.from_config
    assert read(config, "sliding_attention") == rope()
    expected = rope(256, base=1e6, schedule="proportional", partial_rotary_factor=0.25)
    assert read(config, "full_attention") == expected
    per_layer = {"layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {"01": {"head_dim": 256}}}
    assert read({**HEADS, "rope_parameters": NESTED, **per_layer}, "full_attention") == expected
    gemma3 = {**HEADS, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"type": "linear", "factor": 8}}
    assert read(gemma3, "full_attention") == rope(base=1e6, schedule="linear", factor=8)
    assert read(gemma3, "sliding_attention") == rope()
    modernbert = {**HEADS, "global_rope_theta": 160000.0, "local_rope_theta": 1e4}
    assert read(modernbert, "full_attention") == rope(base=160000.0)
    assert read(modernbert, "sliding_attention") == rope()
    assert read({**HEADS, "rope_theta": 1e4, "layer_types": ["full_attention"]}, "full_attention") == rope()


def test_reads_truncate_of_a_layer_type_as_written_or_as_transformers_does():
    """transformers 5.23 looks for "truncate" beside the layer types only."""
    nested = {"full_attention": {**YARN, "rope_theta": 1e4, "truncate": False}}
    exact, hf = (
        rope_ext.RotaryEmbedding.from_config(
            {**HEADS, "rope_parameters": nested}, "full_attention", precision=precision
        )
        for precision in ("exact", "hf")
    )
    assert dict(exact.parameters)["truncate"] is False and dict(hf.parameters)["truncate"] is True


def test_reads_the_scaling_of_phi_3_5_moe():
    """The code of the model takes the long factors beyond the training, transformers 5.23 never does."""
    scaling = {
        "type": "longrope",
        **LONG,
        "short_mscale": 1.2,
        "long_mscale": 1.3,
        "original_max_position_embeddings": 9,
    }
    for precision, long in (("exact", LONG["long_factor"]), ("hf", LONG["short_factor"])):
        config = {**HEADS, "rope_theta": 1e4, "rope_scaling": scaling}
        read = rope_ext.RotaryEmbedding.from_config(config, precision=precision)
        parameters = {**LONG, "long_factor": long, "original_max_position": 9, "attention_factor": (1.2, 1.3)}
        assert read == rope(schedule="longrope", max_position=4096, precision=precision, **parameters)


BASE = {**HEADS, "rope_theta": 1e4}
ERRORS = [
    (
        {**BASE, "rope_scaling": {"rope_type": "spiral"}},
        "rope_type must be one of axial, default, dynamic, linear, llama3, longrope, proportional, yarn, got 'spiral'",
    ),
    (
        {**BASE, "rope_scaling": {"rope_type": "linear", "type": "yarn"}},
        "type must agree with rope_type 'linear', got 'yarn'",
    ),
    (
        {**BASE, "rope_scaling": {"rope_type": "linear"}},
        "factor must be in the config when rope_type is 'linear', got None",
    ),
    ({**BASE, "rope_scaling": {"factor": 8.0}}, "factor must be absent when rope_type is 'default', got 8.0"),
    (
        {**BASE, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "low_freq_factor must be in the config when rope_type is 'llama3', got None",
    ),
    (
        {**BASE, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
        "long_factor must be in the config when rope_type is 'longrope', got None",
    ),
    (
        {**BASE, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "short_factor must have rotary_dim / 2 = 64 numbers, got 1",
    ),
    ({**BASE, "rope_parameters": {"rope_theta": 5.0}}, "rope_theta must agree with rope_parameters' 5.0, got 10000.0"),
    (
        {**HEADS, "rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"rope_theta": 6.0}},
        "rope_scaling must agree with rope_parameters {'rope_theta': 5.0}, got {'rope_theta': 6.0}",
    ),
    (
        {**HEADS, "rope_scaling": {"rope_type": "default"}},
        "config must have rope_theta, got one with hidden_size, max_position_embeddings, num_attention_heads, "
        "rope_scaling",
    ),
    (
        {**HEADS, "model_type": "bert"},
        "config must have rope_parameters, rope_scaling or rope_theta, got a config of 'bert' without it",
    ),
    (
        {"rope_theta": 1e4},
        "config must have head_dim, or hidden_size and num_attention_heads, got one with rope_theta",
    ),
    (
        {"head_dim": 64, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "config must have max_position_embeddings, got one with head_dim, rope_scaling, rope_theta",
    ),
    (
        {"text_config": BASE, "vision_config": {}},
        "config must be the part with the attention layers, got one with text_config, vision_config",
    ),
    ({**BASE, "partial_rotary_factor": 4.0}, "partial_rotary_factor must be in 0 to 1, got 4.0"),
    (
        {**BASE, "partial_rotary_factor": 0.5, "rotary_dim": 32},
        "rotary_dim must agree with partial_rotary_factor 0.5, got 32",
    ),
    (
        {**BASE, "rope_scaling": {"mrope_section": [1, 2, 3]}},
        "mrope_section must sum to rotary_dim / 2 = 64, got [1, 2, 3]",
    ),
    (
        {**BASE, "model_type": "qwen2_vl", "rope_scaling": {"mrope_section": [16, 24, 24], "mrope_interleaved": True}},
        "mrope_interleaved must agree with model_type, got True",
    ),
    (
        {
            **BASE,
            "model_type": "hunyuan_vl_text",
            "rope_scaling": {"type": "xdrope", "alpha": 1000.0, "xdrope_section": [16, 16, 16, 16]},
        },
        "mrope_section must give both channels of a pair one axis, got HunYuan-VL's, which does not (build tables of width rotary_dim)",
    ),
    (
        {**HEADS, "rope_parameters": NESTED},
        "layer_type must be one of full_attention, sliding_attention, no_rope, got None",
    ),
]


@pytest.mark.parametrize(("config", "message"), ERRORS)
def test_errors_name_the_key(config, message):
    with pytest.raises(ValueError, match=f"^rope_ext: {re.escape(message)}$"):
        rope_ext.RotaryEmbedding.from_config(config)


# ---- nulls: absent where transformers reads them so (test_transformers_frequencies.py), an error elsewhere ----

PHI = {**HEADS, "model_type": "phi", "rope_theta": 1e4}
NULLS = [
    ({**HEADS, "rope_theta": None}, "rope_theta must be a number, got None"),
    ({**HEADS, "model_type": "llama", "rope_theta": None}, "rope_theta must be a number, got None"),
    ({**HEADS, "rope_parameters": {"rope_theta": None}}, "rope_theta must be a number, got None"),
    ({**HEADS, "rope_theta": 1e4, "rope_scaling": {"rope_theta": None}}, "rope_theta must be a number, got None"),
    ({**HEADS, "model_type": "gpt_neox", "rotary_emb_base": None}, "rotary_emb_base must be a number, got None"),
    ({**HEADS, "rope_theta": 1e6, "rope_local_base_freq": None}, "rope_local_base_freq must be a number, got None"),
    ({**BASE, "rope_parameters": {"rope_type": None}}, "rope_type must be a str, got None"),
    ({**BASE, "rope_scaling": {"type": None}}, "type must be a str, got None"),
    (
        {**BASE, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": None}},
        "partial_rotary_factor must be a number, got None",
    ),
    ({**PHI, "partial_rotary_factor": None}, "partial_rotary_factor must be a number, got None"),
    ({**PHI, "rope_parameters": {"partial_rotary_factor": None}}, "partial_rotary_factor must be a number, got None"),
    ({**BASE, "model_type": "qwen3", "head_dim": None}, "head_dim must be an int for model_type 'qwen3', got None"),
]
NULLS_WITH_VALUE = [
    (
        {**BASE, "rope_scaling": {"rope_type": "proportional", "factor": None}},
        "factor must be in the config when rope_type is 'proportional', got None",
    ),
    (
        {**BASE, "rope_scaling": {**YARN, "original_max_position_embeddings": None}},
        "original_max_position_embeddings must be in the config when rope_type is 'yarn', got None",
    ),
    (
        {**BASE, "rope_scaling": YARN, "original_max_position_embeddings": None},
        "original_max_position_embeddings must be in the config when rope_type is 'yarn', got None",
    ),
    (
        {**BASE, "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 1024}},
        "factor must be in the config when rope_type is 'yarn', got None",
    ),
    (
        {**HEADS, "model_type": "gpt_oss", "rope_theta": 1e4},
        "config must have rope_parameters or rope_scaling, got a config of 'gpt_oss' without it",
    ),
    (
        {**BASE, "rope_scaling": {"type": "mrope"}},
        "mrope_section must be in the config when rope_type is 'mrope', got None",
    ),
]


def forms(config):
    return config, json.loads(json.dumps(config)), types.SimpleNamespace(**config)


@pytest.mark.parametrize(("config", "message"), NULLS + NULLS_WITH_VALUE)
def test_a_null_without_meaning_is_an_error(config, message):
    for form in forms(config):
        with pytest.raises(ValueError, match=f"^rope_ext: {re.escape(message)}$"):
            rope_ext.RotaryEmbedding.from_config(form)


def test_nulls_that_count_as_absent():
    absent = dict.fromkeys(("rope_parameters", "head_dim", "partial_rotary_factor", "rotary_dim", "layer_types"))
    absent |= dict.fromkeys(("use_dynamic_ntk", "rotary_scaling_factor", "alibi", "rope_of_tomorrow"))
    nulls = dict.fromkeys(("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "beta_fastt"))
    yarn = {"original_max_position": 1024, "max_position": 4096}
    for config, expected in (
        ({**BASE, **absent}, rope()),
        ({**BASE, **absent, "rope_scaling": None}, rope()),
        ({**HEADS, "rope_theta": None, "rope_parameters": {"rope_theta": 5e5}}, rope(base=5e5)),
        ({**BASE, "rope_scaling": {**YARN, "factor": None, **nulls}}, rope(schedule="yarn", **yarn)),
        # as bool(null): transformers has .get("truncate", True)
        (
            {**BASE, "rope_scaling": {**YARN, "truncate": None}},
            rope(schedule="yarn", factor=4, original_max_position=1024, truncate=False),
        ),
        ({**BASE, "rope_scaling": {"mrope_section": None}}, rope()),
    ):
        for form in forms(config):
            assert rope_ext.RotaryEmbedding.from_config(form) == expected


# ---- keys that could change the rotation ----

KNOWN = [
    ({"rotary_emb_base": 25000, "rotary_emb_fraction": 0.5}, rope(base=25000, rotary_dim=64)),
    ({"rope_freq_constant": 10000, "rope_max_length": 4096}, rope()),  # OpenELM
    ({"rotary_embedding_base": 10000, "position_embeddings_type": "rotary"}, rope()),  # Wav2Vec2-Conformer
    ({"rope_theta": 1e4, "use_scaled_rope": False, "use_dynamic_ntk": False, "alibi": False}, rope()),
    ({"rope_theta": 1e4, "rotary_scaling_factor": 1.0, "use_rotary": True, "rope_interleave": True}, rope()),
    ({"rope_theta": 1e4, "routed_scaling_factor": 2.5, "logits_scaling": 8.0, "property_of": 1}, rope()),
    ({"rope_theta": 1e4, "layer_rope_theta": [1e4, 0, 1e4]}, rope()),
    ({"rope_theta": 1e4, "position_embedding_type": "rope"}, rope()),
    ({"model_type": "gptj", "rope_theta": 1e4}, rope(rotary_dim=64)),
]


@pytest.mark.parametrize(("keys", "expected"), KNOWN)
def test_reads_keys_of_public_models(keys, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in forms({**HEADS, **keys}):
            assert rope_ext.RotaryEmbedding.from_config(form) == expected


UNKNOWN = [
    *[(name, True) for name in ("use_scaled_rope", "use_dynamic_ntk", "alibi", "apply_rotary_to_values")],
    *[(name, False) for name in ("use_rotary", "use_rope", "rotary", "enable_rope")],
    *[(name, 2.0) for name in ("rotary_scaling_factor", "rope_scaling_factor", "rope_ratio", "yarn_factor", "scaling")],
    *[
        (name, 4)
        for name in ("ntk_alpha", "rope_thetaa", "swa_rope_theta", "rotary_base", "context_scaling", "rotary_ndims")
    ],
    *[(name, 64) for name in ("head_dimm", "original_max_position_embedding")],
    *[("position_embedding_type", name) for name in ("alibi", "yarn", "learned")],
    ("rotary_emb_scale_base", 512),
    ("rope_paramters", {"rope_type": "linear", "factor": 2}),
    ("layer_rope_theta", [1e4, 1e6]),
]


@pytest.mark.parametrize(("name", "value"), UNKNOWN)
def test_a_key_that_could_change_the_rotation_is_never_ignored(name, value):
    for form in forms({**BASE, name: value}):
        with pytest.raises(ValueError, match=f"^rope_ext: {name} must .*, got "):
            rope_ext.RotaryEmbedding.from_config(form)


@pytest.mark.parametrize(
    "name", ["beta_fastt", "betaslow", "attn_factor", "scaling_factor", "theta", "rotary_dim", "factr"]
)
def test_a_misspelt_key_of_rope_parameters(name):
    for key in ("rope_parameters", "rope_scaling"):
        for form in forms({**BASE, key: {**YARN, name: 7}}):
            with pytest.raises(ValueError, match=f"^rope_ext: {name} must be a key of rope_parameters .*, got 7$"):
                rope_ext.RotaryEmbedding.from_config(form)


def test_warns_of_keys_without_effect_and_models_without_rotation():
    """transformers warns too; a model that does not rotate as it is configured gets a warning as well."""
    nested = {"full_attention": {"rope_theta": 1e4}, "factor": 2.0}
    for config, message in (
        (
            {**BASE, "rope_scaling": {**YARN, "finetuned": True}},
            "rope_parameters must have keys .*, got 'finetuned': True",
        ),
        ({**BASE, "rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 4}}, "beta_fast has no effect where .*"),
        ({**BASE, "rope_parameters": {"attention_factor": 1.2}}, "attention_factor has no effect where .*, got 1.2"),
        ({**HEADS, "rope_parameters": nested}, "factor has no effect beside the layer types .*, got 2.0"),
        ({**BASE, "position_embedding_type": "absolute"}, "position_embedding_type must be 'rotary' .*"),
        ({**BASE, "use_mem_rope": False}, "use_mem_rope must be True .*"),
        (
            {**BASE, "rope_scaling": YARN, "rope_scaling_layers": [0], "num_hidden_layers": 2},
            "rope_scaling_layers must .*",
        ),
    ):
        for form in forms(config):
            with pytest.warns(UserWarning, match=f"^rope_ext: {message}$") as caught:
                rope_ext.RotaryEmbedding.from_config(form, "full_attention" if nested in config.values() else None)
            assert [w.filename for w in caught] == [__file__]


# ---- values ----

VALUES = [
    ({"rope_theta": "10000"}, TypeError, "rope_theta must be a number, got '10000'"),
    ({"rope_theta": True}, TypeError, "rope_theta must be a number, got True"),
    ({"rope_theta": math.nan}, ValueError, "rope_theta must be positive, got nan"),
    ({"rope_theta": math.inf}, ValueError, "rope_theta must be finite, got inf"),
    ({"rope_theta": {"full": 1e4}}, TypeError, "rope_theta must be a number, got {'full': 10000.0}"),
    ({"head_dim": 10**9}, ValueError, "head_dim must be at most 1048576, got 1000000000"),
    ({"head_dim": 64.0}, TypeError, "head_dim must be an int, got 64.0"),
    ({"head_dim": "64"}, TypeError, "head_dim must be an int, got '64'"),
    ({"head_dim": 0}, ValueError, "head_dim must be in 1 to 2 ** 40, got 0"),
    ({"num_attention_heads": 0}, ValueError, "num_attention_heads must be in 1 to 2 ** 40, got 0"),
    ({"num_attention_heads": 0, "head_dim": 64}, ValueError, "num_attention_heads must be in 1 to 2 ** 40, got 0"),
    (
        {"num_attention_heads": 1024},
        ValueError,
        "num_attention_heads must be at most the width of the model 512, got 1024",
    ),
    ({"hidden_size": "512"}, TypeError, "hidden_size must be an int, got '512'"),
    ({"hidden_size": [512]}, TypeError, "hidden_size must be an int, got [512]"),
    ({"partial_rotary_factor": True}, TypeError, "partial_rotary_factor must be a number, got True"),
    ({"partial_rotary_factor": math.nan}, ValueError, "partial_rotary_factor must be positive, got nan"),
    ({"model_type": ["llama"]}, TypeError, "model_type must be a str, got ['llama']"),
    ({"rope_scaling": "linear"}, TypeError, "rope_scaling must be a dict, got 'linear'"),
    ({"rope_scaling": ["linear", 2.0]}, TypeError, "rope_scaling must be a dict, got ['linear', 2.0]"),
    ({"rope_parameters": []}, TypeError, "rope_parameters must be a dict, got []"),
    ({"rope_scaling": 2.0}, TypeError, "rope_scaling must be a dict, got 2.0"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, TypeError, "factor must be a number, got '2'"),
    ({"rope_scaling": {"type": "linear", "factor": {"x": 2}}}, TypeError, "factor must be a number, got {'x': 2}"),
    ({"rope_scaling": {"type": 2, "factor": 2}}, TypeError, "type must be a str, got 2"),
    ({"rope_scaling": {"type": ["linear"], "factor": 2}}, TypeError, "type must be a str, got ['linear']"),
    (
        {"rope_scaling": {**YARN, "attention_factor": math.nan}},
        ValueError,
        "attention_factor must be positive, got nan",
    ),
    ({"rope_scaling": {**YARN, "attention_factor": -1}}, ValueError, "attention_factor must be positive, got -1"),
    ({"rope_scaling": {**YARN, "truncate": "false"}}, TypeError, "truncate must be True or False, got 'false'"),
    ({"rope_scaling": {"mrope_section": "16"}}, TypeError, "mrope_section must be a list of ints, got '16'"),
    (
        {"rope_scaling": {"mrope_section": [16.0, 24, 24]}},
        TypeError,
        "mrope_section must be a list of ints, got an entry 16.0",
    ),
    (
        {"max_position_embeddings": "9", "rope_scaling": {"type": "dynamic", "factor": 2}},
        TypeError,
        "max_position_embeddings must be a number, got '9'",
    ),
    (
        {"rope_scaling": {"type": "su", **LONG, "short_factor": [math.nan] * 64}},
        ValueError,
        "short_factor must be positive, got nan",
    ),
    (
        {"rope_scaling": {"type": "su", **LONG, "long_factor": [1.0] * 63 + [math.nan]}},
        ValueError,
        "long_factor must be positive, got nan",
    ),
    (
        {"rope_scaling": {"type": "su", **LONG, "long_factor": 2.0}},
        TypeError,
        "long_factor must be a list of numbers, got 2.0",
    ),
    # keys that contradict each other
    ({"head_dim": 64, "rotary_dim": 128}, ValueError, "rotary_dim must be even and in 2 to head_dim 64, got 128"),
    ({"global_rope_theta": 160000}, ValueError, "global_rope_theta must agree with rope_theta 10000.0, got 160000"),
    (
        {"partial_rotary_factor": 0.25, "rope_parameters": {"partial_rotary_factor": 0.5}},
        ValueError,
        "partial_rotary_factor must agree with rope_parameters' 0.5, got 0.25",
    ),
    (
        {"partial_rotary_factor": 0.25, "rotary_pct": 0.5},
        ValueError,
        "rotary_pct must agree with partial_rotary_factor 0.25, got 0.5",
    ),
    ({"rotary_emb_base": 500000}, ValueError, "rotary_emb_base must agree with rope_theta 10000.0, got 500000"),
]


@pytest.mark.parametrize(("keys", "kind", "message"), VALUES)
def test_invalid_values_are_refused(keys, kind, message):
    for form in (BASE | keys, types.SimpleNamespace(**BASE | keys)):
        with pytest.raises(kind, match=f"^rope_ext: {re.escape(message)}$"):
            rope_ext.RotaryEmbedding.from_config(form)


def test_per_layer_config_and_layer_types():
    read, nested = rope_ext.RotaryEmbedding.from_config, {**HEADS, "rope_parameters": NESTED}
    types_of_layers = {"layer_types": ["full_attention"]}
    for keys, layer_type, kind, message in (
        (
            {**types_of_layers, "per_layer_config": "x"},
            "full_attention",
            TypeError,
            "per_layer_config must be a dict, got 'x'",
        ),
        (
            {**types_of_layers, "per_layer_config": {"0": 5}},
            "full_attention",
            TypeError,
            "per_layer_config must hold dicts, got 5",
        ),
        ({"layer_types": "full"}, "full_attention", TypeError, "layer_types must be a list of str, got 'full'"),
        (
            {"rope_local_base_freq": 5e4},
            "sliding_attention",
            ValueError,
            "rope_local_base_freq must agree with rope_parameters' 10000.0, got 50000.0",
        ),
        ({}, ["full_attention"], TypeError, "layer_type must be a str, got ['full_attention']"),
    ):
        for form in (nested | keys, types.SimpleNamespace(**nested | keys)):
            with pytest.raises(kind, match=f"^rope_ext: {re.escape(message)}$"):
                read(form, layer_type)
    local = {
        **BASE,
        "model_type": "gemma3_text",
        "head_dim": 128,
        "rope_theta": 1e6,
        "layer_types": ["sliding_attention"],
    }
    assert read(local, "sliding_attention") == rope() and read(local) == rope(base=1e6)
    for form in forms({**nested, "global_head_dim": 256}):
        assert read(form, "full_attention").head_dim == 256
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    latent = {**HEADS, "head_dim": 512, "qk_rope_head_dim": 64, "rope_scaling": scaling}
    for form in forms({**latent, "rope_theta": 1e4, "compress_rope_theta": 160000.0}):  # DeepSeek-V4
        assert read(form, "main") == rope(512, rotary_dim=64)
        yarn = {"factor": 4.0, "original_max_position": 1024, "attention_factor": 1.0}
        assert read(form, "compress") == rope(512, base=160000.0, rotary_dim=64, schedule="yarn", **yarn)


@pytest.mark.parametrize("config", ["{}", b"", None, 5, [("rope_theta", 1e4)], {1, 2}, dict])
def test_an_invalid_config_is_refused(config):
    with pytest.raises(TypeError, match=r"^rope_ext: config must be a configuration object or a dict, got "):
        rope_ext.RotaryEmbedding.from_config(config)


def test_errors_of_layer_type():
    read = rope_ext.RotaryEmbedding.from_config
    for layer_type, message in (
        ("main", "layer_type must be one of full_attention, sliding_attention, no_rope, got 'main'"),
        ("no_rope", "layer_type must have a rotation, got 'no_rope', which has none"),
    ):
        with pytest.raises(ValueError, match=f"^rope_ext: {re.escape(message)}$"):
            read({**HEADS, "rope_parameters": NESTED}, layer_type)
    with pytest.raises(
        ValueError, match=r"^rope_ext: layer_type must be None for a config with one rotation, got 'main'$"
    ):
        read(BASE, "main")
    with pytest.raises(
        TypeError, match=r"^rope_ext: config must be .* a dict, got 'gpt2': .*AutoConfig\.from_pretrained"
    ):
        read("gpt2")


def test_errors_of_the_constructor():
    for keywords, kind, message in (
        ({"schedule": "spiral"}, ValueError, "schedule must be one of default, linear, ntk, "),
        ({"precision": "fp16"}, ValueError, "precision must be 'exact' or 'hf', got 'fp16'"),
        ({"factor": 2.0}, TypeError, "factor must be used with schedule 'linear', "),
        ({"schedule": "linear"}, TypeError, "factor must be given for schedule 'linear', got None"),
        (
            {"schedule": "linear", "factor": 1, "seqlen": 5},
            TypeError,
            "seqlen must be given to rope(positions, seqlen=...), rope.tables or rope.apply, got 5",
        ),
        ({"schedule": "linear", "factor": -1}, ValueError, "factor must be positive, got -1"),
        ({"schedule": "axial", "pair_axis": (0, 1, 0, 1)}, ValueError, "pair_axis must be None with schedule 'axial'"),
        ({"pair_axis": (0, 1)}, ValueError, "pair_axis must have 4 entries, got 2"),
        ({"rotary_dim": 4.0}, TypeError, "rotary_dim must be an int, got 4.0"),
    ):
        with pytest.raises(kind, match=f"^rope_ext: {re.escape(message)}"):
            rope_ext.RotaryEmbedding(8, **keywords)
    rope = rope_ext.RotaryEmbedding(8)
    for call, kind, message in (
        (lambda: rope.tables(-1), ValueError, "max_position must not be negative, got -1"),
        (lambda: rope.tables(2.0), TypeError, "max_position must be an int, got 2.0"),
        (lambda: rope.tables(2, dtype=torch.int32), TypeError, "dtype must be a floating-point dtype, got torch.int32"),
    ):
        with pytest.raises(kind, match=f"^rope_ext: {re.escape(message)}$"):
            call()


@pytest.mark.parametrize(
    "key",
    ["rope_type", "short_factor", "long_factor", "low_freq_factor", "beta_fast", "attention_factor", "mrope_section"],
)
def test_a_key_of_rope_parameters_at_the_top_level_is_an_error(key):
    for form in forms({**BASE, key: 8}):
        with pytest.raises(ValueError, match=f"^rope_ext: {key} must be inside rope_parameters or rope_scaling, got 8"):
            rope_ext.RotaryEmbedding.from_config(form)


@pytest.mark.parametrize(
    "config, message",
    [
        ({**BASE, "n_head": 16}, "n_head must agree with num_attention_heads 4, got 16"),
        ({**BASE, "n_embd": 100}, "n_embd must agree with hidden_size 512, got 100"),
        ({**BASE, "head_dim": 64, "attention_head_dim": 96}, "attention_head_dim must agree with head_dim 64, got 96"),
        ({**BASE, "compression_ratio": 0.5}, "compression_ratio must be 1 or absent for from_config, got 0.5"),
        ({**BASE, "rot_dim": 4}, "rot_dim must be a key that from_config knows"),
    ],
)
def test_keys_that_disagree_are_an_error(config, message):
    for form in forms(config):
        with pytest.raises(ValueError, match=f"^rope_ext: {re.escape(message)}"):
            rope_ext.RotaryEmbedding.from_config(form)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_scaling": {**LLAMA3, "rope_type": "lama3"}},
            "rope_type must be one of .* [(]is it llama3[?][)], got 'lama3'",
        ),
        (
            {"rope_scaling": {"rope_typ": "linear", "factor": 2.0}},
            "rope_typ must .* [(]is it rope_type[?][)], got 'linear'",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_frequency_factor": 1.0,
                    "high_freq_factor": 4.0,
                }
            },
            "low_frequency_factor must .* [(]is it low_freq_factor[?][)], got 1.0",
        ),
        ({"base": 5e5}, "base must be a key that from_config knows [(]is it rope_theta[?][)], got 500000.0"),
    ],
)
def test_the_error_names_the_misspelled_key(config, message):
    """And not the key that is missing for it."""
    for form in forms({**BASE, **config}):
        with pytest.raises(ValueError, match=f"^rope_ext: {message}"):
            rope_ext.RotaryEmbedding.from_config(form)
