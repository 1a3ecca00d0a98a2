"""`patch`: replaces the rotary functions of a model's own modules by rope_ext, where they are proven equal."""

import contextlib
import functools
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import _numbers
from .._kept import CPU, lock
from .._torch.library import DEVICES
from ..errors import ArgumentError, ArgumentTypeError
from ..reference import DTYPES, Rounding
from ._calls import Survey
from ._candidate import Candidate, Namespace, rotates
from ._dialect import Dialect
from ._fingerprint import callable_of, function_of
from ._layers import layers_of
from ._model_types import modules_of
from ._modules import ModuleSurvey
from ._nested import put_inside
from ._patchable import Patchable, check, described, reference
from ._registry import known, verdict
from ._report import Entry, Report, warning_of
from ._rotation import Rotation, rotate, run

_lock = lock()
_replaced: "dict[int, _Replacement]" = {}  # by the key of the candidate
_patches: "list[_Patch]" = []  # in the order of the calls


def patch(model: Patchable, rounding: Rounding = "eager") -> Report:
    """Replace the rotary functions that a model's modules use by `rope_ext.apply`, until `unpatch(model)`.

    A function is replaced if its source is known (the fingerprint of the functions of transformers, diffusers and timm,
    also where remote code has copied one) and a numeric probe on the CPU proves it equal, bit for bit in float32 and
    bfloat16. All others stay as they are, and the report says why. Functions that multiply complex numbers may fuse a
    product and a sum: equal up to one rounding, they are replaced with rounding="once" only.

    Calls that `apply` cannot do (a dtype, device or shape that it does not take) go to the function replaced.
    Gradients of states of 16 bits are those of the function replaced, bit for bit, where the tables have their dtype;
    with float32 tables eager code rounds each of the two terms of a gradient, and here the sum is rounded once.

    model: torch.nn.Module. Its parameters, buffers and hooks are not touched, and no reference to it is kept. Or,
        before any model exists: a Python module, whose names and classes are read, or a model type of transformers
        ("qwen3"), which stands for its modeling module and those of the parts of its default configuration.
        Attributes of instances are not looked at then: one that stores a function keeps it.
    rounding: "eager": the bits of the functions replaced. "once": results of 16 bits rounded once, not after each
        product: closer to exact, not the same bits.

    Functions belong to a module of Python and not to a model: other models of the same classes use the replacement too.
    Calls are counted: the very same function is put back when each patch of it is undone (if its model is gone: when
    `patch` is called next). Threads may call this at the same time.

    Returns a `Report`: what was replaced and left alone, and the layers that do not run the code of their class. Warns
    (UserWarning) if nothing was replaced, or if no call of the model, or no class of the Python modules, is seen to
    reach what was. Raises TypeError where model is none of these, ValueError where a model type or rounding is unknown,
    or rounding is not the one that a function is replaced with already, ImportError for a type without transformers.
    """
    return _patch(model, rounding, stacklevel=3).report


def unpatch(model: Patchable) -> None:
    """Undo the last `patch(model)` that is still in place. Raises ValueError if there is none."""
    check(model)
    with _lock:
        found = [patch for patch in _patches if patch.model() is reference(model)()]
        # A patch that a with block of `patched` will undo is the last choice.
        for patch in reversed([patch for patch in found if not patch.in_block] or found):
            return _undo(patch)
        given = [described(m) for m in (patch.model() for patch in _patches) if m is not None]
    cure = f"patched are {', '.join(given)}" if given else ""
    raise ArgumentError("model", "be patched", f"{described(model)} that is not", cure)


@contextlib.contextmanager
def patched(model: Patchable, rounding: Rounding = "eager") -> Iterator[Report]:
    """`patch` for the length of a with block, which gets the `Report`: `with rope_ext.patched(model) as report: ...`"""
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

    model: returns what was given, None when that is gone. keys: those of its functions in `_replaced`.
    in_block: whether it is that of `patched`.
    """

    model: Callable[[], object]
    report: Report
    keys: list[int]
    in_block: bool = False


@dataclass(eq=False)
class _Replacement:
    """A function while it is replaced.

    names: (namespace, name, what it held). count: number of patches that want it replaced.
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
        outer = {id(c.outer) for c, _ in accepted}  # looked rotary because of the function inside, now replaced
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
            warnings.warn(f"rope_ext: {warning}", UserWarning, stacklevel)  # as an error it leaves all as it was
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
    """Puts the replacement where the function is, or counts one more that wants it there. Returns the key."""
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
        if _called(_names(namespace).get(name)) is replacement.function:  # what others have put there since stays
            _put(namespace, name, held)
    if candidate.outer is not None:
        put_inside(candidate.outer, candidate.function.__code__, None)


def _names(namespace: Namespace) -> Any:
    """The dict of a namespace; none for a submodule that is gone."""
    holder = namespace() if isinstance(namespace, weakref.ref) else namespace
    return holder if isinstance(holder, dict) else {} if holder is None else vars(holder)


def _called(held: Any) -> Any:
    return held.__func__ if isinstance(held, (staticmethod, classmethod)) else held


def _put(namespace: Namespace, name: str, value: object) -> None:
    if isinstance(namespace, type):
        setattr(namespace, name, value)
    else:
        _names(namespace)[name] = value


def replacement_of(original: Any, dialect: Dialect, rounding: Rounding) -> Callable[..., Any]:
    """The function that takes the place of original."""
    read, behind = dialect.read, function_of(original)
    assert behind is not None  # whose source was recognised

    @functools.wraps(behind)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        for t in (*args, *kwargs.values()):
            if isinstance(t, torch.Tensor):  # the first decides: apply refuses what it cannot do with the others
                known_dtype = t.dtype in DTYPES or not t.dtype.is_floating_point
                known_device = t.device == CPU or t.device.type in DEVICES  # the first is faster
                if not known_dtype or not known_device or t.is_nested:
                    return original(*args, **kwargs)
                break
        else:  # such as the proxies of torch.fx
            return original(*args, **kwargs)
        found = read(*args, **kwargs)
        try:
            y = rotate(found, rounding) if type(found) is Rotation else run(found, rounding)
        except (ArgumentError, ArgumentTypeError, NotImplementedError):  # apply refuses it
            y = None
        return original(*args, **kwargs) if y is None else y

    vars(replacement)["_rope_ext_original"] = original  # what `callable_of` finds
    return replacement
