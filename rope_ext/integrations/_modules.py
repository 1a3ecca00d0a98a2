"""The rotary functions that the code of Python modules reaches, before any model of their classes exists."""

import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ._calls import captured_only
from ._entry import functions_behind, method_of
from ._find import Reach, Walk
from ._fingerprint import package_of
from ._held import OUTSIDE, package
from ._layers import held_where, names_of
from ._report import Layer


class ModuleSurvey:
    """The rotary functions reached from Python modules, the classes in them, and the classes that those construct.

    candidates: list of `Candidate`; `seen` is the number of classes whose methods reach it.
    known: fingerprints of functions whose own code is not followed: what only they call is no candidate.
    """

    def __init__(self, modules: Sequence[types.ModuleType], known: Collection[str]) -> None:
        walk = Walk({module.__name__.partition(".")[0] for module in modules} - OUTSIDE, known)
        reaches: dict[type, Reach] = {}
        left = [value for module in modules for value in list(vars(module).values()) if issubclass(type(value), type)]
        while left:
            kind = left.pop(0)
            if kind not in reaches and package(kind) not in OUTSIDE:
                walk.packages |= packages_of(kind) - OUTSIDE
                walk.of_bases(kind)
                reaches[kind] = walk.of_class(kind)
                left += constructed_by(kind, walk)
        self._reaches = [(kind.__name__, f"{kind.__module__}.{kind.__qualname__}", r) for kind, r in reaches.items()]
        self._reaches += [("module", module.__name__, visit(module, walk)) for module in modules]
        self.candidates = list(walk.found.values())
        self._captured = captured_only(walk)
        uses = Counter(key for reach in reaches.values() for key in reach.keys)
        for candidate in self.candidates:
            candidate.seen = uses[candidate.key]

    def layers(self, reported: Mapping[int, str]) -> tuple[Layer, ...]:
        """The classes and modules that hold a function in reported, {key: name}, where `patch` cannot replace it."""
        reported = {**reported, **{key: function.__name__ for key, function in self._captured.items()}}
        held = [(kind, name, names_of(reach.captured, reported)) for kind, name, reach in self._reaches]
        return tuple(Layer((name,), kind, held_where(names), True) for kind, name, names in held if names)


def constructed_by(kind: type, walk: Walk) -> list[type]:
    """The callable classes that a constructor names: a new instance may hold objects of them."""
    reach = Reach(kind)
    base, constructor = method_of(kind, "__init__")
    if base is not None and package(base) not in OUTSIDE:
        walk.visit(constructor, (base, "__init__"), reach)
    return [named for named in reach.classes if method_of(named, "__call__")[0] is not None]


def packages_of(kind: type) -> set[str]:
    """The packages whose code an instance of a class runs."""
    behind = functions_behind(method_of(kind, "forward")[1])
    return {package(base) for base in kind.__mro__} | {package_of(function) for function in behind}


def visit(module: types.ModuleType, walk: Walk) -> Reach:
    """Visit what a module's names hold, of a class all methods, overridden or not. Returns the reach of the rest."""
    reach = Reach()
    for name, value in list(vars(module).items()):
        if issubclass(type(value), type):
            walk.of_bases(value)
        elif not name.startswith("__"):
            walk.visit(value, (vars(module), name), reach)
    return reach
