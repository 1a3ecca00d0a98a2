"""The error for torch.onnx.export without the translations of rope_ext, while it traces a call."""

import inspect
import sys
from types import FrameType
from typing import Any

from ..errors import ArgumentError
from .library import torch_ops as _ops
from .private import constant_in_graphs

_TABLE = "custom_translation_table"


@constant_in_graphs
def check_translated() -> None:
    """Raises in a torch.onnx.export whose custom_translation_table lacks rope_ext.

    Calls and fake kernels ask: a call may be in the model, or in the program of torch.export that it came as.
    """
    given = _arguments()
    if given is None or _ops.rotate.default in (given[_TABLE] or {}):
        return
    got = "None" if given[_TABLE] is None else "a table without"
    cure = f"{_TABLE}=rope_ext.onnx.translation_table() has them"
    raise ArgumentError(_TABLE, "hold the ops of rope_ext", got, cure)


def is_onnx_export() -> bool:
    """Whether torch.onnx.export traces, whose graph loses the ops."""
    return _arguments() is not None


def check_dynamo() -> None:
    """Raises in a torch.onnx.export that uses torch.jit.trace, unless it was told of other ops than ONNX's."""
    given = _arguments()
    if given is None or given["dynamo"] or given["custom_opsets"] or given["operator_export_type"].name != "ONNX":
        return
    cure = f"dynamo=True, {_TABLE}=rope_ext.onnx.translation_table() exports the ops of rope_ext"
    raise ArgumentError("dynamo", "be True in torch.onnx.export", "False", cure)


def _arguments() -> dict[str, Any] | None:
    """The arguments of the torch.onnx.export that is running; None: there is none, or it was entered another way.

    Its frame is found by name: what the name `torch.onnx.export` holds may be a wrapper that somebody put there.
    """
    onnx = sys.modules.get("torch.onnx")
    frame: FrameType | None = inspect.currentframe() if onnx else None
    while frame is not None and not (frame.f_code.co_name == "export" and frame.f_globals is vars(onnx)):
        frame = frame.f_back
    return None if frame is None else frame.f_locals
