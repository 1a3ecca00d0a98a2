"""`patch`: replaces the rotary functions of a model's own modules by rope_ext, where they are proven equal."""

import contextlib
import functools
import importlib
import json
import pathlib
import types
import warnings
import weakref
from dataclasses import dataclass, field

import torch
from torch import nn

from .._kept import lock
from .._numbers import shown
from .._torch.library import build_info
from ..errors import ArgumentError, ArgumentTypeError
from ._calls import Survey
from ._find import Candidate, rotates
from ._fingerprint import callable_of, function_of
from ._layers import layers_of
from ._nested import put_inside
from ._proof import proof
from ._report import Entry, Report, warning_of

LIBRARIES = ("transformers", "diffusers", "timm")  # modules of dialects, in this package
KNOWN = pathlib.Path(__file__).with_name("_known.json")
_ROUNDINGS = ("eager", "once")
_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_lock = lock()
_replaced = {}  # key of a candidate -> _Replacement
_patches = []  # of _Patch, in the order of the calls


def patch(model, rounding="eager"):
    """Replace the rotary functions that a model's modules use by `rope_ext.apply`, until `unpatch(model)`.

    A function is replaced if its source is known (the fingerprint of the functions of transformers, diffusers and timm,
    also where remote code has copied one) and a numeric probe on the CPU proves it equal, bit for bit in float32 and
    bfloat16. All others stay as they are, and the report says why. Functions that multiply complex numbers may fuse a
    product and a sum: equal up to one rounding, they are replaced with rounding="once" only.

    Calls that `apply` cannot do (a dtype, device, DTensor or shape that it does not take) go to the function replaced.
    Gradients of states of 16 bits are those of the function replaced, bit for bit, where the tables have their dtype;
    with float32 tables eager code rounds each of the two terms of a gradient, and here the sum is rounded once.

    model: torch.nn.Module. Its parameters, buffers and hooks are not touched, and no reference to it is kept.
    rounding: "eager": the bits of the functions replaced. "once": results of 16 bits rounded once, not after each
        product: closer to exact, not the same bits.

    Functions belong to a module of Python and not to a model: other models of the same classes use the replacement too.
    Calls are counted: a function is put back, the very same object, when each patch of it is undone (or its model is
    gone, when patch or unpatch are called next). Threads may call this at the same time.

    Returns a `Report`: what was replaced and left alone, and the layers that do not run the code of their class. Warns
    (UserWarning) if nothing was replaced, or if no call of the model is seen to reach what was. Raises TypeError where
    model is no module, ValueError where rounding is unknown or not the one that a function is replaced with already.
    """
    return _patch(model, rounding, stacklevel=3).report


def unpatch(model):
    """Undo the last `patch(model)` that is still in place. Raises ValueError if there is none."""
    _check_model(model)
    with _lock:
        for made in reversed(_patches):
            if made.model() is model:
                return _undo(made)
    raise ArgumentError("model", "be patched", f"a {type(model).__name__} that is not")


@contextlib.contextmanager
def patched(model, rounding="eager"):
    """`patch` for the length of a with block, which gets the `Report`: `with rope_ext.patched(model) as report: ...`"""
    made = _patch(model, rounding, stacklevel=4)
    try:
        yield made.report
    finally:
        with _lock:
            _undo(made)


@functools.cache
def dialects():
    """{name: Dialect} of all modules of dialects."""
    modules = [importlib.import_module(f"{__package__}.{name}") for name in LIBRARIES]
    return {d.name: d for module in modules for d in module.DIALECTS}


@functools.cache
def known():
    """{fingerprint: name of a dialect}: _known.json, which `python -m rope_ext.integrations.known` writes."""
    return {key: entry["dialect"] for key, entry in read_known().items()}


def read_known():
    """{fingerprint: {"dialect": name, "seen": an example}}"""
    return json.loads(KNOWN.read_text()) if KNOWN.exists() else {}


# ---- what a patch is, and how it is undone ----


@dataclass(eq=False)
class _Patch:
    model: weakref.ref
    report: Report
    replacements: list


@dataclass(eq=False)
class _Replacement:
    """A function while it is replaced. names: (namespace, name, what was there)."""

    candidate: Candidate
    rounding: str
    function: types.FunctionType
    names: list = field(default_factory=list)
    count: int = 0


def _patch(model, rounding, stacklevel):
    _check_model(model)
    check_rounding(rounding)
    with _lock:
        for made in [made for made in _patches if made.model() is None]:
            _undo(made)
        replaced, left_alone, accepted = [], [], []
        survey = Survey(model, known())
        for candidate in survey.candidates:
            name, replace, reason = _verdict(candidate, rounding)
            entry = Entry(candidate.name, name, reason, candidate.uses)
            if replace:
                replaced.append(entry)
                accepted.append((candidate, dialects()[name]))
            elif name is not None or rotates(candidate):
                left_alone.append((candidate, entry))
        outer = {id(c.outer) for c, _ in accepted}  # what looked like a rotation there was replaced inside
        left_alone = [(candidate, entry) for candidate, entry in left_alone if id(candidate.function) not in outer]
        for candidate, _ in accepted:
            there = _replaced.get(candidate.key)
            if there is not None and there.rounding != rounding:
                rule = f"be {there.rounding!r} while {there.candidate.name} is patched with it"
                raise ArgumentError("rounding", rule, repr(rounding))
        layers = layers_of(survey, {c.key: c.name for c, _ in (*accepted, *left_alone)})
        left_alone, warning = tuple(entry for _, entry in left_alone), ""
        if not any(candidate.seen for candidate, _ in accepted):
            warning = warning_of(replaced, left_alone, layers)
            warnings.warn(f"rope_ext: {warning}", UserWarning, stacklevel)  # as an error it leaves all as it was
        report = Report(rounding, tuple(replaced), left_alone, layers, warning)
        made = _Patch(weakref.ref(model), report, [_replace(c, d, rounding) for c, d in accepted])
        _patches.append(made)
        return made


