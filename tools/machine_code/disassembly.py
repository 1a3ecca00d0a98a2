"""The kernels of a library as text: cuobjdump extracts the machine code, nvdisasm disassembles it.

Both are command line tools of CUDA; the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm have them too.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path


class NotUnderstood(Exception):
    """Machine code that tools.machine_code does not model; such code is never skipped."""


class NotFound(Exception):
    """A tool is missing, or a library has no kernels for the architecture."""


@dataclass(frozen=True)
class Guard:
    """The predicate under which an instruction has an effect."""

    predicate: str
    negated: bool


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly, such as `@!P0 IMAD.WIDE.U32 R2, P1, R4, 0x8, R6`.

    immediate: the word of the encoding that contains a constant.
    """

    address: int
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: Guard | None = None
    immediate: int = 0

    def __str__(self) -> str:
        guard = f"@{'!' * self.guard.negated}{self.guard.predicate} " if self.guard else ""
        return f"{self.address:04x} {guard}{'.'.join((self.opcode, *self.modifiers))} {', '.join(self.operands)}"


@dataclass
class Kernel:
    """A disassembled kernel.

    registers: per thread. shared: bytes of shared memory per block, which begin with those of the system. labels: the
    index of the instruction after each label.
    """

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: int = 0
    shared: int = 0


def tool(name: str) -> str:
    """The path of a CUDA tool, from its package in this environment or from PATH."""
    for folder in sys.path:
        for path in Path(folder or ".").glob(f"nvidia/cu*/bin/{name}"):
            if os.access(path, os.X_OK):
                return str(path)
    found = shutil.which(name)
    if found is None:
        raise NotFound(f"{name} is neither on PATH nor installed: pip install 'rope_ext[machine-code]'")
    return found


def kernels_of(library: Path, architecture: str = "sm_90") -> dict[str, Kernel]:
    """The kernels in a library, or in a .cubin file, by mangled name."""
    with tempfile.TemporaryDirectory() as folder:
        cubins = [library] if library.suffix == ".cubin" else extracted(library, architecture, Path(folder))
        kernels: dict[str, Kernel] = {}
        for cubin in cubins:
            parsed = parse(output(tool("nvdisasm"), "-c", "-hex", cubin))
            for name, (registers, shared) in resources_of(output(tool("cuobjdump"), "-res-usage", cubin)).items():
                if name in parsed:  # not a device function
                    parsed[name].registers, parsed[name].shared = registers, shared
            kernels |= parsed
        return kernels


def extracted(library: Path, architecture: str, folder: Path) -> list[Path]:
    output(tool("cuobjdump"), "--extract-elf", architecture, library.resolve(), cwd=folder)
    cubins = sorted(folder.glob(f"*.{architecture}.cubin"))
    if not cubins:
        raise NotFound(f"{library} holds no machine code for {architecture}")
    return cubins


def output(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def resources_of(resource_usage: str) -> dict[str, tuple[int, int]]:
    """{kernel: (registers per thread, bytes of shared memory per block)}."""
    found = re.findall(r"^ Function (\S+):\n\s+REG:(\d+) STACK:\d+ SHARED:(\d+) ", resource_usage, re.MULTILINE)
    return {name: (int(registers), int(shared)) for name, registers, shared in found}


BYTES = 16  # per instruction
SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
LABEL = re.compile(r"^\s*([.$\w]+):")
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P\w+)\s+)?([\w.]+)\s*([^;]*);(?:\s+/\* 0x(\w{8}))?")


def parse(text: str) -> dict[str, Kernel]:
    """The kernels in the output of nvdisasm."""
    kernels: dict[str, Kernel] = {}
    kernel = None
    for line in text.splitlines():
        if section := SECTION.match(line):
            kernel = kernels.setdefault(section[1], Kernel(section[1]))
        elif kernel is None:
            continue
        elif label := LABEL.match(line):
            kernel.labels[label[1]] = len(kernel.instructions)
        elif parts := LINE.match(line):
            kernel.instructions.append(instruction(*parts.groups(default="")))
    for kernel in kernels.values():
        if [i.address for i in kernel.instructions] != list(range(0, BYTES * len(kernel.instructions), BYTES)):
            raise NotUnderstood(f"lines of {kernel.name} that are no instruction")
    return kernels


def instruction(
    address: str, negated: str, predicate: str, name: str, operands: str, upper_word: str = ""
) -> Instruction:
    opcode, *modifiers = name.split(".")
    # .reuse is a hint to the register cache and has no effect on values.
    parts = tuple(re.split(r",\s*|\s+(?=`)", operands.replace(".reuse", "").strip())) if operands.strip() else ()
    guard = Guard(predicate, bool(negated)) if predicate else None
    immediate = int(upper_word or "0", 16)
    if not opcode.startswith("D"):  # nvdisasm prints any NaN as QNAN; the encoded word has its bits
        parts = tuple(f"0x{upper_word}" if re.fullmatch(r"[-+]?QNAN\s*", part) else part for part in parts)
    return Instruction(int(address, 16), opcode, tuple(modifiers), tuple(map(str.strip, parts)), guard, immediate)
