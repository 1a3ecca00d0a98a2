"""The keys of a configuration: what each may hold, which mean nothing to a rotation, and what becomes of all others.

Three lists. READ: keys that from_config reads, with the check of their values; INNER: those of rope_parameters and
rope_scaling, with the schedules they belong to. UNRELATED: keys that are named like a rotation and do not change its
frequencies. What is in none of them and is named like a rotation (rope, rotary, yarn, ntk, scaling, ...) is an error:
nothing that could change the numbers is passed over silently. Inside rope_parameters, where everything is about the
rotation, what is left gets a warning.
"""

import difflib
import re
import sys
import warnings

from . import _numbers
from ._numbers import shown
from .errors import ArgumentError, ArgumentTypeError


def _words(text):
    return text.split()


# ---- values ----

_BASES = _words("rope_theta rotary_emb_base rotary_embedding_base rope_freq_constant")
_OTHER_BASES = _words(
    "global_rope_theta local_rope_theta rope_local_base_freq compress_rope_theta relation_bias_theta "
    "memory_attention_rope_theta"
)
_PARTS_OF_HEAD = _words("partial_rotary_factor rotary_pct rope_pct rotary_emb_fraction")
_CHANNELS = _words(
    "head_dim attention_head_dim kv_channels qk_rope_head_dim rotary_dim global_head_dim hidden_size n_embd d_model "
    "embed_dim dim relation_bias_embed_dim memory_attention_hidden_size num_attention_heads n_head num_heads n_heads "
    "encoder_num_attention_heads memory_attention_num_attention_heads memory_attention_downsample_rate"
)
_LENGTHS = _words("max_position_embeddings n_positions original_max_position_embeddings")


def _is_a_dict(**arguments):
    for name, value in arguments.items():
        if not hasattr(value, "keys"):
            raise ArgumentTypeError(name, "be a dict", shown(value))


def _number_of_pairs(**arguments):
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)):
            raise ArgumentTypeError(name, "be a list of ints", shown(values))
        _numbers.integers(name, values)


def _names(**arguments):
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            raise ArgumentTypeError(name, "be a list of str", shown(values))


READ = {
    **dict.fromkeys(_BASES + _OTHER_BASES + _LENGTHS, _numbers.positive),
    **dict.fromkeys(_PARTS_OF_HEAD, _numbers.positive),
    **dict.fromkeys(_CHANNELS, _numbers.count),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _is_a_dict),
    **dict.fromkeys(("model_type", "default_rope_type"), _numbers.text),
    "layer_types": _names,
    "qk_rope_head_dim": _numbers.not_negative_integer,  # 0: these layers do not rotate
}
BASES = tuple(_BASES)
PARTS_OF_HEAD = tuple(_PARTS_OF_HEAD)

# {key: (check, the values of rope_type it belongs to; None: all)}
INNER = {
    "rope_type": (_numbers.text, None),
    "type": (_numbers.text, None),
    "rope_theta": (_numbers.positive, None),
    "partial_rotary_factor": (_numbers.positive, None),
    "mrope_section": (_number_of_pairs, None),
    "xdrope_section": (_number_of_pairs, None),
    "mrope_interleaved": (_numbers.boolean, None),
    "factor": (_numbers.positive, "linear dynamic ntk yarn longrope llama3 proportional"),
    "original_max_position_embeddings": (_numbers.positive, "yarn longrope llama3"),
    "attention_factor": (_numbers.positive, "yarn longrope"),
    "beta_fast": (_numbers.not_negative, "yarn"),
    "beta_slow": (_numbers.not_negative, "yarn"),
    "mscale": (_numbers.not_negative, "yarn"),
    "mscale_all_dim": (_numbers.not_negative, "yarn"),
    "truncate": (_numbers.boolean, "yarn"),
    "short_factor": (_numbers.all_positive, "longrope"),
    "long_factor": (_numbers.all_positive, "longrope"),
    "short_mscale": (_numbers.positive, "longrope"),
    "long_mscale": (_numbers.positive, "longrope"),
    "low_freq_factor": (_numbers.positive, "llama3"),
    "high_freq_factor": (_numbers.positive, "llama3"),
    "alpha": (_numbers.positive, "dynamic ntk"),
}
# Ministral 3 and Mistral 4: the temperature of attention, and the length once more. MRoPE's interleaved says pairs.
_INNER_UNRELATED = {"llama_4_scaling_beta", "max_position_embeddings", "interleaved"}


