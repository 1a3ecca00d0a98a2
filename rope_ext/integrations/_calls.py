"""What a call of a model runs: its submodules, their code, and the rotary functions that this code reaches."""

import inspect
import re
import types
import weakref
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._candidate import looks_rotary
from ._entry import COMPILED, EntryPoint, entry_of, functions_behind, method_of
from ._find import ENTRIES, Reach, Walk
from ._fingerprint import fingerprint, function_of, package_of
from ._held import ATOMS, CONTAINERS, OUTSIDE, package, takes_part

_OWN_ATTRIBUTES = {*vars(nn.Module()), *ENTRIES}


@dataclass
class Call:
    """What a call of a module runs.

    entry: the replacement of the code of its class, or None.
    own: whether the code of its class runs, possibly called by the entry.
    keys: {key: uses} of the candidates that the module and its helpers (see `takes_part`) were found to reach.
    unseen: keys of the candidates that its class could reach, for which no path was found.
    captured: keys of the functions that it holds where `patch` cannot replace them.
    unread: see `Reach`.
    names: the attributes that its code uses.
    held: {id: (path, module)} of the modules that it holds without registering them as submodules.
    """

    entry: EntryPoint | None
    own: bool
    keys: Counter[int]
    unseen: set[int]
    captured: set[int]
    unread: set[str]
    names: set[str]
    held: dict[int, tuple[str, nn.Module]]


class Survey:
    """The modules that a call of a model runs, and the rotary functions that they reach.

    modules: {id: (name, module)}, including modules that `model.modules()` does not list.
    calls: {id: Call}.
    called: ids of the modules that were found to run.
    candidates: list of `Candidate`, with their uses.
    captured: {key: function} of the known functions that no name holds, which `patch` therefore cannot replace.
    known: fingerprints of functions whose own code is not followed: what only they call is no candidate.
    """

    def __init__(self, model: nn.Module, known: Collection[str]) -> None:
        self.model = model
        self.modules: dict[int, tuple[str, nn.Module]] = {}
        self.calls: dict[int, Call] = {}
        reached = self._reached()
        while len(reached) > len(self.modules):  # a newly found module may hold others
            self.modules = reached
            self._read(known)
            reached = self._reached()
        self.called = self._called()
        self.candidates = list(self._walk.found.values())
        self.captured = captured_only(self._walk)
        self._count()

    def below(self, key: int, seen: bool = False) -> list[int]:
        """Ids of the modules that a call of module `key` may run; with seen, only those that it was found to run."""
        _, module = self.modules[key]
        call = self.calls[key]
        every = call.own or not seen
        registered = [m for name, m in module.named_children() if every or name in call.names]
        return [id(m) for m in registered] + [i for i in call.held if i in self.modules]

    def _reached(self) -> dict[int, tuple[str, nn.Module]]:
        modules, left = {}, [("", self.model)]
        while left:
            prefix, root = left.pop(0)
            for name, module in root.named_modules(prefix=prefix):
                if id(module) not in modules:
                    modules[id(module)] = name, module
                    held = self.calls[id(module)].held.values() if id(module) in self.calls else ()
                    left += [(f"{name}.{path}".lstrip("."), inner) for path, inner in held]
        return modules

    def _read(self, known: Collection[str]) -> None:
        """Fill `calls` for `modules`."""
        modules = [module for _, module in self.modules.values()]
        entries = {id(m): entry for m in modules if (entry := entry_of(m)) is not None}
        kinds = list(dict.fromkeys(map(type, (*modules, *(v for m in modules for v in _helpers(m))))))
        packages = {package(base) for kind in kinds for base in kind.__mro__}
        packages |= {package_of(f) for entry in entries.values() for f in functions_behind(entry.value)}
        self._walk = walk = Walk(packages - OUTSIDE, known)
        possible = {kind: walk.of_bases(kind).keys for kind in kinds}
        self._through = {id(m): _through(walk, entries[id(m)], m) for m in modules if id(m) in entries}
        self._classes = {kind: walk.of_class(kind) for kind in kinds}
        self._names = set().union(*(r.names for r in (*self._classes.values(), *self._through.values())))
        for kind, reach in self._classes.items():
            self._leave_uncalled(kind, (), reach)
        self.calls = {id(m): self._call(m, entries.get(id(m)), possible[type(m)]) for m in modules}

    def _leave_uncalled(self, kind: type, hidden: Collection[str], reach: Reach) -> None:
        """Remove from the `Reach` of a class the candidates of methods that no code of the model names."""
        if not (reach.keys or reach.captured or reach.unread):
            return
        if method_of(kind, "forward")[0] not in (None, nn.Module):  # a class without forward is called by other code
            called = self._walk.of_class(kind, hidden, self._names)
            reach.keys, reach.captured, reach.unread = called.keys, called.captured, called.unread

    def _call(self, module: nn.Module, entry: EntryPoint | None, possible: set[int]) -> Call:
        """The `Call` of a module. possible: keys that the methods of its class and its bases reach."""
        kind, attributes = type(module), {n: v for n, v in list(vars(module).items()) if _may_call(n, v)}
        own, through, helpers = [self._own(module)], [], [self._classes[type(v)] for v in _helpers(module)]
        if entry is not None:
            through = [self._through[id(module)]]
            forward = function_of(method_of(kind, "forward")[1])
            if (entry.on_class and entry.name == "forward") or id(forward) not in through[0].seen:
                own = []
        names = set().union(*(r.names for r in (*own, *through, *helpers)))
        held_by: dict[str, Reach] = {}
        reaches, named = [*own, *through], self._classes[kind].names  # containers are read only if named
        while opened := [n for n, v in attributes.items() if n in names or n in named or not _is_container(v)]:
            held_by |= {n: self._walk.of_attribute(module, n, attributes.pop(n), names) for n in opened}
            reaches = [*own, *through, *(held_by.values() if own else ())]
            names = set().union(*(r.names for r in (*reaches, *(helpers if own else ()))))
        keys = Counter(set().union(*(r.keys for r in reaches)))
        keys.update(key for r in helpers for key in r.keys if own)
        held: dict[int, tuple[str, nn.Module]] = {}
        unread: set[str] = set()
        for reach in (*own, *through, *(r for n, r in held_by.items() if n in names)):
            held |= reach.held
            unread |= reach.unread
        held.pop(id(module), None)
        possible = possible.union(*(r.keys for r in (*held_by.values(), *helpers)))
        captured = set().union(*(r.captured for r in reaches))
        return Call(entry, bool(own), keys, possible - keys.keys(), captured, unread, names, held)

    def _own(self, module: nn.Module) -> Reach:
        """Reach of the class of a module, except for methods hidden by attributes of the module."""
        kind = type(module)
        names = vars(module).keys() & self._walk.methods(kind).keys() - set(ENTRIES)
        hidden = {name for name in names if _hides(module, name)}
        if not hidden:
            return self._classes[kind]
        reach = self._walk.of_class(kind, hidden)
        self._leave_uncalled(kind, hidden, reach)
        return reach

    def _called(self) -> set[int]:
        called, left = set(), [id(self.model)]
        while left:
            key = left.pop()
            if key not in called:
                called.add(key)
                left += self.below(key, seen=True)
        return called

    def _count(self) -> None:
        found, sources = self._walk.found, {}
        for key, (_, module) in self.modules.items():
            call = self.calls[key]
            unseen = call.unseen | call.captured
            if key in self.called:
                for reached in call.keys.keys() - call.captured:
                    found[reached].seen += call.keys[reached]
            else:
                unseen |= call.keys.keys()
            if isinstance(module, COMPILED) or call.unread:
                unseen = set(found)
            elif call.entry and call.entry.on_class:  # of the replaced code only the source remains
                kind = call.entry.holder
                if kind not in sources:
                    sources[kind] = words_of(kind)
                unseen |= {k for k, c in found.items() if c.named_in(sources[kind])} - call.keys.keys()
            for missed in unseen & found.keys():
                found[missed].unseen = True


