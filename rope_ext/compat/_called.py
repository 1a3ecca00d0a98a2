"""The decorator of the functions of other libraries: errors name their arguments, not those of rope_ext.

Flags, numbers and texts are checked before the function runs, since Python takes almost anything for them. A value that
is not a Tensor, or a Tensor of a wrong rank or on another device, makes the function fail by itself: the argument to
blame is looked for only then, so a right call does not pay for it. A function that writes must fail before its first
write.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from .._numbers import UNINITIALIZED
from ..errors import ArgumentError, ArgumentTypeError, is_of_rope_ext
from ..reference import DTYPES
from ._arguments import MAX_RANK, Argument
from ._errors import refused

P = ParamSpec("P")
R = TypeVar("R")
Given = dict[str, tuple[Any, Argument]]  # name in errors -> (value, declaration)

_APPLY = {"x", "cos", "sin", "rotary_dim", "rotary_offset", "positions", "offset", "cu_seqlens"}
_ERRORS = (TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)


def called(**arguments: Argument) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: checks the arguments of a function; errors of `rope_ext.apply` name those that stand for its own.

    Arguments that are not declared are not looked at. An argument of `apply` that none stands for is implied by x.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        plain = {name for name in arguments if arguments[name].is_plain()}  # to check before the call
        names = [name for name, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        first = min((i for i, name in enumerate(names) if name in plain), default=len(names))
        later = names[first:]  # positional arguments to check; none where all are Tensors
        types_of = {name: arguments[name].types if name in arguments else () for name in names}

        def check(name: str, value: object) -> None:
            wanted = arguments.get(name)
            if wanted is not None and (error := wanted.refusal(name, value)):
                raise error

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > first:
                for name, value in zip(later, args[first:]):
                    if type(value) not in types_of[name]:
                        check(name, value)
            if kwargs and plain:
                for name, value in kwargs.items():
                    if type(value) not in types_of.get(name, ()):
                        check(name, value)
            try:
                return function(*args, **kwargs)
            except _ERRORS as error:
                explained = _explained(error, arguments, signature, args, kwargs)
                if explained is error:
                    raise
                raise explained from None

        # A code object of its own: torch.compile counts recompilations per code object, and gives up after eight.
        own = cast(types.FunctionType, wrapper)
        own.__code__ = own.__code__.replace(co_name=function.__name__)
        return wrapper

    return decorate


def _explained(
    error: Exception,
    arguments: dict[str, Argument],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Exception:
    """The error that names an argument of the user; the error itself where no argument explains it."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # an argument too many or too few
        return error
    bound.apply_defaults()
    values = bound.arguments
    given = {wanted.shown or name: (values[name], wanted) for name, wanted in arguments.items() if name in values}
    tensors = {name: value for name, (value, _) in given.items() if isinstance(value, Tensor)}
    x = {name: t for name, t in tensors.items() if "x" in given[name][1].stands_for}
    return (
        next(filter(None, (wanted.refusal(name, value) for name, (value, wanted) in given.items())), None)
        or (_about_place(tensors, x) if x else None)
        or _about_call(error, given, x)
        or error
    )


def _about_call(error: Exception, given: Given, x: dict[str, Tensor]) -> Exception | None:
    """The error of what the function ran into: an error of `rope_ext.apply`, else one of PyTorch."""
    if isinstance(error, (ArgumentError, ArgumentTypeError)):
        return _about_apply(error, given, x)
    return _about_kind(error, given) if is_of_rope_ext(error) else _about_values(given)


def _about_place(tensors: dict[str, Tensor], x: dict[str, Tensor]) -> Exception | None:
    """The error of a tensor that is sparse, or not on the device of x."""
    first, like = next(iter(x.items()))
    for name, t in tensors.items():
        if t.layout != torch.strided:
            return NotImplementedError(f"rope_ext: {name} must be a strided tensor, got {t.layout}")
        if t.device != like.device and t.dim():
            return refused(name, f"be on the device of {first}, {like.device}", t.device)
    return None


def _about_kind(error: Exception, given: Given) -> Exception | None:
    """An error of `rope_ext.apply` about a tensor without a kernel (nested, quantized), with the name of the user."""
    about = ArgumentError(str(error)).argument
    tensors = {n: t for n, (t, wanted) in given.items() if about in wanted.stands_for and isinstance(t, Tensor)}
    if not tensors:
        return None
    odd = [n for n, t in tensors.items() if t.is_nested or t.is_quantized or isinstance(t, UNINITIALIZED)]
    name = next(iter(odd or tensors))
    return type(error)(str(error).replace(f"rope_ext: {about} must", f"rope_ext: {name} must", 1))


