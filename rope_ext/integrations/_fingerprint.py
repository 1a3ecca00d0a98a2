"""What a function means as far as its source says: comments, docstrings and annotations do not count."""

import ast
import functools
import hashlib
import inspect
import linecache
import textwrap
import types

from .._torch.private import before_script
from ._held import package, readable

# Decorators that leave the function as it is, or hold it (see `function_of`).
_TRANSPARENT = {"use_kernel_forward_from_hub", "use_kernel_func_from_hub", "staticmethod", "classmethod"}
_IGNORED_FIELDS = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "decorator_list"}
_texts = {}  # id of a code object -> the code object, what `_canonical` returns


def fingerprint(function):
    """16 hexadecimal digits for the source of a function and of the functions of its package that it calls.

    function: what `function_of` takes. Names of the function, its arguments (with defaults) and locals count, as do
    decorators that may change it. Returns None without a source (compiled, made by exec, or in a file that
    has changed since its import).
    """
    found = _sources(function_of(function), {})
    if not found:
        return None
    return hashlib.sha256("\n".join(found[name][0] for name in sorted(found)).encode()).hexdigest()[:16]


def helpers(function):
    """The functions behind a fingerprint but the first: those of its package that a function calls, as they are now."""
    return tuple(called for _, called in list((_sources(function, {}) or {}).values())[1:])


def callable_of(value):
    """What is called where a namespace holds value, before `patch` put something there. None if it cannot be read."""
    if not readable(value):
        return None
    value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    return vars(value).get("_rope_ext_original", value) if isinstance(value, types.FunctionType) else value


def function_of(value):
    """The Python function behind a value, which may be a module that the package `kernels` made of it; or None."""
    value = callable_of(value)
    if hasattr(type(value), "kernel_layer_name"):  # the decorator use_kernel_forward_from_hub makes a module of it
        cells = getattr(type(value).forward, "__closure__", None) or ()
        value = next((c.cell_contents for c in cells if isinstance(c.cell_contents, types.FunctionType)), None)
    if isinstance(value, types.FunctionType) or package(type(value)) == "torch":  # others may run code of their own
        value = before_script(value)
    return value if isinstance(value, types.FunctionType) else None


def package_of(function):
    return function.__globals__.get("__name__", "").partition(".")[0]


def definition(code):
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
def _codes_of(text, filename):
    """{(name, first line): code object} of a file."""
    found, left = {}, [compile(text, filename, "exec", dont_inherit=True)]
    while left:
        code = left.pop()
        found[code.co_name, code.co_firstlineno] = code
        left += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return found


def _same(a, b):
    """Whether two constants, or the code of two functions, are equal but for where they stand."""
    if not isinstance(a, types.CodeType) or not isinstance(b, types.CodeType):
        return repr(a) == repr(b)
    same = (a.co_code, a.co_names, a.co_varnames) == (b.co_code, b.co_names, b.co_varnames)
    return same and len(a.co_consts) == len(b.co_consts) and all(map(_same, a.co_consts, b.co_consts))


def default_arguments(code):
    """Defaults of the positional arguments of a function of which there is only the code: literals, or else none."""
    tree = definition(code)
    try:
        return tuple(ast.literal_eval(d) for d in tree.args.defaults) if tree else ()
    except ValueError:
        return ()


def _sources(function, found):
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


def _canonical(code):
    """(text, names that it reads) of the `def` of a code object, (None, ()) without one. Read once."""
    if id(code) not in _texts:
        tree, names = definition(code), set()
        _texts[id(code)] = (
            code,
            (tree and _text(tree, names), sorted(names)),
        )  # code: an id of what is gone may come back
    return _texts[id(code)][1]


def _text(node, names):
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


def _decorator(node):
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
