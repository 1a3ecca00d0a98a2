"""A model's configuration, as Hugging Face transformers 4 or 5 writes it, to the arguments of RotaryEmbedding.

Reads dicts and objects, never imports transformers. All that is known of single models stands in _config_facts.py, and
what each key may hold in _config_keys.py.

Where transformers 5.23 does not do what a configuration says, precision="hf" follows it and "exact" does not:
* YaRN's truncate inside the parameters of a layer type: transformers reads the one beside the layer types only.
* Phi-3.5-MoE: transformers scales by long_mscale beyond the training, but never takes long_factor.
* MiniMax-M3: transformers has rotary_dim in the configuration and rotates the whole head.
Different for both:
* dynamic NTK: transformers keeps the frequencies of the longest sequence it has seen, until one is within the training;
  here the length of the sequence decides.
* Refused, where transformers computes something: keys that contradict each other; an odd rotary_dim; a factor without a
  rope_type; HunYuan-VL's sections, which give the two channels of a pair different axes; keys that are named like a
  rotation and are not known.

null is absent where transformers reads it so: rope_parameters, rope_scaling, a layer type that does not rotate;
head_dim, where it is derived; partial_rotary_factor, where the model has no other default than 1; rope_theta, where
rope_parameters has one; of yarn factor (derived), beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor, and
truncate, which is then False; of longrope factor and attention_factor; alpha, the sections, and all keys that are not
read. Elsewhere it is an error: a base, a factor that is needed, rope_type, original_max_position_embeddings.
"""

from collections.abc import Mapping

from . import _config_keys, _numbers
from ._config_schedule import pair_axis, schedule_of
from ._config_source import Source, first, missing, null, refuse_nulls
from ._numbers import shown
from .errors import ArgumentError

_TYPES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}  # older names
_BASE_OF_LAYER_TYPE = (
    ("rope_local_base_freq", "sliding_attention"),
    ("local_rope_theta", "sliding_attention"),
    ("global_rope_theta", "full_attention"),
    ("compress_rope_theta", "compress"),
)
_KNOWN_TYPES = ("axial", "default", "dynamic", "linear", "llama3", "longrope", "proportional", "yarn")


