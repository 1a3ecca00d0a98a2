"""Calls of RotaryEmbedding.from_config: configurations of models, and those with keys removed, added or changed."""

import copy
import json
import math
from types import SimpleNamespace

from calls import Call, Unknown, odd_value

import rope_ext

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
BASE = {**HEADS, "rope_theta": 1e4}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LAYERS = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def rope(**keywords):
    return rope_ext.RotaryEmbedding(**({"head_dim": 16} | keywords))


# configuration, layer_type, what it says
MODELS = [
    ({**HEADS, "model_type": "llama", "rope_theta": 5e5}, None, rope(base=5e5)),
    ({**BASE, "rope_scaling": {"type": "linear", "factor": 2.0}}, None, rope(schedule="linear", factor=2.0)),
    (
        {**BASE, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        None,
        rope(schedule="dynamic_ntk", factor=2.0, max_position=256),
    ),
    (
        {
            **BASE,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        None,
        rope(schedule="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64),
    ),
    (
        {
            **BASE,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7},
        },
        None,
        rope(schedule="yarn", factor=4.0, original_max_position=64, mscale=0.7),
    ),
    (
        {**BASE, "original_max_position_embeddings": 64, "rope_scaling": {"type": "longrope", **LONG}},
        None,
        rope(schedule="longrope", max_position=256, original_max_position=64, **LONG),
    ),
    (
        {**HEADS, "model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 25000},
        None,
        rope(base=25000, rotary_dim=4),
    ),
    ({"model_type": "gptj", "n_embd": 64, "n_head": 4, "rotary_dim": 8}, None, rope(rotary_dim=8)),
    ({**BASE, "partial_rotary_factor": 0.5, "head_dim": None}, None, rope(rotary_dim=8)),
    (
        {**BASE, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        None,
        rope(pair_axis=[0, 0, 1, 1, 1, 2, 2, 2]),
    ),
    (
        {**HEADS, "rope_parameters": LAYERS},
        "full_attention",
        rope(base=1e6, schedule="proportional", partial_rotary_factor=0.25),
    ),
]
KEYS = sorted(
    {key for config, *_ in MODELS for part in (config, *config.values()) if type(part) is dict for key in part}
)
KEYS += ["rotary_emb_fraction", "use_scaled_rope", "alibi", "beta_fast", "attention_factor", "truncate", "rope_ratio"]


def draw_from_config(r, memory):
    config, layer_type, expected = r.choice(MODELS)
    config, changes = copy.deepcopy(config), r.choice([0, 1, 1, 2, 3])
    for _ in range(changes):
        part = r.choice([config, *(v for v in config.values() if type(v) is dict)])
        key = r.choice(list(part) or KEYS)
        what = r.random()
        if what < 0.2:
            part.pop(key, None)
        else:
            key = r.choice(KEYS) if what < 0.4 else key
            part[key] = r.choice([odd_value(r), odd_value(r), odd_value(r), {"factor": 2.0}, "2", [math.nan] * 8])
    keywords = {"config": config}
    if layer_type is not None or r.random() < 0.05:
        keywords["layer_type"] = layer_type if r.random() < 0.9 else odd_value(r)
    changes += keywords.get("layer_type") is not layer_type
    if r.random() < 0.2:
        keywords["precision"] = "hf" if r.random() < 0.8 else odd_value(r)
    changes += "precision" in keywords
    call = FromConfig("rope_ext.RotaryEmbedding.from_config", rope_ext.RotaryEmbedding.from_config, keywords)
    call.rotation = None if changes else expected
    return call


class FromConfig(Call):
    """The frequencies are finite; a dict, an object with its items as attributes and its JSON agree."""

    def is_valid(self):
        return None if self.rotation is None else True

    def run(self, arguments):
        self.found = self.read(arguments)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def read(self, arguments):
        try:
            return self.function(**arguments)
        except Exception as error:
            return error

    def expected(self, arguments):
        if self.rotation is None:
            raise Unknown
        return self.rotation

    def after(self, arguments, result, shadow):
        for seqlen in (None, 10**6):
            found = result.frequencies(seqlen)
            if not (found.inv_freq.isfinite().all() and math.isfinite(found.attention_scaling)):
                return f"{result} has {found}"
        config = arguments["config"]
        if not isinstance(config, dict):
            return None
        others = {"an object": lambda: SimpleNamespace(**config), "JSON": lambda: json.loads(json.dumps(config))}
        for name, form in others.items():
            try:
                config = form()
            except (TypeError, ValueError):  # a key or value that has no such form
                continue
            if (got := self.read({**arguments, "config": config})) != result:
                return f"{result} from the dict, {got!r} from {name}"
        return None
