"""Rotary position embedding: every layout, pairing and dtype, with derivatives of every order::

    rope = rope_ext.RotaryEmbedding(head_dim=128, base=500_000.0)
    cos, sin = rope.tables(max_position=8192)
    q, k = rope_ext.apply((q, k), cos, sin)         # q, k: (batch, seqlen, heads, head_dim)

* `apply`, `apply_`: the rotation, also in place; in plain PyTorch: `rope_ext.reference`.
* `RotaryEmbedding`, `rope_ext.frequencies`: tables and angles.
* `apply_qkv`, `apply_qkv_`: packed projections.
* `rope_ext.compat`: signatures of other libraries. `patch`, `patched`, `unpatch`: whole models.
* `rope_ext.memory`: memory of large results, and of tables.
* `rope_ext.distributed`: which tokens a rank of context parallelism holds.
* `rope_ext.export`, `rope_ext.onnx`: programs that run without rope_ext.
* `python -m rope_ext.profile`: what a call costs.
"""

import importlib
import warnings

with warnings.catch_warnings():
    # torch warns on import if numpy is missing, which neither torch nor rope_ext requires.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy: No module named 'numpy'", UserWarning)
    importlib.import_module("torch")

from . import angles, compat, distributed, errors, export, frequencies, memory, onnx, reference
from ._torch.library import build_info
from ._version import __version__ as __version__
from .angles import cos_sin
from .errors import ArgumentError, ArgumentTypeError
from .integrations import Report, patch, patched, unpatch
from .memory import clear_tables, set_output_pool, set_table_limit, tune_malloc
from .ops import apply, apply_
from .qkv import apply_qkv, apply_qkv_
from .rotary import RotaryEmbedding
from .weights import permute_weights

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "Report",
    "RotaryEmbedding",
    "angles",
    "apply",
    "apply_",
    "apply_qkv",
    "apply_qkv_",
    "build_info",
    "clear_tables",
    "compat",
    "cos_sin",
    "distributed",
    "errors",
    "export",
    "frequencies",
    "memory",
    "onnx",
    "patch",
    "patched",
    "permute_weights",
    "reference",
    "set_output_pool",
    "set_table_limit",
    "tune_malloc",
    "unpatch",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
