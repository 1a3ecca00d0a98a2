"""The ratio of the context length to the training length: the factor of yarn and longrope."""

from .. import _numbers
from ..errors import ArgumentError


def ratio(factor: float | None, max_position: float | None, original_max_position: float) -> float | None:
    """factor, or if it is None max_position / original_max_position; None if neither is given."""
    _numbers.positive(original_max_position=original_max_position)
    for name, value in (("factor", factor), ("max_position", max_position)):
        if value is not None:
            _numbers.positive(**{name: value})
    return max_position / original_max_position if factor is None and max_position is not None else factor


def needed_ratio(factor: float | None, max_position: float | None, original_max_position: float) -> float:
    """`ratio`; raises if neither factor nor max_position is given."""
    if (found := ratio(factor, max_position, original_max_position)) is None:
        raise ArgumentError("factor", "be given when max_position is not", "None")
    return found
