"""A random call: its text, its arguments, whether it is valid, and its expected result."""

import copy
import random

import numpy
import torch
from memory import FLOATS, INTEGERS, OTHER_FLOATS, STATES, Drawn, any_strides, dense

PREFIX = "rope_ext: "
KINDS = (ValueError, TypeError, NotImplementedError)

INTS = [0, 1, -1, 2, 3, 4, 5, 8, 16, 100, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63)]
INTS += [2**63, -(2**63) - 1, 2**64, 10**30, 10**400]
NUMBERS = [0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e30, 1e-30, float("nan"), float("inf"), -float("inf"), 1e308]
OTHERS = [None, True, False, "", "bshd", "thd", "once", "x", b"bshd", 1j, [], (), {}, [1], (1, 2), [None], object]
OTHERS += [
    torch.float32,
    numpy.int64(2),
    numpy.int32(0),
    numpy.float64(1.0),
    numpy.float32(0.5),
    numpy.bool_(True),
    numpy.arange(3),
]
DTYPES = [*FLOATS, *INTEGERS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.complex64, torch.complex128]
DTYPES += [*OTHER_FLOATS, torch.uint16, torch.uint64]


class Unknown(Exception):
    """Whether a call is valid cannot be decidable from the documentation."""


class Invalid(Exception):
    """A call is not valid."""


def must(condition):
    """Raises Invalid unless the condition holds."""
    if not condition:
        raise Invalid


def decidable(condition):
    """Raises Unknown unless the condition holds."""
    if not condition:
        raise Unknown


class NotMade(Exception):
    """An argument could not be made: (Made, the error)."""


class Made:
    """An argument that a function makes of others: function(*arguments)."""

    def __init__(self, text, function, *arguments):
        self.text, self.function, self.arguments = text, function, arguments

    def __repr__(self):
        return f"{self.text}({', '.join(map(repr, self.arguments))})"


class Call:
    """keywords: arguments by name, with Drawn and Made for tensors; `positional` of them are given by position.

    Subclasses define check(), which raises Invalid or Unknown, and expected(arguments), which gets the arguments in the
    copy of the memory, does there what the call should do, and returns what it should return.
    """

    def __init__(self, name, function, keywords, positional=1, mode=None):
        self.name, self.function, self.keywords = name, function, keywords
        self.positional, self.mode = positional, mode

    def __repr__(self):
        items = list(self.keywords.items())
        texts = [_text(value) for _, value in items[: self.positional]]
        texts += [f"{name}={_text(value)}" for name, value in items[self.positional :]]
        mode = f"with torch.{self.mode}():\n    " if self.mode else ""
        return f"{mode}{self.name}(\n        " + ",\n        ".join(texts) + ",\n    )"

    def is_valid(self):
        """True, False, or None where it cannot be decidable."""
        try:
            self.check()
        except Invalid:
            return False
        except Unknown:
            return None
        return True

    def arguments(self, buffers, plain=False):
        """The arguments by name. plain: in the copy of the memory, where nothing is recorded."""
        made = {}

        def make(value):
            if isinstance(value, Drawn):
                if id(value) not in made:
                    made[id(value)] = value.make(buffers, plain)
                return made[id(value)]
            if isinstance(value, Made):
                arguments = list(map(make, value.arguments))
                try:
                    return value.function(*arguments)
                except Exception as error:
                    raise NotMade(value, error) from error
            if type(value) in (list, tuple):
                return type(value)(map(make, value))
            if type(value) is dict:
                return {key: make(v) for key, v in value.items()}
            return value

        return {name: make(value) for name, value in self.keywords.items()}

    def run(self, arguments):
        values = list(arguments.values())
        named = dict(list(arguments.items())[self.positional :])
        with getattr(torch, self.mode)() if self.mode else torch.enable_grad():
            return self.function(*values[: self.positional], **named)

    def check(self):
        raise Unknown

    def expected(self, arguments):
        raise Unknown

    def written(self):
        """Every Drawn that the call writes."""
        return []

    def after(self, arguments, result, shadow):
        """A sentence about what is wrong with the result, else None: derivatives, strides."""


def _text(value):
    if type(value) in (list, tuple):
        inner = ", ".join(map(_text, value)) + ("," if len(value) == 1 and type(value) is tuple else "")
        return f"[{inner}]" if type(value) is list else f"({inner})"
    return repr(value)


# ---- what is wrong or odd ----


def odd_value(r):
    value = r.choice(r.choice((INTS, INTS, NUMBERS, OTHERS)))
    return copy.copy(value) if type(value) in (list, dict) else value  # a later mutation may change it


def drawn_in(value):
    """All Drawn inside an argument."""
    if isinstance(value, Drawn):
        return [value]
    if isinstance(value, Made):
        return [d for v in value.arguments for d in drawn_in(v)]
    if type(value) in (list, tuple):
        return [d for v in value for d in drawn_in(v)]
    if type(value) is dict:
        return [d for v in value.values() for d in drawn_in(v)]
    return []


def mutate(r: random.Random, memory, keywords):
    """Make one argument of keywords wrong or odd, in place."""
    name = r.choice(list(keywords))
    drawn = drawn_in(keywords[name])
    if not drawn or r.random() < 0.15:
        keywords[name] = odd_value(r)
        return
    if type(keywords[name]) in (list, tuple) and r.random() < 0.25:
        kind = type(keywords[name])
        listed = [r.choice(list(keywords[name]) or [None]) for _ in range(r.randrange(10))]
        if listed and r.random() < 0.3:
            listed[r.randrange(len(listed))] = odd_value(r)
        keywords[name] = r.choice([kind, kind, list, tuple])(listed)
        return
    change_tensor(r, memory, r.choice(drawn), [d for v in keywords.values() for d in drawn_in(v)])


def change_tensor(r, memory, t, others):
    """Give a Drawn another dtype, rank, size, strides or state, or memory that another one has."""
    kind = r.randrange(7)
    axis = r.randrange(len(t.shape)) if t.shape else None
    if kind == 0:
        t.dtype = r.choice(DTYPES)
    elif kind == 1:
        if t.shape and r.random() < 0.5:
            del t.shape[axis], t.strides[axis]
        else:
            axis = r.randrange(len(t.shape) + 1)
            t.shape.insert(axis, r.choice([1, 1, 2]))
            t.strides.insert(axis, r.choice([0, 1, t.span]))
    elif kind == 2 and t.shape:
        t.shape[axis] = max(0, r.choice([0, 1, t.shape[axis] + 1, t.shape[axis] - 1, 2 * t.shape[axis]]))
        if r.random() < 0.7:
            t.strides[:] = any_strides(r, t.shape)
    elif kind == 3 and t.shape:
        t.strides[axis] = r.choice([0, 0, 1, 2, 3])
    elif kind == 4:
        t.state = r.choice(STATES)
    elif kind == 5 and len(others) > 1:
        other = r.choice([o for o in others if o is not t])
        if t in memory.drawn and other in memory.drawn and not t.has_sharers and t.state is None:
            t.lie_in(other, r.choice([0, 0, 1, 2, 3, r.randrange(40)]))
    elif kind == 6 and t.shape:
        t.shape[:] = [r.choice([0, 1, 2, 3]) for _ in range(r.randrange(6))]
        t.strides[:] = dense(t.shape)
    if t.values is not None and len(t.values) != t.numel:
        t.values = [r.randrange(4) for _ in range(t.numel)]
