"""A function that looks rotary, and how its code shows that."""

import dis
import re
import types
import weakref
from dataclasses import dataclass, field
from typing import Any

_ROTARY = re.compile(r"rotary|rope|rot_emb|freqs_c|multidimensional|rotat")
_MULTIPLIES = {"mul", "mul_", "addcmul", "einsum", "matmul", "view_as_complex"}
# A namespace holds names: the dict of a module, a class, or a weak reference to a submodule.
Namespace = dict[str, Any] | type | weakref.ref[Any]


@dataclass
class Candidate:
    """A function that looks rotary.

    original: what is called (`callable_of`), with `function` behind it. fingerprint: of its source, or None.
    names: the (namespace, name) that hold it; a namespace is the dict of a module, a class, or a weak reference to a
        submodule.
    outer: instead of names, the function that defines it each time it is called.
    seen: number of submodules whose code is seen to reach it. unseen: whether others may reach it as well.
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
        """Number of submodules that reach it, None where that is not known."""
        return None if self.unseen else self.seen

    def named_in(self, words: set[str] | None) -> bool:
        """Whether one of its names is among the words; None stands for unknown words, which may hold one."""
        names = {name for namespace, name in self.names if isinstance(namespace, dict)}
        return words is None or not words.isdisjoint(names | {self.function.__name__})

    @property
    def key(self) -> int:
        """Identifies the function while it exists: by its code if another function makes it anew at each call."""
        return id(self.function if self.outer is None else self.function.__code__)


def looks_rotary(code: types.CodeType) -> bool:
    """True for functions whose source is worth reading."""
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {"cos", "sin"} <= set(code.co_varnames) or any(_ROTARY.search(word) for word in (code.co_name, *arguments))


def rotates(candidate: Candidate) -> bool:
    """True for functions of unknown source that may well be a rotation: worth a line that says they were left alone."""
    code = candidate.function.__code__
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if not re.match(r"_*(apply|rotate)|.*rope_apply", code.co_name) and not {"cos", "sin"} <= set(arguments):
        return False
    products = _MULTIPLIES & set(code.co_names) or any(map(_multiplies, dis.get_instructions(code)))
    return bool(products) and len(arguments) > 1


def _multiplies(instruction: dis.Instruction) -> bool:
    """Whether it is x * y or x *= y: told by the argument since Python 3.11, by the name of the operation before."""
    return instruction.argrepr in ("*", "*=") or instruction.opname in ("BINARY_MULTIPLY", "INPLACE_MULTIPLY")
