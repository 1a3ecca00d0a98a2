"""Checks and errors of the functions of other libraries, in the words of their arguments, not of rope_ext's.

    @called(t=tensor("x"), freqs=tensor("cos", "sin", ranks=4), fused=flag())
    def apply_rotary_pos_emb(t, freqs, fused=False):

declares what each argument may be and which arguments of `rope_ext.apply` it stands for. Flags, numbers and texts are
checked before the function runs, since Python takes almost anything for them. A value that is not a Tensor, or a Tensor
of a wrong rank or on another device, makes the function fail by itself: the argument to blame is looked for only then,
so a right call does not pay for it. A function that writes must fail before its first write.
"""

import functools
import inspect
import numbers
import re
from typing import NamedTuple

import torch

from .._numbers import name_of, shown
from ..errors import ArgumentError, ArgumentTypeError

_MAX_RANK = 64  # of a Tensor
_APPLY = {"x", "cos", "sin", "rotary_dim", "rotary_offset", "positions", "offset", "cu_seqlens"}
_ERRORS = (TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def refused(argument, rule, got):
    """The ValueError "rope_ext: <argument> must <rule>, got <got>"; for a Tensor its shape is named."""
    return ArgumentError(argument, rule, _text(got))


def refused_type(argument, rule, got):
    """The TypeError of that form."""
    return ArgumentTypeError(argument, rule, _text(got))


def check_dtype(argument, t):
    """TypeError unless the kernels know the dtype of t."""
    if t.dtype not in _DTYPES:
        raise refused_type(argument, "be float64, float32, bfloat16 or float16", name_of(t.dtype))


def check_axis(argument, axis, ranks):
    """ValueError unless -ranks <= axis < ranks."""
    if not -ranks <= axis < ranks:
        raise refused(argument, f"be an axis, {-ranks} to {ranks - 1}", axis)


def _text(got):
    if isinstance(got, torch.Tensor):
        return f"shape {tuple(got.shape)}"
    return shown(got) if isinstance(got, int) else got


def _is_int64(value):
    return -(2**63) <= value < 2**63


class _Argument(NamedTuple):
    types: tuple  # exact types that pass at once
    accepted: tuple  # types that pass after a closer look
    rule: str
    ranks: range
    stands_for: tuple  # arguments of rope_ext.apply
    shown: str | None  # in errors, where that is not the name of the argument
    choices: tuple = ()  # texts, one of which it must be

    def is_plain(self):
        """Whether Python values are expected."""
        return bool(self.choices) or not {bool, int, str}.isdisjoint(self.types)

    def refusal(self, name, value):
        """The error of a value of another type, or that is none of the choices, or None; name: of the argument."""
        if self.choices and isinstance(value, str):
            return None if value in self.choices else refused(name, self.rule, repr(value))
        if type(value) in self.types or (isinstance(value, self.accepted) and not isinstance(value, bool)):
            return None
        got = f"a Tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        if value is None or isinstance(value, (str, bool, float)):
            got = repr(value)
        return refused_type(name, self.rule, got)


_KINDS = {
    torch.Tensor: ((torch.Tensor, torch.nn.Parameter), (torch.Tensor,), "a Tensor"),
    int: ((int,), (numbers.Integral, torch.SymInt), "an int"),
    float: ((float, int), (numbers.Real, torch.SymFloat, torch.SymInt), "a number"),
    bool: ((bool,), (bool, torch.SymBool), "True or False"),
    str: ((str,), (str,), "a str"),
    None: ((type(None),), (type(None),), "None"),
}


def at_least(rank):
    """Ranks of an argument that may have any number of further axes."""
    return range(rank, _MAX_RANK + 1)


_ANY_RANK = at_least(0)


def argument(*kinds, stands_for=(), ranks=_ANY_RANK, shown=None):
    """An argument of one of the kinds Tensor, int, float (ints too), bool, str and None."""
    ranks = range(ranks, ranks + 1) if isinstance(ranks, int) else ranks
    types, accepted, words = zip(*(_KINDS[kind] for kind in kinds))
    words = " or ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + " or " + words[-1]
    return _Argument(sum(types, ()), sum(accepted, ()), f"be {words}", ranks, stands_for, shown)


def tensor(*stands_for, ranks=_ANY_RANK, optional=False, shown=None):
    """A Tensor, or None where it is optional. ranks: int or range of ints. shown: its name in errors."""
    kinds = (torch.Tensor, None) if optional else (torch.Tensor,)
    return argument(*kinds, stands_for=stands_for, ranks=ranks, shown=shown)


def flag(*stands_for):
    """True or False."""
    return argument(bool, stands_for=stands_for)


def rounding():
    """What is rounded, as in `rope_ext.apply`: "once" or "eager"."""
    choices = "once", "eager"
    return _Argument((), (), f"be {' or '.join(map(repr, choices))}", _ANY_RANK, (), None, choices)


def integer(*stands_for, optional=False):
    """An int, or None where it is optional."""
    return argument(*((int, None) if optional else (int,)), stands_for=stands_for)


def called(**arguments):
    """Decorator: checks the arguments of a function; errors of `rope_ext.apply` name those that stand for its own.

    Arguments that are not declared are not looked at. An argument of `apply` that none stands for is implied by x.
    """

    def decorate(function):
        signature = inspect.signature(function)
        plain = {name for name in arguments if arguments[name].is_plain()}  # to check before the call
        names = [name for name, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        first = min((i for i, name in enumerate(names) if name in plain), default=len(names))
        later = names[first:]  # positional arguments to check; none where all are Tensors

        types = {name: arguments[name].types if name in arguments else () for name in names}

        def check(name, value):
            wanted = arguments.get(name)
            if wanted is not None and (error := wanted.refusal(name, value)):
                raise error

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            if len(args) > first:
                for name, value in zip(later, args[first:]):
                    if type(value) not in types[name]:
                        check(name, value)
            if kwargs and plain:
                for name, value in kwargs.items():
                    if type(value) not in types.get(name, ()):
                        check(name, value)
            try:
                return function(*args, **kwargs)
            except _ERRORS as error:
                explained = _explained(error, arguments, signature, args, kwargs)
                if explained is error:
                    raise
                raise explained from None

        # A code object of its own: torch.compile counts recompilations per code object, and gives up after eight.
        wrapper.__code__ = wrapper.__code__.replace(co_name=function.__name__)
        return wrapper

    return decorate


def _explained(error, arguments, signature, args, kwargs):
    """The error that names an argument of the user; the error itself where no argument explains it."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # an argument too many or too few
        return error
    bound.apply_defaults()
    values = bound.arguments
    given = {wanted.shown or name: (values[name], wanted) for name, wanted in arguments.items() if name in values}
    tensors = {name: value for name, (value, _) in given.items() if isinstance(value, torch.Tensor)}
    x = {name: t for name, t in tensors.items() if "x" in given[name][1].stands_for}
    of_apply = isinstance(error, (ArgumentError, ArgumentTypeError))
    return (
        next(filter(None, (wanted.refusal(name, value) for name, (value, wanted) in given.items())), None)
        or (_about_place(tensors, x) if x else None)
        or (_about_apply(error, given, x) if of_apply else _about_values(given))
        or error
    )


def _about_place(tensors, x):
    """The error of a tensor that is sparse, or not on the device of x."""
    first, like = next(iter(x.items()))
    for name, t in tensors.items():
        if t.layout != torch.strided:
            return NotImplementedError(f"rope_ext: {name} must be a strided tensor, got {t.layout}")
        if t.device != like.device and t.dim():
            return refused(name, f"be on the device of {first}, {like.device}", t.device)
    return None


def _about_apply(error, given, x):
    """An error of `rope_ext.apply` in the words of the user; None where it is not about an argument of apply.

    Its cure is left out, which is in the words of apply.
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
    if about == "rotary_dim" and isinstance(value, torch.Tensor):
        width = value.shape[-1]
        if rule.startswith("be even") and width % 2 == 0:
            return _about_head_dim(x)  # which is smaller than the width
        rule, got = _of_width(rule, "" if got == str(width) else ", an entry per pair"), width
    return type(error)(name, _translated(rule, words, x), got)


def _words(given):
    """{argument of apply: that of the user which stands for it, rather one with a value, rather of the same name}."""
    words = {}
    for word in _APPLY:
        names = [name for name, (_, wanted) in given.items() if word in wanted.stands_for]
        if names:
            words[word] = min(names, key=lambda name: (given[name][0] is None, name != word))
    return words


def _of_width(rule, entries):
    """A rule of rotary_dim as one of a table whose width implies it."""
    if rule.startswith("fit "):
        return f"have a width that fits {rule.removeprefix('fit ')}{entries}"
    return "have an even width (channels rotate in pairs)" if rule.startswith("be even") else "have a width above 0"


def _translated(rule, words, x):
    """A rule of `rope_ext.apply` with the names of the user's arguments."""
    if words.get("cos") == words.get("sin"):
        rule = rule.replace("cos, sin", "cos")
    words = {word: name for word, name in words.items() if word != "rotary_dim"}  # a number, which rules speak of
    if x:  # those whose shape is named, else all
        words["x"] = " and ".join([name for name, t in x.items() if str(tuple(t.shape)) in rule] or x)
    return re.sub(r"(?<!the )\b[a-z_]+\b", lambda word: words.get(word[0], word[0]), rule)


def _culprit(x, got):
    """The first tensor of x that has a wrong dtype or the shape that an error names, by name; else the last."""
    found = (name for name, t in x.items() if t.dtype not in _DTYPES or got.endswith(str(tuple(t.shape))))
    return next(found, list(x)[-1])


def _about_head_dim(x):
    """The error of a head_dim that implies a wrong rotary_dim."""
    (first, like), *others = x.items()
    for name, t in others:
        if t.shape[-1] != like.shape[-1]:
            return refused(name, f"have the head_dim {like.shape[-1]} of {first} last", t)
    return refused(first, "have an even head_dim, at least 2", like)


def _about_values(given):
    """The error of a rank or an int that PyTorch stumbled over."""
    for name, (value, wanted) in given.items():
        if isinstance(value, torch.Tensor) and value.dim() not in wanted.ranks:
            return refused(name, f"have {_dimensions(wanted.ranks)}", value)
        if isinstance(value, int) and not _is_int64(value):
            return refused(name, "fit in 64 bits", value)
    return None


def _dimensions(ranks):
    if ranks.stop > _MAX_RANK:
        return f"at least {ranks.start} dimension{'s' * (ranks.start > 1)}"
    return f"{' or '.join(map(str, ranks))} dimensions"