def read(config, layer_type=None, precision="exact"):
    """Keyword arguments of RotaryEmbedding; see RotaryEmbedding.from_config."""
    source = Source(config)
    if not source.names():
        raise missing("rope_theta or rope_parameters, and head_dim or hidden_size with num_attention_heads", source)
    if layer_type is not None:
        _numbers.text(layer_type=layer_type)
    if (width := source.get("relation_bias_embed_dim")) is not None:
        # PP-DocLayout V2: no rotation, but sines of distances between boxes, with twice the usual exponents
        base = source.required("relation_bias_theta")
        return {"head_dim": width, "base": base * base}
    rope, beside = _rope_parameters(source, layer_type)
    _config_keys.check_inner_values(rope)
    kind = _rope_type(source, rope)
    layer_types = source.get("layer_types") or ()
    _config_keys.check_inner_names(rope, kind, layer_types)
    _config_keys.check_names_beside_layer_types(beside or {}, layer_types)
    _config_keys.check_names(source.names(), source.raw)
    _config_keys.check_scaled_layers(source.raw, kind)
    if layer_type is not None:
        source = source.of_layer(layer_type)
    is_nested = beside is not None
    base, partial = _base(source, rope, is_nested), _partial(source, rope, kind, is_nested)
    head_dim = _head_dim(source)
    # rotary_dim counts channels in some models (GPT-J), and is the rounded-down share of the head in all others
    rotary_dim = _rotary_dim(source, head_dim, partial, precision)
    if source.get("rotary_dim") is None:
        head_dim = max(head_dim, rotary_dim)  # channels of latent attention
    arguments = {"head_dim": head_dim, "rotary_dim": rotary_dim, "base": base}

    if kind == "axial":
        keywords = dict(source.facts.get("axial", {}))
        axes = keywords.get("axes", 2)
        # transformers rounds the channels of one axis down to pairs
        return arguments | {"schedule": "axial", "rotary_dim": 2 * axes * (rotary_dim // axes // 2)} | keywords
    schedule, keywords = schedule_of(kind, source, rope, beside, partial, precision)
    if schedule == "proportional":
        arguments["rotary_dim"] = head_dim
    arguments["pair_axis"] = pair_axis(source, rope, arguments["rotary_dim"] // 2)
    return arguments | {"schedule": schedule} | keywords


def _rope_parameters(source, layer_type):
    """(the dict of the rotation that is asked for, the keys beside the layer types, or None where there are none)."""
    new, old = source.get("rope_parameters"), source.get("rope_scaling")
    if new and old and not _agree(new, old):
        raise ArgumentError("rope_scaling", f"agree with rope_parameters {shown(new)}", shown(old))
    rope = dict(new or old or {})
    if not rope and (base := source.get("memory_attention_rope_theta")) is not None:  # SAM 2 in transformers 4
        rope = {"rope_type": "axial", "rope_theta": base}
    if not rope and source.facts.get("scaled"):
        raise missing("rope_parameters or rope_scaling", source)
    bases = (*_config_keys.BASES, "global_rope_theta")
    if not rope and source.get(*bases) is None and source.facts.get("base") is None:
        refuse_nulls(source, bases)
        if source.parts():
            raise ArgumentError("config", "be the part that has the attention", f"one of {', '.join(source.parts())}")
        raise missing("rope_parameters, rope_scaling or rope_theta", source)
    refuse_nulls(source, ("global_rope_theta", "local_rope_theta", "rope_local_base_freq", "compress_rope_theta"))
    rope = _by_layer_type(source, rope, layer_type)
    unknown = {name: value for name, value in rope.items() if name not in _config_keys.INNER}
    if not any(isinstance(value, Mapping) for value in unknown.values()):
        if layer_type is not None and layer_type not in (source.get("layer_types") or ()):
            raise ArgumentError("layer_type", "be None for a config with one rotation", shown(layer_type))
        return rope, None
    nested = {name: value for name, value in unknown.items() if isinstance(value, Mapping) or value is None}
    if layer_type not in nested:
        raise ArgumentError("layer_type", f"be one of {', '.join(map(str, nested))}", shown(layer_type))
    if nested[layer_type] is None:
        raise ArgumentError("layer_type", "have a rotation", f"{shown(layer_type)}, which has none")
    return dict(nested[layer_type]), {name: value for name, value in rope.items() if name not in nested}


def _agree(a, b):
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # arrays in them, which are no numbers anyway
        return False


def _by_layer_type(source, rope, layer_type):
    """The configurations of transformers 4 whose layers differ: two bases by two names, and one rope_scaling."""
    if any(isinstance(value, Mapping) for name, value in rope.items() if name not in _config_keys.INNER):
        for key, name in _BASE_OF_LAYER_TYPE:
            inside = rope[name].get("rope_theta") if isinstance(rope.get(name), Mapping) else None
            if inside is not None and source.get(key) not in (None, inside):
                raise ArgumentError(key, f"agree with rope_parameters' {inside}", source.get(key))
        return rope

    def scaled(base):
        return rope if base is None else {"rope_theta": base} | rope

    default = source.facts.get("local_base") if layer_type == "sliding_attention" else None
    if (local := first(source.get("rope_local_base_freq"), default)) is not None:  # Gemma 3: local ones are not scaled
        return {"full_attention": scaled(source.get("rope_theta")), "sliding_attention": {"rope_theta": local}}
    if (local := source.get("local_rope_theta")) is not None:  # ModernBERT: both are
        full = scaled(source.get("global_rope_theta"))
        return {"full_attention": full, "sliding_attention": rope | {"rope_theta": local}}
    if (base := source.get("compress_rope_theta")) is not None:  # DeepSeek-V4: layers that compress are scaled
        main = {"rope_theta": source.required("rope_theta")}
        compress = rope | {"rope_theta": base}
        if "yarn" in (rope.get("rope_type"), rope.get("type")):
            compress.setdefault("attention_factor", 1.0)
        return {"main": main, "compress": compress}
    if source.get("model_type") == "olmo3" and rope:
        return {"full_attention": rope, "sliding_attention": {}}
    return rope


def _rope_type(source, rope):
    for key in ("rope_type", "type"):
        if key in rope and (key == "rope_type" or "rope_type" not in rope or rope[key] is not None):
            if rope[key] is None:
                raise null(key, "a str")
            _numbers.text(**{key: rope[key]})
    kind, old = rope.get("rope_type"), rope.get("type")
    if "mrope" in (kind, old) and rope.get("mrope_section") is None and "mrope" not in source.facts:
        raise ArgumentError("mrope_section", "be in the config where rope_type is 'mrope'", "None")
    kind, old = _TYPES.get(kind, kind), _TYPES.get(old, old)
    if kind is not None and old is not None and kind != old:
        raise ArgumentError("type", f"agree with rope_type {kind!r}", shown(old))
    kind = first(kind, old, "default")
    if kind not in _KNOWN_TYPES:
        raise ArgumentError("rope_type", f"be one of {', '.join(_KNOWN_TYPES)}", shown(kind))
    if kind == "yarn" and rope.get("short_factor"):  # as Phi-3 once called it
        kind = "longrope"
    if kind == "dynamic" and rope.get("alpha"):  # HunYuan
        kind = "ntk"
    if kind == "default":
        if "axial" in (source.get("default_rope_type"),) or "axial" in source.facts:
            return "axial"
        for key in ("factor", "short_factor", "long_factor", "low_freq_factor"):
            if rope.get(key) not in (None, 1, 1.0):
                raise ArgumentError(key, "be absent where rope_type is 'default'", shown(rope[key]))
    return kind


def _base(source, rope, is_nested):
    """rope_theta inside counts more than outside, and a null inside too: transformers puts nothing in its place."""
    names = _config_keys.BASES if is_nested else (*_config_keys.BASES, "global_rope_theta")
    outside = {name: value for name in names if (value := source.get(name)) is not None}
    if "rope_theta" in rope:
        if (base := rope["rope_theta"]) is None:
            raise null("rope_theta", "a number")
        _numbers.positive(rope_theta=base)
        for name, value in outside.items():
            if value != base and not is_nested:
                raise ArgumentError(name, f"agree with rope_parameters' {base}", value)
        return base
    if not outside:
        refuse_nulls(source, _config_keys.BASES)
        if (base := source.facts.get("base")) is None:
            raise missing("rope_theta", source)
        return base
    other, base = next(iter(outside.items()))
    for name, value in outside.items():
        if value != base:
            raise ArgumentError(name, f"agree with {other} {base}", value)
    return base


def _head_dim(source):
    width = source.facts.get("width")
    if (channels := source.get("memory_attention_hidden_size")) is not None:  # the video models of SAM 2 and 3
        rate = source.required("memory_attention_downsample_rate")
        return channels // (rate * source.required("memory_attention_num_attention_heads"))
    for name in ("hidden_size", "num_attention_heads"):  # a 0 or a text is a mistake even where head_dim says enough
        if not isinstance(source.raw(name), (list, tuple)):  # one per stage, or per layer
            source.get(name)
    head_dim = source.one_of("head_dim", "attention_head_dim")  # Zamba 2 has its kv_channels for other layers
    head_dim = source.get("kv_channels") if head_dim is None else head_dim
    # Multi-head latent attention rotates channels of their own; some configurations call these the head_dim
    if head_dim is None and not source.facts.get("is_whole"):
        head_dim = source.get("qk_rope_head_dim")
    if head_dim is None and (head_dim := source.facts.get("head_dim")) is not None and source.is_null("head_dim"):
        raise null("head_dim", f"an int for model_type {source.get('model_type')!r}")
    if head_dim is not None:
        return head_dim
    width = source.get(width) if width else source.one_of("hidden_size", "n_embd", "d_model", "embed_dim", "dim")
    heads = source.one_of("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_num_attention_heads")
    if width is None or heads is None:
        raise missing("head_dim, or hidden_size and num_attention_heads", source)
    if heads > width:
        raise ArgumentError("num_attention_heads", f"be at most the width of the model {width}", heads)
    return width // heads


def _partial(source, rope, kind, is_nested):
    names, default = _config_keys.PARTS_OF_HEAD, source.facts.get("partial")
    outside = {name: value for name in names if (value := source.get(name)) is not None}
    inside = rope.get(names[0])
    if (
        inside is None
        and names[0] in rope
        and (kind not in ("default", "axial") or default or set(outside.values()) - {1})
    ):
        raise null(names[0], "a number")
    if inside is None and not outside:
        refuse_nulls(source, names[1:] if default is None or source.facts.get("partial_null") else names)
        return default
    partial = inside if inside is not None else next(iter(outside.values()))
    for name, value in ((names[0], partial), *outside.items()):
        if not 0 < value <= 1:
            raise ArgumentError(name, "be in 0 to 1", value)
        if value != partial and not (is_nested and inside is not None):
            where = f"partial_rotary_factor {partial}" if inside is None else f"rope_parameters' {partial}"
            raise ArgumentError(name, f"agree with {where}", value)
    return partial


def _rotary_dim(source, head_dim, partial, precision):
    named = source.get("rotary_dim")
    if named is None and (named := source.facts.get("rotary_dim")) is not None and source.is_null("rotary_dim"):
        raise null("rotary_dim", f"an int for model_type {source.get('model_type')!r}")
    if precision == "hf" and source.facts.get("unread") == "rotary_dim":
        named = None
    rotary_dim = first(named, None if partial is None else int(head_dim * partial))
    latent = source.get("qk_rope_head_dim")
    if rotary_dim is None:
        return first(latent, head_dim)
    if named is not None and partial is not None and int(head_dim * partial) != named:
        raise ArgumentError("rotary_dim", f"agree with partial_rotary_factor {partial}", named)
    return rotary_dim
