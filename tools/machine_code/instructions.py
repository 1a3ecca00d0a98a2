"""The effect of each instruction: a table that the modules imported here fill."""

from tools.machine_code import bits, conversions, floating, integer, shared, transfer
from tools.machine_code.disassembly import Instruction, NotUnderstood
from tools.machine_code.table import TABLE, Run, Take, instruction

__all__ = ["Run", "bits", "conversions", "effect", "floating", "integer", "shared", "transfer"]


@instruction("NOP", "YIELD", "ACQBULK", "PREEXIT")
def nothing(take: Take) -> Run:
    """No effect. The last two order consecutive kernels, of which only one runs here."""
    return lambda s, mask: None


def effect(instruction: Instruction) -> Run:
    """The effect of an instruction on the registers and memory of its active lanes."""
    if instruction.opcode not in TABLE:
        raise NotUnderstood(f"opcode {instruction.opcode}: {instruction}")
    take = Take(instruction)
    try:
        run = TABLE[instruction.opcode](take)
    except (ValueError, IndexError, KeyError) as error:
        raise NotUnderstood(f"{error} in {instruction}") from error
    take.all_understood(instruction)
    return run
