"""rope_ext as a kernel of the package `kernels`: the route that transformers itself offers (`use_kernels`).

    from rope_ext.integrations import kernels
    kernels.register()                              # before the next line
    model.set_use_kernels(True)                     # or kernels' kernelize(model, mode=Mode.TRAINING, device="cpu")

It reaches the functions that transformers declares to be the kernel "rotary_pos_emb" and attaches to modules; in 5.23
98 of 120. `rope_ext.patch` reaches these and all others, and can be undone; `kernelize` cannot.
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
from ._patch import replacement_of
from ._registry import verdict

LAYER = "rotary_pos_emb"


def register(*modes: Any, rounding: Rounding = "eager") -> None:
    """Register rope_ext as the kernel "rotary_pos_emb", on the CPU and, where this build has kernels for it, on CUDA.

    modes: members of `kernels.Mode`. Default: INFERENCE and TRAINING, each also with TORCH_COMPILE.
    rounding: as in `rope_ext.patch`.

    One name stands for several functions in transformers (half pairs, an entry per pair, another direction, float32
    arithmetic), so the layer recognises the function that it takes the place of, as `rope_ext.patch` does: what is not
    known and proven equal runs as it is.

    On CUDA the entry is for a range of compute capabilities narrower than that of transformers' own, so it is preferred
    whichever is registered first.

    Verified with kernels 0.17.2 and transformers 5.23 made to accept it, on the CPU. Not verified: kernels 0.18.2 and
    later, which transformers 5.23 asks for and which are not published yet; on CUDA, more than the choice of the layer.

    Raises ImportError without the package `kernels`, ArgumentError (a ValueError) where rounding is unknown.
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
        # transformers' own is for 0 to sys.maxsize; the narrowest wins.
        devices[hub.Device("cuda", hub.CUDAProperties(min_capability=1, max_capability=9999))] = repository
    hub.register_kernel_mapping({LAYER: devices})


@dataclass(frozen=True)
class Repository:
    """What `kernels` loads the layer from, and keeps layers by: equal, with equal hashes, where rounding is equal."""

    rounding: Rounding

    def load(self) -> type[nn.Module]:
        return _LAYERS[self.rounding]

    def __str__(self) -> str:
        return f"rope_ext (rounding={self.rounding!r})"


# kernels puts `forward` into an instance of the class that holds the function to replace, hence type(self). It takes no
# class with a constructor, members or parameters of its own.


class RotaryEager(nn.Module):
    """The layer with rounding="eager", as in `rope_ext.patch`."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        return _replacement_in(type(self), "eager")(q, k, cos, sin, unsqueeze_dim)


class RotaryOnce(nn.Module):
    """The layer with rounding="once", as in `rope_ext.patch`."""

    can_torch_compile = True
    has_backward = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        return _replacement_in(type(self), "once")(q, k, cos, sin, unsqueeze_dim)


_LAYERS: dict[Rounding, type[nn.Module]] = {"eager": RotaryEager, "once": RotaryOnce}
# Where a class keeps what runs in place of its function. Other copies of rope_ext keep theirs under other names.
_ATTRIBUTES: dict[Rounding, str] = {rounding: f"_{NAMESPACE}_{rounding}" for rounding in ROUNDINGS}


def _replacement_in(kind: Any, rounding: Rounding) -> Any:
    _recognise(kind)
    return getattr(kind, _ATTRIBUTES[rounding])


@constant_in_graphs  # runs while a graph is made, and is no part of it
def _recognise(kind: Any) -> None:
    """Gives a class that `use_kernel_forward_from_hub` made what runs in place of its function, for each rounding."""
    function = None if hasattr(kind, _ATTRIBUTES[ROUNDINGS[-1]]) else function_of(kind())
    if function is not None:
        candidate = Candidate(function.__name__, function, function, fingerprint(function))
        for rounding in ROUNDINGS:
            _, dialect, _ = verdict(candidate, rounding)
            runs = replacement_of(function, dialect, rounding) if dialect else function
            setattr(kind, _ATTRIBUTES[rounding], staticmethod(runs))
