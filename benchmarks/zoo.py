"""Every model type of the installed transformers that rotates, small and random: configuration, class and inputs.

Nothing is downloaded. The default configuration of a type is shrunk by the names of its fields; `zoo_overrides.py` holds
what that gets wrong, type by type.
"""

import functools
import importlib
import inspect
import pathlib
import re

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel  # noqa: F401  AutoConfig: so that the mappings exist
from transformers.models.auto import configuration_auto, modeling_auto
from zoo_overrides import CLASSES, CONFIGS, INPUTS

ROTARY = re.compile(r"rotary|rotate_half|rot_emb|freqs_cis|RoPE|(?<![a-z])rope")
HIDDEN, HEADS, HEAD_DIM, VOCAB, BATCH, TOKENS = 128, 4, 32, 160, 2, 12
# What a field of a configuration becomes, by its name; the first pattern that matches counts.
SIZES = [
    (r"num_hidden_layers|n_layers?|num_layers|depth|.*encoder_layers|.*decoder_layers|.*num_layers|.*_num_hidden_layers", 2),
    (r"qk_rope_head_dim", 16),
    (r"qk_head_dim|head_dim|.*_head_dim|attention_head_dim|kv_channels|d_head|linear_head_dim", HEAD_DIM),
    (r"num_attention_heads|num_heads|n_heads?|.*attention_heads|linear_num_.*heads|index_n_heads|linear_num_heads", HEADS),
    (r"hidden_size|d_model|n_embd|embed_dim|.*hidden_size|.*embed_dim|lru_width|output_dim|.*_hidden_dim|.*_rank", HIDDEN),
    (r"intermediate_size|.*intermediate_size|n_inner|.*ffn_dim|ffn_hidden_size|mlp_dim|.*intermediate_dim", 2 * HIDDEN),
    (r"(n_routed|num_local|num|moe_num)_experts", 8),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"first_k_dense_replace", 1),
    (r".*vocab_size|codebook_size", VOCAB),
    (r"index_topk", 8),
]
NOT_SIZES = re.compile(r"hidden_size_per_layer_input_scale|.*embedding_rank")
PER_LAYER = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
FIRST_SPECIAL = 120  # input_ids are below, and above all of SPECIAL


def model_types():
    """The types whose modeling file speaks of rotary embeddings, in the order of the alphabet."""
    models = pathlib.Path(transformers.__file__).parent / "models"
    rotary = {path.parent.name for path in models.glob("*/modeling_*.py") if ROTARY.search(path.read_text("utf-8"))}
    module_of = configuration_auto.model_type_to_module_name
    return sorted(name for name in configuration_auto.CONFIG_MAPPING if module_of(name) in rotary)


def small_config(model_type):
    """A configuration of a few thousand parameters per layer."""
    config = configuration_auto.CONFIG_MAPPING[model_type]
    default = config()
    fields = _shrunk(default.to_dict(), {})
    for path, value in CONFIGS.get(model_type, {}).items():
        *parents, name = path.split(".")
        functools.reduce(lambda inner, key: inner[key], parents, fields)[name] = value
    return config(**fields)


def _shrunk(fields, ids):
    small = {}
    kept = _kept_layers(fields)
    for name, value in fields.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id", "rope_parameters"):
            value = _shrunk(value, ids)
        elif isinstance(value, list) and kept and len(value) == kept[0] and kept[0] > 3:
            value = [value[layer] for layer in kept[1]]
        elif kept and name in PER_LAYER:
            value = len(kept[1])
        elif isinstance(value, int) and not isinstance(value, bool):
            value = _small_number(name, value, fields, ids)
        small[name] = value
    if small.get("rope_parameters"):
        small["rope_parameters"] = _small_rope(small["rope_parameters"], small)
    return small


def _kept_layers(fields):
    """(number of layers, those to keep): one of each kind, at least two. None where the layers are not counted."""
    total = next((fields[name] for name in PER_LAYER if isinstance(fields.get(name), int)), None)
    if not total:
        return None
    lists = [value for value in fields.values() if isinstance(value, list) and len(value) == total and total > 3]
    kinds = [repr([value[layer] for value in lists]) for layer in range(total)]
    kept = [layer for layer in range(total) if kinds[layer] not in kinds[:layer]][:4]
    kept += [layer for layer in range(total) if layer not in kept][: max(0, 2 - len(kept))]
    return total, sorted(kept)