def captured_only(walk: Walk) -> dict[int, types.FunctionType]:
    """{key: function} of the known functions that no name holds, which `patch` therefore cannot replace."""
    captured = {key: f for key, f in walk.captured.items() if key not in walk.found}
    return {key: f for key, f in captured.items() if looks_rotary(f.__code__) and fingerprint(f) in walk.known}


def words_of(kind: type) -> set[str] | None:
    """The words in the source of a class, or None without a source."""
    try:
        return set(re.findall(r"\w+", inspect.getsource(kind)))
    except (OSError, TypeError):
        return None


def _helpers(module: nn.Module) -> list[Any]:
    """The attributes of a module that it may call and that are no modules, see `takes_part`."""
    return [value for name, value in list(vars(module).items()) if takes_part(value) and name not in ENTRIES]


def _through(walk: Walk, entry: EntryPoint, module: nn.Module) -> Reach:
    """Reach of the entry of a module."""
    return walk.of_entry(entry.value, (entry.holder if entry.on_class else weakref.ref(module), entry.name), module)


def _may_call(name: str, value: object) -> bool:
    return name not in _OWN_ATTRIBUTES and not issubclass(type(value), (*ATOMS, torch.Tensor))


def _is_container(value: object) -> bool:
    return issubclass(type(value), CONTAINERS)


def _hides(module: nn.Module, name: str) -> bool:
    """Whether an attribute of a module hides a method of its class."""
    _, method = method_of(type(module), name)
    return callable(method) and not isinstance(method, type) and vars(module)[name] is not method
