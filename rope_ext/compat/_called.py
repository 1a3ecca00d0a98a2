"""The decorator of the functions of other libraries: errors name their arguments, not those of rope_ext.

Flags, numbers and strings are checked before the function runs, because Python code accepts almost any value for them.
A value that is not a Tensor, or a Tensor of a wrong rank or on another device, makes the function itself fail. Only
then is the argument at fault searched for, so a correct call pays nothing. A function that writes must fail before its
first write.
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
from ._errors import last_size, refused

P = ParamSpec("P")
R = TypeVar("R")
Given = dict[str, tuple[Any, Argument]]  # name in errors -> (value, declaration)

_APPLY = {"x", "cos", "sin", "rotary_dim", "rotary_offset", "positions", "offset", "cu_seqlens"}
_ERRORS = (TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)


def called(**arguments: Argument) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that checks the arguments of a function and translates errors of `rope_ext.apply` to their names.

    Arguments that are not declared are not checked. An argument of `apply` that no declaration names follows from x.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        plain = {name for name in arguments if arguments[name].is_plain()}  # checked before the call
        names = [name for name, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        first = min((i for i, name in enumerate(names) if name in plain), default=len(names))
        later = names[first:]  # positional arguments to check; empty if all are Tensors
        types_of = {name: arguments[name].types if name in arguments else () for name in names}

        def check(name: str, value: object) -> None:
            declared = arguments.get(name)
            if declared is not None and (error := declared.refusal(name, value)):
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

        # Each wrapper gets its own code object: torch.compile gives up after eight recompilations of one code object.
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
    """The error that names an argument of the user; the original error if no argument explains it."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # too many or too few arguments
        return error
    bound.apply_defaults()
    values = bound.arguments
    given = {d.shown or name: (values[name], d) for name, d in arguments.items() if name in values}
    tensors = {name: value for name, (value, _) in given.items() if isinstance(value, Tensor)}
    x = {name: t for name, t in tensors.items() if "x" in given[name][1].stands_for}
    return (
        next(filter(None, (declared.refusal(name, value) for name, (value, declared) in given.items())), None)
        or (_about_place(tensors, x) if x else None)
        or _about_call(error, given, x)
        or error
    )


def _about_call(error: Exception, given: Given, x: dict[str, Tensor]) -> Exception | None:
    """The translated error of a failed call: an error of `rope_ext.apply`, else one of PyTorch."""
    if isinstance(error, (ArgumentError, ArgumentTypeError)):
        return _about_apply(error, given, x)
    return _about_kind(error, given) if is_of_rope_ext(error) else _about_values(given)


def _about_place(tensors: dict[str, Tensor], x: dict[str, Tensor]) -> Exception | None:
    """The error for a tensor that is sparse, or not on the device of x."""
    first, like = next(iter(x.items()))
    for name, t in tensors.items():
        if t.layout != torch.strided:
            return NotImplementedError(f"rope_ext: {name} must be a strided tensor, got {t.layout}")
        if t.device != like.device and t.dim():
            return refused(name, f"be on the device of {first}, {like.device}", t.device)
    return None


def _about_kind(error: Exception, given: Given) -> Exception | None:
    """An error of `rope_ext.apply` about a tensor without a kernel (nested, quantized), with the user's name for it."""
    about = ArgumentError(str(error)).argument
    tensors = {n: t for n, (t, declared) in given.items() if about in declared.stands_for and isinstance(t, Tensor)}
    if not tensors:
        return None
    odd = [n for n, t in tensors.items() if t.is_nested or t.is_quantized or isinstance(t, UNINITIALIZED)]
    name = next(iter(odd or tensors))
    return type(error)(str(error).replace(f"rope_ext: {about} must", f"rope_ext: {name} must", 1))


def _about_apply(
    error: ArgumentError | ArgumentTypeError, given: Given, x: dict[str, Tensor]
) -> ArgumentError | ArgumentTypeError | None:
    """An error of `rope_ext.apply` with the user's names; None if it is not about an argument of apply.

    Its cure is omitted, because it names arguments of apply.
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
    value, declared = given.get(name, (None, None))
    if declared is not None and int not in declared.types:
        rule = rule.removeprefix("be an int or ")
    if about == "rotary_dim" and isinstance(value, Tensor):
        width = value.shape[-1]
        if rule.startswith("be even") and width % 2 == 0:
            return _about_head_dim(x)  # head_dim is less than the width
        rule, got = _of_width(rule, "" if got == str(width) else ", an entry per pair"), str(width)
    return type(error)(name, _translated(rule, words, x), got)


def _words(given: Given) -> dict[str, str]:
    """{argument of apply: the user's argument for it}; one with a value and one of the same name are preferred."""
    words = {}
    for word in _APPLY:
        names = [name for name, (_, declared) in given.items() if word in declared.stands_for]
        if names:
            words[word] = min(names, key=lambda name: (given[name][0] is None, name != word))
    return words


def _of_width(rule: str, entries: str) -> str:
    """A rule of rotary_dim, expressed for the table whose width implies it."""
    if rule.startswith("fit "):
        return f"have a width that fits {rule.removeprefix('fit ')}{entries}"
    return "have an even width (channels rotate in pairs)" if rule.startswith("be even") else "have a positive width"


def _translated(rule: str, words: dict[str, str], x: dict[str, Tensor]) -> str:
    """A rule of `rope_ext.apply` with the names of the user's arguments."""
    if words.get("cos") == words.get("sin"):
        rule = rule.replace("cos, sin", "cos")
    words = {word: name for word, name in words.items() if word != "rotary_dim"}  # rules mention its value
    if x:  # the tensors whose shape the rule mentions, else all
        words["x"] = " and ".join([name for name, t in x.items() if str(tuple(t.shape)) in rule] or x)
    return re.sub(r"(?<!the )\b[a-z_]+\b", lambda word: words.get(word[0], word[0]), rule)


def _culprit(x: dict[str, Tensor], got: str) -> str:
    """The name of the first tensor of x with a wrong dtype or with the shape in an error; else of the last one."""
    found = (name for name, t in x.items() if t.dtype not in DTYPES or got.endswith(str(tuple(t.shape))))
    return next(found, list(x)[-1])


def _about_head_dim(x: dict[str, Tensor]) -> ArgumentError:
    """The error for a head_dim that implies a wrong rotary_dim."""
    (first, like), *others = x.items()
    for name, t in others:
        if t.shape[-1] != like.shape[-1]:
            return refused(name, last_size(like.shape[-1], first), t)
    return refused(first, "have an even head_dim of at least 2", like)


def _about_values(given: Given) -> ArgumentError | None:
    """The error for a wrong rank, or for an int beyond 64 bits, that made PyTorch fail."""
    for name, (value, declared) in given.items():
        if isinstance(value, Tensor) and value.dim() not in declared.ranks:
            return refused(name, f"have {_dimensions(declared.ranks)}", value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return refused(name, "fit in 64 bits", value)
    return None


def _dimensions(ranks: range) -> str:
    if ranks.stop > MAX_RANK:
        return f"at least {ranks.start} dimension{'s' * (ranks.start > 1)}"
    return f"{' or '.join(map(str, ranks))} dimensions"
