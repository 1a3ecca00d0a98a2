"""Small models with random weights of every model type of the installed transformers that rotates.

Nothing is downloaded. The default configuration of a type is shrunk by the names of its fields; `overrides.py` corrects
the result for single types.
"""

import functools
import importlib
import inspect
import pathlib
import re

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import configuration_auto, modeling_auto

from tests.conformance.transformers.overrides import CLASSES, CONFIGS

ROTARY = re.compile(r"rotary|rotate_half|rot_emb|freqs_cis|RoPE|(?<![a-z])rope")
LARGEST = 100_000_000  # parameters
HIDDEN, HEADS, HEAD_DIM, VOCAB = 128, 4, 32, 256
# {pattern of the name of a field: its new value}; the first pattern that matches counts.
SIZES = [
    (re.compile(pattern), size)
    for pattern, size in {
        "num_filters|upsample_initial_channel|mamba_num_heads|base_channels": 32,
        "mamba_chunk_size|chunk_size": 16,
        "(.*_)?num_hidden_layers|.*num_layers|n_layers?|depth|.*encoder_layers|.*decoder_layers": 2,
        "qk_rope_head_dim|rotary_dim": 16,
        "(.*_)?head_dim|kv_channels|d_head": HEAD_DIM,
        "num_heads|n_heads?|.*attention_heads|linear_num_.*heads|index_n_heads|linear_num_heads": HEADS,
        ".*hidden_size|.*hidden_dim|.*embed_dim|d_model|n_embd|lru_width|output_dim|.*_rank": HIDDEN,
        "condition_dim|projection_dim|quantization_dim|embedding_size|adapter_(in|out)_dim": HIDDEN,
        "adapter_input_size|upsample_groups": HIDDEN,
        ".*intermediate_size|.*intermediate_dim|.*ffn_dim|n_inner|ffn_hidden_size|mlp_dim": 2 * HIDDEN,
        "(n_routed|num_local|num|moe_num)_experts": 8,
        "num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k": 2,
        "n_group|topk_group|num_expert_group|first_k_dense_replace": 1,
        ".*vocab_size|codebook_size|vocab_size_per_layer_input|.*vocab_size_base": VOCAB,
        "index_topk": 8,
        "index_kpool": 4,
        "num_queries": 10,
    }.items()
]
UNSET = {
    "head_dim": HEAD_DIM,
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "vocab_size": VOCAB,
}
STAGES = ("stage_names", "out_features", "out_indices")  # of backbones: computed from the number of layers
LISTED_LAYERS = re.compile(r".*(indexes|indices|_layers|_layer_ids)")
NOT_SIZES = re.compile(r"hidden_size_per_layer_input_scale|.*embedding_rank")
PER_LAYER = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
FIRST_SPECIAL = 200  # input_ids are below it, and above all ids of SPECIAL


class NoModel(LookupError):
    """The type is a part of other models and has no model that can be built or run alone."""


def model_types():
    """The types whose modeling file mentions rotary embeddings, in alphabetical order."""
    models = pathlib.Path(transformers.__file__).parent / "models"
    rotary = {path.parent.name for path in models.glob("*/modeling_*.py") if ROTARY.search(path.read_text("utf-8"))}
    module_of = configuration_auto.model_type_to_module_name
    return sorted(name for name in configuration_auto.CONFIG_MAPPING if module_of(name) in rotary)


def small_config(model_type):
    """A configuration of a few thousand parameters per layer."""
    config = configuration_auto.CONFIG_MAPPING[model_type]
    source = pathlib.Path(inspect.getfile(config)).with_name(_modeling(config).rpartition(".")[2] + ".py")
    fields = _shrunk(config().to_dict(), {}, "mrope_section" in source.read_text("utf-8"))
    for path, value in CONFIGS.get(model_type, {}).items():
        *parents, name = path.split(".")
        functools.reduce(lambda inner, key: inner[key], parents, fields)[name] = value
    return config(**fields)


def _modeling(config):
    return config.__module__.replace(".configuration_", ".modeling_")


