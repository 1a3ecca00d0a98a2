"""precision="hf" and from_config against transformers itself, bit for bit: frequencies, and cos and sin of its modules.

Only the pinned release is a specification; it runs here with random weights, or none.
"""

import copy
import functools
import importlib
import logging
import math
import re
from pathlib import Path

import pytest
import torch

import rope_ext

transformers = pytest.importorskip("transformers")
if transformers.__version__ != "5.23.0":
    pytest.skip(f"compares with transformers 5.23.0, found {transformers.__version__}", allow_module_level=True)

ROPE_INIT_FUNCTIONS = importlib.import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS

pytestmark = [pytest.mark.devices("cpu"), pytest.mark.usefixtures("one_thread")]
logging.getLogger("transformers").setLevel(logging.ERROR)

POSITIONS = (0, 1, 4095, 131071, 1_000_000)
MODELS = Path(transformers.__file__).parent / "models"
MODULE = re.compile(r"^class (\w+)\(.*?\):(.*?)(?=^class |^def |^@|\Z)", re.M | re.S)
METHOD = re.compile(r"    def (compute_(?:default|axial)_rope_parameters)\(\s*(?:self,\s*)?config: (?:\"|')?(\w+)")


def hidden_functions():
    """{name of a class: (its module, the function of its frequencies, its configuration)} of all models."""
    found = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        text = path.read_text()
        if "_rope_parameters(" not in text:
            continue
        for name, body in MODULE.findall(text):
            method = METHOD.search(body)
            if method:
                init = re.search(r"def __init__\(\s*self,\s*config: (?:\"|')?(\w+)", body)
                where = f"transformers.models.{path.parent.name}.{path.stem}"
                found[name] = where, method[1], init[1] if init else method[2]
    return found


CLASSES = hidden_functions()

# Where the class of the annotation is the whole model's, or its default head does not fit its own sections
# (glm, qwen: the checkpoints have other numbers).
CONFIGS = {
    "BltRotaryEmbedding": ("BltLocalEncoderConfig", {}),
    "CohereCompassRotaryEmbedding": (
        "CohereCompassTextConfig",
        {"rope_parameters": {"full_attention": {"rope_theta": 50000.0}, "sliding_attention": None}},
    ),
    "DeepseekOcr2VisionRotaryEmbedding": ("DeepseekOcr2VisionEncoderConfig", {}),
    "Emu3RotaryEmbedding": ("Emu3TextConfig", {}),
    "GlmAsrRotaryEmbedding": ("GlmAsrEncoderConfig", {}),
    "MiniMaxM3VLRotaryEmbedding": ("MiniMaxM3VLTextConfig", {}),
    "MuseGlimmerTextRotaryEmbedding": ("MuseGlimmerTextConfig", {}),
    "MuseSparkTextRotaryEmbedding": ("MuseSparkTextConfig", {}),
    "Step3p7RotaryEmbedding": ("Step3p7TextConfig", {}),
    "VoxtralRealtimeRotaryEmbedding": ("VoxtralRealtimeTextConfig", {}),
    "DiaRotaryEmbedding": ("DiaDecoderConfig", {}),
    "Nemotron3DiarizationRotaryEmbedding": ("Nemotron3DiarizationAudioConfig", {}),
    "PPDocLayoutV2PositionRelationEmbedding": ("PPDocLayoutV2ReadingOrderConfig", {}),
    "Qwen2VLRotaryEmbedding": ("Qwen2VLTextConfig", {}),
    "Qwen2_5_VLRotaryEmbedding": ("Qwen2_5_VLTextConfig", {}),
    "Qwen2_5OmniRotaryEmbedding": ("Qwen2_5OmniTextConfig", {}),
    "Qwen3OmniMoeRotaryEmbedding": ("Qwen3OmniMoeTalkerCodePredictorConfig", {}),
    "Qwen3OmniMoeThinkerTextRotaryEmbedding": ("Qwen3OmniMoeTextConfig", {"head_dim": 128}),
    "PaddleOCRRotaryEmbedding": ("PaddleOCRTextConfig", {}),
    "T5GemmaRotaryEmbedding": ("T5GemmaModuleConfig", {}),
    "Glm4MoeRotaryEmbedding": ("Glm4MoeConfig", {"head_dim": 128}),
    "Glm4vTextRotaryEmbedding": ("Glm4vTextConfig", {"partial_rotary_factor": 0.5}),
    "Glm4vMoeTextRotaryEmbedding": ("Glm4vMoeTextConfig", {"head_dim": 128}),
    "GlmImageTextRotaryEmbedding": ("GlmImageTextConfig", {"partial_rotary_factor": 0.5}),
    "Qwen4ExpTextRotaryEmbedding": ("Qwen4ExpTextConfig", {"partial_rotary_factor": 0.25}),
}
# Classes that are not compared, and why.
LEFT_OUT = {
    "EfficientLoFTRRotaryEmbedding": "a grid over the whole width of all heads: partial_rotary_factor 4",
}