def _check_model(model):
    if not isinstance(model, nn.Module):
        modules = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        cure = f"its {' and its '.join(modules[:4])} can be given" if modules and not isinstance(model, type) else ""
        raise ArgumentTypeError("model", "be a torch.nn.Module", got, cure)


def check_rounding(rounding):
    if not isinstance(rounding, str) or rounding not in _ROUNDINGS:
        raise ArgumentError("rounding", f"be one of {', '.join(_ROUNDINGS)}", shown(rounding))


def _verdict(candidate, rounding):
    """Name of the dialect or None, whether to replace, and why."""
    if candidate.fingerprint is None:
        return None, False, "no source, or its file has changed"
    name = known().get(candidate.fingerprint)
    if name is None:
        return None, False, "unknown source"
    dialect = dialects().get(name)
    if dialect is None:
        return name, False, "dialect of another version of rope_ext"
    forward = getattr(candidate.original, "__dict__", {}).get("forward")
    if getattr(forward, "__func__", forward) not in (None, getattr(type(candidate.original), "forward", None)):
        return name, False, "replaced by the package kernels"
    difference = proof(candidate, dialect)
    if difference is not None:
        return name, False, f"known, but not proven: {difference}"
    if dialect.bound is None:
        return name, True, "equal bit for bit" + ("" if rounding == "eager" else ", but 16 bits are rounded once")
    equal = dialect.note or "equal up to one rounding"
    if rounding == "eager":
        return name, False, f"{equal}, not bit for bit: rounding='once' replaces it"
    return name, True, equal


def _undo(made):
    if made in _patches:
        _patches.remove(made)
        for key in made.replacements:
            there = _replaced[key]
            there.count -= 1
            if there.count == 0:
                _restore(_replaced.pop(key))


def _replace(candidate, dialect, rounding):
    """Puts the adapter where the function is, or counts one more that wants it there. Returns the key."""
    there = _replaced.get(candidate.key)
    if there is None:
        there = _Replacement(candidate, rounding, _adapted(dialect.adapter, candidate.original, rounding))
        _replaced[candidate.key] = there
        if candidate.outer is not None:
            put_inside(candidate.outer, candidate.function.__code__, there.function)
    for namespace, name in candidate.names:
        held = _names(namespace).get(name)
        if callable_of(held) is candidate.original and _called(held) is not there.function:
            wrap = type(held) if isinstance(held, (staticmethod, classmethod)) else lambda function: function
            _put(namespace, name, wrap(there.function))
            there.names.append((namespace, name, held))
    there.count += 1
    return candidate.key


def _restore(there):
    for namespace, name, held in there.names:
        if _called(_names(namespace).get(name)) is there.function:  # what others have put there since stays
            _put(namespace, name, held)
    if there.candidate.outer is not None:
        put_inside(there.candidate.outer, there.candidate.function.__code__, None)


def _names(namespace):
    """The dict of a namespace; none for a submodule that is gone."""
    if isinstance(namespace, weakref.ref):
        namespace = namespace()
    return namespace if isinstance(namespace, dict) else {} if namespace is None else vars(namespace)


def _called(held):
    return held.__func__ if isinstance(held, (staticmethod, classmethod)) else held


def _put(namespace, name, value):
    if isinstance(namespace, type):
        setattr(namespace, name, value)
    else:
        _names(namespace)[name] = value


def _adapted(adapter, original, rounding):
    """The function that takes the place of original."""
    devices = ("cpu", "meta", "cuda") if build_info()["cuda"] else ("cpu", "meta")

    @functools.wraps(function_of(original))
    def replacement(*args, **kwargs):
        for t in (*args, *kwargs.values()):
            if isinstance(t, torch.Tensor):  # the first speaks for all: of others apply says itself what it cannot do
                known_dtype = t.dtype in _DTYPES or not t.dtype.is_floating_point
                if t.device.type not in devices or not known_dtype or t.is_nested or type(t).__name__ == "DTensor":
                    return original(*args, **kwargs)
                break
        else:  # such as the proxies of torch.fx
            return original(*args, **kwargs)
        try:
            return adapter(original, rounding, *args, **kwargs)
        except (ValueError, TypeError, NotImplementedError) as error:
            if not str(error).startswith("rope_ext: "):
                raise
        return original(*args, **kwargs)  # shapes and dtypes that apply does not take, or an error in its words

    replacement._rope_ext_original = original
    return replacement
