"""Which modules a `Report` names: those where a call does not run what their class says, or `patch` cannot get to."""

import re
from collections.abc import Iterable, Iterator, Mapping

from ._calls import Survey, words_of
from ._entry import COMPILED, EntryPoint
from ._held import ITEMS
from ._report import Layer

_ROTARY_WORD = re.compile(r"\w*(rotary|rope|rotat|freqs_c)\w*|cos|sin")


def layers_of(survey: Survey, reported: dict[int, str]) -> tuple[Layer, ...]:
    """The `Layer`s of a `Survey`: modules of one class with one reason are one.

    reported: {key: name} of the candidates that the report lists. Modules without rotations are not named.
    """
    reported = reported | {key: function.__name__ for key, function in survey.captured.items()}
    reader = _Reader(survey, reported)
    grouped: dict[tuple[str, str, bool], list[str]] = {}
    for key, (name, module) in survey.modules.items():
        for reason, unseen in reader.reasons(key):
            grouped.setdefault((type(module).__name__, reason, unseen), []).append(name)
    return tuple(Layer(tuple(names), *group) for group, names in grouped.items())


class _Reader:
    """Reads the reasons to name a module out of a survey."""

    def __init__(self, survey: Survey, reported: dict[int, str]) -> None:
        self.survey, self.reported = survey, reported
        self.listed = {id(m) for m in survey.model.modules()}
        self.held = {key for call in survey.calls.values() for key in call.held}
        compiled = [m for _, m in survey.modules.values() if isinstance(m, COMPILED)]
        self.inside_compiled = {id(inner) for m in compiled for inner in m.modules() if inner is not m}

    def reasons(self, key: int) -> Iterator[tuple[str, bool]]:
        """(reason, whether uses are unknown there) of a module, none where it is as it looks."""
        call, (_, module) = self.survey.calls[key], self.survey.modules[key]
        if key in self.held - self.listed and any(map(self._reached, self._below(key) | {key})):
            yield "not registered as a submodule; found where the code holds it", False
        if isinstance(module, COMPILED) and key not in self.inside_compiled:
            yield "compiled by torch, which keeps the functions that were there when it was made", True
        if call.unread and self.reported:
            yield f"not all of {min(call.unread)} is read: more than {ITEMS} items, or an object that raises", True
        if call.entry is not None:
            yield from self._replaced(key, call.entry)
        elif key in self.survey.called and (names := self._names(call.unseen)):
            yield f"overrides or hides methods that reach {names}, and is not seen to call those", True
        if names := self._names(call.captured):
            yield held_where(names), True

    def _replaced(self, key: int, entry: EntryPoint) -> Iterator[tuple[str, bool]]:
        """Reasons to name a module whose own code is replaced."""
        call = self.survey.calls[key]
        lost = any(map(self._reached, self._below(key) - self.survey.called))
        if call.own:
            if self._reached(key):
                yield f"{entry}, which calls the code of its class", False
        elif lost or self._names(call.unseen):
            yield f"{entry}, not its class's own, and no call from it to the class's own functions was found", True
        elif names := self._names(call.keys):
            yield f"{entry}, not its class's own, and reaches {names}", False
        elif entry.on_class and _may_rotate(entry.holder):
            yield f"{entry}, not its class's own, and is not seen to call a rotary function", True

    def _below(self, key: int) -> set[int]:
        found: set[int] = set()
        left = self.survey.below(key)
        while left:
            inner = left.pop()
            if inner not in found:
                found.add(inner)
                left += self.survey.below(inner)
        return found

    def _reached(self, key: int) -> str:
        call = self.survey.calls[key]
        return self._names(call.keys.keys() | call.unseen)

    def _names(self, keys: Iterable[int]) -> str:
        """The names of those functions that the report lists, in words."""
        return names_of(keys, self.reported)


def names_of(keys: Iterable[int], reported: Mapping[int, str]) -> str:
    """The names of the reported functions, {key: name}, among some keys, in words."""
    return ", ".join(sorted(reported[key].rpartition(".")[2] for key in keys if key in reported))


def held_where(names: str) -> str:
    return f"holds {names} where it stays: in a closure, default, container, partial or bound method"


def _may_rotate(kind: type) -> bool:
    words = words_of(kind)
    return words is None or any(map(_ROTARY_WORD.fullmatch, words))
