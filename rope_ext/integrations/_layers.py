"""The submodules that a `Report` names: their calls do not run the code of their class, or `patch` cannot reach it."""

import re
from collections.abc import Iterable, Iterator, Mapping

from ._calls import Survey, words_of
from ._entry import COMPILED, EntryPoint
from ._held import ITEMS
from ._report import Layer

_ROTARY_WORD = re.compile(r"\w*(rotary|rope|rotat|freqs_c)\w*|cos|sin")


def layers_of(survey: Survey, reported: dict[int, str]) -> tuple[Layer, ...]:
    """The `Layer` objects of a `Survey`; submodules of one class with one reason share a `Layer`.

    reported: {key: name} of the candidates in the report. Submodules without rotations are not named.
    """
    reported = reported | {key: function.__name__ for key, function in survey.captured.items()}
    reader = _Reader(survey, reported)
    grouped: dict[tuple[str, str, bool], list[str]] = {}
    for key, (name, module) in survey.modules.items():
        for reason, unseen in reader.reasons(key):
            grouped.setdefault((type(module).__name__, reason, unseen), []).append(name)
    return tuple(Layer(tuple(names), *group) for group, names in grouped.items())


class _Reader:
    """Finds the reasons for which a submodule is named."""

    def __init__(self, survey: Survey, reported: dict[int, str]) -> None:
        self.survey, self.reported = survey, reported
        self.listed = {id(m) for m in survey.model.modules()}
        self.held = {key for call in survey.calls.values() for key in call.held}
        compiled = [m for _, m in survey.modules.values() if isinstance(m, COMPILED)]
        self.inside_compiled = {id(inner) for m in compiled for inner in m.modules() if inner is not m}

    def reasons(self, key: int) -> Iterator[tuple[str, bool]]:
        """(reason, whether uses are unknown) for each reason to name a submodule; none if it runs its class's code."""
        call, (_, module) = self.survey.calls[key], self.survey.modules[key]
        if key in self.held - self.listed and any(map(self._reached, self._below(key) | {key})):
            yield "not registered as a submodule; found in an object that the code holds", False
        if isinstance(module, COMPILED) and key not in self.inside_compiled:
            yield "compiled by torch, which keeps the functions that were in place at that time", True
        if call.unread and self.reported:
            yield f"{min(call.unread)} was not read in full: more than {ITEMS} items, or an object that raises", True
        if call.entry is not None:
            yield from self._replaced(key, call.entry)
        elif key in self.survey.called and (names := self._names(call.unseen)):
            yield f"overrides or hides methods that reach {names}, and no call of these was found", True
        if names := self._names(call.captured):
            yield held_where(names), True

    def _replaced(self, key: int, entry: EntryPoint) -> Iterator[tuple[str, bool]]:
        """Reasons to name a submodule whose own code is replaced."""
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
            yield f"{entry}, not its class's own, and no call of a rotary function was found", True

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
        """The names of the reported functions among keys."""
        return names_of(keys, self.reported)


def names_of(keys: Iterable[int], reported: Mapping[int, str]) -> str:
    """The names of the functions in reported, {key: name}, that are among keys; sorted and joined."""
    return ", ".join(sorted(reported[key].rpartition(".")[2] for key in keys if key in reported))


def held_where(names: str) -> str:
    return f"holds {names} where it cannot be replaced: in a closure, default, container, partial or bound method"


def _may_rotate(kind: type) -> bool:
    words = words_of(kind)
    return words is None or any(map(_ROTARY_WORD.fullmatch, words))