@functools.cache
def config_of(name):
    where, _, annotated = CLASSES[name]
    config_name, keywords = CONFIGS.get(name, (annotated, {}))
    module = importlib.import_module(where.replace(".modeling_", ".configuration_"))
    return (getattr(module, config_name, None) or getattr(transformers, config_name))(**keywords)


def layer_types_of(config):
    rope = getattr(config, "rope_parameters", None) or {}
    return [name for name, value in rope.items() if isinstance(value, dict)] or [None]


def test_every_class_is_compared_or_left_out_for_a_reason():
    assert len(CLASSES) == 219 and set(LEFT_OUT) <= set(CLASSES) and set(CONFIGS) <= set(CLASSES)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in LEFT_OUT])
def test_frequencies_of_every_class(name):
    """Default configurations, as object and as dict."""
    where, method, _ = CLASSES[name]
    config, function = config_of(name), getattr(getattr(importlib.import_module(where), name), method)
    for layer_type in layer_types_of(config):
        rope = getattr(config, "rope_parameters", None) or {}
        kind = (rope if layer_type is None else rope[layer_type]).get("rope_type", "default")
        compute, keywords, asked = ROPE_INIT_FUNCTIONS.get(kind, function), {}, config
        if layer_type is not None:
            keywords = {"device": torch.device("cpu"), "layer_type": layer_type}
            if compute is function and getattr(config, "is_heterogeneous", False):
                asked = per_layer(config, layer_type)
        expected, scaling = compute(asked, **keywords)
        for form in (config, config.to_dict()):
            ours = rope_ext.RotaryEmbedding.from_config(form, layer_type, precision="hf")
            assert torch.equal(by_pair(ours), in_our_order(name, expected)) and ours.attention_scaling == scaling


def per_layer(config, layer_type):
    try:
        return config.per_layer_config[layer_type]
    except ValueError:
        return config


def by_pair(rope):
    """(pairs,): which axis a pair follows is the business of the test of cos and sin."""
    inv_freq = rope.inv_freq
    return inv_freq if inv_freq.dim() == 1 else inv_freq.sum(0)[0]


def in_our_order(name, inv_freq):
    """Their frequencies, one per pair. Several axes share a tensor; Ernie permutes here, and back in forward."""
    if name.startswith("Ernie4_5_VLMoeText"):
        height_and_width = inv_freq[:44].unflatten(0, (2, 22)).T.flatten()
        return torch.cat((height_and_width, inv_freq[44:]))
    if name.startswith("Kimi"):
        return inv_freq.repeat_interleave(2)
    axes = {"compute_axial_rope_parameters": 2}.get(CLASSES[name][1], 1)
    axes = {
        "MiniMaxM3VLVisionRotaryEmbedding": 3,
        "PixtralVisionRotaryEmbedding": 1,
        "EomtDinov3RotaryEmbedding": 2,
    }.get(name, axes)
    return inv_freq.repeat(axes)


# ---- ROPE_INIT_FUNCTIONS ----

