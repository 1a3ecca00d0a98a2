"""Random configurations and random arguments: the right rotation, or one error of ours that says which key.

A configuration starts valid, with the rotation that it must give written beside it, and then loses or gains a few keys
and values. As dict, JSON and object it must say the same, errors included, and stay as it was.
By hand: ROPE_EXT_FUZZ=100000 pytest tests/test_config_fuzz.py, or python tests/test_config_fuzz.py 100000 [seed];
python tests/test_config_fuzz.py 1 SEED INDEX shows one case again.
"""

import copy
import decimal
import fractions
import json
import math
import os
import pickle
import random
import sys
import types
import warnings

import pytest
import torch

import rope_ext

pytestmark = pytest.mark.devices("cpu")
COUNT = int(os.environ.get("ROPE_EXT_FUZZ", 1500))
SEED = 13

SCHEDULES = {
    "default": ({}, {}),
    "linear": ({"factor": 4.0}, {"factor": 4.0}),
    "dynamic": ({"factor": 2.0}, {"factor": 2.0, "max_position": 4096}),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16, "mscale": 0.7},
        {"factor": 4.0, "original_max_position": 1024, "beta_fast": 16, "mscale": 0.7},
    ),
    "longrope": (
        {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "original_max_position_embeddings": 512, "factor": 8.0},
        {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "original_max_position": 512, "factor": 8.0},
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512},
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 512},
    ),
    "proportional": ({"partial_rotary_factor": 0.5, "factor": 2.0}, {"partial_rotary_factor": 0.5, "factor": 2.0}),
}
NUMBERS = [0, 1, -1, 2, 64, 0.0, -0.5, 0.25, 1.0, 7.5, 1e-320, 1e308, 1e39, 10**9, 10**400, 2**63]
ODD = [None, True, False, math.nan, math.inf, -math.inf, "", "linear", "10000", "64", [], [1], [1.0] * 32, {}]
ODD += [{"a": 1}, {"full_attention": {"rope_theta": 1e4}}, [None], ["x"], [math.nan] * 32, [1.0] * 31 + [math.nan]]
NO_JSON = [
    (),
    (1, 2),
    1j,
    b"1",
    decimal.Decimal(2),
    fractions.Fraction(1, 3),
    fractions.Fraction(10**400),
    torch.ones(2),
]
NO_JSON += [torch.tensor(2.0), object, len, {1, 2}, range(3)]


def words(text):
    return text.split()


KEYS = words(
    "rope_theta rotary_emb_base rope_parameters rope_scaling partial_rotary_factor rotary_pct rotary_emb_fraction "
    "head_dim hidden_size num_attention_heads rotary_dim qk_rope_head_dim max_position_embeddings model_type layer_types "
    "original_max_position_embeddings per_layer_config global_head_dim rope_local_base_freq global_rope_theta "
    "kv_channels local_rope_theta compress_rope_theta layer_rope_theta rope_scaling_layers use_scaled_rope alibi "
    "use_dynamic_ntk rotary_scaling_factor position_embedding_type rope_tehta yarn_factor relation_bias_embed_dim "
    "memory_attention_hidden_size memory_attention_rope_theta default_rope_type num_hidden_layers torch_dtype head_dimm "
    "text_config n_embd n_head rope_pct use_mem_rope relation_bias_theta"
)
INNER = words(
    "rope_type type rope_theta factor original_max_position_embeddings partial_rotary_factor attention_factor beta_fast "
    "beta_slow mscale mscale_all_dim truncate short_factor long_factor low_freq_factor high_freq_factor alpha "
    "short_mscale long_mscale mrope_section mrope_interleaved xdrope_section full_attention beta_fastt finetuned "
    "attn_factor"
)
MODEL_TYPES = words(
    "llama qwen2_vl qwen3_vl_text ernie4_5_vl_moe_text gpt_neox gptj glm phi gemma3_text olmo3 pixtral gpt_oss "
    "hunyuan_vl_text deepseek_v4 minimax_m3_vl_text no_such_model"
)
ADVERSE = {
    "type": ["linear", "yarn", "su", "mrope", "xdrope", "spiral", "default", "dynamic", "longrope", "llama3"],
    "rope_type": ["linear", "yarn", "mrope", "spiral", "default", "axial", "proportional", "ntk"],
    "model_type": MODEL_TYPES,
    "layer_types": [["full_attention", "sliding_attention"], ["factor"]],
    "per_layer_config": [{"0": {"head_dim": 32}}, {"1": 5}, {"x": {}}, {"0": {"head_dim": "x"}}],
    "mrope_section": [[8, 12, 12], [16, 16], [16, 16, 0], [-1, 17, 16], [10**9, 1, 1]],
    "position_embedding_type": ["rope", "rotary", "absolute", "alibi"],
}


