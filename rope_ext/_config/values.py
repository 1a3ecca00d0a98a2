"""The keys that from_config reads, and the checks of their values.

READ: keys of the configuration itself. INNER: keys of rope_parameters and rope_scaling, with the rope_types that use
them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .. import _numbers
from .._shown import shown
from ..errors import ArgumentTypeError

Check = Callable[..., None]  # accepts keyword arguments; its error names the wrong one


def words(text: str) -> list[str]:
    """The words of a string that spans several lines."""
    return text.split()


def _is_a_dict(**arguments: object) -> None:
    for name, value in arguments.items():
        if not hasattr(value, "keys"):
            raise ArgumentTypeError(name, "be a dict", shown(value))


def _numbers_of_pairs(**arguments: object) -> None:
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)):
            raise ArgumentTypeError(name, "be a list of ints", shown(values))
        _numbers.integers(name, values)


def _names(**arguments: object) -> None:
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            raise ArgumentTypeError(name, "be a list of str", shown(values))


BASES = words("rope_theta rotary_emb_base rotary_embedding_base rope_freq_constant")
PARTS_OF_HEAD = words("partial_rotary_factor rotary_pct rope_pct rotary_emb_fraction")
_OTHER_BASES = words(
    "global_rope_theta local_rope_theta rope_local_base_freq compress_rope_theta relation_bias_theta "
    "memory_attention_rope_theta"
)
_CHANNELS = words(
    "head_dim attention_head_dim kv_channels qk_rope_head_dim rotary_dim global_head_dim hidden_size n_embd d_model "
    "embed_dim dim relation_bias_embed_dim memory_attention_hidden_size num_attention_heads n_head num_heads n_heads "
    "encoder_num_attention_heads memory_attention_num_attention_heads memory_attention_downsample_rate"
)
_LENGTHS = words("max_position_embeddings n_positions original_max_position_embeddings")

READ: dict[str, Check] = {
    **dict.fromkeys(BASES + _OTHER_BASES + _LENGTHS + PARTS_OF_HEAD, _numbers.positive),
    **dict.fromkeys(_CHANNELS, _numbers.count),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _is_a_dict),
    **dict.fromkeys(("model_type", "default_rope_type"), _numbers.text),
    "layer_types": _names,
    "qk_rope_head_dim": _numbers.not_negative_integer,  # 0: the layers do not rotate
}
# {key: (check, the rope_types that use it; None: all)}
INNER: dict[str, tuple[Check, str | None]] = {
    "rope_type": (_numbers.text, None),
    "type": (_numbers.text, None),
    "rope_theta": (_numbers.positive, None),
    "partial_rotary_factor": (_numbers.positive, None),
    "mrope_section": (_numbers_of_pairs, None),
    "xdrope_section": (_numbers_of_pairs, None),
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


def checked(name: str, value: Any) -> Any:
    """The value of a key, after its check, whose error names the key. Keys that are not read are not checked."""
    if name in READ:
        READ[name](**{name: value})
    return value


def check_inner(rope: Mapping[str, Any]) -> None:
    """Checks the values of rope_parameters, except nulls: the code that reads a key judges its null."""
    for name, (check, _) in INNER.items():
        if rope.get(name) is not None:
            check(**{name: rope[name]})
