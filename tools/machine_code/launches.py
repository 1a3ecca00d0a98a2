"""Record the launches of rope_ext's CUDA kernels in a process without a GPU, and execute their machine code::

machine = Machine(kernels_of(library))
use_kernels(Recorder(_introspect.__file__, machine.execute).start())
rope_ext.apply(x, cos, sin)  # executed by the machine code, on CPU tensors
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tools.machine_code.disassembly import Kernel, NotFound
from tools.machine_code.memory import HostMemory, Span
from tools.machine_code.warps import Counts, Launch, Program


class CSpan(ctypes.Structure):
    """rope::Span of csrc/introspect/memory_of.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("item", ctypes.c_int64),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_int64 * 4),
        ("read", ctypes.c_int32),
        ("least", ctypes.c_int32),
        ("most", ctypes.c_int32),
    ]


class CLaunch(ctypes.Structure):
    """rope::cuda::RecordedLaunch of csrc/introspect/record_launches.cpp."""

    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("template_arguments", ctypes.c_char_p),
        ("grid", ctypes.c_int32 * 3),
        ("block", ctypes.c_int32 * 3),
        ("shared", ctypes.c_int32),
        ("arguments", ctypes.POINTER(ctypes.c_char)),
        ("arguments_size", ctypes.c_int64),
        ("spans", ctypes.POINTER(CSpan)),
        ("num_spans", ctypes.c_int64),
    ]


Receiver = ctypes.CFUNCTYPE(None, ctypes.POINTER(CLaunch))


@dataclass(frozen=True)
class Recorded:
    kernel: str
    template_arguments: str
    launch: Launch
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """A part of the mangled name that only the kernel of this launch has."""
        return self.kernel + self.template_arguments

    def kernel_of(self, kernels: dict[str, Kernel]) -> Kernel:
        found = [kernel for name, kernel in kernels.items() if self.name in name]
        if len(found) != 1:
            raise NotFound(f"{len(found)} kernels are called {self.name}")
        return found[0]


def recorded(launch: CLaunch) -> Recorded:
    spans = (launch.spans[i] for i in range(launch.num_spans))
    return Recorded(
        launch.kernel.decode(),
        launch.template_arguments.decode(),
        Launch(
            tuple(launch.grid), tuple(launch.block), bytes(launch.arguments[: launch.arguments_size]), launch.shared
        ),
        tuple(Span(s.data, s.item, tuple(s.sizes), tuple(s.strides), bool(s.read), s.least, s.most) for s in spans),
    )


class Recorder:
    """Calls `receive` with the launches of the kernels at the address that `start` returns.

    The address is for use_kernels in tests/conftest.py. Exceptions of `receive` are kept in `errors`, since they cannot
    propagate through C++.
    """

    started: ClassVar["Recorder | None"] = None  # the recorder whose function C++ calls, kept alive here

    def __init__(self, introspect: str, receive: Callable[[Recorded], Any]) -> None:
        self.library = ctypes.CDLL(introspect)
        self.library.rope_ext_recorded_kernels.restype = ctypes.c_void_p
        self.errors: list[BaseException] = []
        self.receive = receive
        self.receiver = Receiver(self.on_launch)

    def start(self, multiprocessors: int = 132) -> int:
        self.library.rope_ext_record_launches(self.receiver, multiprocessors)
        Recorder.started = self
        address: int = self.library.rope_ext_recorded_kernels()
        return address

    def on_launch(self, launch: Any) -> None:
        try:
            self.receive(recorded(launch.contents))
        except BaseException as error:
            self.errors.append(error)


class DependsOnSeed(Exception):
    """Results depend on the last bit of an approximation, which a GPU does not document."""


class Machine:
    """Executes launches, and counts them by kernel.

    A launch with approximations (MUFU) runs with each of three seeds on the same memory, and the results must be
    bit-identical.
    """

    def __init__(self, kernels: dict[str, Kernel]) -> None:
        self.kernels = kernels
        self.programs: dict[str, Program] = {}
        self.launches: Counter[str] = Counter()

    def program(self, launch: Recorded) -> Program:
        kernel = launch.kernel_of(self.kernels)
        return self.programs.setdefault(kernel.name, Program(kernel))

    def has(self, launch: Recorded) -> bool:
        return any(launch.name in name for name in self.kernels)

    def execute(self, launch: Recorded) -> Counts:
        program, memory = self.program(launch), HostMemory(launch.spans)
        before = memory.contents()
        counts = program.run(launch.launch, memory)
        memory.check_writes()
        results = memory.contents()
        for seed_ulps in (-1, 1) if counts.approximations else ():
            memory.restore(before)
            program.run(launch.launch, memory, seed_ulps=seed_ulps)
            if not all(map(np.array_equal, results, memory.contents())):
                raise DependsOnSeed(f"{program.kernel.name} with seeds of {seed_ulps} units in the last place")
        self.launches[program.kernel.name] += 1
        return counts
