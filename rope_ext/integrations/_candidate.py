"""A candidate: a function that looks rotary by its names."""

import dis
import re
import types
import weakref
from dataclasses import dataclass, field
from typing import Any

_ROTARY = re.compile(r"rotary|rope|rot_emb|freqs_c|multidimensional|rotat")
_MULTIPLIES = {"mul", "mul_", "addcmul", "einsum", "matmul", "view_as_complex"}
# A namespace holds names: the dict of a Python module, a class, or a weak reference to a submodule.
Namespace = dict[str, Any] | type | weakref.ref[Any]


@dataclass
class Candidate:
    """A function that looks rotary.

    original: the callable (`callable_of`); function: the Python function behind it.
    fingerprint: of its source, or None.
    names: the (namespace, name) that hold it.
    outer: for a nested function, which has no names: the function that defines it at each call.
    seen: number of submodules whose code was found to reach it.
    unseen: whether other submodules may reach it as well.
    """

    name: str
    original: Any
    function: types.FunctionType
    fingerprint: str | None
    names: list[tuple[Namespace, str]] = field(default_factory=list, repr=False)
    outer: types.FunctionType | None = None
    seen: int = 0
    unseen: bool = False

    @property
    def uses(self) -> int | None:
        """Number of submodules that reach it, or None if unknown."""
        return None if self.unseen else self.seen

    def named_in(self, words: set[str] | None) -> bool:
        """Whether one of its names is among the words. None stands for unknown words and counts as yes."""
        names = {name for namespace, name in self.names if isinstance(namespace, dict)}
        return words is None or not words.isdisjoint(names | {self.function.__name__})

    @property
    def key(self) -> int:
        """Identifies the function while it exists; a nested function, defined anew at each call, by its code."""
        return id(self.function if self.outer is None else self.function.__code__)


def looks_rotary(code: types.CodeType) -> bool:
    """Whether the source of the function is worth reading."""
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {"cos", "sin"} <= set(code.co_varnames) or any(_ROTARY.search(word) for word in (code.co_name, *arguments))


def rotates(candidate: Candidate) -> bool:
    """Whether a function of unknown source is probably a rotation, so that the report should list it as left alone."""
    code = candidate.function.__code__
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if not re.match(r"_*(apply|rotate)|.*rope_apply", code.co_name) and not {"cos", "sin"} <= set(arguments):
        return False
    products = _MULTIPLIES & set(code.co_names) or any(map(_multiplies, dis.get_instructions(code)))
    return bool(products) and len(arguments) > 1


def _multiplies(instruction: dis.Instruction) -> bool:
    """Whether it is `x * y` or `x *= y`. Python 3.11 and later tell by the argument, earlier ones by the name."""
    return instruction.argrepr in ("*", "*=") or instruction.opname in ("BINARY_MULTIPLY", "INPLACE_MULTIPLY")