def valid(choose):
    """(configuration, the rotation it must give)."""
    kind = choose.choice(list(SCHEDULES))
    inner, expected = SCHEDULES[kind]
    base = choose.choice([1e4, 500000, 1234567.0])
    head = choose.choice([{"head_dim": 64}, {"hidden_size": 512, "num_attention_heads": 8}, {"kv_channels": 64}])
    rope, config = copy.deepcopy(inner), {**head, "max_position_embeddings": 4096}
    (rope if choose.random() < 0.5 else config)["rope_theta"] = base
    if kind != "default" or choose.random() < 0.5:
        rope[choose.choice(["type", "rope_type"])] = kind
    if rope:
        config[choose.choice(["rope_scaling", "rope_parameters"])] = rope
    if kind in ("default", "linear", "dynamic", "llama3") and choose.random() < 0.4:
        config[choose.choice(["partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"])] = 0.25
        expected = expected | {"rotary_dim": 16}
    for name, value in (("rope_scaling", None), ("torch_dtype", "bfloat16"), ("use_scaled_rope", False)):
        if choose.random() < 0.3:
            config.setdefault(name, value)
    schedule = {"dynamic": "dynamic_ntk"}.get(kind, kind)
    return config, rope_ext.RotaryEmbedding(64, base=base, schedule=schedule, **expected)


def some_value(choose, name, is_json):
    if name in ADVERSE and choose.random() < 0.7:
        return choose.choice(ADVERSE[name])
    return choose.choice(NUMBERS + ODD + ([] if is_json else NO_JSON))


def mutate(config, choose, is_json):
    for _ in range(choose.randint(1, 3)):
        ropes = [v for k, v in config.items() if k in ("rope_scaling", "rope_parameters") and isinstance(v, dict)]
        where, names = (choose.choice(ropes), INNER) if ropes and choose.random() < 0.5 else (config, KEYS)
        name = choose.choice(list(where)) if where and choose.random() < 0.5 else choose.choice(names)
        if choose.random() < 0.15:
            where.pop(name, None)
        else:
            where[name] = copy.deepcopy(some_value(choose, name, is_json))


def outcome(make):
    """(a RotaryEmbedding, the warnings) or (the text of an error of ours, the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = make()
        except (ValueError, TypeError) as error:
            assert str(error).startswith("rope_ext: "), error
            assert " must " in str(error) and ", got " in str(error), error
            found = f"{type(error).__name__}: {error}"
    assert all(str(w.message).startswith("rope_ext: ") for w in caught)
    return found, sorted(str(w.message) for w in caught)


def check_rotation(rope):
    """The frequencies are finite and of the length that rope states; its repr and its pickle give an equal value."""
    assert rope.inv_freq.isfinite().all() and math.isfinite(rope.attention_scaling) and rope.attention_scaling > 0
    assert rope.inv_freq.shape[-1] == rope.rotary_dim // 2 <= rope.head_dim // 2
    again = eval(repr(rope), {"RotaryEmbedding": rope_ext.RotaryEmbedding})
    assert again == rope == pickle.loads(pickle.dumps(rope)) and hash(again) == hash(rope)
    assert torch.equal(again.inv_freq, rope.inv_freq)


def check_config(seed, index, *, show=False):
    choose = random.Random(f"{seed} {index}")
    config, expected = valid(choose)
    read = rope_ext.RotaryEmbedding.from_config
    is_valid, is_json = index % 8 == 0, index % 4 != 1
    if not is_valid:
        mutate(config, choose, is_json)
    layer_type = choose.choice([None] * 6 + ["full_attention", "sliding_attention", 5, []])
    layer_type = None if is_valid else layer_type
    before = repr(config)
    if show:
        print(before, layer_type)
    found = outcome(lambda: read(config, layer_type))
    if show:
        print(found)
    assert repr(config) == before
    assert outcome(lambda: read(types.SimpleNamespace(**config), layer_type)) == found
    if is_json:
        assert outcome(lambda: read(json.loads(json.dumps(config)), layer_type)) == found
    if is_valid:
        assert found == (expected, []), (found, expected)
    if not isinstance(found[0], str):
        check_rotation(found[0])


def check_constructor(seed, index, *, show=False):
    choose = random.Random(f"{seed} {index} constructor")
    schedule = choose.choice([*SCHEDULES, "ntk", "axial", "warped", "spiral"])
    parameters = copy.deepcopy(SCHEDULES.get(schedule, ({}, {}))[1])
    schedule = {"dynamic": "dynamic_ntk"}.get(schedule, schedule)
    keywords = {"head_dim": 64, "schedule": schedule, "precision": choose.choice(["exact", "hf"]), **parameters}
    names = words("head_dim base rotary_dim schedule pair_axis precision factor alpha axes alternate divide axis_order")
    names += ["seqlen", "dtype", "max_position", "attention_factor"]
    names += [name for _, parameters in SCHEDULES.values() for name in parameters]
    for _ in range(choose.randint(0, 3)):
        keywords[choose.choice(names)] = copy.deepcopy(choose.choice(NUMBERS + ODD + NO_JSON))
    if show:
        print(keywords)
    found, _ = outcome(lambda: rope_ext.RotaryEmbedding(**keywords))
    if show:
        print(found)
    if not isinstance(found, str):
        check_rotation(found)


def run(count, seed=SEED, first=0, show=False):
    for check in (check_config, check_constructor):
        for index in range(first, first + count):
            try:
                check(seed, index, show=show)
            except BaseException as error:
                raise AssertionError(f"{check.__name__}({seed}, {index}): {error!r}") from error


def test_random_configurations_and_arguments():
    run(COUNT)


if __name__ == "__main__":
    numbers_given = [int(text) for text in sys.argv[1:]]
    run(numbers_given[0], *numbers_given[1:], show=len(numbers_given) == 3)
