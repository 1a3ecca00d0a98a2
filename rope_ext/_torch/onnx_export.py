"""Errors for a torch.onnx.export that lacks the translations of rope_ext, raised while it traces a call."""

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
    """Raises in a torch.onnx.export whose custom_translation_table lacks the ops of rope_ext.

    Calls and fake kernels both ask, because torch.onnx.export accepts models and programs of torch.export: it traces
    the calls of a model, and runs the fake kernels of a program's ops.
    """
    given = _arguments()
    if given is None or _ops.rotate.default in (given[_TABLE] or {}):
        return
    got = "None" if given[_TABLE] is None else "a table without"
    cure = f"{_TABLE}=rope_ext.onnx.translation_table() has them"
    raise ArgumentError(_TABLE, "hold the ops of rope_ext", got, cure)


def is_onnx_export() -> bool:
    """Whether torch.onnx.export traces: its graph has ONNX's operators in place of the ops."""
    return _arguments() is not None


def check_dynamo() -> None:
    """Raises in a torch.onnx.export that uses torch.jit.trace, unless it allows operators outside ONNX's domain."""
    given = _arguments()
    if given is None or given["dynamo"] or given["custom_opsets"] or given["operator_export_type"].name != "ONNX":
        return
    cure = f"dynamo=True, {_TABLE}=rope_ext.onnx.translation_table() exports the ops of rope_ext"
    raise ArgumentError("dynamo", "be True in torch.onnx.export", "False", cure)


def _arguments() -> dict[str, Any] | None:
    """The arguments of the running torch.onnx.export; None if none runs, or if it was not entered through `export`.

    The frame is found by its name and module, because `torch.onnx.export` may have been replaced by a wrapper.
    """
    onnx = sys.modules.get("torch.onnx")
    frame: FrameType | None = inspect.currentframe() if onnx else None
    while frame is not None and not (frame.f_code.co_name == "export" and frame.f_globals is vars(onnx)):
        frame = frame.f_back
    return None if frame is None else frame.f_locals
