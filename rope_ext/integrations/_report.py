"""What `patch` says it did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A line of a `Report`.

    name: of the function. dialect: what it was recognised as, or None. reason: why it was replaced or left alone.
    uses: number of submodules whose code reaches it.
    """

    name: str
    dialect: str | None
    reason: str
    uses: int


@dataclass(frozen=True)
class Report:
    """The functions that `patch` replaced, and those that it left alone: tuples of `Entry`. str() is a table."""

    rounding: str
    replaced: tuple
    left_alone: tuple

    def __str__(self):
        counts = f"{len(self.replaced)} replaced (rounding={self.rounding!r}), {len(self.left_alone)} left alone"
        entries = [("replaced", e) for e in self.replaced] + [("left alone", e) for e in self.left_alone]
        rows = [(what, e.name, e.dialect or "-", f"{e.uses} uses", e.reason) for what, e in entries]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
        return "\n".join((f"rope_ext: {counts}", *lines))
