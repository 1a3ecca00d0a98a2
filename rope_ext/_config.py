"""A model's configuration, as Hugging Face transformers 4 or 5 writes it, to the arguments of RotaryEmbedding.

Reads dicts and objects, never imports transformers. Where the two disagree on what a key means, transformers 5.23 is
right for precision="hf". All that is known of single models stands in _MODELS.
"""

from collections.abc import Mapping

from . import frequencies

# ---- what transformers 5.23 has in the code of a model, and not in its configuration ----
#   base, partial: rope_theta and partial_rotary_factor where the configuration has none
#   mrope: (mrope_section where there is none, its convention: see _pair_axis)
#   axial: keywords of frequencies.axial
#   width: the key that is divided by the number of heads
#   unread: a key that transformers has in the configuration, and does not read

_QWEN2_VL, _GLM4V = ((16, 24, 24), "blocks"), ((8, 12, 12), "blocks")
_QWEN3_VL, _QWEN3_5 = ((24, 20, 20), "interleaved"), ((11, 11, 10), "interleaved")
_FACTS = (
    ("llama falcon gemma gemma2 mistral", {"base": 10000.0}),
    ("gptj codegen", {"base": 10000.0}),
    ("gpt_neox", {"base": 10000.0, "partial": 0.25}),
    ("stablelm qwen3_next qwen3_5_text qwen3_5_moe_text", {"partial": 0.25}),
    ("glm glm4 glm4_moe glm4v_moe_text glmasr_encoder persimmon phi nemotron recurrent_gemma bamba", {"partial": 0.5}),
    ("moonshine", {"partial": 0.9}),
    ("mimo_v2_flash", {"partial": 0.334}),
    ("qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text", {"mrope": _QWEN2_VL}),
    ("qwen2_5_omni_text qwen2_5_omni_talker paddleocr_vl_text", {"mrope": _QWEN2_VL}),
    ("glm4v_text glm4v_moe_text glm_image_text glm_ocr_text", {"mrope": _GLM4V}),
    ("qwen3_vl_text qwen3_vl_moe_text qwen3_omni_moe_text", {"mrope": _QWEN3_VL}),
    ("cosmos3_edge_text cohere_compass_text", {"mrope": _QWEN3_VL}),
    ("qwen3_5_text qwen3_5_moe_text qwen4_exp_text", {"mrope": _QWEN3_5}),
    ("ernie4_5_vl_moe_text", {"mrope": ((22, 22, 20), "height and width alternate, then time")}),
    ("minimax_m3_vl_text", {"unread": "rotary_dim"}),
    ("hunyuan_vl_text", {"mrope": (None, "axes of channels")}),
    ("neomme", {"axial": {"divide": True, "alternate": True}}),
    ("pixtral", {"axial": {"divide": True}}),
    ("kimi_k25_vision", {"axial": {"alternate": True, "axis_order": (1, 0)}}),
    ("inkling2_vision step3p5_vision", {"axial": {"axis_order": (1, 0)}}),
    ("minimax_m3_vl_vision", {"axial": {"axes": 3}}),
    ("eomt_dinov3 dinov3_vit", {"axial": {}, "base": 100.0}),
    ("qwen2_vl_vision", {"axial": {}, "base": 10000.0, "width": "embed_dim"}),
    ("qwen2_5_vl_vision qwen3_vl_vision qwen3_vl_moe_vision qwen3_5_vision", {"axial": {}, "base": 10000.0}),
)
_MODELS = {}
for _names, _facts in _FACTS:
    for _name in _names.split():
        _MODELS[_name] = _MODELS.get(_name, {}) | _facts

_TYPES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}  # older names
_NO_PARTS = {"quantization_config", "compression_config", "per_layer_config", "mtp_per_layer_config"}


