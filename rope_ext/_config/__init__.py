"""Translates the configuration of a Hugging Face transformers 4 or 5 model to the arguments of RotaryEmbedding.

Reads dicts and objects, never imports transformers. The files, in the order in which a configuration passes through
them: source.py reads dicts and objects; values.py checks the value of a key; facts.py is the table of everything that
depends on a model_type; rotation.py selects the rope_parameters of a layer type; names.py judges the keys that are not
read; head.py, schedule.py and axes.py build the arguments.

Where transformers 5.23 does not do what a configuration says, precision="hf" follows transformers and "exact" the
configuration:

* YaRN's truncate inside the parameters of a layer type: transformers reads only a truncate beside the layer types.
* Phi-3.5-MoE: beyond the training length transformers scales by long_mscale, but never uses long_factor.
* MiniMax-M3: the configuration has a rotary_dim, and transformers rotates the whole head.

Both precisions differ from transformers in two points:

* Dynamic NTK: transformers keeps the frequencies of the longest sequence so far until a sequence fits the training
  length. Here the length of the sequence decides.
* Errors, where transformers computes something: keys that contradict each other; an odd rotary_dim; a factor without a
  rope_type; HunYuan-VL's sections, which give the two channels of a pair different axes; unknown keys that are named
  like a rotation.

A null counts as an absent key where transformers reads it so: rope_parameters, rope_scaling; a layer type that does not
rotate; head_dim, if it is derived; partial_rotary_factor, if the model's default is 1; rope_theta, if rope_parameters
has one; in "yarn" factor (derived), beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor, and truncate, which
is then False; in "longrope" factor and attention_factor; alpha, the sections, and all keys that are not read. Any other
null is an error: a base, a required factor, rope_type, original_max_position_embeddings.
"""

from typing import Any

from .. import _numbers
from . import names
from .axes import pair_axis_of
from .head import base_of, head_dim_of, partial_of, rotary_dim_of
from .rotation import rotation_of
from .schedule import schedule_of
from .source import Source, missing


def read(config: object, layer_type: str | None = None, precision: str = "exact") -> dict[str, Any]:
    """Keyword arguments of RotaryEmbedding, without precision; see RotaryEmbedding.from_config."""
    source = Source(config)
    if not source.names():
        raise missing("rope_theta or rope_parameters, and head_dim or hidden_size with num_attention_heads", source)
    if layer_type is not None:
        _numbers.text(layer_type=layer_type)
    if (width := source.get("relation_bias_embed_dim")) is not None:
        # PP-DocLayout V2 does not rotate: it embeds distances between boxes as sines, with twice the usual exponents.
        base = source.required("relation_bias_theta")
        return {"head_dim": width, "base": base * base}
    rotation = rotation_of(source, layer_type)
    layer_types = source.get("layer_types") or ()
    names.check_inside(rotation.parameters, rotation.kind, layer_types)
    names.check_beside(rotation.beside or {}, layer_types)
    names.check_outside(source)
    names.check_scaled_layers(source, rotation.kind)
    if layer_type is not None:
        source = source.of_layer(layer_type)
    base, partial = base_of(source, rotation), partial_of(source, rotation)
    head_dim = head_dim_of(source)
    rotary_dim = rotary_dim_of(source, head_dim, partial, precision)
    if source.get("rotary_dim") is None:
        head_dim = max(head_dim, rotary_dim)  # channels of latent attention
    arguments: dict[str, Any] = {"head_dim": head_dim, "rotary_dim": rotary_dim, "base": base}
    if rotation.kind == "axial":
        keywords = source.facts.axial or {}
        axes = keywords.get("axes", 2)
        # transformers rounds the channels of one axis down to pairs.
        return {**arguments, "schedule": "axial", "rotary_dim": 2 * axes * (rotary_dim // axes // 2), **keywords}
    schedule, keywords = schedule_of(source, rotation, partial, precision)
    if schedule == "proportional":
        arguments["rotary_dim"] = head_dim
    pair_axis = pair_axis_of(source.facts, rotation.parameters, arguments["rotary_dim"] // 2)
    return {**arguments, "pair_axis": pair_axis, "schedule": schedule, **keywords}