SHORT, LONG = [1.0 + i / 50 for i in range(48)], [1.0 + i * i / 20 for i in range(48)]
SCALED = {
    "linear": [{"factor": 4.0}, {"factor": 3}, {"factor": 8.0, "partial_rotary_factor": 0.5}],
    "dynamic": [{"factor": 2.0}, {"factor": 3.7}, {"factor": 4, "partial_rotary_factor": 0.5}],
    "yarn": [
        {"factor": 4.0, "original_max_position_embeddings": 32768},
        {
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
        {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 0.5},
        {"factor": None, "original_max_position_embeddings": 4096, "beta_fast": 4.0, "beta_slow": 2.0},
        {"factor": 16.0, "original_max_position_embeddings": 8192, "attention_factor": 1.1, "mscale": 0.7},
        {"factor": 0.5, "original_max_position_embeddings": 8192, "partial_rotary_factor": 0.5},
        {"factor": 8.0, "original_max_position_embeddings": 6, "beta_fast": 1, "beta_slow": 1},  # a ramp of no width
    ],
    "longrope": [
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 4096},
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 4096, "factor": 16.0},
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 4096, "attention_factor": 1.2},
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 262144},  # factor below 1
    ],
    "llama3": [
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        {"factor": 32, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192},
        {"factor": 16.0, "low_freq_factor": 0.7, "high_freq_factor": 1.3, "original_max_position_embeddings": 2048},
    ],
    "proportional": [
        {"partial_rotary_factor": 0.25},
        {"partial_rotary_factor": 0.3, "factor": 8.0},
        {"partial_rotary_factor": 1.0},
        {"factor": 2},
    ],
}