def _about_apply(
    error: ArgumentError | ArgumentTypeError, given: Given, x: dict[str, Tensor]
) -> ArgumentError | ArgumentTypeError | None:
    """An error of `rope_ext.apply` in the words of the user; None where it is not about an argument of apply.

    Its cure is left out: it is in the words of apply.
    """
    about, rule, got = error.argument, error.rule, error.got
    if about not in _APPLY:
        return None
    words = _words(given)
    if "rotary_offset" not in words:
        rule = rule.removesuffix(" from rotary_offset 0")
    if (about.startswith("rotary_") and about not in words) or rule.startswith("have an even number of channels"):
        return _about_head_dim(x) if x else None
    name = _culprit(x, got) if about == "x" and x else words.get(about) or next(iter(x), about)
    value, wanted = given.get(name, (None, None))
    if wanted is not None and int not in wanted.types:
        rule = rule.removeprefix("be an int or ")
    if about == "rotary_dim" and isinstance(value, Tensor):
        width = value.shape[-1]
        if rule.startswith("be even") and width % 2 == 0:
            return _about_head_dim(x)  # head_dim is smaller than the width
        rule, got = _of_width(rule, "" if got == str(width) else ", an entry per pair"), str(width)
    return type(error)(name, _translated(rule, words, x), got)


def _words(given: Given) -> dict[str, str]:
    """{argument of apply: the user's that stands for it, preferably one with a value, and of the same name}."""
    words = {}
    for word in _APPLY:
        names = [name for name, (_, wanted) in given.items() if word in wanted.stands_for]
        if names:
            words[word] = min(names, key=lambda name: (given[name][0] is None, name != word))
    return words


def _of_width(rule: str, entries: str) -> str:
    """A rule of rotary_dim as one of a table whose width implies it."""
    if rule.startswith("fit "):
        return f"have a width that fits {rule.removeprefix('fit ')}{entries}"
    return "have an even width (channels rotate in pairs)" if rule.startswith("be even") else "have a width above 0"


def _translated(rule: str, words: dict[str, str], x: dict[str, Tensor]) -> str:
    """A rule of `rope_ext.apply` with the names of the user's arguments."""
    if words.get("cos") == words.get("sin"):
        rule = rule.replace("cos, sin", "cos")
    words = {word: name for word, name in words.items() if word != "rotary_dim"}  # a number, which rules speak of
    if x:  # the tensors whose shape the rule names, else all
        words["x"] = " and ".join([name for name, t in x.items() if str(tuple(t.shape)) in rule] or x)
    return re.sub(r"(?<!the )\b[a-z_]+\b", lambda word: words.get(word[0], word[0]), rule)


def _culprit(x: dict[str, Tensor], got: str) -> str:
    """The first tensor of x that has a wrong dtype or the shape that an error names, by name; else the last."""
    found = (name for name, t in x.items() if t.dtype not in DTYPES or got.endswith(str(tuple(t.shape))))
    return next(found, list(x)[-1])


def _about_head_dim(x: dict[str, Tensor]) -> ArgumentError:
    """The error of a head_dim that implies a wrong rotary_dim."""
    (first, like), *others = x.items()
    for name, t in others:
        if t.shape[-1] != like.shape[-1]:
            return refused(name, f"have the head_dim {like.shape[-1]} of {first} last", t)
    return refused(first, "have an even head_dim, at least 2", like)


def _about_values(given: Given) -> ArgumentError | None:
    """The error of a rank, or of an int beyond 64 bits, that made PyTorch fail."""
    for name, (value, wanted) in given.items():
        if isinstance(value, Tensor) and value.dim() not in wanted.ranks:
            return refused(name, f"have {_dimensions(wanted.ranks)}", value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return refused(name, "fit in 64 bits", value)
    return None


def _dimensions(ranks: range) -> str:
    if ranks.stop > MAX_RANK:
        return f"at least {ranks.start} dimension{'s' * (ranks.start > 1)}"
    return f"{' or '.join(map(str, ranks))} dimensions"