def _shrunk(fields, ids, sections):
    small = {}
    kept = _kept_layers(fields)
    for name, value in fields.items():
        if name == "per_layer_config" and value:
            value = _small_layers(value, fields, kept[1])
        elif isinstance(value, dict) and name != "rope_parameters" and all(isinstance(key, str) for key in value):
            value = _shrunk(value, ids, sections)
        elif isinstance(value, list) and kept and len(value) == kept[0] and kept[0] > 3:
            value = [value[layer] for layer in kept[1]]
        elif kept and name in PER_LAYER:
            value = len(kept[1])
        elif name == "image_size" and type(value) is type(fields.get("patch_size")) is int:
            value = min(value, 16 * fields["patch_size"])
        elif isinstance(value, int) and not isinstance(value, bool):
            value = _small_number(name, value, fields, ids)
        elif name in STAGES and value and (isinstance(value[0], str) or name == "out_indices"):
            continue
        elif (
            isinstance(value, list) and kept and LISTED_LAYERS.fullmatch(name) and max(value, default=0) >= len(kept[1])
        ):
            value = list(range(len(kept[1])))[-len(value) :]
        small[name] = UNSET.get(name) if value is None else value
    if fields.get("qk_rope_head_dim"):
        if fields.get("head_dim") == fields["qk_rope_head_dim"]:
            small["head_dim"] = small["qk_rope_head_dim"]
        if "qk_head_dim" in fields:
            small["qk_head_dim"] = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]
    if small.get("rope_parameters"):
        small["rope_parameters"] = _small_rope(small["rope_parameters"], small, sections)
    return small


def _kept_layers(fields):
    """(number of layers, layers to keep): one of each kind, at least two. None if no field counts the layers."""
    total = next((fields[name] for name in PER_LAYER if isinstance(fields.get(name), int)), None)
    if not total:
        return None
    lists = [value for value in fields.values() if isinstance(value, list) and len(value) == total and total > 3]
    special = {int(layer): value for layer, value in (fields.get("per_layer_config") or {}).items()}
    kinds = [repr([special.get(layer), *(value[layer] for value in lists)]) for layer in range(total)]
    kept = [layer for layer in range(total) if kinds[layer] not in kinds[:layer]][:4]
    kept += [layer for layer in range(total) if layer not in kept][: max(0, 2 - len(kept))]
    return total, sorted(kept)


def _small_layers(layers, fields, kept):
    """per_layer_config, shrunk so that the ratio of a special layer's sizes to those of the others is preserved."""
    small = {}
    for layer, values in layers.items():
        if int(layer) in kept:
            small[kept.index(int(layer))] = {
                name: max(2, value * _small_number(name, fields[name], fields, {}) // fields[name])
                if type(value) is int and type(fields.get(name)) is int
                else value
                for name, value in values.items()
            }
    return small


def _small_number(name, value, fields, ids):
    if re.search(r"(?<!layer)_(token_id|token_index|id)$", name) and value >= 0:
        return SPECIAL.get(name, ids.setdefault(value, FIRST_SPECIAL + len(ids)))
    if re.fullmatch(r".*(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)", name):
        heads = fields.get(name.replace("key_value", "attention"), fields.get("num_attention_heads"))
        return value if value == 1 else HEADS if value == heads else HEADS // 2
    if value and not NOT_SIZES.fullmatch(name):
        for pattern, size in SIZES:
            if pattern.fullmatch(name):
                return min(value, size)
    return value


def _small_rope(rope, fields, sections):
    """rope_parameters, with sections that add up to the pairs of the small head."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: _small_rope(value, fields, sections) if value else value for kind, value in rope.items()}
    if sections:
        head_dim = fields.get("head_dim") or HEAD_DIM
        pairs = int(head_dim * rope.get("partial_rotary_factor", 1)) // 2
        ratio = rope.get("mrope_section") or [2, 3, 3]
        small = [max(1, pairs * size // sum(ratio)) for size in ratio]
        small[0] += pairs - sum(small)
        rope = {**rope, "mrope_section": small}
    return rope


HEADS_OF_MODELS = [  # the first mapping that has the configuration gives the class
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_CTC_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
]


def model_class(model_type, config):
    """The class to build, with a language head if the type has one."""
    module = importlib.import_module(_modeling(type(config)))
    if model_type in CLASSES:
        return getattr(module, CLASSES[model_type])
    for name in HEADS_OF_MODELS:
        mapping = getattr(modeling_auto, name)
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    for found in vars(module).values():
        is_model = inspect.isclass(found) and issubclass(found, PreTrainedModel) and "forward" in vars(found)
        if is_model and found.config_class is type(config):
            return found
    raise NoModel(f"no model class for {type(config).__name__}")


def why(error):
    """An error in short."""
    if isinstance(error, ImportError):
        return "needs " + (re.search(r"requires the (\w+) library", str(error)) or ["", str(error)])[1]
    return str(error)


def build(model_type, dtype):
    """A model in evaluation mode whose parameters depend only on its type; none is exactly zero or one."""
    config = small_config(model_type)
    made = model_class(model_type, config)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
    try:
        model = made._from_config(config, dtype=dtype) if hasattr(made, "_from_config") else made(config).to(dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        raise MemoryError(f"{size / 1e6:.0f} M parameters, more than {LARGEST / 1e6:.0f}")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # zeros would hide the rotation from the result
                parameter.nan_to_num_(0).add_(torch.randn(parameter.shape).to(parameter.dtype), alpha=0.1)
    return model.eval()
