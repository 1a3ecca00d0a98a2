"""Writes _known.json, for the maintainers' command `python -m tools.known_functions`.

`update` imports every module of the installed libraries, fingerprints all functions that look rotary, compares each
with every dialect, records those that equal one, and prints the others. It keeps the entries of libraries that are not
named, and those of other releases, whose "seen" begins with library and version. `missing` writes nothing: it lists the
functions of a library that _known.json lacks.
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
    """The modules of a library, imported; modules that cannot be imported (a dependency is missing) are skipped.

    progress: wraps the list of modules to show progress, such as tqdm.
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


def recognized(candidate: _candidate.Candidate) -> list[Dialect]:
    """The dialects that a function equals, those with equal gradients first.

    Only dialects whose reader has the same signature are compared.
    """
    calls = _calls(candidate.function)
    alike = (d for d in _registry.dialects().values() if _calls(d.read) == calls)
    equal = [d for d in alike if _proof.proof(candidate, d) is None]
    return equal if len(equal) < 2 else sorted(equal, key=lambda d: not _proof.same_gradients(candidate, d))


def _calls(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def missing(library: str, progress: Progress = iter) -> list[str]:
    """The functions of a library that rotate and that _known.json lacks, one line each.

    A function called by a known one is not listed, because the fingerprint of the known one covers it.
    """
    found, fingerprints = functions(library, progress), _registry.known()
    covered = {f for c in found if c.fingerprint in fingerprints for f in _fingerprint.helpers(c.function)}
    lines = []
    for candidate in found:
        if candidate.fingerprint not in fingerprints and candidate.function not in covered:
            equal = recognized(candidate) if candidate.fingerprint else []
            if equal or _candidate.rotates(candidate):
                dialect = f"equal to {equal[0].name}" if equal else "equal to no dialect"
                lines.append(f"{candidate.name}{inspect.signature(candidate.function)}: {dialect}")
    return lines


def update(libraries: Iterable[str], progress: Progress = iter) -> None:
    """Replace the entries of the given libraries, and print the unknown functions that look like a rotation."""
    entries = _registry.read_known()
    for library in libraries:
        entries = {key: e for key, e in entries.items() if e["seen"].partition(".")[0] != library}
        found, count = functions(library, progress), 0
        for candidate in found:
            key = candidate.fingerprint
            if key in entries:
                count += 1
            elif key is not None and (equal := recognized(candidate)):
                entries[key] = {"dialect": equal[0].name, "seen": candidate.name}
                count += 1
            elif _candidate.rotates(candidate):
                print(f"unknown: {candidate.name}{inspect.signature(candidate.function)}")
        print(f"{library}: {count} functions of {len(found)} that look rotary are equal to a dialect")
    ordered = dict(
        sorted(entries.items(), key=lambda item: (item[1]["seen"].partition(".")[0], item[1]["dialect"], item[0]))
    )
    _registry.KNOWN.write_text(json.dumps(ordered, indent=1) + "\n")
