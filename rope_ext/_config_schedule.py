"""From rope_parameters, whose values are checked already, to a function of rope_ext.frequencies and its keywords."""

from . import frequencies
from ._config_source import first, missing
from ._numbers import shown
from .errors import ArgumentError


def schedule_of(kind, source, rope, beside, partial, precision):
    """(name of a function of rope_ext.frequencies, its keywords)."""
    length = source.one_of("max_position_embeddings", "n_positions")

    def needed(*keys):
        for key in keys:
            if rope.get(key) is None:
                raise ArgumentError(key, f"be in the config where rope_type is {kind!r}", "None")
        return {key: rope[key] for key in keys}

    def given(*keys):
        return {key: rope[key] for key in keys if rope.get(key) is not None}

    def original():
        # Phi-3 has it outside, which counts more than inside; only where all layers are alike, as in transformers
        name = "original_max_position_embeddings"
        outside = source.get(name) if beside is None else None
        hides_inside = beside is None and source.is_null(name)
        is_null = name in rope and rope[name] is None and (outside is None or kind != "longrope")
        if hides_inside or is_null:
            raise ArgumentError(name, f"be in the config where rope_type is {kind!r}", "None")
        found = first(outside, rope.get(name), length)
        if found is None:
            raise missing(name, source)
        return {"original_max_position": found}

    def factor_or_length():
        if rope.get("factor") is not None:
            return {"factor": rope["factor"]}
        if length is None:
            raise missing("factor, or max_position_embeddings", source)
        return {"max_position": length}

    if kind == "default":
        return "default", {}
    if kind == "linear":
        return "linear", needed("factor")
    if kind == "ntk":
        return "ntk", needed("alpha")
    if kind == "dynamic":
        if length is None:
            raise missing("max_position_embeddings", source)
        return "dynamic_ntk", needed("factor") | {"max_position": length}
    if kind == "llama3":
        return "llama3", needed("factor", "low_freq_factor", "high_freq_factor") | original()
    if kind == "proportional":
        factor = needed("factor") if "factor" in rope else {}
        return "proportional", {"partial_rotary_factor": first(partial, 1.0)} | factor
    if kind == "yarn":
        if "factor" not in rope:
            needed("factor")
        keywords = given("attention_factor", "mscale", "mscale_all_dim")
        keywords |= {name: rope[name] for name in ("beta_fast", "beta_slow") if rope.get(name)}
        # In a layer type precision="hf" looks for truncate beside the layer types only, as transformers does
        where = beside if precision == "hf" and beside is not None else rope
        if where is beside or "truncate" in where:
            keywords["truncate"] = bool(where.get("truncate", True))
        return "yarn", keywords | original() | factor_or_length()
    keywords = needed("short_factor", "long_factor") | given("attention_factor") | original() | factor_or_length()
    if rope.get("short_mscale") is not None:  # Phi-3.5-MoE; its code in transformers never takes the long factors
        keywords["attention_factor"] = tuple(needed("short_mscale", "long_mscale").values())
        if precision == "hf":
            keywords["long_factor"] = keywords["short_factor"]
    return "longrope", keywords


def pair_axis(source, rope, pairs):
    """Which axis of the positions each pair follows; None where there is one axis."""
    default_sections, convention = source.facts.get("mrope", (None, None))
    if rope.get("xdrope_section") is not None or (convention == "axes of channels" and rope.get("mrope_section")):
        raise ArgumentError(
            "mrope_section",
            "give both channels of a pair one axis",
            "HunYuan-VL's, which does not (make tables of width rotary_dim)",
        )
    if default_sections is not None and "mrope_section" in rope:
        _numbers_of_pairs(rope["mrope_section"])
    sections = first(rope.get("mrope_section"), default_sections)
    if sections is None:
        return None
    _numbers_of_pairs(sections)
    interleaved = rope.get("mrope_interleaved")
    if interleaved is not None and convention is not None and interleaved != (convention == "interleaved"):
        raise ArgumentError("mrope_interleaved", "agree with model_type", interleaved)
    if sum(sections) != pairs:
        raise ArgumentError("mrope_section", f"sum to rotary_dim / 2 = {pairs}", shown(list(sections)))
    if convention == "height and width alternate, then time":
        if len(sections) != 3 or sections[0] != sections[1]:
            raise ArgumentError("mrope_section", "be [n, n, m] for this model_type", shown(list(sections)))
        return (1, 2) * sections[0] + (0,) * sections[2]
    return frequencies.mrope_pair_axis(sections, interleaved=bool(interleaved) or convention == "interleaved")


def _numbers_of_pairs(sections):
    frequencies.mrope_pair_axis(sections)  # raises
