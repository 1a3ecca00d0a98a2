"""rotary_embedding of vllm._custom_ops (vllm-project/vllm 0.32), and `register`, the entry point of a plug-in."""

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
# Other platforms call forward_xpu, or forward_hip, which calls forward_cuda unless AITER is enabled.
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
    """Rotate query and key in place.

    Beyond the original, the function supports derivatives, and on the CPU int32 positions, an axis of heads,
    rope_dim_offset and inverse.

    Args:
        positions: (tokens,) or (batch, seqlen), int32 or int64: rows of the cache.
        query: shape of positions followed by heads * head_size, or by heads, head_size. Rows may have gaps, as slices
            of a packed qkv have.
        key: like query, with its own number of heads, or None.
        head_size: channels of a head.
        cos_sin_cache: (max_position, rotary_dim), cos in the first half of the columns and sin in the second, one entry
            per pair; float32 or the dtype of query.
        is_neox: whether channels are paired in halves; otherwise pairs are (2i, 2i + 1).
        rope_dim_offset: first rotated channel.
        inverse: whether to rotate by the negative angle.
        rounding: "eager" rounds cos, sin and each product to the dtype of query. That is bit-identical to vLLM's eager
            code (RotaryEmbedding.forward_native), with which its tests compare, and to those of its CUDA kernels that
            compute in that dtype; a float32 cache is cast to the dtype of query at each call. "once" computes in
            float32 and rounds the result once, as vLLM's CPU kernels do, except that these fuse a product and a sum.
            For float32 query both are equal.

    Returns:
        None; query and key are overwritten.

    Raises:
        ArgumentError: when a shape or value does not fit, or a position is outside the cache; nothing is written.
        ArgumentTypeError: when an argument has a wrong type or dtype; nothing is written.

    Equivalent to, for positions (tokens,) and query (tokens, heads * head_size) without key::

        cos, sin = cos_sin_cache.chunk(2, dim=-1)
        options = {"rotary_dim": cos_sin_cache.shape[-1], "rotary_offset": rope_dim_offset, "inverse": inverse}
        options |= {"interleaved": not is_neox, "positions": positions}
        rope_ext.apply_(query.view(len(positions), -1, head_size), cos, sin, layout="shd", **options)

    Source: vLLM 0.32, vllm/_custom_ops.py, rotary_embedding.
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
    """A view `(*positions.shape, heads, head_size)` of x."""
    shape, given, rank = positions.shape, x.shape, positions.dim()
    width, more = given[-1] if given else 0, len(given) - rank
    fits = given[:rank] == shape and (more == 1 or more == 2)
    if not fits or (width != head_size and (more == 2 or width % head_size)):
        rule = f"have the shape {tuple(shape)} of positions followed by heads * head_size or heads, head_size"
        raise refused(name, rule, f"shape {tuple(given)} with head_size {head_size}")
    return x if more == 2 else x.view(*shape, width // head_size, head_size)


def register(rounding: Rounding = "once") -> tuple[str, ...]:
    """Register rope_ext as the out-of-tree implementation of vLLM's rotary embeddings.

    vLLM then constructs the registered classes instead of its own: `RotaryEmbedding` and its subclasses that inherit
    its forward and only build other tables, in 0.32 those of the rope types default, llama3, yarn, linear, ntk, dynamic
    and proportional. Other embeddings remain those of vLLM (multimodal positions, DeepSeek's, dual chunks, Llama 4's
    vision, Fourier, LongRoPE), as do embeddings that exist already.

    query and key are rotated in place and returned, whether vLLM has the custom op enabled or compiles forward_native.
    On a device without kernels in this build vLLM's own code runs. A second call only changes the rounding of
    embeddings constructed later.

    Args:
        rounding: as in `rotary_embedding`. vLLM casts its tables to the dtype of query first.

    Returns:
        The names of the registered classes.

    Raises:
        ImportError: when vLLM is not installed.
        ValueError: when rounding is unknown, or another package has registered one of the classes.

    Source: vLLM 0.32, vllm/model_executor/custom_op.py, CustomOp.register_oot.
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
            cure = "remove the plug-in that registered it from VLLM_PLUGINS"
            raise ValueError(f"rope_ext: {name} must not be registered already, got {registry[name]!r}: {cure}")
    for name, kind in classes.items():
        if name in registry:  # register_oot refuses a second registration
            del registry[name]
        methods = {forward: _forward(getattr(kind, forward), rounding) for forward in _FORWARDS}
        kind.register_oot(name=name)(type(f"RopeExt{name}", (kind,), {**methods, "__module__": __name__}))
    return tuple(classes)


def _with_its_forward(kind: Any) -> Iterator[Any]:
    """A class of vLLM, then those of its subclasses in vLLM that inherit every forward."""
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
