"""rope_ext in ONNX: the table that torch.onnx.export needs for models that call it.

    table = rope_ext.onnx.translation_table()
    torch.onnx.export(model, (x,), "model.onnx", dynamo=True, custom_translation_table=table, opset_version=23)

onnx and onnxscript must be installed: pip install onnx onnxscript.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NoReturn

from . import _onnx_rotate, _onnx_tables
from ._onnx_graph import Graph
from ._torch.arguments import split
from ._torch.decompositions import FUNCTIONS
from ._torch.overloads import ByOverload, for_all_overloads

__all__ = ["translation_table"]


def translation_table() -> ByOverload:
    """The ops of rope_ext in ONNX's operators, for `torch.onnx.export(dynamo=True, custom_translation_table=...)`.

    With opset_version=23 or later a rotation is ONNX's own RotaryEmbedding, which engines have kernels for: both
    pairings, partial rotation, positions, offset, inverse, every layout, tables by row or per token, inv_freq; and a
    norm in front of it RMSNormalization. What these cannot say, and all of it in earlier opsets (torch's default is
    20), is products and sums: float64, tables with an entry per channel or with heads, rounding="eager". No operator of
    another domain. Batch, seqlen and the rows of tables may be dynamic, head_dim and rotary_dim not.

    x of 16 bits is rotated in float32 and rounded once, as by `apply`. A position outside the table gives NaN in the
    rotated channels of its token. docs/deploy.md has the differences from `apply` in ONNX Runtime.
    The ops of derivatives have no translation: the error names `export.decompositions`, after which a program needs no
    table.

    Raises ImportError where onnx or onnxscript is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        rule, cure = "must be installed, got a Python without", "pip install onnx onnxscript"
        raise ImportError(f"rope_ext: {' and '.join(missing)} {rule}: {cure}")
    translations: dict[str, Callable[..., Any]] = {name: functools.partial(_refuse, name) for name in FUNCTIONS}
    translations |= {"rotate": _onnx_rotate.rotate, "cos_sin": _cos_sin, "revolutions": _onnx_tables.revolutions}
    return for_all_overloads(translations)


def _cos_sin(x: Any, high: Any, low: Any, *rest: Any) -> tuple[Any, Any, Any]:
    """The op as in _torch/decompositions.py."""
    scalars, lookup = split(rest)
    return _onnx_tables.cos_sin(Graph(), x[0], high, low, scalars, lookup)


def _refuse(name: str, *_arguments: Any) -> NoReturn:
    cure = "program.run_decompositions(torch.export.default_decompositions() | rope_ext.export.decompositions())"
    rule, got = "have ops with a translation to ONNX", f"{name} of rope_ext"
    raise NotImplementedError(f"rope_ext: model must {rule}, got {got}: {cure} replaces it")
