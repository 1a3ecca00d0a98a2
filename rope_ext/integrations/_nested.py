"""Replaces nested functions, which an outer function defines at each call, by changing the code of the outer one."""

import inspect
import types
from collections.abc import Callable
from typing import Any

from ._code import code_of
from ._fingerprint import default_arguments


def put_inside(outer: Any, code: types.CodeType, function: Callable[..., Any] | None) -> None:
    """Make outer define `function` instead of the nested function of `code`. None restores the nested function.

    A constant in the code of outer becomes a stub that calls a global. The global remains after a restore: a call of
    outer in progress at that time still has the stub, for which the global is then the original function.
    """
    whole = code_of(outer)
    stubs = dict(getattr(outer, "_rope_ext_stubs", {}))
    name = f"_rope_ext_{outer.__qualname__}_{code.co_name}_{code.co_firstlineno}".replace(".", "_").replace(
        "<locals>", ""
    )
    if function is None:
        del stubs[id(code)]
        outer.__globals__[name] = types.FunctionType(code, outer.__globals__, code.co_name, default_arguments(code))
    else:
        stubs[id(code)] = _stub(code, name)
        outer.__globals__[name] = function
    if stubs:
        outer._rope_ext_code, outer._rope_ext_stubs = whole, stubs
        outer.__code__ = _with_stubs(whole, stubs)
    else:
        del outer._rope_ext_code, outer._rope_ext_stubs
        outer.__code__ = whole


def _with_stubs(code: types.CodeType, stubs: dict[int, types.CodeType]) -> types.CodeType:
    if id(code) in stubs:
        return stubs[id(code)]
    inside = (_with_stubs(c, stubs) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=tuple(inside))


def _stub(code: types.CodeType, called: str) -> types.CodeType:
    """The code of a function with the arguments of a code object, which passes them to the global `called`."""
    empty = inspect.Parameter.empty
    parameters = inspect.signature(types.FunctionType(code, {})).parameters.values()
    declared = inspect.Signature([p.replace(default=empty, annotation=empty) for p in parameters])
    kinds: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*{0}", inspect.Parameter.VAR_KEYWORD: "**{0}"}
    kinds[inspect.Parameter.KEYWORD_ONLY] = "{0}={0}"
    passed = ", ".join(kinds.get(p.kind, "{0}").format(p.name) for p in parameters)
    source = f"def {code.co_name}{declared}:\n    return {called}({passed})\n"
    module = compile(source, code.co_filename, "exec", dont_inherit=True)
    stub = next(c for c in module.co_consts if isinstance(c, types.CodeType))
    return stub.replace(co_firstlineno=code.co_firstlineno)
