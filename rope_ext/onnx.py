"""rope_ext in ONNX: the table that torch.onnx.export needs for models that call it::

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
    """Translate the ops of rope_ext to ONNX, for `torch.onnx.export(dynamo=True, custom_translation_table=...)`.

    With opset_version=23 or later a rotation becomes ONNX's own RotaryEmbedding, for which engines have kernels: both
    pairings, partial rotation, positions, offset, inverse, every layout, tables by row or per token, inv_freq. A norm
    before it becomes RMSNormalization. What these operators cannot express becomes products and sums: float64, tables
    with an entry per channel or with heads, and rounding="eager"; in earlier opsets (PyTorch's default is 20)
    everything does. No operator of another domain is used. Batch, seqlen and the rows of tables may be dynamic;
    head_dim and rotary_dim must be fixed.

    16-bit x is rotated in float32 and rounded once, as by `rope_ext.apply`. A position outside the table yields NaN in
    the rotated channels of its token. docs/deploy.md lists the differences from `rope_ext.apply` in ONNX Runtime.

    The ops of derivatives have no translation: the error names `rope_ext.export.decompositions`, after which a program
    needs no table.

    Returns:
        A dictionary from ops to functions.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        rule, cure = "must be installed, got a Python without", "pip install onnx onnxscript"
        raise ImportError(f"rope_ext: {' and '.join(missing)} {rule}: {cure}")
    translations: dict[str, Callable[..., Any]] = {name: functools.partial(_refuse, name) for name in FUNCTIONS}
    translations |= {"rotate": _onnx_rotate.rotate, "cos_sin": _cos_sin, "revolutions": _onnx_tables.revolutions}
    return for_all_overloads(translations)


def _cos_sin(x: Any, high: Any, low: Any, *rest: Any) -> tuple[Any, Any, Any]:
    """The op, as in _torch/decompositions.py."""
    scalars, lookup = split(rest)
    return _onnx_tables.cos_sin(Graph(), x[0], high, low, scalars, lookup)


def _refuse(name: str, *_arguments: Any) -> NoReturn:
    cure = "program.run_decompositions(torch.export.default_decompositions() | rope_ext.export.decompositions())"
    rule, got = "have ops with a translation to ONNX", f"{name} of rope_ext"
    raise NotImplementedError(f"rope_ext: model must {rule}, got {got}: call {cure} to replace it")
