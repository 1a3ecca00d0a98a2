"""The report of `patch`: which functions it replaced, which it left alone, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..reference import Rounding

_CURES = {  # words of the reason of a `Layer` -> what helps, next to a call of apply
    "compiled by torch": "patch the model before it is compiled",
    "not its class's own": "restore the original forward",
}


@dataclass(frozen=True)
class Entry:
    """A line of a `Report`.

    name: the function. dialect: what it was recognised as, or None. reason: why it was replaced or left alone.
    uses: number of submodules whose code reaches it, None where that is unknown: `Report.layers` says why. Where
        `patch` was given no model: number of classes.
    """

    name: str
    dialect: str | None
    reason: str
    uses: int | None


@dataclass(frozen=True)
class Layer:
    """Modules of one class where a call does not run what their class says, or `patch` cannot replace what they hold.

    names: as in `model.named_modules()`. kind: name of the class. reason: what was found there. Where `patch` was given
        no model: one class, or one Python module (kind "module"), that holds a function where it stays.
    unseen: whether their uses of rotary functions are unknown, or not ours.
    """

    names: tuple[str, ...]
    kind: str
    reason: str
    unseen: bool

    def __str__(self) -> str:
        first = self.names[0] or "the model itself"
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.kind} ({first}{more}): {self.reason}"


@dataclass(frozen=True)
class Report:
    """The functions that `patch` replaced, and those that it left alone: tuples of `Entry`. str() is a table.

    layers: tuple of `Layer`, the modules whose calls differ from the code of their class.
    warning: why the patch may do nothing, and what helps; empty where the model is seen to use what was replaced.
    """

    rounding: Rounding
    replaced: tuple[Entry, ...]
    left_alone: tuple[Entry, ...]
    layers: tuple[Layer, ...] = ()
    warning: str = ""

    def __str__(self) -> str:
        counts = f"{len(self.replaced)} replaced (rounding={self.rounding!r}), {len(self.left_alone)} left alone"
        entries = [("replaced", e) for e in self.replaced] + [("left alone", e) for e in self.left_alone]
        rows = [(what, e.name, e.dialect or "-", _uses(e), e.reason) for what, e in entries]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
        return "\n".join((f"rope_ext: {counts}", *filter(None, [self.warning]), *lines, *map(str, self.layers)))


def warning_of(
    replaced: Sequence[Entry], left_alone: Sequence[Entry], layers: Sequence[Layer], of_modules: bool = False
) -> str:
    """Why a patch may do nothing, and what helps, in one sentence. of_modules: of Python modules, not of a model."""
    unseen = [layer for layer in layers if layer.unseen]
    cause = f": {unseen[0]}" if unseen else ""
    if replaced and of_modules:
        found = "no class of these modules is seen to call what was replaced"
        return f"{found}; patch the modules that import it by name too, or call rope_ext.apply in its place"
    if replaced or unseen:
        found = "no module is seen to call what was replaced" if replaced else "nothing was replaced"
        cure = next((f"{cure}, or " for words, cure in _CURES.items() if words in cause), "")
        return f"{found}{cause}; {cure}call rope_ext.apply in its place"
    if any("rounding='once'" in entry.reason for entry in left_alone):
        return "nothing was replaced: rounding='once' replaces what is not equal bit for bit"
    if left_alone:
        entry = left_alone[0]
        more = f", and {len(left_alone) - 1} more" if len(left_alone) > 1 else ""
        reason = entry.reason.replace("unknown source", "unknown source: not transformers', diffusers' or timm's")
        found = f"{entry.name} was left alone ({reason}){more}"
        return f"nothing was replaced: {found}; call rope_ext.apply or a function of rope_ext.compat in its place"
    if of_modules:
        cure = "patch the module that defines the attention layers, or call rope_ext.apply there"
        return f"nothing was replaced: no code of these modules names a rotary function; {cure}"
    found = "no code that a call of the model is seen to run names a rotary function"
    cure = "patch the model that has the attention layers, or call rope_ext.apply there"
    return f"nothing was replaced: {found} (a model of absolute positions, such as BERT, has none); {cure}"


def _uses(entry: Entry) -> str:
    return f"{'unknown' if entry.uses is None else entry.uses} uses"
