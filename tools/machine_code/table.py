"""The table of instructions: {opcode: function that builds the effect from the operands}.

A function consumes every modifier and operand that it understands; any that remain are an error that names them.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from tools.machine_code.disassembly import Instruction, NotUnderstood
from tools.machine_code.state import Mask, State

Run: TypeAlias = Callable[[State, Mask], None]


class Take:
    """The modifiers and operands of an instruction that no function has consumed yet."""

    def __init__(self, instruction: Instruction) -> None:
        self.modifiers, self.operands = list(instruction.modifiers), list(instruction.operands)
        self.immediate = instruction.immediate

    def modifier(self, name: str) -> bool:
        """Consume the modifier, and return whether it is present."""
        found = name in self.modifiers
        if found:
            self.modifiers.remove(name)
        return found

    def one_of(self, names: Iterable[str]) -> str:
        """Consume and return the one modifier that is present; one of them must be."""
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
