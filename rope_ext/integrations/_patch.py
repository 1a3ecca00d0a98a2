"""`patch`: replaces the rotary functions of a model's own modules with rope_ext where they are proven equal."""

import contextlib
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .. import _numbers
from .._kept import lock
from ..errors import ArgumentError
from ..reference import Rounding
from ._calls import Survey
from ._candidate import Candidate, Namespace, rotates
from ._dialect import Dialect
from ._fingerprint import callable_of
from ._layers import layers_of
from ._model_types import modules_of
from ._modules import ModuleSurvey
from ._nested import put_inside
from ._patchable import Patchable, check, described, reference
from ._registry import known, verdict
from ._replacement import replacement_of
from ._report import Entry, Report, warning_of

_lock = lock()
_replaced: "dict[int, _Replacement]" = {}  # by the key of the candidate
_patches: "list[_Patch]" = []  # in the order of the calls


def patch(model: Patchable, rounding: Rounding = "eager") -> Report:
    """Replace the rotary functions that a model uses with `rope_ext.apply`, until `unpatch(model)`.

    A function is replaced if its source is known (the fingerprint of a function of transformers, diffusers or timm,
    also where remote code has copied it) and a numeric probe on the CPU proves it equal, bit for bit in float32 and
    bfloat16. Other functions remain unchanged, and the report says why. Functions that multiply complex numbers may
    fuse a product and a sum: they are equal up to one rounding, and replaced only with rounding="once".

    A call that `apply` does not support (a dtype, device or shape) runs the original function. Gradients of 16-bit
    query and key are bit-identical to those of the original when the tables have the same dtype. With float32 tables
    eager code rounds each of the two terms of a gradient, while rope_ext rounds their sum once.

    Functions belong to Python modules, not to models, so other models of the same classes use the replacement too.
    Patches are counted: the original function returns when every patch of it is undone. The patch of a deleted model is
    undone at the next call of `patch`. All three functions may be called from several threads.

    Args:
        model: torch.nn.Module; its parameters, buffers and hooks are not modified, and no reference to it is kept.
            Before any model exists: a Python module, whose names and classes are read, or a model type of transformers
            such as "qwen3", which stands for its modeling module and those of the parts of its default configuration.
            Attributes of instances are not read then: an instance that stores a function keeps it.
        rounding: "eager": results are bit-identical to the original functions. "once": 16-bit results are rounded once,
            not after each product, which is closer to exact and not bit-identical.

    Returns:
        A `Report` of the functions that were replaced and left alone, and of the layers that do not run the code of
        their class. A UserWarning is issued if nothing was replaced, or if no call of the model, or no class of the
        Python modules, was found to reach a replaced function.

    Raises:
        ArgumentTypeError: model is none of these; a TypeError.
        ArgumentError: the model type or rounding is unknown, or a function is already replaced with the other rounding;
            a ValueError. Nothing is changed.
        ImportError: model is a model type, and transformers is not installed.
    """
    return _patch(model, rounding, stacklevel=3).report


def unpatch(model: Patchable) -> None:
    """Undo the last `patch(model)` that is still in place.

    Args:
        model: what `patch` was called with.

    Raises:
        ArgumentTypeError: model is not a model, a Python module or a model type; a TypeError.
        ArgumentError: model is not patched; a ValueError.
    """
    check(model)
    with _lock:
        found = [patch for patch in _patches if patch.model() is reference(model)()]
        # Prefer patches outside a with block of `patched`, which undoes its own.
        for patch in reversed([patch for patch in found if not patch.in_block] or found):
            return _undo(patch)
        given = [described(m) for m in (patch.model() for patch in _patches) if m is not None]
    cure = f"currently patched: {', '.join(given)}" if given else ""
    raise ArgumentError("model", "be patched", f"{described(model)} that is not", cure)


@contextlib.contextmanager
def patched(model: Patchable, rounding: Rounding = "eager") -> Iterator[Report]:
    """Context manager: `patch` on entry, and undo exactly that patch on exit.

    Args:
        model, rounding: as in `patch`.

    Returns:
        A context manager; `with rope_ext.patched(model) as report` binds the `Report`.

    Raises:
        ArgumentError, ArgumentTypeError, ImportError: as in `patch`, on entry.
    """
    patch = _patch(model, rounding, stacklevel=4)
    patch.in_block = True
    try:
        yield patch.report
    finally:
        with _lock:
            _undo(patch)


# ---- what a patch is, and how it is undone ----


@dataclass(eq=False)
class _Patch:
    """A call of `patch`.

    model: returns the argument of `patch`, None once it is deleted. keys: of its functions in `_replaced`.
    in_block: whether it was called by `patched`.
    """

    model: Callable[[], object]
    report: Report
    keys: list[int]
    in_block: bool = False