def read(config, layer_type=None, precision="exact"):
    """Keyword arguments of RotaryEmbedding; see RotaryEmbedding.from_config."""
    source = _Source(config)
    if (width := source.get("relation_bias_embed_dim")) is not None:
        # PP-DocLayout V2: no rotation, but sines of distances between boxes, with twice the usual exponents
        return {"head_dim": width, "base": source.get("relation_bias_theta") ** 2}
    rope, is_nested = _rope_parameters(source, layer_type)
    kind = _rope_type(source, rope)
    if layer_type is not None:
        source = source.of_layer(layer_type)
    head_dim, partial = _head_dim(source), _partial(source, rope)
    base = _first(
        rope.get("rope_theta"), source.get("rope_theta"), source.get("rotary_emb_base"), source.default_base()
    )
    if base is None:
        raise _missing("rope_theta", source)
    # rotary_dim counts channels in some models (GPT-J), and is the rounded-down share of the head in all others
    rotary_dim = _rotary_dim(source, head_dim, partial, precision)
    head_dim = max(head_dim, rotary_dim)
    arguments = {"head_dim": head_dim, "rotary_dim": rotary_dim, "base": base}

    if kind == "axial":
        keywords = dict(source.facts.get("axial", {}))
        axes = keywords.get("axes", 2)
        # transformers rounds the channels of one axis down to pairs
        return arguments | {"schedule": "axial", "rotary_dim": 2 * axes * (rotary_dim // axes // 2)} | keywords
    schedule, keywords = _schedule(kind, source, rope, is_nested, partial, precision)
    if schedule == "proportional":
        arguments["rotary_dim"] = head_dim
    arguments["pair_axis"] = _pair_axis(source, rope, arguments["rotary_dim"] // 2)
    return arguments | {"schedule": schedule} | keywords


class _Source:
    """One way to ask dicts and objects; None: not there."""

    def __init__(self, config):
        if isinstance(config, (str, bytes)) or config is None:
            raise TypeError(f"rope_ext: config must be a configuration object or a dict, got {config!r}")
        self.config = config
        self.facts = _MODELS.get(self.get("model_type"), {})

    def get(self, *names):
        """The first that is there. Of a model whose layers differ transformers gives no head_dim: that is None too."""
        has = self.config.get if isinstance(self.config, Mapping) else lambda name: getattr(self.config, name, None)
        return _first(*(has(name) for name in names))

    def default_base(self):
        """default_theta: an attribute of the classes of transformers 5, one number or a dict."""
        default = self.get("default_theta")
        return _first(self.facts.get("base"), None if isinstance(default, Mapping) else default)

    def parts(self):
        there = self.config if isinstance(self.config, Mapping) else vars(self.config)
        return [n for n in there if n.endswith("_config") and n not in _NO_PARTS and self.get(n) is not None]

    def of_layer(self, layer_type):
        """The configuration of a layer of this type: transformers 5's per_layer_config, Gemma 4's global_head_dim."""
        per_layer, types = self.get("per_layer_config"), self.get("layer_types") or ()
        if isinstance(per_layer, Mapping) and layer_type in types:
            by_index = {int(index): values for index, values in per_layer.items()}
            return _Source({**dict(self.config), **by_index.get(list(types).index(layer_type), {})})
        if per_layer is not None and not isinstance(per_layer, Mapping) and layer_type in types:
            try:
                return _Source(per_layer[layer_type])
            except ValueError:  # layers of this type differ, in something else
                return self
        if isinstance(self.config, Mapping) and layer_type == "full_attention" and self.get("global_head_dim"):
            return _Source({**self.config, "head_dim": self.config["global_head_dim"]})
        return self


def _rope_parameters(source, layer_type):
    """(the dict of the rotation that is asked for, whether it was one of several)."""
    new, old = source.get("rope_parameters"), source.get("rope_scaling")
    if new and old and new != old:
        raise ValueError(f"rope_ext: rope_scaling must agree with rope_parameters {new}, got {old}")
    rope = dict(new or old or {})
    base = _first(source.get("rope_theta", "rotary_emb_base", "global_rope_theta"), source.facts.get("base"))
    if not rope and base is None:
        if source.parts():
            raise ValueError(
                f"rope_ext: config must be the part that has the attention, got one of {', '.join(source.parts())}"
            )
        raise _missing("rope_parameters, rope_scaling or rope_theta", source)
    rope = _by_layer_type(source, rope)
    nested = {name: value for name, value in rope.items() if isinstance(value, Mapping) or value is None}
    is_nested = any(isinstance(value, Mapping) for value in rope.values())
    if not is_nested:
        if layer_type is not None and layer_type not in (source.get("layer_types") or ()):
            raise ValueError(f"rope_ext: layer_type must be None for a config with one rotation, got {layer_type!r}")
        top = source.get("rope_theta")
        if top is not None and rope.get("rope_theta", top) != top:
            raise ValueError(f"rope_ext: rope_theta must agree with rope_parameters' {rope['rope_theta']}, got {top}")
        return rope, False
    if layer_type not in nested:
        raise ValueError(f"rope_ext: layer_type must be one of {', '.join(nested)}, got {layer_type!r}")
    if nested[layer_type] is None:
        raise ValueError(f"rope_ext: layer_type must have a rotation, got {layer_type!r}, which has none")
    return {**nested[layer_type], " top-level truncate": rope.get("truncate", True)}, True


def _by_layer_type(source, rope):
    """The configurations of transformers 4 whose layers differ: two bases by two names, and one rope_scaling."""
    if any(isinstance(value, Mapping) for value in rope.values()):
        return rope
    if (local := source.get("rope_local_base_freq")) is not None:  # Gemma 3: local layers are not scaled
        return {
            "full_attention": {"rope_theta": source.get("rope_theta")} | rope,
            "sliding_attention": {"rope_theta": local},
        }
    if (local := source.get("local_rope_theta")) is not None:  # ModernBERT: both are
        base = source.get("global_rope_theta")
        return {"full_attention": {"rope_theta": base} | rope, "sliding_attention": rope | {"rope_theta": local}}
    if source.get("model_type") == "olmo3" and rope:
        return {"full_attention": rope, "sliding_attention": {}}
    return rope


def _rope_type(source, rope):
    kind, old = rope.get("rope_type"), rope.get("type")
    kind, old = _TYPES.get(kind, kind), _TYPES.get(old, old)
    if kind and old and kind != old:
        raise ValueError(f"rope_ext: type must agree with rope_type {kind!r}, got {old!r}")
    kind = kind or old or "default"
    if kind == "yarn" and rope.get("short_factor"):  # as Phi-3 once called it
        kind = "longrope"
    if kind == "dynamic" and rope.get("alpha"):  # HunYuan
        kind = "ntk"
    if kind == "default":
        if "axial" in (source.get("default_rope_type"),) or "axial" in source.facts:
            return "axial"
        for key in ("factor", "short_factor", "long_factor", "low_freq_factor"):
            if rope.get(key) not in (None, 1, 1.0):
                raise ValueError(f"rope_ext: {key} must be absent where rope_type is 'default', got {rope[key]}")
    return kind


def _head_dim(source):
    width = source.facts.get("width")
    if source.get("memory_attention_hidden_size") is not None:  # the video models of SAM 2 and 3
        heads = source.get("memory_attention_downsample_rate") * source.get("memory_attention_num_attention_heads")
        return source.get("memory_attention_hidden_size") // heads
    # Multi-head latent attention rotates channels of their own; some configurations call these the head_dim
    head_dim = source.get("head_dim", "attention_head_dim", "kv_channels", "qk_rope_head_dim")
    if head_dim is not None:
        return head_dim
    width = source.get(width) if width else source.get("hidden_size", "n_embd", "d_model", "embed_dim", "dim")
    heads = source.get("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_num_attention_heads")
    if width is None or heads is None:
        raise _missing("head_dim, or hidden_size and num_attention_heads", source)
    return width // heads


def _partial(source, rope):
    names = ("partial_rotary_factor", "rotary_pct", "rope_pct")
    partial = _first(rope.get(names[0]), *(source.get(name) for name in names), source.facts.get("partial"))
    if partial is not None and not 0 < partial <= 1:
        raise ValueError(f"rope_ext: partial_rotary_factor must be in 0 to 1, got {partial}")
    return partial


def _rotary_dim(source, head_dim, partial, precision):
    named = source.get("rotary_dim")
    if precision == "hf" and source.facts.get("unread") == "rotary_dim":
        named = None
    rotary_dim = _first(named, None if partial is None else int(head_dim * partial))
    latent = source.get("qk_rope_head_dim")
    if rotary_dim is None:
        return _first(latent, head_dim)
    if named is not None and partial is not None and int(head_dim * partial) != named:
        raise ValueError(f"rope_ext: rotary_dim must agree with partial_rotary_factor {partial}, got {named}")
    return rotary_dim


def _schedule(kind, source, rope, is_nested, partial, precision):
    """(name of a function of rope_ext.frequencies, its keywords)."""
    length = source.get("max_position_embeddings", "n_positions")

    def needed(*keys):
        for key in keys:
            if rope.get(key) is None:
                raise ValueError(f"rope_ext: {key} must be in the config where rope_type is {kind!r}, got None")
        return {key: rope[key] for key in keys}

    def given(*keys):
        return {key: rope[key] for key in keys if rope.get(key) is not None}

    def original():
        # Phi-3 has it outside, which counts more than inside; only where all layers are alike, as in transformers
        outside = None if is_nested else source.get("original_max_position_embeddings")
        found = _first(outside, rope.get("original_max_position_embeddings"), length)
        if found is None:
            raise _missing("original_max_position_embeddings", source)
        return {"original_max_position": found}

    def factor_or_length():
        if rope.get("factor") is not None:
            return {"factor": rope["factor"]}
        if length is None:
            raise _missing("factor, or max_position_embeddings", source)
        return {"max_position": length}

    if kind == "default":
        return "default", {}
    if kind == "linear":
        return "linear", needed("factor")
    if kind == "ntk":
        return "ntk", needed("alpha")
    if kind == "dynamic":
        if length is None:
            raise _missing("max_position_embeddings", source)
        return "dynamic_ntk", needed("factor") | {"max_position": length}
    if kind == "llama3":
        return "llama3", needed("factor", "low_freq_factor", "high_freq_factor") | original()
    if kind == "proportional":
        return "proportional", {"partial_rotary_factor": _first(partial, 1.0)} | given("factor")
    if kind == "yarn":
        keywords = given("attention_factor", "mscale", "mscale_all_dim", "truncate")
        keywords |= {name: rope[name] for name in ("beta_fast", "beta_slow") if rope.get(name)}
        if precision == "hf" and is_nested:  # transformers looks for it beside the layer types only
            keywords["truncate"] = rope[" top-level truncate"]
        return "yarn", keywords | original() | factor_or_length()
    if kind == "longrope":
        keywords = needed("short_factor", "long_factor") | given("attention_factor") | original() | factor_or_length()
        if rope.get("short_mscale") is not None:  # Phi-3.5-MoE; its code in transformers never takes the long factors
            keywords["attention_factor"] = tuple(needed("short_mscale", "long_mscale").values())
            if precision == "hf":
                keywords["long_factor"] = keywords["short_factor"]
        return "longrope", keywords
    known = "axial, default, dynamic, linear, llama3, longrope, proportional, yarn"
    raise ValueError(f"rope_ext: rope_type must be one of {known}, got {kind!r}")


def _pair_axis(source, rope, pairs):
    """Which axis of the positions each pair follows; None where there is one axis."""
    default_sections, convention = source.facts.get("mrope", (None, None))
    sections = _first(rope.get("mrope_section"), rope.get("xdrope_section"), default_sections)
    if sections is None:
        return None
    if convention == "axes of channels":
        raise ValueError(
            "rope_ext: mrope_section must give both channels of a pair one axis, got HunYuan-VL's, which does not "
            "(make tables of width rotary_dim)"
        )
    interleaved = rope.get("mrope_interleaved")
    if interleaved is not None and convention is not None and interleaved != (convention == "interleaved"):
        raise ValueError(f"rope_ext: mrope_interleaved must agree with model_type, got {interleaved}")
    if sum(sections) != pairs:
        raise ValueError(f"rope_ext: mrope_section must sum to rotary_dim / 2 = {pairs}, got {list(sections)}")
    if convention == "height and width alternate, then time":
        return (1, 2) * sections[0] + (0,) * sections[2]
    return frequencies.mrope_pair_axis(sections, interleaved=bool(interleaved) or convention == "interleaved")


def _first(*values):
    return next((value for value in values if value is not None), None)


def _missing(key, source):
    return ValueError(f"rope_ext: config must have {key}, got a config of {source.get('model_type')!r} without")
