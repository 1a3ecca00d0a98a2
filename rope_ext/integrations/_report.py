"""The report of `patch`: which functions it replaced, which it left alone, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..reference import Rounding

_CURES = {  # words in the reason of a `Layer` -> a cure besides a call of apply
    "compiled by torch": "patch the model before it is compiled",
    "not its class's own": "restore the original forward",
}


@dataclass(frozen=True)
class Entry:
    """One function in a `Report`.

    Attributes:
        name: full name of the function.
        dialect: the rotary function that it was recognized as, such as "transformers.llama", or None.
        reason: why it was replaced or left alone.
        uses: number of submodules whose code reaches it, or None if unknown; `Report.layers` then says why. For a
            patch of a model type or a Python module: number of classes.
    """

    name: str
    dialect: str | None
    reason: str
    uses: int | None


@dataclass(frozen=True)
class Layer:
    """Submodules of one class whose calls do not run the code of the class, or that hold a function out of reach.

    For a patch of a model type or a Python module: one class, or one Python module (kind "module"), that holds a
    function where `patch` cannot replace it.

    Attributes:
        names: names of the submodules, as in `model.named_modules()`.
        kind: name of their class.
        reason: what was found in them.
        unseen: whether their use of rotary functions is unknown, or bypasses rope_ext.
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
    """The functions that `patch` replaced and those that it left alone. `str(report)` is a table.

    Attributes:
        rounding: the argument of `patch`.
        replaced: tuple of `Entry`, the functions that now call rope_ext.
        left_alone: tuple of `Entry`, the rotary functions that were not replaced.
        layers: tuple of `Layer`, submodules whose calls do not run the code of their class.
        warning: why the patch may have no effect, and the cure; empty if the model was found to call a replaced
            function.
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
    """Why a patch may have no effect, and the cure, in one sentence. of_modules: for Python modules, not a model."""
    unseen = [layer for layer in layers if layer.unseen]
    cause = f": {unseen[0]}" if unseen else ""
    if replaced and of_modules:
        found = "no class of these modules was found to call a replaced function"
        return f"{found}; also patch the modules that import it by name, or call rope_ext.apply instead"
    if replaced or unseen:
        found = "no module was found to call a replaced function" if replaced else "nothing was replaced"
        cure = next((f"{cure}, or " for words, cure in _CURES.items() if words in cause), "")
        return f"{found}{cause}; {cure}call rope_ext.apply instead"
    if any("rounding='once'" in entry.reason for entry in left_alone):
        return "nothing was replaced: rounding='once' also replaces functions that are equal up to one rounding"
    if left_alone:
        entry = left_alone[0]
        more = f", and {len(left_alone) - 1} more" if len(left_alone) > 1 else ""
        reason = entry.reason.replace("unknown source", "unknown source: not of transformers, diffusers or timm")
        found = f"{entry.name} was left alone ({reason}){more}"
        return f"nothing was replaced: {found}; call rope_ext.apply or a function of rope_ext.compat instead"
    if of_modules:
        cure = "patch the module that defines the attention layers, or call rope_ext.apply there"
        return f"nothing was replaced: no code of these modules names a rotary function; {cure}"
    found = "no code that was found to run in the model names a rotary function"
    cure = "patch the model that has the attention layers, or call rope_ext.apply there"
    return f"nothing was replaced: {found} (a model with absolute positions, such as BERT, has none); {cure}"


def _uses(entry: Entry) -> str:
    return f"{'unknown' if entry.uses is None else entry.uses} uses"