@dataclass(eq=False)
class _Replacement:
    """A function while it is replaced.

    names: (namespace, name, original value). count: number of patches that replace it.
    """

    candidate: Candidate
    rounding: Rounding
    function: Callable[..., Any]
    names: list[tuple[Namespace, str, Any]] = field(default_factory=list)
    count: int = 0


def _patch(model: Patchable, rounding: Rounding, stacklevel: int) -> _Patch:
    check(model)
    _numbers.rounding(rounding)
    modules = modules_of(model) if isinstance(model, str) else [model] if isinstance(model, types.ModuleType) else []
    with _lock:
        for patch in [patch for patch in _patches if patch.model() is None]:
            _undo(patch)
        replaced, others, accepted = [], [], []
        survey = Survey(model, known()) if isinstance(model, nn.Module) else ModuleSurvey(modules, known())
        for candidate in survey.candidates:
            name, dialect, reason = verdict(candidate, rounding)
            entry = Entry(candidate.name, name, reason, candidate.uses)
            if dialect is not None:
                replaced.append(entry)
                accepted.append((candidate, dialect))
            elif name is not None or rotates(candidate):
                others.append((candidate, entry))
        outer = {id(c.outer) for c, _ in accepted}  # looked rotary only because of the replaced inner function
        others = [(candidate, entry) for candidate, entry in others if id(candidate.function) not in outer]
        for candidate, _ in accepted:
            replacement = _replaced.get(candidate.key)
            if replacement is not None and replacement.rounding != rounding:
                rule = f"be {replacement.rounding!r} while {replacement.candidate.name} is patched with it"
                raise ArgumentError("rounding", rule, repr(rounding))
        names = {candidate.key: candidate.name for candidate in (*(c for c, _ in accepted), *(c for c, _ in others))}
        layers = survey.layers(names) if isinstance(survey, ModuleSurvey) else layers_of(survey, names)
        left_alone, warning = tuple(entry for _, entry in others), ""
        if not any(candidate.seen for candidate, _ in accepted):
            warning = warning_of(replaced, left_alone, layers, of_modules=bool(modules))
            warnings.warn(f"rope_ext: {warning}", UserWarning, stacklevel)  # before any change, in case it is an error
        report = Report(rounding, tuple(replaced), left_alone, layers, warning)
        patch = _Patch(reference(model), report, [_replace(c, d, rounding) for c, d in accepted])
        _patches.append(patch)
        return patch


def _undo(patch: _Patch) -> None:
    if patch in _patches:
        _patches.remove(patch)
        for key in patch.keys:
            replacement = _replaced[key]
            replacement.count -= 1
            if replacement.count == 0:
                _restore(_replaced.pop(key))


def _replace(candidate: Candidate, dialect: Dialect, rounding: Rounding) -> int:
    """Replace a function under all of its names, or count one more patch of it. Returns the key."""
    replacement = _replaced.get(candidate.key)
    if replacement is None:
        function = replacement_of(candidate.original, dialect, rounding)
        replacement = _replaced[candidate.key] = _Replacement(candidate, rounding, function)
        if candidate.outer is not None:
            put_inside(candidate.outer, candidate.function.__code__, function)
    for namespace, name in candidate.names:
        held = _names(namespace).get(name)
        if callable_of(held) is candidate.original and _called(held) is not replacement.function:
            is_method = isinstance(held, (staticmethod, classmethod))
            _put(namespace, name, type(held)(replacement.function) if is_method else replacement.function)
            replacement.names.append((namespace, name, held))
    replacement.count += 1
    return candidate.key


def _restore(replacement: _Replacement) -> None:
    candidate = replacement.candidate
    for namespace, name, held in replacement.names:
        if _called(_names(namespace).get(name)) is replacement.function:  # keep a value assigned since then
            _put(namespace, name, held)
    if candidate.outer is not None:
        put_inside(candidate.outer, candidate.function.__code__, None)


def _names(namespace: Namespace) -> Any:
    """The dict of a namespace; an empty one for a deleted submodule."""
    holder = namespace() if isinstance(namespace, weakref.ref) else namespace
    return holder if isinstance(holder, dict) else {} if holder is None else vars(holder)


def _called(held: Any) -> Any:
    return held.__func__ if isinstance(held, (staticmethod, classmethod)) else held


def _put(namespace: Namespace, name: str, value: object) -> None:
    if isinstance(namespace, type):
        setattr(namespace, name, value)
    else:
        _names(namespace)[name] = value