def _small_number(name, value, fields, ids):
    if re.search(r"(?<!layer)_(token_id|token_index|id)$", name) and value >= 0:
        return SPECIAL.get(name, ids.setdefault(value, FIRST_SPECIAL + len(ids)))
    if re.fullmatch(r".*(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)", name):
        heads = fields.get(name.replace("key_value", "attention"), fields.get("num_attention_heads"))
        return value if value == 1 else HEADS if value == heads else HEADS // 2
    if value and not NOT_SIZES.fullmatch(name):
        for pattern, size in SIZES:
            if re.fullmatch(pattern, name):
                return min(value, size)
    return value


def _small_rope(rope, fields):
    """rope_parameters, with sections that add up to the pairs of the small head."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: _small_rope(value, fields) if value else value for kind, value in rope.items()}
    if isinstance(sections := rope.get("mrope_section"), list):
        head_dim = fields.get("head_dim") or HEAD_DIM
        pairs = int(head_dim * rope.get("partial_rotary_factor", 1)) // 2
        small = [max(1, pairs * size // sum(sections)) for size in sections]
        small[0] += pairs - sum(small)
        rope = {**rope, "mrope_section": small}
    return rope


HEADS_OF_MODELS = [  # the first mapping that knows the configuration names the class
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_CTC_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
]


def model_class(model_type, config):
    """The class to build: with a head for language where there is one."""
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    if model_type in CLASSES:
        return getattr(module, CLASSES[model_type])
    for name in HEADS_OF_MODELS:
        mapping = getattr(modeling_auto, name)
        if type(config) in mapping.keys():
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    for found in vars(module).values():
        if inspect.isclass(found) and issubclass(found, PreTrainedModel) and found.config_class is type(config):
            if "forward" in vars(found):
                return found
    raise LookupError(f"no model class for {type(config).__name__}")


def build(model_type, dtype):
    """A model in evaluation mode whose parameters depend on nothing but its type; none of them is zero or one."""
    config = small_config(model_type)
    made = model_class(model_type, config)
    torch.manual_seed(0)
    model = made._from_config(config, dtype=dtype).eval()
    size = sum(p.numel() for p in model.parameters())
    if size > 100_000_000:
        raise MemoryError(f"{size / 1e6:.0f} M parameters")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # zeros would hide the rotation from the result
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype), alpha=0.1)
    return model


def inputs(model_type, model, dtype):
    """Arguments of the forward, random, by their names in its signature."""
    torch.manual_seed(1)
    if model_type in INPUTS:
        found = INPUTS[model_type](model)
    else:
        signature = inspect.signature(model.forward).parameters
        needed = [n for n, p in signature.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
        wanted = dict.fromkeys([*needed, model.main_input_name, "input_ids"])
        found = {name: MAKERS[name](model.config) for name in wanted if name in signature and name in MAKERS}
        missing = [name for name in needed if name not in found]
        if missing:
            raise LookupError(f"no maker for {', '.join(missing)}")
        if "decoder_input_ids" in signature and model.config.is_encoder_decoder:
            found["decoder_input_ids"] = _ids(model.config)
    return {name: t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for name, t in found.items()}


def _ids(config):
    return torch.randint(3, FIRST_SPECIAL, (BATCH, TOKENS))


def _field(config, *names, default=None):
    """The first of these fields that the configuration, or else its vision or audio part, has."""
    parts = [config, *(getattr(config, key, None) for key in ("vision_config", "audio_config", "backbone_config"))]
    for part in parts:
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return default


def _pixels(config):
    size = _field(config, "image_size", "crop_size", default=32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(BATCH, _field(config, "num_channels", "in_channels", "in_chans", default=3), height, width)


def _patches(config):
    patch, channels = _field(config, "patch_size", default=14), _field(config, "in_channels", "num_channels", default=3)
    return torch.randn(32, channels * _field(config, "temporal_patch_size", default=1) * patch * patch)


def _grid(config):
    return torch.tensor([[1, 4, 4], [1, 4, 4]])


def _features(config):
    return torch.randn(BATCH, 64, _field(config, "num_mel_bins", "feature_size", "input_size", default=80))


MAKERS = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "hidden_states": _patches,
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "input_features": _features,
    "input_values": lambda config: torch.randn(BATCH, 1, 4000),
    "inputs_embeds": lambda config: torch.randn(BATCH, TOKENS, config.hidden_size),
    "attention_mask": lambda config: torch.ones(BATCH, TOKENS, dtype=torch.long),
}
