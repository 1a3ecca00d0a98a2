"""All dialects, the dialect of each known function, and whether a function may be replaced."""

import functools
import importlib
import json
import pathlib

from ..reference import Rounding
from ._candidate import Candidate
from ._dialect import Dialect
from ._proof import proof

LIBRARIES = ("transformers", "diffusers", "timm")  # modules of dialects, in this package
KNOWN = pathlib.Path(__file__).with_name("_known.json")


@functools.cache
def dialects() -> dict[str, Dialect]:
    """{name: Dialect} of all modules of dialects."""
    modules = [importlib.import_module(f"{__package__}.{name}") for name in LIBRARIES]
    return {d.name: d for module in modules for d in module.DIALECTS}


@functools.cache
def known() -> dict[str, str]:
    """{fingerprint: name of a dialect}: _known.json, which known.py writes."""
    return {key: entry["dialect"] for key, entry in read_known().items()}


def read_known() -> dict[str, dict[str, str]]:
    """{fingerprint: {"dialect": name, "seen": an example}}"""
    entries: dict[str, dict[str, str]] = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    return entries


def verdict(candidate: Candidate, rounding: Rounding) -> tuple[str | None, Dialect | None, str]:
    """Name of the dialect of a function or None, the dialect if it is to be replaced, and why."""
    if candidate.fingerprint is None:
        return None, None, "no source, or its file has changed"
    name = known().get(candidate.fingerprint)
    if name is None:
        return None, None, "unknown source"
    dialect = dialects().get(name)
    if dialect is None:
        return name, None, "dialect of another version of rope_ext"
    forward = getattr(candidate.original, "__dict__", {}).get("forward")
    if getattr(forward, "__func__", forward) not in (None, getattr(type(candidate.original), "forward", None)):
        return name, None, "replaced by the package kernels"
    difference = proof(candidate, dialect)
    if difference is not None:
        return name, None, f"known, but not proven: {difference}"
    if dialect.bound is None:
        return name, dialect, "equal bit for bit" + ("" if rounding == "eager" else ", but 16 bits are rounded once")
    if rounding == "eager":
        return name, None, "equal up to one rounding, not bit for bit: rounding='once' replaces it"
    return name, dialect, "equal up to one rounding"
