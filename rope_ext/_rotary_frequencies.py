"""What determines the frequencies of a RotaryEmbedding: schedule, precision, and numbers, also as text.

Graphs of torch.compile need the text: numbers become graph inputs as soon as two rotations differ in them, while text
is a constant that is guarded by value.
"""

import numbers
import sys
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch

from . import frequencies
from .frequencies import Frequencies, Schedule

Precision: TypeAlias = Literal["exact", "hf"]
Seqlen: TypeAlias = int | torch.SymInt | None  # None: up to the training length
DTYPES: dict[str, torch.dtype] = {"exact": torch.float64, "hf": torch.float32}
# Schedules that depend on the sequence length, and their keyword for the training length.
BY_LENGTH = {"dynamic_ntk": "max_position", "longrope": "original_max_position"}


# Everything that determines the frequencies, hashable: (schedule, precision, (name, repr of the value) of each keyword
# of `frequencies_of`). Equal recipes yield bit-identical frequencies. A plain tuple, since torch.compile guards a
# NamedTuple by identity.
Recipe: TypeAlias = tuple[Schedule, Precision, tuple[tuple[str, str], ...]]


def frequencies_of(
    schedule: Schedule, precision: Precision, keywords: Mapping[str, Any], seqlen: Seqlen
) -> Frequencies:
    """The frequencies of a sequence of seqlen positions. keywords: those of the schedule, and pair_axis."""
    given = {name: value for name, value in keywords.items() if name != "pair_axis"}
    if schedule in BY_LENGTH:
        given["seqlen"] = seqlen
    inv_freq, attention_scaling = getattr(frequencies, schedule)(dtype=DTYPES[precision], **given)
    if keywords["pair_axis"] is not None:
        inv_freq = frequencies.per_axis(inv_freq, keywords["pair_axis"])
    return Frequencies(inv_freq, attention_scaling)


def frequencies_of_recipe(recipe: Recipe, seqlen: Seqlen) -> Frequencies:
    """`frequencies_of`, with the keywords parsed from their text."""
    schedule, precision, texts = recipe
    return frequencies_of(schedule, precision, {name: read(text) for name, text in texts}, seqlen)


def frozen(value: Any) -> Any:
    """value with Python's own numbers, in tuples, so that its repr can be parsed."""
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(frozen(v) for v in value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    is_real = isinstance(value, numbers.Real)
    return float(value) if is_real and abs(value) <= sys.float_info.max else value


def read(text: str) -> Any:
    """The value with this repr: a number, a bool, None, or a tuple of these."""
    if text[0] == "(":
        return tuple([read(part.strip()) for part in text[1:-1].split(",") if part])
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    return int(text) if text.lstrip("-").isdigit() else float(text)
