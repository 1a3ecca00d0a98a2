"""All dialects, the dialect of each known function, and the decision whether a function may be replaced."""

import functools
import importlib
import json
import pathlib

from ..reference import Rounding
from ._candidate import Candidate
from ._dialect import Dialect
from ._proof import proof

LIBRARIES = ("transformers", "diffusers", "timm")  # modules of this package that define dialects
KNOWN = pathlib.Path(__file__).with_name("_known.json")


@functools.cache
def dialects() -> dict[str, Dialect]:
    """{name: Dialect} of all libraries."""
    modules = [importlib.import_module(f"{__package__}.{name}") for name in LIBRARIES]
    return {d.name: d for module in modules for d in module.DIALECTS}


@functools.cache
def known() -> dict[str, str]:
    """{fingerprint: name of a dialect}, from _known.json."""
    return {key: entry["dialect"] for key, entry in read_known().items()}


def read_known() -> dict[str, dict[str, str]]:
    """{fingerprint: {"dialect": name, "seen": name of a function that has it}}, the content of _known.json."""
    entries: dict[str, dict[str, str]] = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    return entries


def verdict(candidate: Candidate, rounding: Rounding) -> tuple[str | None, Dialect | None, str]:
    """(name of the dialect of a function or None, the dialect if the function is to be replaced or None, the reason)"""
    if candidate.fingerprint is None:
        return None, None, "no source, or its file has changed since the import"
    name = known().get(candidate.fingerprint)
    if name is None:
        return None, None, "unknown source"
    dialect = dialects().get(name)
    if dialect is None:
        return name, None, "its dialect belongs to another version of rope_ext"
    forward = getattr(candidate.original, "__dict__", {}).get("forward")
    if getattr(forward, "__func__", forward) not in (None, getattr(type(candidate.original), "forward", None)):
        return name, None, "already replaced by the package kernels"
    difference = proof(candidate, dialect)
    if difference is not None:
        return name, None, f"known, but not proven equal: {difference}"
    if dialect.bound is None:
        return name, dialect, "equal bit for bit" + ("" if rounding == "eager" else ", but 16-bit results round once")
    if rounding == "eager":
        return name, None, "equal up to one rounding, not bit for bit: rounding='once' replaces it"
    return name, dialect, "equal up to one rounding"
