"""rotary_embedding of vllm._custom_ops (vllm-project/vllm 0.32), and `register` for a plug-in of vLLM."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .. import _numbers
from .._torch.library import DEVICES
from ..ops import apply_
from ..reference import Rounding
from ._arguments import flag, integer, rounding, tensor
from ._called import called
from ._errors import refused
from ._results import rounded_tables

_LAYERS = "vllm.model_executor.layers.rotary_embedding"
# On other platforms vLLM calls others: forward_xpu, and forward_hip, which calls forward_cuda unless AITER is on.
_FORWARDS = ("forward_native", "forward_cpu", "forward_cuda")


@called(
    positions=tensor("positions"),
    query=tensor("x"),
    key=tensor("x", optional=True),
    head_size=integer(),
    cos_sin_cache=tensor("cos", "sin", "rotary_dim"),
    is_neox=flag(),
    rope_dim_offset=integer("rotary_offset"),
    inverse=flag(),
    rounding=rounding(),
)
def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    rope_dim_offset: int = 0,
    inverse: bool = False,
    *,
    rounding: Rounding = "once",
) -> None:
    """Rotates query and key in place; returns None.

    positions: (tokens,) or (batch, seqlen), int32 or int64: rows of the cache. query: (*positions.shape, heads *
    head_size) or (*positions.shape, heads, head_size), rows may have gaps (slices of packed q, k, v); key likewise,
    heads may differ, or None. cos_sin_cache: (max_position, rotary_dim), cos in its first half of columns, sin in its
    second, one entry per pair; float32 or the dtype of query. is_neox: channels are paired in halves, else (2i, 2i +
    1). rope_dim_offset: first rotated channel. inverse: rotates by the negative angle.

    rounding: "eager" rounds cos, sin and each product to the dtype of query: the bits of vLLM's eager code
    (RotaryEmbedding.forward_native), with which its tests compare, and of its CUDA kernels that compute in that dtype.
    "once" keeps float32, and rounds the result once, as its kernels for the CPU do, up to a product that they fuse with
    a sum. Both are equal for float32 query. With "eager" a float32 cache is converted to the dtype of query each time.

    Not in the original: derivatives; on the CPU int32 positions, an axis of heads, rope_dim_offset and inverse.

    Source: vllm/_custom_ops.py, rotary_embedding.
    """
    if positions.dim() not in (1, 2):
        raise refused("positions", "have 1 or 2 dimensions", positions)
    if cos_sin_cache.dim() != 2 or cos_sin_cache.shape[1] % 2:
        raise refused("cos_sin_cache", "have shape (max_position, rotary_dim)", cos_sin_cache)
    if head_size < 1:
        raise refused("head_size", "be positive", head_size)
    x = [_with_heads("query", query, positions, head_size)]
    if key is not None:
        x.append(_with_heads("key", key, positions, head_size))
    cos, sin = cos_sin_cache.chunk(2, dim=-1)
    cos, sin = rounded_tables(cos, sin, query, rounding)
    apply_(
        x,
        cos,
        sin,
        layout="shd" if positions.dim() == 1 else "bshd",
        interleaved=not is_neox,
        rotary_dim=cos_sin_cache.shape[-1],
        rotary_offset=rope_dim_offset,
        per_channel=False,
        positions=positions,
        inverse=inverse,
        rounding=rounding,
    )


def _with_heads(name: str, x: Tensor, positions: Tensor, head_size: int) -> Tensor:
    """A view (*positions.shape, heads, head_size) of x."""
    shape, given, rank = positions.shape, x.shape, positions.dim()
    width, more = given[-1] if given else 0, len(given) - rank
    fits = given[:rank] == shape and (more == 1 or more == 2)
    if not fits or (width != head_size and (more == 2 or width % head_size)):
        rule = f"have the axes {tuple(shape)} of positions and then heads * head_size or heads, head_size"
        raise refused(name, rule, f"shape {tuple(given)} with head_size {head_size}")
    return x if more == 2 else x.view(*shape, width // head_size, head_size)


def register(rounding: Rounding = "once") -> tuple[str, ...]:
    """Register rope_ext out of tree for the rotary embeddings of vLLM, which makes them of the classes registered.

    These are `RotaryEmbedding` and its subclasses that leave its forward as it is and only make other tables: in 0.32
    those of the rope types default, llama3, yarn, linear, ntk, dynamic and proportional. Others (multimodal
    positions, DeepSeek's, dual chunks, Llama 4's vision, Fourier, LongRoPE) stay vLLM's own, as do embeddings that
    exist already. query and key are rotated in place and returned, whether vLLM has the custom op enabled or compiles
    forward_native. On a device without kernels in this build vLLM's own code runs.

    rounding: as in `rotary_embedding`. vLLM converts its tables to the dtype of query first.

    Returns the names of the classes. A second call only changes the rounding of embeddings made later. Raises
    ImportError without vLLM, ValueError where rounding is unknown or another package has registered one of them.
    """
    _numbers.rounding(rounding)
    try:
        layers: Any = importlib.import_module(_LAYERS)
        registry: Any = importlib.import_module("vllm.model_executor.custom_op").op_registry_oot
    except ImportError as error:
        raise ImportError(f"rope_ext: vllm must be installed (pip install vllm), got {error}") from error
    classes = {kind.__name__: kind for kind in _with_its_forward(layers.RotaryEmbedding)}
    for name in classes.keys() & registry.keys():
        if registry[name].__module__ != __name__:
            cure = "leave the plug-in that registered it out of VLLM_PLUGINS"
            raise ValueError(f"rope_ext: {name} must not be registered out of tree yet, got {registry[name]!r}: {cure}")
    for name, kind in classes.items():
        if name in registry:  # register_oot takes no second one
            del registry[name]
        methods = {forward: _forward(getattr(kind, forward), rounding) for forward in _FORWARDS}
        kind.register_oot(name=name)(type(f"RopeExt{name}", (kind,), {**methods, "__module__": __name__}))
    return tuple(classes)


def _with_its_forward(kind: Any) -> Iterator[Any]:
    """A class of vLLM, then its subclasses there that do not override what a forward does."""
    yield kind
    for inner in kind.__subclasses__():
        same = all(getattr(inner, name) is getattr(kind, name) for name in (*_FORWARDS, "forward_static", "forward"))
        if same and inner.__module__.startswith(f"{_LAYERS}."):
            yield from _with_its_forward(inner)


def _forward(original: Callable[..., Any], rounding: Rounding) -> Callable[..., Any]:
    def forward(self: Any, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
        if query.device.type not in DEVICES:
            return original(self, positions, query, key)
        cache = self._match_cos_sin_cache_dtype(query)
        rotary_embedding(positions, query, key, self.head_size, cache, self.is_neox_style, rounding=rounding)
        return query, key

    return forward
