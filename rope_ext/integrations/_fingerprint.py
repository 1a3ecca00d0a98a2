"""Fingerprints of functions by their source, in which comments, docstrings and annotations do not count."""

import ast
import functools
import hashlib
import inspect
import linecache
import textwrap
import types
from typing import Any

from .._torch.private import before_script
from ._held import package, readable

# Decorators that leave the function as it is, or hold it (see `function_of`).
_TRANSPARENT = {"use_kernel_forward_from_hub", "use_kernel_func_from_hub", "staticmethod", "classmethod"}
_IGNORED_FIELDS = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "decorator_list"}
# id of a code object -> the object, so that CPython does not reuse its id, and what `_canonical` returns.
_texts: dict[int, tuple[types.CodeType, tuple[str | None, list[str]]]] = {}
Sources = dict[str, tuple[str, types.FunctionType]]  # {name: (canonical text, function)}


def fingerprint(function: Any) -> str | None:
    """16 hexadecimal digits for the source of a function and of the functions of its package that it calls.

    function: what `function_of` takes. Names of the function, its arguments (with defaults) and locals count, as do
    decorators that may change it. Returns None without a source (compiled, made by exec, or in a file that
    has changed since its import).
    """
    behind = function_of(function)
    found = _sources(behind, {}) if behind else None
    if not found:
        return None
    return hashlib.sha256("\n".join(found[name][0] for name in sorted(found)).encode()).hexdigest()[:16]


def helpers(function: types.FunctionType) -> tuple[types.FunctionType, ...]:
    """The functions of its package that a function calls, as they are now: its fingerprint covers them too."""
    return tuple(called for _, called in list((_sources(function, {}) or {}).values())[1:])


def callable_of(value: Any) -> Any:
    """The callable that a namespace holds as value, as it was before `patch`; None if it cannot be read."""
    if not readable(value):
        return None
    value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    return vars(value).get("_rope_ext_original", value) if isinstance(value, types.FunctionType) else value


def function_of(value: Any) -> types.FunctionType | None:
    """The Python function behind a value, which may be a module that the package `kernels` made of it; or None."""
    value = callable_of(value)
    if hasattr(type(value), "kernel_layer_name"):  # the decorator use_kernel_forward_from_hub makes a module of it
        cells = getattr(type(value).forward, "__closure__", None) or ()
        value = next((c.cell_contents for c in cells if isinstance(c.cell_contents, types.FunctionType)), None)
    if isinstance(value, types.FunctionType) or package(type(value)) == "torch":  # others may run code of their own
        value = before_script(value)
    return value if isinstance(value, types.FunctionType) else None


def package_of(function: types.FunctionType) -> str:
    name: str = function.__globals__.get("__name__", "")
    return name.partition(".")[0]


def definition(code: types.CodeType) -> ast.FunctionDef | None:
    """The syntax tree of the `def` that a code object was compiled from, or None."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, TypeError, SyntaxError, IndentationError, IndexError):
        return None
    if not isinstance(tree, ast.FunctionDef) or tree.name != code.co_name:
        return None
    text = "".join(linecache.getlines(code.co_filename))
    now = _codes_of(text, code.co_filename).get((code.co_name, code.co_firstlineno))
    return tree if now is not None and _same(now, code) else None  # else the file has changed since it was imported


@functools.lru_cache(maxsize=64)
def _codes_of(text: str, filename: str) -> dict[tuple[str, int], types.CodeType]:
    """{(name, first line): code object} of a file."""
    found, left = {}, [compile(text, filename, "exec", dont_inherit=True)]
    while left:
        code = left.pop()
        found[code.co_name, code.co_firstlineno] = code
        left += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return found


def _same(a: object, b: object) -> bool:
    """Whether two constants, or the code of two functions, are equal but for where they stand."""
    if not isinstance(a, types.CodeType) or not isinstance(b, types.CodeType):
        return repr(a) == repr(b)
    same = (a.co_code, a.co_names, a.co_varnames) == (b.co_code, b.co_names, b.co_varnames)
    return same and len(a.co_consts) == len(b.co_consts) and all(map(_same, a.co_consts, b.co_consts))


def default_arguments(code: types.CodeType) -> tuple[Any, ...]:
    """Defaults of the positional arguments of a function, from the source of its code: if all are literals."""
    tree = definition(code)
    try:
        return tuple(ast.literal_eval(d) for d in tree.args.defaults) if tree else ()
    except ValueError:
        return ()


def _sources(function: types.FunctionType, found: Sources) -> Sources | None:
    """{name: (canonical text, function)} of a function and of those that it calls, into found."""
    text, names = _canonical(function.__code__)
    if text is None:
        return None
    found[function.__name__] = text, function
    for name in names:
        called = function_of(function.__globals__.get(name))
        if called is not None and called.__name__ not in found and package_of(called) == package_of(function):
            _sources(called, found)
    return found


def _canonical(code: types.CodeType) -> tuple[str | None, list[str]]:
    """(text, names that it reads) of the `def` of a code object, (None, []) without one. Read once."""
    if id(code) not in _texts:
        tree, names = definition(code), set[str]()
        text = _text(tree, names) if tree else None
        _texts[id(code)] = code, (text, sorted(names))
    return _texts[id(code)][1]


def _text(node: Any, names: set[str]) -> str:
    """The canonical text of a syntax tree. Adds the names that it reads to names."""
    if isinstance(node, list):
        return "[" + ",".join(_text(part, names) for part in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign(targets=[node.target], value=node.value)
    if isinstance(node, ast.Name):
        names.add(node.id)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _IGNORED_FIELDS}
    if isinstance(node, ast.FunctionDef):
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            fields["body"] = node.body[1:]
        fields["decorators"] = [d for d in node.decorator_list if _decorator(d) not in _TRANSPARENT]
    # Fields that are None or empty came with later versions of Python.
    shown = (f"{name}={_text(value, names)}" for name, value in fields.items() if value is not None and value != [])
    return f"{type(node).__name__}({','.join(shown)})"


def _decorator(node: ast.expr) -> str | None:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