def test_every_key_of_rope_init_functions_is_compared():
    assert set(SCALED) == set(ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize("base", [10000, 500000.0, 1234567.0])
@pytest.mark.parametrize("kind", list(SCALED))
def test_rope_init_functions(kind, base):
    for parameters in SCALED[kind]:
        rope = {"rope_type": kind, "rope_theta": base, **parameters}
        config = transformers.LlamaConfig(
            hidden_size=3072, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope
        )
        ours = rope_ext.RotaryEmbedding.from_config(config, precision="hf")
        for seqlen in (None, 100, 4096, 4097, 131072, 131073, 700001):
            # positions.max() + 1, as its modules call it
            length = None if seqlen is None else torch.tensor(seqlen)
            expected, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
            inv_freq, attention_scaling = ours.frequencies(seqlen)
            assert torch.equal(inv_freq, expected) and attention_scaling == scaling


# ---- cos and sin of the modules ----

# Unmodified configurations from the hub, some of transformers 4: [class of the configuration], keys, layer type.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
HEADS = {"hidden_size": 2048, "num_attention_heads": 16}
GEMMA_3 = {
    "model_type": "gemma3_text",
    **HEADS,
    "head_dim": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
CHECKPOINTS = {
    "llama 2": ("LlamaConfig", {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32}),
    "llama 3.1": (
        "LlamaConfig",
        {
            **HEADS,
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        },
    ),
    "llama linear": (
        "LlamaConfig",
        {**HEADS, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "llama dynamic": (
        "LlamaConfig",
        {
            **HEADS,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
    ),
    "mistral": ("MistralConfig", {**HEADS, "head_dim": 128, "rope_theta": 1000000.0}),
    "qwen 2.5 yarn": (
        "Qwen2Config",
        {
            **HEADS,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
    ),
    "qwen 3": ("Qwen3Config", {**HEADS, "head_dim": 128, "rope_theta": 1000000, "rope_scaling": None}),
    "qwen 3 next": (
        "Qwen3NextConfig",
        {**HEADS, "head_dim": 256, "rope_theta": 10000000, "partial_rotary_factor": 0.25},
    ),
    "gemma 3 global": ("Gemma3TextConfig", GEMMA_3, "full_attention"),
    "gemma 3 local": ("Gemma3TextConfig", GEMMA_3, "sliding_attention"),
    "modernbert global": (
        "ModernBertConfig",
        {"hidden_size": 768, "num_attention_heads": 12, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        "full_attention",
    ),
    "modernbert local": (
        "ModernBertConfig",
        {"hidden_size": 768, "num_attention_heads": 12, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        "sliding_attention",
    ),
    "olmo 3 global": (
        "Olmo3Config",
        {
            "model_type": "olmo3",
            **HEADS,
            "rope_theta": 500000,
            "max_position_embeddings": 65536,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
        "full_attention",
    ),
    "phi 2": (
        "PhiConfig",
        {**HEADS, "partial_rotary_factor": 0.4, "hidden_size": 2560, "num_attention_heads": 32, "rope_theta": 10000.0},
    ),
    "phi 3": (
        "Phi3Config",
        {
            "hidden_size": 3072,
            "num_attention_heads": 32,
            "rope_theta": 10000.0,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
    "phi 4 mini": (
        "Phi3Config",
        {
            "hidden_size": 3072,
            "num_attention_heads": 24,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
    "phi 3.5 moe": (
        "PhimoeConfig",
        {
            "hidden_size": 3072,
            "num_attention_heads": 32,
            "rope_theta": 10000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": SHORT,
                "long_factor": LONG,
                "short_mscale": 1.243163121016122,
                "long_mscale": 1.243163121016122,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "deepseek v3": (
        "DeepseekV3Config",
        {
            "hidden_size": 7168,
            "num_attention_heads": 128,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "rope_theta": 10000,
            "max_position_embeddings": 163840,
            "rope_scaling": {**DEEPSEEK, "original_max_position_embeddings": 4096},
        },
    ),
    "deepseek v2": (
        "DeepseekV2Config",
        {
            "hidden_size": 5120,
            "num_attention_heads": 128,
            "qk_rope_head_dim": 64,
            "rope_theta": 10000,
            "max_position_embeddings": 163840,
            "rope_scaling": {
                **DEEPSEEK,
                "mscale": 0.707,
                "mscale_all_dim": 0.5,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            "hidden_size": 2880,
            "num_attention_heads": 64,
            "head_dim": 64,
            "rope_theta": 150000,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "qwen 2 vl": (
        "Qwen2VLTextConfig",
        {
            "model_type": "qwen2_vl",
            **HEADS,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
    ),
    "qwen 3 vl": (
        "Qwen3VLTextConfig",
        {
            "model_type": "qwen3_vl_text",
            **HEADS,
            "head_dim": 128,
            "rope_theta": 5000000,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        },
    ),
    "glm 4": ("Glm4Config", {**HEADS, "head_dim": 128, "partial_rotary_factor": 0.5, "rope_theta": 10000.0}),
    "glm 4.1v": (
        "Glm4vTextConfig",
        {
            "model_type": "glm4v_text",
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]},
        },
    ),
    "gpt-neox": (
        "GPTNeoXConfig",
        {"model_type": "gpt_neox", **HEADS, "rotary_pct": 0.25, "rotary_emb_base": 10000},
    ),
    "stablelm": (
        "StableLmConfig",
        {"hidden_size": 2560, "num_attention_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000},
    ),
    "cohere": ("CohereConfig", {"hidden_size": 8192, "num_attention_heads": 64, "rope_theta": 8000000.0}),
    "olmo": ("OlmoConfig", {**HEADS, "rope_theta": 10000.0}),
    "falcon": ("FalconConfig", {**HEADS, "rope_theta": 500042}),
    "minimax m2": (
        "MiniMaxM2Config",
        {"hidden_size": 3072, "num_attention_heads": 48, "head_dim": 128, "rotary_dim": 64, "rope_theta": 5000000},
    ),
    "hunyuan": (
        "HunYuanDenseV1Config",
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "head_dim": 128,
            "rope_theta": 10000.0,
            "max_position_embeddings": 32768,
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0},
        },
    ),
    "mimo v2 flash": (
        "MiMoV2FlashConfig",
        {
            "model_type": "mimo_v2_flash",
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "head_dim": 192,
            "rope_parameters": {
                "full_attention": {"rope_theta": 5000000.0},
                "sliding_attention": {"rope_theta": 10000.0},
            },
        },
        "full_attention",
    ),
    "gemma 4 global": (
        "Gemma4TextConfig",
        {
            "model_type": "gemma4_text",
            **HEADS,
            "head_dim": 256,
            "global_head_dim": 512,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
            },
        },
        "full_attention",
    ),
    "ernie 4.5 vl": (
        "Ernie4_5_VLMoeTextConfig",
        {
            "model_type": "ernie4_5_vl_moe_text",
            "hidden_size": 2560,
            "num_attention_heads": 20,
            "rope_parameters": {"rope_theta": 500000, "rope_type": "default", "mrope_section": [22, 22, 20]},
        },
    ),
}


def rotary_class_of(config):
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    text = [name for name, (where, _, _) in CLASSES.items() if where == module.__name__]
    names = [name for name in text if "Vision" not in name] if "Vision" not in type(config).__name__ else text
    assert len(names) == 1, names
    return names[0]


def positions_of(axes):
    """(1, tokens), or (axes, 1, tokens) with other positions on each axis."""
    positions = torch.tensor([POSITIONS])
    return positions if axes == 1 else torch.stack([positions.roll(axis, -1) for axis in range(axes)])


def check_cos_sin(config, name, layer_type=None, raw=None):
    """cos and sin of the module of this class, and ours, spread over the channels in one of the pairings there are."""
    module = getattr(importlib.import_module(CLASSES[name][0]), name)
    rope = rope_ext.RotaryEmbedding.from_config(config, layer_type, precision="hf")
    if raw is not None:
        for form in (raw, config.to_dict()):
            assert rope == rope_ext.RotaryEmbedding.from_config(form, layer_type, precision="hf")
    axes = len(rope.inv_freq) if rope.inv_freq.dim() == 3 else 1
    for tokens in (3, len(POSITIONS)):  # within the length of the training, and beyond
        positions = positions_of(axes)[..., :tokens].contiguous()
        if axes > 1 and tokens == 3:
            positions = positions.sort(0).values.clamp(max=4095)
        is_tower = CLASSES[name][1] == "compute_axial_rope_parameters"
        theirs = positions[:, 0].T if is_tower else positions
        theirs = positions.permute(1, 2, 0) if name == "Gemma4VisionRotaryEmbedding" else theirs
        # a new one each time: with dynamic NTK it remembers the longest sequence it has seen
        keywords = {} if layer_type is None else {"layer_type": layer_type}
        expected = module(config)(torch.zeros(1, tokens, 1), theirs, **keywords)
        for ours, cos_or_sin in zip(
            rope(positions), expected if isinstance(expected, tuple) else (expected.real, expected.imag)
        ):
            cos_or_sin = cos_or_sin.reshape(1, tokens, -1)
            if not isinstance(expected, tuple):
                # torch.polar takes sines one by one, Tensor.sin() many at once by other code: an ulp of values up to 1
                assert (ours - cos_or_sin).abs().max() <= 2**-23 * rope.attention_scaling
                continue
            assert any(torch.equal(spread, cos_or_sin) for spread in spread_over_channels(name, ours))


def spread_over_channels(name, per_pair):
    if name == "Gemma4VisionRotaryEmbedding":  # halves of the channels of each axis
        return [torch.cat([block for axis in per_pair.chunk(2, -1) for block in (axis, axis)], -1)]
    return [per_pair, torch.cat((per_pair, per_pair), -1), per_pair.repeat_interleave(2, -1)]


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_cos_and_sin_of_checkpoints(name):
    """From the object, the dict of transformers 5, and the config.json."""
    config_name, raw, *layer_type = CHECKPOINTS[name]
    config = getattr(transformers, config_name).from_dict(copy.deepcopy(raw))
    check_cos_sin(config, rotary_class_of(config), *(layer_type or [None]), raw=raw)


# Modules that are called in another way.
OTHER_FORWARD = {
    "EfficientLoFTRRotaryEmbedding": LEFT_OUT["EfficientLoFTRRotaryEmbedding"],
    "EomtDinov3RotaryEmbedding": "makes its positions of an image",
    "MusicFlamingoRotaryEmbedding": "makes its positions of time stamps",
    "PPDocLayoutV2PositionRelationEmbedding": "no rotation: a bias made of sines of distances",
    "HunYuanVLRotaryEmbedding": "channels of a pair follow different axes: refused",
    "LagunaRotaryEmbedding": "the default configuration has no rotation for a type of its layers",
    "MellumRotaryEmbedding": "the default configuration has no rotation for a type of its layers",
    "ZayaRotaryEmbedding": "the default configuration has no rotation for a type of its layers",
}


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in OTHER_FORWARD])
def test_cos_and_sin_of_every_class(name):
    config = config_of(name)
    for layer_type in layer_types_of(config):
        check_cos_sin(config, name, layer_type)


@pytest.mark.parametrize("kind", ["gptj", "codegen"])
def test_tables_of_gptj_and_codegen(kind):
    """A function makes these tables, sin before cos; the configuration says nothing about frequencies."""
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    raw = {"model_type": kind, "n_embd": 128, "n_head": 4, "rotary_dim": 8}
    config = transformers.AutoConfig.for_model(**raw)
    sin, cos = module.create_sinusoidal_positions(max(POSITIONS) + 1, 8).chunk(2, -1)
    for form in (raw, config, config.to_dict()):
        rope = rope_ext.RotaryEmbedding.from_config(form, precision="hf")
        for ours, expected in zip(rope(torch.tensor(POSITIONS)), (cos, sin)):
            assert rope.head_dim == 32 and torch.equal(ours, expected[list(POSITIONS)])


def test_cos_and_sin_of_dinov3():
    """Images have float coordinates from -1 to 1, a whole revolution each; rope_ext takes radians."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

    config = transformers.DINOv3ViTConfig()
    expected = dinov3.DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 64, 96))
    height, width = 64 // config.patch_size, 96 // config.patch_size
    coordinates = dinov3.get_patches_center_coordinates(height, width, torch.float32, torch.device("cpu"))
    rope = rope_ext.RotaryEmbedding.from_config(config, precision="hf")
    for ours, theirs in zip(rope((2 * math.pi * coordinates).T[:, None]), expected):
        assert torch.equal(ours[0].repeat(1, 2), theirs)


def test_truncate_of_a_layer_type_is_not_read():
    """transformers does not read it either. test_from_config.py tests the warning."""
    yarn = {**YARN, "rope_theta": 500000.0, "truncate": False}
    config = transformers.Olmo3Config(
        **HEADS, rope_parameters={"full_attention": yarn, "sliding_attention": {"rope_theta": 1e4}}
    )
    check_cos_sin(config, "Olmo3RotaryEmbedding", "full_attention", raw=config.to_dict())


@pytest.mark.parametrize("name", ["LlavaConfig", "Qwen2VLConfig", "Gemma3Config"])
def test_a_model_of_several_parts_is_asked_for_one(name):
    config = getattr(transformers, name)()
    for form in (config, config.to_dict()):
        with pytest.raises(
            ValueError, match=r"^rope_ext: config must be the part .* got one with \w+_config, \w+_config$"
        ):
            rope_ext.RotaryEmbedding.from_config(form)
    rope_ext.RotaryEmbedding.from_config(config.text_config, "full_attention" if name == "Gemma3Config" else None)


# ---- nulls and missing keys: what transformers makes of them ----

COMMON = {"model_type": "llama", "hidden_size": 3072, "num_attention_heads": 32, "head_dim": 96}
COMMON |= {"max_position_embeddings": 131072, "rope_theta": 500000.0, "original_max_position_embeddings": 4096}
OPTIONAL = {"partial_rotary_factor": 1.0, "attention_factor": 1.1, "mscale": 1.0, "mscale_all_dim": 0.5}
OPTIONAL |= {"beta_fast": 16, "beta_slow": 2, "truncate": True}
OF_KIND = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, **OPTIONAL},
    "longrope": {**SCALED["longrope"][1], "attention_factor": 1.2},
    "llama3": SCALED["llama3"][0],
    "proportional": {"factor": 8.0, "partial_rotary_factor": 0.25},
}


def without(kind):
    """Configurations with one key null or missing: inside, outside, or both."""
    inside = {"rope_type": kind, "rope_theta": 500000.0, **OF_KIND[kind]}
    if kind in ("yarn", "longrope", "llama3"):
        inside["original_max_position_embeddings"] = 4096
    for key in inside:
        for value in (None, "missing"):
            changed = {k: value if k == key else v for k, v in inside.items() if k != key or value is None}
            if key != "rope_type" or value is None:  # a factor without a rope_type: refused here, passed over there
                yield {**COMMON, "rope_scaling": changed}
                yield {**{k: v for k, v in COMMON.items() if k != key}, "rope_scaling": changed}
    for key in ("rope_theta", "head_dim", "original_max_position_embeddings", "partial_rotary_factor"):
        for others in (inside, {k: v for k, v in inside.items() if k != key}):
            yield {**COMMON, key: None, "rope_scaling": others}
    yield {**COMMON, "rope_scaling": None, "rope_parameters": None}


def theirs_or_none(raw):
    """The rotation of a Llama in transformers for the configuration; None where it raises an error."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    try:
        module = LlamaRotaryEmbedding(transformers.LlamaConfig.from_dict(copy.deepcopy(raw)))
        module(torch.zeros(1, 1), torch.tensor([[0]]))  # LongRoPE reads original_max_position_embeddings here
        return module.inv_freq, module.attention_scaling
    except Exception:
        return None


@pytest.mark.parametrize("kind", list(OF_KIND))
def test_nulls_and_missing_keys(kind):
    """A number where transformers has one, the same; an error of ours where it raises, whatever it raises."""
    for raw in without(kind):
        expected = theirs_or_none(raw)
        if expected is None:
            with pytest.raises((ValueError, TypeError), match=r"^rope_ext: \w+ must "):
                rope_ext.RotaryEmbedding.from_config(raw, precision="hf")
        else:
            ours = rope_ext.RotaryEmbedding.from_config(raw, precision="hf")
            assert torch.equal(ours.inv_freq, expected[0]) and ours.attention_scaling == expected[1], raw


@pytest.mark.parametrize("name", ["Qwen3Config", "GemmaConfig", "DeepseekV3Config", "GPTJConfig", "Mistral4Config"])
def test_head_dim_of_the_class_where_the_configuration_has_none(name):
    """{"hidden_size": 1024, ...} of a Qwen 3 has heads of 128 channels, of whatever width the model is."""
    config = getattr(transformers, name)().to_dict()
    for key in ("head_dim", "kv_channels", "qk_rope_head_dim", "rotary_dim"):
        config.pop(key, None)
    config = {k: 2 * v if k in ("hidden_size", "n_embd") else v for k, v in config.items()}
    expected = rope_ext.RotaryEmbedding.from_config(getattr(transformers, name).from_dict(dict(config)))
    assert rope_ext.RotaryEmbedding.from_config(config) == expected
    if name == "Mistral4Config":
        assert rope_ext.RotaryEmbedding.from_config({**config, "qk_rope_head_dim": 64}) == expected


def test_every_key_of_transformers_that_is_named_like_a_rotation_is_known():
    """Read, unrelated, or refused for a reason: rotations whose frequencies are not those of a head."""
    from rope_ext._config import names as keys

    refused = {
        "num_spatial_rope_pairs_per_axis",  # ESMFold 2: two rotations with bases of their own, side by side
        "num_uid_rope_pairs",
        "spatial_rope_base_frequency",
        "uid_rope_base_frequency",
        "swa_rope_theta",
        "swa_qk_rope_head_dim",  # Dots 3 and Step 3.7: of layers that rope_parameters has dicts for
        "partial_rotary_factors",
        "scaling",  # time series
    }
    known = {*keys.READ, *keys.UNRELATED, *keys._HARMLESS, *keys._ROTATES_WHERE, "layer_rope_theta"}
    found = set()
    for path in MODELS.glob("*/configuration_*.py"):
        found |= set(re.findall(r"^    (\w+):|kwargs\.(?:pop|get)\(\s*\"(\w+)\"", path.read_text(), re.M))
    names = {name for pair in found for name in pair if name}
    like = {name for name in names if keys._LIKE_A_ROTATION.search(name) or keys._SCALED.search(name)}
    assert len(names) > 2000 and len(like) > 20
    assert like - known <= refused, like - known - refused
