"""`patch`: replaces the rotary functions of a model's own modules by rope_ext, where they are proven equal."""

import contextlib
import functools
import importlib
import inspect
import json
import pathlib
import threading
import types
import weakref
from dataclasses import dataclass, field

import torch
from torch import nn

from .._library import build_info
from ._find import Candidate, candidates, code_of, rotates
from ._fingerprint import callable_of, function_of
from ._proof import proof

LIBRARIES = ("transformers", "diffusers", "timm")  # modules of dialects, in this package
KNOWN = pathlib.Path(__file__).with_name("_known.json")
_ROUNDINGS = ("eager", "once")
_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_lock = threading.RLock()
_replaced = {}  # key of a candidate -> _Replacement
_patches = []  # of _Patch, in the order of the calls


@dataclass(frozen=True)
class Entry:
    """A line of a `Report`. name: of the function. dialect: what it was recognised as, or None. reason: why it was
    replaced or left alone. uses: number of submodules whose code reaches it."""

    name: str
    dialect: str | None
    reason: str
    uses: int


@dataclass(frozen=True)
class Report:
    """What `patch` replaced and what it left alone: tuples of `Entry`. str() is a table."""

    rounding: str
    replaced: tuple
    left_alone: tuple

    def __str__(self):
        lines = [
            f"rope_ext: {len(self.replaced)} replaced (rounding={self.rounding!r}), {len(self.left_alone)} left alone"
        ]
        entries = [("replaced", e) for e in self.replaced] + [("left alone", e) for e in self.left_alone]
        rows = [(what, e.name, e.dialect or "-", f"{e.uses} uses", e.reason) for what, e in entries]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join(lines)


def patch(model, rounding="eager"):
    """Replace the rotary functions that a model's modules use by `rope_ext.apply`, until `unpatch(model)`.

    A function is replaced if its source is known (the fingerprint of the functions of transformers, diffusers and timm,
    also where remote code has copied one) and a numeric probe proves it equal, bit for bit in float32 and bfloat16.
    All others stay as they are, and the report says why.

    model: torch.nn.Module. Its parameters, buffers and hooks are not touched, and no reference to it is kept.
    rounding: "eager": the bits of the functions replaced. "once": results of 16 bits rounded once, not after each
        product: closer to exact, not the same bits.

    Functions belong to a module of Python and not to a model: other models of the same classes use the replacement too.
    Calls are counted: a function is put back, the very same object, when each patch of it is undone (or its model is
    gone, when patch or unpatch are called next). Threads may call this at the same time.

    Returns a `Report`. Raises TypeError where model is no module, ValueError where rounding is unknown or not the one
    that a function is replaced with already.
    """
    return _patch(model, rounding).report


def unpatch(model):
    """Undo the last `patch(model)` that is still in place. Raises ValueError if there is none."""
    with _lock:
        for made in reversed(_patches):
            if made.model() is model:
                return _undo(made)
    raise ValueError(f"rope_ext: model must be patched, got a {type(model).__name__} that is not")


@contextlib.contextmanager
def patched(model, rounding="eager"):
    """`patch` for the length of a with block, which gets the `Report`: `with rope_ext.patched(model) as report: ...`"""
    made = _patch(model, rounding)
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


def _patch(model, rounding):
    if not isinstance(model, nn.Module):
        raise TypeError(f"rope_ext: model must be a torch.nn.Module, got {type(model).__name__}")
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rope_ext: rounding must be one of {', '.join(_ROUNDINGS)}, got {rounding!r}")
    with _lock:
        for made in [made for made in _patches if made.model() is None]:
            _undo(made)
        replaced, left_alone, accepted = [], [], []
        for candidate in candidates(model, known()):
            name, reason = _verdict(candidate)
            entry = Entry(candidate.name, name, reason or "equal bit for bit", candidate.uses)
            if reason is None:
                replaced.append(entry)
                accepted.append((candidate, dialects()[name]))
            elif name is not None or rotates(candidate):
                left_alone.append(entry)
        for candidate, _ in accepted:
            there = _replaced.get(candidate.key)
            if there is not None and there.rounding != rounding:
                rule = f"be {there.rounding!r} while {there.candidate.name} is patched with it"
                raise ValueError(f"rope_ext: rounding must {rule}, got {rounding!r}")
        report = Report(rounding, tuple(replaced), tuple(left_alone))
        made = _Patch(weakref.ref(model), report, [_replace(c, d, rounding) for c, d in accepted])
        _patches.append(made)
        return made


