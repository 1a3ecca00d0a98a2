"""Finds the rotary functions that a model reaches, and the names that hold them. This half of `patch` only reads."""

import itertools
import types
import weakref
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

from torch import nn

from .._torch.private import CALL, COMPILED_CALL
from ._candidate import Candidate, Namespace, looks_rotary
from ._code import code_of, codes_inside, globals_of, names_in
from ._fingerprint import callable_of, default_arguments, fingerprint, function_of, package_of
from ._held import (
    CONTAINERS,
    ITEMS,
    OUTSIDE,
    UNREAD,
    attributes_of,
    bound_values,
    has_attributes,
    is_module,
    package,
    parts,
    readable,
    takes_part,
)

ENTRIES = ("__call__", COMPILED_CALL, CALL, "forward")  # attributes that a call of a module runs, in this order
_RUN_FORWARD = {nn.Module.__call__, getattr(nn.Module, CALL, None)}
_CONSTRUCTORS = {"__init__", "__new__"}
_DEPTH = 8
Place = tuple[Namespace, str]  # a name and the namespace that holds it
_Names = tuple[set[str], Sequence[tuple[Any, Place]], list[types.CodeType]]


class Reach:
    """What some code reaches.

    keys: keys of candidates. captured: those of functions held where `patch` cannot replace them, such as a closure.
    names: attributes and methods that the code uses.
    held: {id: (path, module)} of the modules held in closures, globals, containers and objects.
    unread: paths of held values that were not inspected.
    seen: ids of visited values. left: number of items of containers that will still be inspected.
    kind: the class whose methods are followed when `super` or the name of a base leads to them.
    owners: the objects whose attributes are followed when the code names them. classes: those that the code names.
    """

    def __init__(self, kind: type | None = None, owners: Iterable[Any] = (), names: Iterable[str] = ()) -> None:
        self.kind, self.owners, self.names = kind, list(owners), set(names)
        self.classes: dict[type, None] = {}
        self.keys, self.captured = set[int](), set[int]()
        self.held: dict[int, tuple[str, nn.Module]] = {}
        self.unread, self.seen = set[str](), set[Hashable]()
        self.left = ITEMS

    def owns(self, value: object) -> bool:
        return any(owner is value for owner in self.owners)


