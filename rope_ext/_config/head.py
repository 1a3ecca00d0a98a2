"""The base of a rotation, and which channels of a head rotate."""

from ..errors import ArgumentError
from . import values
from .rotation import Rotation
from .source import Source, first, missing, null, refuse_nulls

_WIDTHS = ("hidden_size", "n_embd", "d_model", "embed_dim", "dim")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_num_attention_heads")


def base_of(source: Source, rotation: Rotation) -> float:
    """rope_theta. A value inside rope_parameters wins; a null inside is an error: transformers does not replace it."""
    is_nested = rotation.beside is not None
    names = values.BASES if is_nested else (*values.BASES, "global_rope_theta")
    outside: dict[str, float] = {name: value for name in names if (value := source.get(name)) is not None}
    if "rope_theta" in rotation.parameters:
        inside: float | None = rotation.parameters["rope_theta"]
        if inside is None:
            raise null("rope_theta", "a number")
        for name, value in outside.items():
            if value != inside and not is_nested:
                raise ArgumentError(name, f"agree with rope_parameters' {inside}", value)
        return inside
    if not outside:
        refuse_nulls(source, values.BASES)
        if source.facts.base is None:
            raise missing("rope_theta", source)
        return source.facts.base
    other, base = next(iter(outside.items()))
    for name, value in outside.items():
        if value != base:
            raise ArgumentError(name, f"agree with {other} {base}", value)
    return base


def head_dim_of(source: Source) -> int:
    """The channels of a head; with multi-head latent attention only the rotated ones, which are separate tensors."""
    if source.get("memory_attention_hidden_size") is not None:
        return _of_memory_attention(source)
    for name in ("hidden_size", "num_attention_heads"):  # 0 or a text is an error even if head_dim is given
        if not isinstance(source.raw(name), (list, tuple)):  # a list has one per stage or layer
            source.get(name)
    head_dim: int | None = source.one_of("head_dim", "attention_head_dim")
    if head_dim is None:  # not in one_of: Zamba 2 has kv_channels for other layers
        head_dim = source.get("kv_channels")
    if head_dim is None and not source.facts.whole_head:
        head_dim = source.get("qk_rope_head_dim")
    if head_dim is None and (head_dim := source.facts.head_dim) is not None and source.is_null("head_dim"):
        raise null("head_dim", f"an int for model_type {source.get('model_type')!r}")
    if head_dim is not None:
        return head_dim
    key = source.facts.width_key
    width: int | None = source.get(key) if key else source.one_of(*_WIDTHS)
    heads: int | None = source.one_of(*_HEADS)
    if width is None or heads is None:
        raise missing("head_dim, or hidden_size and num_attention_heads", source)
    if heads > width:
        raise ArgumentError("num_attention_heads", f"be at most the width of the model {width}", heads)
    return width // heads


def _of_memory_attention(source: Source) -> int:
    """head_dim of SAM 2 and 3's video models."""
    width: int = source.required("memory_attention_hidden_size")
    rate: int = source.required("memory_attention_downsample_rate")
    heads: int = source.required("memory_attention_num_attention_heads")
    return width // (rate * heads)


def partial_of(source: Source, rotation: Rotation) -> float | None:
    """partial_rotary_factor, the rotated fraction of a head; None if neither configuration nor model have one."""
    (name, *older_names), default = values.PARTS_OF_HEAD, source.facts.partial
    outside: dict[str, float] = {
        name: value for name in values.PARTS_OF_HEAD if (value := source.get(name)) is not None
    }
    inside: float | None = rotation.parameters.get(name)
    is_null = inside is None and name in rotation.parameters
    if is_null and (rotation.kind not in ("default", "axial") or default or set(outside.values()) - {1}):
        raise null(name, "a number")
    if inside is None and not outside:
        refuse_nulls(source, older_names if default is None or source.facts.null_partial else values.PARTS_OF_HEAD)
        return default
    partial = inside if inside is not None else next(iter(outside.values()))
    for other, value in ((name, partial), *outside.items()):
        if not 0 < value <= 1:
            raise ArgumentError(other, "be in 0 to 1", value)
        if value != partial and not (rotation.beside is not None and inside is not None):
            where = f"partial_rotary_factor {partial}" if inside is None else f"rope_parameters' {partial}"
            raise ArgumentError(other, f"agree with {where}", value)
    return partial


def rotary_dim_of(source: Source, head_dim: int, partial: float | None, precision: str) -> int:
    """The number of rotated channels: rotary_dim in some models (GPT-J), a fraction of head_dim in all others."""
    named = source.get("rotary_dim")
    if named is None and (named := source.facts.rotary_dim) is not None and source.is_null("rotary_dim"):
        raise null("rotary_dim", f"an int for model_type {source.get('model_type')!r}")
    if precision == "hf" and source.facts.unused_rotary_dim:
        named = None
    latent = source.get("qk_rope_head_dim")
    of_fraction = None if partial is None else int(head_dim * partial)
    if named is not None and of_fraction is not None and of_fraction != named:
        raise ArgumentError("rotary_dim", f"agree with partial_rotary_factor {partial}", named)
    rotary_dim: int = first(named, of_fraction, latent, head_dim)
    return rotary_dim
