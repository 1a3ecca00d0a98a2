"""Fingerprints of functions by their source, without comments, docstrings and annotations."""

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

# Decorators that return the function unchanged, or an object that holds it (see `function_of`).
_TRANSPARENT = {"use_kernel_forward_from_hub", "use_kernel_func_from_hub", "staticmethod", "classmethod"}
_IGNORED_FIELDS = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "decorator_list"}
# id of a code object -> (the object, held so that CPython does not reuse its id; the result of `_canonical`)
_texts: dict[int, tuple[types.CodeType, tuple[str | None, list[str]]]] = {}
Sources = dict[str, tuple[str, types.FunctionType]]  # {name: (canonical text, function)}


def fingerprint(function: Any) -> str | None:
    """16 hexadecimal digits for the source of a function and of the functions of its package that it calls.

    The names of the function, its arguments (with defaults) and its locals count, as do decorators that may change it.
    None without a source: compiled code, code run by exec, or a file that has changed since its import.

    function: accepted by `function_of`.
    """
    behind = function_of(function)
    found = _sources(behind, {}) if behind else None
    if not found:
        return None
    return hashlib.sha256("\n".join(found[name][0] for name in sorted(found)).encode()).hexdigest()[:16]


def helpers(function: types.FunctionType) -> tuple[types.FunctionType, ...]:
    """The functions of its package that a function currently calls; its fingerprint covers them."""
    return tuple(called for _, called in list((_sources(function, {}) or {}).values())[1:])


def callable_of(value: Any) -> Any:
    """The callable behind the value of a name, as before `patch`; None if the value cannot be read."""
    if not readable(value):
        return None
    value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    return vars(value).get("_rope_ext_original", value) if isinstance(value, types.FunctionType) else value


def function_of(value: Any) -> types.FunctionType | None:
    """The Python function behind a value or None. The value may be a module that the package `kernels` created."""
    value = callable_of(value)
    if hasattr(type(value), "kernel_layer_name"):  # use_kernel_forward_from_hub wraps the function in a module
        cells = getattr(type(value).forward, "__closure__", None) or ()
        value = next((c.cell_contents for c in cells if isinstance(c.cell_contents, types.FunctionType)), None)
    if isinstance(value, types.FunctionType) or package(type(value)) == "torch":  # others may run code
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
    return tree if now is not None and _same(now, code) else None  # None: the file has changed since its import


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
    """Whether two constants, or the code of two functions, are equal; line numbers do not count."""
    if not isinstance(a, types.CodeType) or not isinstance(b, types.CodeType):
        return repr(a) == repr(b)
    same = (a.co_code, a.co_names, a.co_varnames) == (b.co_code, b.co_names, b.co_varnames)
    return same and len(a.co_consts) == len(b.co_consts) and all(map(_same, a.co_consts, b.co_consts))


def default_arguments(code: types.CodeType) -> tuple[Any, ...]:
    """Defaults of the positional arguments of a function, from its source; empty unless all are literals."""
    tree = definition(code)
    try:
        return tuple(ast.literal_eval(d) for d in tree.args.defaults) if tree else ()
    except ValueError:
        return ()


def _sources(function: types.FunctionType, found: Sources) -> Sources | None:
    """Add {name: (canonical text, function)} of a function and of those that it calls to found."""
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
    """(canonical text, names that it reads) of the `def` of a code object, cached; (None, []) without a source."""
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
    # Skip None and empty fields, which later versions of Python have added.
    shown = (f"{name}={_text(value, names)}" for name, value in fields.items() if value is not None and value != [])
    return f"{type(node).__name__}({','.join(shown)})"


def _decorator(node: ast.expr) -> str | None:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
