"""Judges the keys that from_config does not read: ignored, an error, or a warning.

UNRELATED lists keys that are named like a rotation but do not change its frequencies. Any other key that is not read
and is named like a rotation (rope, rotary, yarn, ntk, scaling, ...) is an error, so that nothing that could change the
numbers is ignored silently. Inside rope_parameters, where every key is about the rotation, a key with another name
causes a warning.
"""

import difflib
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .. import _numbers
from .._shown import shown
from ..errors import ArgumentError, ArgumentTypeError
from .source import Source
from .values import INNER, READ, words

# Names that _LIKE_A_ROTATION matches and from_config does not read, by subject: from the configuration classes of
# transformers 5.23, and from other public models.
UNRELATED = frozenset(
    words(
        "rope_interleave rope_interleaved rotary_interleaved rotary_emb_interleaved "  # pairing: an argument of apply
        "no_rope_layers no_rope_layer_interval rope_scaling_layers rotary_value "  # which layers and tensors rotate
        "memory_attention_rope_dropout memory_attention_rope_feat_sizes memory_attention_rope_k_sizes "  # the grid
        "rope_max_length "  # rows of a table
        "alibi_bias_max log_scaling_alpha log_scaling_n_floor "  # bias and temperature of attention
        "default_theta default_partial_rotary_factor ignore_keys_at_rope_validation"  # attributes of classes
    )
)
_LIKE_A_ROTATION = re.compile(
    r"rope(?!r)|rotary|^rot_|^base$|yarn|(?<![a-z])ntk|alibi|theta|(?<![a-z])xpos|mscale|inv_?freq|base_freq|freq_base|position_embedding_base"
    r"|interpolation_factor|position_(scale|interpolation)",
    re.I,
)
# Names of a scaling, unless they name something other than positions that is scaled.
_SCALED = re.compile(
    r"^(?!.*(rout|logit|embed|residual|loss|expert|moe|image|layer|lora|head)).*(scaling|scaled)", re.I
)
_LIKE_A_KEY_OF_ROPE = re.compile(
    r"rope|rotary|yarn|ntk|theta|scal|factor|beta|alpha|base|freq|trunc|section|partial|original|position|dim$|pct",
    re.I,
)
# Optional keys, which silently change the numbers if they are misspelled. Other misspelled keys match _LIKE_A_ROTATION,
# or the function that requires the key raises.
_OPTIONAL = words(
    "head_dim attention_head_dim global_head_dim kv_channels max_position_embeddings original_max_position_embeddings"
)
# {key: the value that changes nothing}. Other values are ambiguous or not supported: rotary_scaling_factor is linear,
# dynamic NTK or YaRN, depending on the code; use_scaled_rope means the factor 8 in one release of Llama 3 and 32 in the
# next; Qwen's use_dynamic_ntk changes the base in steps.
_HARMLESS: dict[str, bool | int] = {
    **dict.fromkeys(words("alibi use_alibi use_scaled_rope use_dynamic_ntk rotary_emb_scale_base"), False),
    **dict.fromkeys(words("rotary_scaling_factor rope_ratio compression_ratio rot_pct"), 1),
    "freq_allocation": 20,  # ERNIE 4.5 VL; its mrope_section implies the same
    **dict.fromkeys(
        words(
            "rope rotary use_rope use_rotary use_rotary_embedding use_rotary_embeddings use_rotary_emb "
            "use_rotary_pos_emb use_rotary_position_embeddings use_rotary_positional_embeddings"
        ),
        True,
    ),
}
# {key: (values in a model that rotates, defaults of transformers in a model that does not)}
_ROTATES_WHERE: dict[str, tuple[tuple[str | bool, ...], tuple[str | bool, ...]]] = {
    "position_embedding_type": (("rotary", "rope"), ("absolute",)),
    "position_embeddings_type": (("rotary",), ()),
    "use_mem_rope": ((True,), (False,)),
}

# Keys that are read inside rope_parameters only, and have no other meaning outside.
_ONLY_INSIDE = set(INNER) - set(READ) - {"type", "factor", "alpha", "truncate"}
# Keys of rope_parameters that do not change the rotation: the temperature of attention and a copy of the length
# (Ministral 3, Mistral 4), and the pairing of MRoPE.
_INNER_UNRELATED = {"llama_4_scaling_beta", "max_position_embeddings", "interleaved"}