def checked(name, value):
    """The value of a key that is read; TypeError or ValueError naming the key."""
    if name in READ:
        READ[name](**{name: value})
    return value


# ---- names ----

# Every name in the configuration classes of transformers 5.23 that _LIKE_A_ROTATION finds and nothing here reads, and
# what other public models call the same; by what they are about.
UNRELATED = frozenset(
    _words(
        "rope_interleave rope_interleaved rotary_interleaved rotary_emb_interleaved "  # pairing: an argument of apply
        "no_rope_layers no_rope_layer_interval rope_scaling_layers rotary_value "  # which layers and tensors rotate
        "memory_attention_rope_dropout memory_attention_rope_feat_sizes memory_attention_rope_k_sizes "  # the grid
        "rope_max_length "  # rows of a table
        "alibi_bias_max log_scaling_alpha log_scaling_n_floor "  # bias and temperature of attention
        "default_theta default_partial_rotary_factor ignore_keys_at_rope_validation"  # attributes of classes
    )
)
_LIKE_A_ROTATION = re.compile(
    r"rope(?!r)|rotary|^rot_|yarn|(?<![a-z])ntk|alibi|theta|(?<![a-z])xpos|mscale|inv_?freq|base_freq|freq_base|position_embedding_base"
    r"|interpolation_factor|position_(scale|interpolation)",
    re.I,
)
# Scaled, and not said to be something else than a position.
_SCALED = re.compile(
    r"^(?!.*(rout|logit|embed|residual|loss|expert|moe|image|layer|lora|head)).*(scaling|scaled)", re.I
)
_LIKE_A_KEY_OF_ROPE = re.compile(
    r"rope|rotary|yarn|ntk|theta|scal|factor|beta|alpha|base|freq|trunc|section|partial|original|position|dim$|pct",
    re.I,
)
# Keys whose absence has a meaning, so that a misspelt one changes the numbers; the others are missed, or found above.
_OPTIONAL = _words("head_dim attention_head_dim global_head_dim kv_channels max_position_embeddings")
_OPTIONAL += ["original_max_position_embeddings"]
# {key: the value that changes nothing}. rotary_scaling_factor is linear, dynamic NTK or YaRN, depending on the code;
# use_scaled_rope has the factor 8 in one release of Llama 3 and 32 in the next; Qwen's use_dynamic_ntk goes in steps.
_HARMLESS = {
    **dict.fromkeys(_words("alibi use_alibi use_scaled_rope use_dynamic_ntk rotary_emb_scale_base"), False),
    **dict.fromkeys(_words("rotary_scaling_factor rope_ratio compression_ratio rot_pct"), 1),
    "freq_allocation": 20,  # ERNIE 4.5 VL, whose mrope_section says the same
    **dict.fromkeys(
        _words(
            "rope rotary use_rope use_rotary use_rotary_embedding use_rotary_embeddings use_rotary_emb "
            "use_rotary_pos_emb use_rotary_position_embeddings use_rotary_positional_embeddings"
        ),
        True,
    ),
}
# {key: (values of a model that rotates, defaults of transformers of one that does not)}
_ROTATES_WHERE = {
    "position_embedding_type": (("rotary", "rope"), ("absolute",)),
    "position_embeddings_type": (("rotary",), ()),
    "use_mem_rope": ((True,), (False,)),
}


# Keys of rope_parameters that mean nothing outside it. The others are words of many meanings there.
_ONLY_INSIDE = set(INNER) - set(READ) - {"type", "factor", "alpha", "truncate"}


def check_names(names, value_of):
    """No key of the configuration itself may be passed over that could change the rotation."""
    for name in sorted(names):  # one order for dicts and objects, so that both name the same key
        if name in READ or name in UNRELATED:
            continue
        harmless = _HARMLESS.get(name)
        is_like_one = _LIKE_A_ROTATION.search(name) or _SCALED.search(name)
        meant = None if is_like_one else next(iter(difflib.get_close_matches(name, _OPTIONAL, 1, 0.93)), None)
        if not (harmless is not None or is_like_one or meant or name in _ROTATES_WHERE or name in _ONLY_INSIDE):
            continue
        value = value_of(name)  # not before: an object may refuse to give what differs among its layers
        if value is None or (meant and value_of(meant) is not None):
            continue
        if harmless is not None:
            if not (type(value) in (type(harmless), float) and value == harmless):
                raise ArgumentError(name, f"be {harmless} or absent to be read", shown(value))
        elif name == "layer_rope_theta":
            _check_base_of_layers(value, value_of)
        elif name in _ROTATES_WHERE:
            _check_that_it_rotates(name, value)
        elif name in _ONLY_INSIDE:
            raise ArgumentError(name, "be inside rope_parameters or rope_scaling", f"{shown(value)} outside")
        else:
            hint = f" (is it {meant}?)" if meant else _did_you_mean(name, READ)
            raise ArgumentError(name, f"be a key that from_config knows{hint}", shown(value))


