"""The table of instructions: from an opcode to the function that makes its effect from its operands.

Such a function takes every modifier and operand that it understands; what is left over is an error that names it.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from tools.machine_code.disassembly import Instruction, NotUnderstood
from tools.machine_code.state import Mask, State

Run: TypeAlias = Callable[[State, Mask], None]


class Take:
    """The modifiers and operands of an instruction that are still to be understood."""

    def __init__(self, instruction: Instruction) -> None:
        self.modifiers, self.operands = list(instruction.modifiers), list(instruction.operands)
        self.immediate = instruction.immediate

    def modifier(self, name: str) -> bool:
        """Whether the modifier is there."""
        found = name in self.modifiers
        if found:
            self.modifiers.remove(name)
        return found

    def one_of(self, names: Iterable[str]) -> str:
        """The modifier that is there; one has to be."""
        for name in names:
            if self.modifier(name):
                return name
        raise ValueError("a modifier is missing")

    def operand(self) -> str:
        return self.operands.pop(0)

    def all_understood(self, instruction: Instruction) -> None:
        if self.modifiers or self.operands:
            raise NotUnderstood(f"{', '.join(self.modifiers + self.operands)} left over in {instruction}")


TABLE: dict[str, Callable[[Take], Run]] = {}


def instruction(*opcodes: str) -> Callable[[Callable[[Take], Run]], Callable[[Take], Run]]:
    def register(make: Callable[[Take], Run]) -> Callable[[Take], Run]:
        TABLE.update(dict.fromkeys(opcodes, make))
        return make

    return register