def check_outside(source: Source) -> None:
    """Raises for a key of the configuration itself that is not read and could change the rotation."""
    for name in sorted(source.names()):  # sorted, so that dicts and objects report the same key
        if name in READ or name in UNRELATED:
            continue
        harmless = _HARMLESS.get(name)
        is_like_one = _LIKE_A_ROTATION.search(name) or _SCALED.search(name)
        meant = None if is_like_one else next(iter(difflib.get_close_matches(name, _OPTIONAL, 1, 0.93)), None)
        if not (harmless is not None or is_like_one or meant or name in _ROTATES_WHERE or name in _ONLY_INSIDE):
            continue
        value = source.raw(name)  # not earlier: an object may raise for a value that differs among layers
        if value is None or (meant and source.raw(meant) is not None):
            continue
        if harmless is not None:
            if not (type(value) in (type(harmless), float) and value == harmless):
                raise ArgumentError(name, f"be {harmless} or absent for from_config", shown(value))
        elif name == "layer_rope_theta":
            _check_base_of_layers(value, source)
        elif name in _ROTATES_WHERE:
            _check_that_it_rotates(name, value)
        elif name in _ONLY_INSIDE:
            raise ArgumentError(name, "be inside rope_parameters or rope_scaling", f"{shown(value)} outside")
        else:
            hint = f" (is it {meant}?)" if meant else did_you_mean(name, READ)
            raise ArgumentError(name, f"be a key that from_config knows{hint}", shown(value))


def check_inside(rope: Mapping[Any, Any], kind: str, layer_types: Collection[str]) -> None:
    """Raises for a key of rope_parameters that is not read and could change the rotation; warns about all others.

    rope: rope_parameters. kind: the rope_type. layer_types: those of the config. transformers only warns.
    """
    for name, value in rope.items():
        if value is None or name in _INNER_UNRELATED:
            continue
        if name in INNER:
            kinds = INNER[name][1]
            if kinds is not None and kind not in kinds.split():
                _warn(f"{name} has no effect where rope_type is {kind!r}, got {shown(value)}")
        elif name in layer_types:
            raise ArgumentTypeError(name, "be a dict or None", shown(value))
        elif not isinstance(name, str) or not (_LIKE_A_KEY_OF_ROPE.search(name) or did_you_mean(name, INNER)):
            _warn(f"rope_parameters must have keys that from_config knows, got {name!r}: {shown(value)}")
        elif not (name.endswith("factor") and type(value) in (int, float) and value == 1):
            hint = did_you_mean(name, INNER)
            rule = f"be a key of rope_parameters that from_config knows{hint}"
            raise ArgumentError(name, rule, shown(value))


def check_scaled_layers(source: Source, kind: str) -> None:
    """Warns if only some layers are scaled: Molmo 2's rope_scaling_layers; the others have rope_type "default"."""
    layers, count = source.raw("rope_scaling_layers"), source.raw("num_hidden_layers")
    if isinstance(layers, (list, tuple)) and count != len(layers) and kind not in ("default", "axial"):
        _warn(f"rope_scaling_layers must be all layers, got {shown(layers)}: only the rotation of these layers is read")


def check_beside(beside: Mapping[Any, Any], layer_types: Collection[str]) -> None:
    """Checks the keys of rope_parameters beside the layer types' dicts; only truncate is read."""
    for name, value in beside.items():
        if name in layer_types:
            raise ArgumentTypeError(name, "be a dict or None", shown(value))
        if name != "truncate" and value is not None:
            _warn(f"{name} has no effect beside the layer types of rope_parameters, got {shown(value)}")
        elif value is not None:
            _numbers.boolean(truncate=value)


def _check_that_it_rotates(name: str, value: object) -> None:
    rotates, does_not = _ROTATES_WHERE[name]
    is_plain = isinstance(value, (str, bool))
    if is_plain and value in rotates:
        return
    if not is_plain or value not in does_not:
        raise ArgumentError(name, f"be {rotates[0]!r} in a model that rotates", shown(value))
    _warn(f"{name} must be {rotates[0]!r} in a model that rotates, got {shown(value)}: read as if it were")


def _check_base_of_layers(values: object, source: Source) -> None:
    """Checks layer_rope_theta, one base per layer, 0 for a layer that does not rotate: others must be rope_theta."""
    if not isinstance(values, (list, tuple)):
        raise ArgumentTypeError("layer_rope_theta", "be a list of numbers", shown(values))
    for value in values:
        _numbers.not_negative(layer_rope_theta=value)
    rope = source.raw("rope_parameters") or source.raw("rope_scaling")
    inner = rope.get("rope_theta") if hasattr(rope, "get") else None
    base = source.raw("rope_theta") if inner is None else inner
    others = [value for value in values if value not in (0, base)]
    if others:
        raise ArgumentError("layer_rope_theta", f"be rope_theta {base}, or 0, in every layer", others[0])


def refuse_misspelled(rope: Mapping[Any, Any], key: str) -> None:
    """An error for a key of rope_parameters that looks like `key`, which is missing there."""
    for name, value in rope.items():
        if name not in INNER and (hint := did_you_mean(name, [key])):
            raise ArgumentError(str(name), f"be a key of rope_parameters that from_config knows{hint}", shown(value))


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question to append to a rule: whether a similar name was meant. Empty without one."""
    meant = ["rope_theta"] if name == "base" else difflib.get_close_matches(str(name), known, 1, 0.75)
    return f" (is it {meant[0]}?)" if meant else ""


def _warn(message: str) -> None:
    """Issues a UserWarning that points to the line that called from_config."""
    package, _, _ = __name__.partition(".")
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"rope_ext: {message}", UserWarning, stacklevel=level)
