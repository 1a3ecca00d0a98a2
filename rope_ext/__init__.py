"""Rotary position embedding: every layout, pairing and dtype, with derivatives of every order.

    rope = rope_ext.RotaryEmbedding(head_dim=128, base=500_000.0)
    cos, sin = rope.tables(max_position=8192)
    q, k = rope_ext.apply((q, k), cos, sin)         # q, k: (batch, seqlen, heads, head_dim)

`apply`, `apply_`: rope_ext.ops. The same in plain PyTorch: rope_ext.reference. Angles: rope_ext.RotaryEmbedding.
"""

from pathlib import Path

import torch

from ._version import __version__ as __version__


def _load_ops():
    """Register the compiled ops with torch; errors say what to do."""
    rebuild = "pip install --no-build-isolation --no-deps --force-reinstall rope_ext"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        raise ImportError(f"rope_ext: torch must be at least 2.11, got {torch.__version__}: pip install 'torch>=2.11'")
    path = Path(__file__).with_name("_ops.so")
    if not path.exists():
        never_built = "a package that was never built: pip install -e . in the checkout"
        raise ImportError(f"rope_ext: _ops.so must lie beside {__file__}, got {never_built}")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"rope_ext: _ops.so must load in torch {torch.__version__}, got: {error}; rebuild: {rebuild}"
        ) from error


_load_ops()

# The ops must be registered before these are imported.
from . import _fake, _vmap, frequencies, reference  # noqa: E402, F401
from .ops import apply, apply_  # noqa: E402
from .rotary import RotaryEmbedding  # noqa: E402

__all__ = ["RotaryEmbedding", "apply", "apply_", "frequencies", "reference"]