def _verdict(candidate):
    """Name of the dialect or None, and why the function is left alone or None."""
    if candidate.fingerprint is None:
        return None, "no source"
    name = known().get(candidate.fingerprint)
    if name is None:
        return None, "unknown source"
    if name not in dialects():
        return name, "dialect of another version of rope_ext"
    if "forward" in getattr(candidate.original, "__dict__", {}):
        return name, "replaced by the package kernels"
    difference = proof(candidate, dialects()[name])
    return name, difference and f"known, but not proven: {difference}"


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
            _put_inside(candidate.outer, candidate.function.__code__, there.function)
    for namespace, name in candidate.names:
        held = _held(namespace, name)
        if callable_of(held) is candidate.original and _called(held) is not there.function:
            wrap = type(held) if isinstance(held, (staticmethod, classmethod)) else lambda function: function
            _put(namespace, name, wrap(there.function))
            there.names.append((namespace, name, held))
    there.count += 1
    return candidate.key


def _restore(there):
    for namespace, name, held in there.names:
        if _called(_held(namespace, name)) is there.function:  # what others have put there since stays
            _put(namespace, name, held)
    if there.candidate.outer is not None:
        _put_inside(there.candidate.outer, there.candidate.function.__code__, None)


def _held(namespace, name):
    return (vars(namespace) if isinstance(namespace, type) else namespace).get(name)


def _called(held):
    return held.__func__ if isinstance(held, (staticmethod, classmethod)) else held


def _put(namespace, name, value):
    if isinstance(namespace, type):
        setattr(namespace, name, value)
    else:
        namespace[name] = value


def _adapted(adapter, original, rounding):
    """The function that takes the place of original."""
    devices = ("cpu", "meta", "cuda") if build_info()["cuda"] else ("cpu", "meta")

    @functools.wraps(function_of(original))
    def replacement(*args, **kwargs):
        for t in args:
            if isinstance(t, torch.Tensor) and not (
                t.device.type in devices
                and (t.dtype in _DTYPES or not t.dtype.is_floating_point)
                and type(t).__name__ != "DTensor"
            ):
                return original(*args, **kwargs)
        try:
            return adapter(original, rounding, *args, **kwargs)
        except (ValueError, TypeError) as error:
            if not str(error).startswith("rope_ext: "):
                raise
        return original(*args, **kwargs)  # shapes and dtypes that apply does not take, or an error in its words

    replacement._rope_ext_original = original
    return replacement


# ---- functions defined inside others ----


def _put_inside(outer, code, function):
    """Makes a function call `function` where it defines the function of a code object, or that again if None.

    The code of outer gets a stub among its constants, which calls a global that is there for as long.
    """
    whole = code_of(outer)
    stubs = dict(getattr(outer, "_rope_ext_stubs", {}))
    name = f"_rope_ext_{outer.__qualname__}_{code.co_name}_{code.co_firstlineno}".replace(".", "_").replace(
        "<locals>", ""
    )
    if function is None:
        del stubs[id(code)], outer.__globals__[name]
    else:
        stubs[id(code)] = _stub(code, name)
        outer.__globals__[name] = function
    if stubs:
        outer._rope_ext_code, outer._rope_ext_stubs = whole, stubs
        outer.__code__ = _with_stubs(whole, stubs)
    else:
        del outer._rope_ext_code, outer._rope_ext_stubs
        outer.__code__ = whole


def _with_stubs(code, stubs):
    if id(code) in stubs:
        return stubs[id(code)]
    inside = (_with_stubs(c, stubs) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=tuple(inside))


def _stub(code, called):
    """A function with the arguments of a code object, which passes them on to the global `called`."""
    empty = inspect.Parameter.empty
    parameters = inspect.signature(types.FunctionType(code, {})).parameters.values()
    declared = inspect.Signature([p.replace(default=empty, annotation=empty) for p in parameters])
    kinds = {inspect.Parameter.VAR_POSITIONAL: "*{0}", inspect.Parameter.VAR_KEYWORD: "**{0}"}
    kinds[inspect.Parameter.KEYWORD_ONLY] = "{0}={0}"
    passed = ", ".join(kinds.get(p.kind, "{0}").format(p.name) for p in parameters)
    source = f"def {code.co_name}{declared}:\n    return {called}({passed})\n"
    module = compile(source, code.co_filename, "exec", dont_inherit=True)
    stub = next(c for c in module.co_consts if isinstance(c, types.CodeType))
    return stub.replace(co_firstlineno=code.co_firstlineno)
