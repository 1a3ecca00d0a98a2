"""Faults planted in the kernels' machine code are found: each in a call that passes without it."""

import ctypes
from dataclasses import replace

import pytest
import torch

import rope_ext
from rope_ext import _introspect
from rope_ext._torch.library import native
from tests.conftest import random, same_bits
from tests.machine_code import kernels
from tools.machine_code.disassembly import Kernel
from tools.machine_code.launches import Machine, Recorder

pytestmark = pytest.mark.devices("cpu")

# Kernels that read tables by 16 bytes: what their names hold, and a dtype.
ROTATE = {"BFloat16ELi8ELNS_6SourceE0": torch.bfloat16, "IfLi4ELNS_6SourceE0": torch.float32}


@pytest.fixture(scope="module", params=list(ROTATE.items()), ids=lambda item: str(item[1]).removeprefix("torch."))
def call(request):
    """A call that passes, and what can be changed in the kernel that it runs."""
    return Call(*request.param)


class Call:
    def __init__(self, name, dtype):
        self.inputs = [random((1, 6, 3, 32), dtype), *(random((8, 16), torch.float32, seed) for seed in (1, 2))]
        self.options = {"positions": torch.tensor([5, 0, 7, 2, 2, 6])}
        self.expected = rope_ext.apply(*self.inputs, **self.options)
        (self.kernel,) = (
            kernel for kernel in kernels().values() if "rotate_kernel" in kernel.name and name in kernel.name
        )
        assert self.fault_of(self.kernel) is None

    def fault_of(self, kernel, in_place=False):
        """What is found to be wrong with the call if it runs this kernel; None: nothing."""
        recorder = Recorder(_introspect.__file__, Machine({kernel.name: kernel}).execute)
        x, cos, sin = (t.clone() for t in self.inputs)
        native.rope_ext_use_cpu_kernels(ctypes.c_void_p(recorder.start()))
        try:
            got = (rope_ext.apply_ if in_place else rope_ext.apply)(x, cos, sin, **self.options)
        finally:
            native.rope_ext_use_cpu_kernels(None)
        if recorder.errors:
            return str(recorder.errors[0])
        return None if same_bits(got, self.expected) else "other bits"

    def altered(self, index, *instructions):
        """The kernel with other instructions in the place of one."""
        kernel, grown = self.kernel, len(instructions) - 1
        labels = {label: at + grown * (at > index) for label, at in kernel.labels.items()}
        listed = [*kernel.instructions[:index], *instructions, *kernel.instructions[index + 1 :]]
        return Kernel(kernel.name, listed, labels, kernel.registers)

    def with_effect(self, opcode, *modifiers):
        """(index, instruction, what is found without it) of those that the call needs."""
        for index, instruction in enumerate(self.kernel.instructions):
            if instruction.opcode == opcode and set(modifiers) <= set(instruction.modifiers):
                nothing = replace(instruction, opcode="NOP", modifiers=(), operands=(), guard=None)
                if fault := self.fault_of(self.altered(index, nothing)):
                    yield index, instruction, fault


def test_another_sign_of_a_sum(call):
    found = 0
    for index, instruction, _ in call.with_effect("FADD"):
        first, last = instruction.operands[:-1], instruction.operands[-1]
        other = replace(instruction, operands=(*first, last[1:] if last.startswith("-") else "-" + last))
        assert call.fault_of(call.altered(index, other)) == "other bits", instruction
        found += 1
    assert found >= 8


def test_another_offset_of_a_load(call):
    """A load of a table or of x then gives other values, or is outside of the tensor."""
    found = 0
    for index, instruction, _ in call.with_effect("LDG"):
        register, at = instruction.operands
        base, _, offset = at[: -len("]")].partition("+")
        size = 16 if "128" in instruction.modifiers else 8
        other = replace(instruction, operands=(register, f"{base}+{int(offset or '0', 16) + size:#x}]"))
        assert call.fault_of(call.altered(index, other)), instruction
        found += 1
    assert found >= 4


@pytest.mark.parametrize("in_place", [False, True])
def test_a_store_twice(in_place, call):
    """The bits are right; only the count of writes tells."""
    stores = list(call.with_effect("STG"))
    for index, store, _ in stores:
        assert "2 times, where" in call.fault_of(call.altered(index, store, store), in_place=in_place), store
    assert len(stores) >= 2


def test_a_store_dropped(call):
    assert all("0 times, where" in fault for _, _, fault in call.with_effect("STG"))


def test_the_last_bit_of_an_approximation():
    """A result that depends on it is refused."""
    call = Call(*list(ROTATE.items())[1])
    index, total, _ = next(call.with_effect("FADD"))
    seed = replace(
        total, opcode="MUFU", modifiers=("RCP",), operands=(total.operands[0], total.operands[1].lstrip("-"))
    )
    assert "units in the last place" in call.fault_of(call.altered(index, seed))
