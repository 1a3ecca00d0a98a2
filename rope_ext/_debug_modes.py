"""The debug modes that Python checks, selected by the environment when rope_ext is imported.

A process without them executes no additional instruction: `call_op` of ops.py is then undecorated.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeAlias

from . import _context_parallel, _table_widths

_P = ParamSpec("_P")
_Check: TypeAlias = Callable[..., None]  # called with the arguments of an op

_CHECKS: dict[str, _Check] = {
    "ROPE_EXT_CHECK_TABLES": _table_widths.check,
    "ROPE_EXT_CHECK_POSITIONS": _context_parallel.check,  # csrc/bindings/impl_cuda.cpp reads it too
}


def in_wanted_modes(call_op: Callable[_P, Any]) -> Callable[_P, Any]:
    """call_op with the checks that the environment selects; call_op itself if it selects none."""
    checks = [check for name, check in _CHECKS.items() if os.environ.get(name, "") not in ("", "0")]
    return checked(call_op, checks) if checks else call_op


def checked(call_op: Callable[_P, Any], checks: Sequence[_Check]) -> Callable[_P, Any]:
    """call_op, preceded by the checks in each call."""

    def check_and_call(*args: _P.args, **keywords: _P.kwargs) -> Any:
        arguments: Any = args[0]
        for check in checks:
            check(*arguments)
        return call_op(*args, **keywords)

    return check_and_call
