"""Writes _known.json, for the maintainers' command `python -m tools.known_functions`.

Imports every module of the installed libraries, fingerprints all functions that look rotary, tries each against every
dialect, and keeps those that equal one. Prints the others. Entries of libraries that are not named stay, as do those
of other releases ("seen" begins with library and version), which came from the functions of their files. `missing`
writes nothing: it lists what a library has and _known.json lacks.
"""

import importlib
import inspect
import json
import pkgutil
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import _candidate, _find, _fingerprint, _modules, _proof, _registry
from ._dialect import Dialect

Progress = Callable[[list[pkgutil.ModuleInfo]], Iterable[pkgutil.ModuleInfo]]
_UNUSED = (".modular_", ".exporters.")  # transformers: what modeling_*.py is generated from; patches for other tools


def modules(library: str, progress: Progress = iter) -> Iterator[types.ModuleType]:
    """The modules of a library, imported; those that cannot be (a dependency is missing) are left out.

    progress: shows how far it is, such as tqdm.
    """
    root = importlib.import_module(library)
    for info in progress(list(pkgutil.walk_packages(root.__path__, library + ".", onerror=lambda name: None))):
        if any(part in info.name for part in _UNUSED):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(info.name)
        except (Exception, SystemExit):
            continue
        yield module


def functions(library: str, progress: Progress = iter) -> list[_candidate.Candidate]:
    """The candidates of all modules of a library."""
    walk = _find.Walk({library}, known=())
    for module in modules(library, progress):
        _modules.visit(module, walk)
    return list(walk.found.values())


def recognised(candidate: _candidate.Candidate) -> list[Dialect]:
    """The dialects that a function equals, first those whose gradients are equal too.

    Only dialects whose reader has the same signature are tried.
    """
    calls = _calls(candidate.function)
    alike = (d for d in _registry.dialects().values() if _calls(d.read) == calls)
    equal = [d for d in alike if _proof.proof(candidate, d) is None]
    return equal if len(equal) < 2 else sorted(equal, key=lambda d: not _proof.same_gradients(candidate, d))


def _calls(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def missing(library: str, progress: Progress = iter) -> list[str]:
    """The functions of a library that rotate and that _known.json lacks, a line each; writes nothing.

    A function that a known one calls is none of them: the fingerprint of that one covers it.
    """
    found, fingerprints = functions(library, progress), _registry.known()
    covered = {f for c in found if c.fingerprint in fingerprints for f in _fingerprint.helpers(c.function)}
    lines = []
    for candidate in found:
        if candidate.fingerprint not in fingerprints and candidate.function not in covered:
            equal = recognised(candidate) if candidate.fingerprint else []
            if equal or _candidate.rotates(candidate):
                dialect = f"equal to {equal[0].name}" if equal else "equal to no dialect"
                lines.append(f"{candidate.name}{inspect.signature(candidate.function)}: {dialect}")
    return lines


def update(libraries: Iterable[str], progress: Progress = iter) -> None:
    """Replaces the entries of the given libraries, and prints what looks like a rotation and is unknown."""
    entries = _registry.read_known()
    for library in libraries:
        entries = {key: e for key, e in entries.items() if e["seen"].partition(".")[0] != library}
        found, count = functions(library, progress), 0
        for candidate in found:
            key = candidate.fingerprint
            if key in entries:
                count += 1
            elif key is not None and (equal := recognised(candidate)):
                entries[key] = {"dialect": equal[0].name, "seen": candidate.name}
                count += 1
            elif _candidate.rotates(candidate):
                print(f"unknown: {candidate.name}{inspect.signature(candidate.function)}")
        print(f"{library}: {count} functions of {len(found)} that look rotary are equal to a dialect")
    ordered = dict(
        sorted(entries.items(), key=lambda item: (item[1]["seen"].partition(".")[0], item[1]["dialect"], item[0]))
    )
    _registry.KNOWN.write_text(json.dumps(ordered, indent=1) + "\n")