def check_inner_values(rope):
    """An error that names the key of rope_parameters whose value is none; null is judged where it is read."""
    for name, (check, _) in INNER.items():
        if rope.get(name) is not None:
            check(**{name: rope[name]})


def check_inner_names(rope, kind, layer_types):
    """Keys of rope_parameters: an error where one could change the rotation, else a warning as in transformers."""
    for name, value in rope.items():
        if value is None or name in _INNER_UNRELATED:
            continue
        if name in INNER:
            kinds = INNER[name][1]
            if kinds is not None and kind not in kinds.split():
                _warn(f"{name} has no effect where rope_type is {kind!r}, got {shown(value)}")
        elif name in layer_types:
            raise ArgumentTypeError(name, "be a dict or None", shown(value))
        elif not isinstance(name, str) or not (_LIKE_A_KEY_OF_ROPE.search(name) or _did_you_mean(name, INNER)):
            _warn(f"rope_parameters must have keys that from_config knows, got {name!r}: {shown(value)}")
        elif not (name.endswith("factor") and type(value) in (int, float) and value == 1):
            hint = _did_you_mean(name, INNER)
            rule = f"be a key of rope_parameters that from_config knows{hint}"
            raise ArgumentError(name, rule, shown(value))


def check_scaled_layers(value_of, kind):
    """rope_scaling_layers of Molmo 2: the layers that are scaled, all others have rope_type "default"."""
    layers, count = value_of("rope_scaling_layers"), value_of("num_hidden_layers")
    if isinstance(layers, (list, tuple)) and count != len(layers) and kind not in ("default", "axial"):
        _warn(f"rope_scaling_layers must be all layers, got {shown(layers)}: what is read is the rotation of these")


def check_names_beside_layer_types(beside, layer_types):
    """Keys beside the dicts of the layer types of rope_parameters: only truncate is read there."""
    for name, value in beside.items():
        if name in layer_types:
            raise ArgumentTypeError(name, "be a dict or None", shown(value))
        if name != "truncate" and value is not None:
            _warn(f"{name} has no effect beside the layer types of rope_parameters, got {shown(value)}")
        elif value is not None:
            _numbers.boolean(truncate=value)


def _check_that_it_rotates(name, value):
    rotates, does_not = _ROTATES_WHERE[name]
    is_plain = isinstance(value, (str, bool))
    if is_plain and value in rotates:
        return
    if not is_plain or value not in does_not:
        raise ArgumentError(name, f"be {rotates[0]!r} in a model that rotates", shown(value))
    _warn(f"{name} must be {rotates[0]!r} in a model that rotates, got {shown(value)}: read as if it were")


def _check_base_of_layers(values, value_of):
    """layer_rope_theta: a base per layer, 0 where the layer does not rotate. One rotation is all that can be read."""
    if not isinstance(values, (list, tuple)):
        raise ArgumentTypeError("layer_rope_theta", "be a list of numbers", shown(values))
    for value in values:
        _numbers.not_negative(layer_rope_theta=value)
    rope = value_of("rope_parameters") or value_of("rope_scaling")
    inner = rope.get("rope_theta") if hasattr(rope, "get") else None
    base = value_of("rope_theta") if inner is None else inner
    others = [value for value in values if value not in (0, base)]
    if others:
        raise ArgumentError("layer_rope_theta", f"be rope_theta {base}, or 0, in every layer", others[0])


def _did_you_mean(name, known):
    meant = difflib.get_close_matches(str(name), known, 1, 0.75)
    return f" (is it {meant[0]}?)" if meant else ""


def _warn(message):
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"rope_ext: {message}", UserWarning, stacklevel=level)  # the line that called from_config