class Walk:
    """Reads the code of functions of some packages (top-level names), and of the functions that they call.

    found: {key: Candidate}. captured: {key: function} of all functions held where `patch` cannot replace them.
    """

    def __init__(self, packages: set[str], known: Collection[str]) -> None:
        self.packages, self.known = packages, known
        self.found: dict[int, Candidate] = {}
        self.captured: dict[int, types.FunctionType] = {}
        self._read: dict[int, tuple[types.CodeType, _Names]] = {}

    def of_class(self, kind: type, hidden: Collection[str] = (), names: set[str] | None = None) -> Reach:
        """Reach of the methods of a class.

        hidden: names of methods hidden by attributes of an instance.
        names: names of methods that some code calls, besides `forward` and the special methods; None for all.
        """
        reach = Reach(kind)
        methods = [(name, *found) for name, found in self.methods(kind).items() if name not in hidden]
        for name, base, value in sorted(methods, key=lambda method: method[0] in _CONSTRUCTORS):
            if names is None or name in names or name == "forward" or name.startswith("__"):
                used, held, unread = set(reach.names), dict(reach.held), set(reach.unread)
                self.visit(value, (base, name), reach)
                if name in _CONSTRUCTORS:
                    reach.names, reach.held, reach.unread = used, held, unread  # stored values are not called yet
        return reach

    def of_bases(self, kind: type) -> Reach:
        """Reach of all methods of a class and of its bases, overridden or not."""
        reach = Reach(kind)
        for base in kind.__mro__:
            if package(base) in self.packages:
                for name, value in list(vars(base).items()):
                    self.visit(value, (base, name), reach)
        return reach

    def of_attribute(self, module: nn.Module, name: str, value: Any, names: Iterable[str]) -> Reach:
        """Reach of an attribute of a module. names: the attributes to follow if it is a plain object."""
        reach = Reach(type(module), [module], names)
        self.visit(value, (weakref.ref(module), name), reach)
        return reach

    def of_entry(self, value: Any, place: Place, module: nn.Module) -> Reach:
        """Reach of a replacement of the code of a module's class, followed into attributes of the module."""
        reach, done = Reach(type(module), [module]), set()
        self.visit(value, place, reach)
        while left := [(o, name) for o in reach.owners for name in sorted(reach.names) if (id(o), name) not in done]:
            for owner, name in left:
                done.add((id(owner), name))
                held = attributes_of(owner)
                if name in held:
                    self.visit(held[name], _place(owner, name), reach, name)
                elif name in self.methods(type(owner)):
                    base, method = self.methods(type(owner))[name]
                    self.visit(method, (base, name), reach)
        return reach

    def methods(self, kind: type) -> dict[str, tuple[type, Any]]:
        """{name: (class that defines it, value)} of a class, in the order in which an instance looks names up."""
        found: dict[str, tuple[type, Any]] = {}
        for base in kind.__mro__:
            if package(base) in self.packages:
                for name, value in list(vars(base).items()):
                    found.setdefault(name, (base, value))
        return found

    def visit(self, value: Any, place: Place | None, reach: Reach, path: str = "", depth: int = _DEPTH) -> None:
        """Add a value, and what a call of it reaches, to `found` and to a reach.

        place: the name that holds the value; None if it cannot hold another value. path: the place in words.
        depth: how many levels of nested containers are opened.
        """
        path = path or (place[1] if place else "")
        if value is UNREAD or not readable(value):
            reach.unread.add(path)
            return
        value = value.fget if isinstance(value, property) else value
        function = function_of(value)
        if function is None:
            return self._visit_object(value, reach, path, depth)
        if package_of(function) not in OUTSIDE and self._candidate(value, function, place, reach):
            return  # of any package: a model may import the function from another
        if id(function) in reach.seen:
            return
        reach.seen.add(id(function))
        if function in _RUN_FORWARD:
            reach.names |= set(ENTRIES)
        if package_of(function) in self.packages:
            reach.names |= self._names(function)[0]
        for name, content in bound_values(function):
            self.visit(content, None, reach, f"{function.__qualname__}.{name}")
        if package_of(function) in self.packages:
            names, named, inside = self._names(function)
            for code in inside:
                self._nested(function, code, reach)
            self._visit_names(function, names, named, reach)

    def _visit_object(self, value: Any, reach: Reach, path: str, depth: int) -> None:
        """Visit what a value other than a function holds or calls."""
        if is_module(value):
            reach.held.setdefault(id(value), (path, value))
            return
        owner: Any = value.__self__ if isinstance(value, types.MethodType) else value if takes_part(value) else None
        if is_module(owner) and not reach.owns(owner):
            reach.held.setdefault(id(owner), (path, owner))  # its method is a use of that module
            return
        if reach.owners and has_attributes(owner) and not reach.owns(owner):
            reach.owners.append(owner)
            reach.names |= {"__call__"} if owner is value else set()
        if isinstance(value, CONTAINERS):
            if id(value) in reach.seen:
                return
            reach.seen.add(id(value))
        elif not depth:
            return
        reach.left = ITEMS if depth == _DEPTH else reach.left
        found = parts(value, reach.names, reach.left if depth else 0)
        reach.left = max(0, reach.left - len(found))
        for suffix, part in found:
            if (id(value), suffix) not in reach.seen:
                reach.seen.add((id(value), suffix))
                self.visit(part, None, reach, path + suffix, depth - 1)

    def _visit_names(
        self, function: types.FunctionType, names: set[str], named: Sequence[tuple[Any, Place]], reach: Reach
    ) -> None:
        """Visit the globals, and the methods of bases, that the code of a function names."""
        order, lookups = reach.kind.__mro__ if reach.kind else (), []  # the classes searched for a name
        if "super" in names:
            classes = [content for name, content in bound_values(function) if name == "__class__"]
            lookups = [order[order.index(c) + 1 :] for c in classes if c in order]
        named_classes = [content for name, content in bound_values(function) if name != "__class__"]
        for value, place in named:
            if issubclass(type(value), type):
                named_classes.append(value)
                reach.classes[value] = None
            else:
                self.visit(value, place, reach)
        for start in [order.index(c) for c in named_classes if issubclass(type(c), type) and c in order]:
            lookups += [order[start:], order[start + 1 :] if "super" in names else ()]
        for name, bases in itertools.product(sorted(names), lookups) if lookups else ():
            base = next((base for base in bases if name in vars(base)), object)
            if package(base) in self.packages:
                self.visit(vars(base)[name], (base, name), reach)

    def _names(self, function: types.FunctionType) -> _Names:
        """(`names_in` its code, `globals_of` the function, the codes of rotary functions that it defines)"""
        code = code_of(function)
        if id(code) not in self._read:
            inside = [c for c in codes_inside(code) if c.co_name.isidentifier() and not c.co_freevars]
            found = names_in(code), globals_of(function), list(filter(looks_rotary, inside))
            self._read[id(code)] = code, found  # holds code, because CPython reuses ids
        return self._read[id(code)][1]

    def _candidate(self, value: Any, function: types.FunctionType, place: Place | None, reach: Reach) -> bool:
        """Add a function that looks rotary to `found`. True if it is known, so that its code is not followed."""
        key = id(function)
        if place is None:
            reach.captured.add(key)
            self.captured[key] = function
        if key not in self.found:
            if place is None or not looks_rotary(function.__code__):
                return False
            owner = place[0].__name__ + "." if isinstance(place[0], type) else ""
            name = f"{function.__module__}.{owner}{function.__name__}"
            self.found[key] = Candidate(name, callable_of(value), function, fingerprint(function))
        candidate = self.found[key]
        if place is not None and not any(n[0] is place[0] and n[1] == place[1] for n in candidate.names):
            candidate.names.append(place)
        reach.keys.add(key)
        return candidate.fingerprint in self.known

    def _nested(self, outer: types.FunctionType, code: types.CodeType, reach: Reach) -> None:
        if id(code) not in self.found:
            function = types.FunctionType(code, outer.__globals__, code.co_name, default_arguments(code))
            name = f"{outer.__module__}.{outer.__qualname__}.{code.co_name}"
            self.found[id(code)] = Candidate(name, function, function, fingerprint(function), outer=outer)
        reach.keys.add(id(code))


def _place(owner: Any, name: str) -> Place | None:
    """The place of an attribute, or None if its owner does not support weak references."""
    try:
        return weakref.ref(owner), name
    except TypeError:
        return None
