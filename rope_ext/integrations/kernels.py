"""rope_ext as a kernel of the package `kernels`, which transformers uses with `use_kernels=True`.

Register rope_ext first, then enable kernels in the model::

    from rope_ext.integrations import kernels

    kernels.register()
    model.set_use_kernels(True)  # or kernels.kernelize(model, mode=Mode.TRAINING, device="cpu")

This reaches the functions that transformers declares as the kernel "rotary_pos_emb" and attaches to modules: in 5.23
those are 98 of 120. `rope_ext.patch` reaches these and all others and can be undone; `kernelize` cannot.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._numbers import rounding as check_rounding
from .._torch.library import NAMESPACE, build_info
from .._torch.private import constant_in_graphs
from ..reference import ROUNDINGS, Rounding
from ._candidate import Candidate
from ._fingerprint import fingerprint, function_of
from ._registry import verdict
from ._replacement import replacement_of

LAYER = "rotary_pos_emb"


def register(*modes: Any, rounding: Rounding = "eager") -> None:
    """Register rope_ext as the kernel "rotary_pos_emb", on the CPU and, where this build has kernels for it, on CUDA.

    The name stands for several functions in transformers (pairs in halves, one entry per pair, the other direction,
    float32 arithmetic). The layer therefore recognizes the function that it replaces, as `rope_ext.patch` does; a
    function that is not known and proven equal runs unchanged.

    On CUDA the entry covers a narrower range of compute capabilities than transformers' own entry, so `kernels` prefers
    it in either order of registration.

    Tested on the CPU with kernels 0.17.2, and with transformers 5.23 made to accept that version. transformers 5.23
    requires kernels 0.18.2 or later, which is not published and therefore not tested. On CUDA only the choice of the
    layer is tested.

    Args:
        *modes: members of `kernels.Mode`. Default: INFERENCE and TRAINING, each also with TORCH_COMPILE.
        rounding: as in `rope_ext.patch`.

    Raises:
        ImportError: the package `kernels` is not installed.
        ArgumentError: rounding is unknown; a ValueError.
    """
    check_rounding(rounding)
    try:
        hub: Any = importlib.import_module("kernels")
    except ImportError as error:
        raise ImportError(f"rope_ext: kernels must be installed (pip install kernels), got {error}") from error
    if not modes:
        mode = hub.Mode
        modes = tuple(m | c for m in (mode.INFERENCE, mode.TRAINING) for c in (mode._NONE, mode.TORCH_COMPILE))
    repository = dict.fromkeys(modes, Repository(rounding))
    devices: dict[Any, Any] = {"cpu": repository}
    if build_info()["cuda"]:
        # The entry of transformers covers 0 to sys.maxsize, and `kernels` selects the narrowest range.
        devices[hub.Device("cuda", hub.CUDAProperties(min_capability=1, max_capability=9999))] = repository
    hub.register_kernel_mapping({LAYER: devices})


@dataclass(frozen=True)
class Repository:
    """The object from which `kernels` loads the layer; instances with the same rounding are equal and hash alike.

    Attributes:
        rounding: as in `rope_ext.patch`.
    """

    rounding: Rounding

    def load(self) -> type[nn.Module]:
        """Return the class of the layer.

        Returns:
            RotaryEager or RotaryOnce, by `rounding`.
        """
        return _LAYERS[self.rounding]

    def __str__(self) -> str:
        return f"rope_ext (rounding={self.rounding!r})"


# `kernels` assigns `forward` to an instance of the class that holds the function to replace, hence type(self). It
# refuses a class that has a constructor, members or parameters.


class RotaryEager(nn.Module):
    """The layer with rounding="eager" of `rope_ext.patch`."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        """Rotate q and k as the function of transformers that this layer replaces.

        Args:
            q, k: (batch, heads, seqlen, head_dim), or (batch, seqlen, heads, head_dim) with unsqueeze_dim=2.
            cos, sin: (batch, seqlen, width), from the model's own rotary embedding.
            unsqueeze_dim: the axis of the heads in q and k. Default: 1.

        Returns:
            The rotated (q, k), or whatever else the replaced function returns.

        Raises:
            ArgumentError: as in `rope_ext.apply`.
            ArgumentTypeError: as in `rope_ext.apply`.
        """
        return _replacement_in(type(self), "eager")(q, k, cos, sin, unsqueeze_dim)


class RotaryOnce(nn.Module):
    """The layer with rounding="once" of `rope_ext.patch`."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        """Rotate q and k as the function of transformers that this layer replaces, and round each result once.

        Args:
            q, k, cos, sin, unsqueeze_dim: as in `RotaryEager.forward`.

        Returns:
            As `RotaryEager.forward`.

        Raises:
            ArgumentError: as in `rope_ext.apply`.
            ArgumentTypeError: as in `rope_ext.apply`.
        """
        return _replacement_in(type(self), "once")(q, k, cos, sin, unsqueeze_dim)


_LAYERS: dict[Rounding, type[nn.Module]] = {"eager": RotaryEager, "once": RotaryOnce}
# The attribute of a class that holds the replacement of its function. Other copies of rope_ext use other names.
_ATTRIBUTES: dict[Rounding, str] = {rounding: f"_{NAMESPACE}_{rounding}" for rounding in ROUNDINGS}


def _replacement_in(kind: Any, rounding: Rounding) -> Any:
    _recognize(kind)
    return getattr(kind, _ATTRIBUTES[rounding])


@constant_in_graphs  # runs during tracing and is not part of the graph
def _recognize(kind: Any) -> None:
    """Store the replacements, one for each rounding, in a class that `use_kernel_forward_from_hub` created."""
    function = None if hasattr(kind, _ATTRIBUTES[ROUNDINGS[-1]]) else function_of(kind())
    if function is not None:
        candidate = Candidate(function.__name__, function, function, fingerprint(function))
        for rounding in ROUNDINGS:
            _, dialect, _ = verdict(candidate, rounding)
            runs = replacement_of(function, dialect, rounding) if dialect else function
            setattr(kind, _ATTRIBUTES[rounding], staticmethod(runs))
