"""Which rotary functions a model reaches, and under which names: the half of `patch` that changes nothing."""

import contextlib
import dis
import functools
import importlib.util
import inspect
import re
import sys
import types
import weakref
from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from ._fingerprint import callable_of, default_arguments, fingerprint, function_of, package_of

_ROTARY = re.compile(r"rotary|rope|rot_emb|freqs_c|multidimensional|rotat")
_MULTIPLIES = {"mul", "mul_", "addcmul", "einsum", "matmul", "view_as_complex"}
_OUTSIDE = {"torch", "rope_ext", *sys.stdlib_module_names} - {"__main__"}
_IMPORT = dis.opmap["IMPORT_NAME"]


@dataclass
class Candidate:
    """A function that looks rotary.

    original: what is called (`callable_of`), with `function` behind it. fingerprint: of its source, or None.
    names: the (namespace, name) that hold it; a namespace is the dict of a module, a class, or a weak reference to a
        submodule.
    outer: instead of names, the function that defines it each time it is called.
    uses: number of submodules that reach it.
    """

    name: str
    original: object
    function: types.FunctionType
    fingerprint: str | None
    names: list = field(default_factory=list, repr=False)
    outer: types.FunctionType | None = None
    uses: int = 0

    @property
    def key(self):
        """The same while the function exists: what is inside another is made anew each time."""
        return id(self.function if self.outer is None else self.function.__code__)


def candidates(model, known):
    """The candidates that the submodules of a model reach, each once.

    known: fingerprints of functions that will not be looked into: what only they call is no candidate.
    """
    modules = list(model.modules())
    helpers = [v for m in modules for v in vars(m).values() if _takes_part(v)]
    kinds = Counter(map(type, (*modules, *helpers)))
    walk = Walk({_package(c) for kind in kinds for c in kind.__mro__} - _OUTSIDE, known)
    for kind, count in kinds.items():
        for key in walk.of_class(kind):
            walk.found[key].uses += count
    for module in modules:
        for key in walk.of_attributes(module):
            walk.found[key].uses += 1
    return list(walk.found.values())


def looks_rotary(code):
    """True for functions whose source is worth reading."""
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {"cos", "sin"} <= set(code.co_varnames) or any(_ROTARY.search(word) for word in (code.co_name, *arguments))


def rotates(candidate):
    """True for functions of unknown source that may well be a rotation: worth a line that says they were left alone."""
    code = candidate.function.__code__
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if not re.match(r"_*(apply|rotate)|.*rope_apply", code.co_name) and not {"cos", "sin"} <= set(arguments):
        return False
    products = _MULTIPLIES & set(code.co_names) or any(i.argrepr == "*" for i in dis.get_instructions(code))
    return bool(products) and len(arguments) > 1


def code_of(function):
    """The code of a function, as it was before `patch` put others into it."""
    return getattr(function, "_rope_ext_code", function.__code__)


def codes_inside(code):
    """The code objects of the functions that are defined inside a function, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from codes_inside(constant)


class Walk:
    """Reads the code of functions of some packages (top-level names), and of those that they call."""

    def __init__(self, packages, known):
        self.packages, self.known = packages, known
        self.found = {}
        self._called = {}

    def of_class(self, kind):
        """The keys of the candidates that the methods of a class and of its bases reach."""
        reached, seen = set(), set()
        for base in kind.__mro__:
            if _package(base) in self.packages:
                for name, value in list(vars(base).items()):
                    self.visit(value.fget if isinstance(value, property) else value, (base, name), reached, seen)
        return reached

    def of_attributes(self, module):
        """The same of the functions that a module has as attributes."""
        reached, seen = set(), set()
        for name, value in list(vars(module).items()):
            self.visit(value, (weakref.ref(module), name), reached, seen)
        return reached

    def visit(self, value, place, reached, seen):
        """Adds what a name holds, and what that calls, to `found`, and their keys to `reached`."""
        function = function_of(value)
        if function is None:
            return
        if package_of(function) not in _OUTSIDE and self._candidate(value, function, place, reached):
            return  # of any package: a model may import the function from another
        if id(function) in seen:
            return
        seen.add(id(function))
        for cell in function.__closure__ or ():  # of a decorator
            if _filled(cell):
                self.visit(cell.cell_contents, None, reached, seen)
        if package_of(function) in self.packages:
            for inner in codes_inside(code_of(function)):
                if looks_rotary(inner) and inner.co_name.isidentifier() and not inner.co_freevars:
                    self._nested(function, inner, reached)
            for called, name in self._names(function):
                self.visit(called, name, reached, seen)

    def _candidate(self, value, function, place, reached):
        """True if the function is known, and so needs no look inside."""
        key = id(function)
        if key not in self.found:
            if place is None or not looks_rotary(function.__code__):
                return False
            owner = place[0].__name__ + "." if isinstance(place[0], type) else ""
            name = f"{function.__module__}.{owner}{function.__name__}"
            self.found[key] = Candidate(name, callable_of(value), function, fingerprint(function))
        candidate = self.found[key]
        if place is not None and not any(n[0] is place[0] and n[1] == place[1] for n in candidate.names):
            candidate.names.append(place)
        reached.add(key)
        return candidate.fingerprint in self.known

    def _nested(self, outer, code, reached):
        if id(code) not in self.found:
            function = types.FunctionType(code, outer.__globals__, code.co_name, default_arguments(code))
            name = f"{outer.__module__}.{outer.__qualname__}.{code.co_name}"
            self.found[id(code)] = Candidate(name, function, function, fingerprint(function), outer=outer)
        reached.add(id(code))

    def _names(self, function):
        """(value, place) of what the code of a function names: globals, attributes of modules, lazy imports."""
        code = code_of(function)
        if id(code) not in self._called:
            namespace, called = function.__globals__, []
            for inside in (code, *codes_inside(code)):
                namespaces = [namespace, *_imported(inside, namespace)]
                for name in inside.co_names:
                    if inspect.ismodule(namespace.get(name)):
                        namespaces.append(vars(namespace[name]))
                for held in namespaces:
                    if held.get("__name__", "").partition(".")[0] not in _OUTSIDE:
                        called += [(held[name], (held, name)) for name in inside.co_names if name in held]
            self._called[id(code)] = code, called  # held: an id of what is gone may come back
        return self._called[id(code)][1]


def _imported(code, namespace):
    """The namespaces of the modules that a function imports from when it is called, where they are loaded."""
    for level, name in _imports(code):
        with contextlib.suppress(ImportError, TypeError):
            name = importlib.util.resolve_name("." * level + name, namespace.get("__package__"))
            if name in sys.modules:
                yield vars(sys.modules[name])


@functools.cache
def _imports(code):
    """(dots, name) of the import statements of a function."""
    if _IMPORT not in code.co_code[::2]:
        return ()
    instructions = [x for x in dis.get_instructions(code) if x.opname != "EXTENDED_ARG"]
    return tuple((instructions[i - 2].argval, x.argval) for i, x in enumerate(instructions) if x.opcode == _IMPORT)


def _takes_part(value):
    """True for objects that take part in a forward without being modules, such as diffusers' attention processors."""
    plain = (nn.Module, type, types.FunctionType)
    return callable(value) and not isinstance(value, plain) and _package(type(value)) not in _OUTSIDE


def _filled(cell):
    try:
        return callable(cell.cell_contents)
    except ValueError:
        return False


def _package(kind):
    return kind.__module__.partition(".")[0]
