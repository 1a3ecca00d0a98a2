"""Counts of the CUDA kernels' machine code on the shapes of the benchmarks, taken without a GPU, and the time that a
model of an H200 derives from them."""

from dataclasses import dataclass
from pathlib import Path

import rope_ext
from benchmarks.harness.shapes import SHAPES, Shape
from rope_ext import _introspect
from tools.machine_code.cost import Cost, count
from tools.machine_code.disassembly import kernels_of
from tools.machine_code.launches import Machine, Recorded, Recorder

LIBRARY = Path(rope_ext.__file__).parent / "_ops.so"
ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
NAMES = ("prefill", "train", "long", "video", "decode", "tiny")
SHAPE = {shape.name: shape for shape in SHAPES}

# An H200: clock, multiprocessors, instructions that a multiprocessor issues per cycle, measured bytes per second of a
# copy.
CLOCK, MULTIPROCESSORS, ISSUE_SLOTS, COPY = 1.98e9, 132, 4, 4.3e12
ISSUED = 0.65  # share of the issue slots that kernels of this kind fill: 0.55 to 0.75
LATENCY = 2e-6  # seconds of a launch and its first loads


@dataclass(frozen=True)
class Variant:
    """One call of apply.

    channels: number of rotated channels; None: all. norm: heads are normalized first. gradient: the kernel for the
    gradients to x and the weights instead, without the small kernel that adds up blocks of tokens.
    """

    name: str
    in_place: bool = False
    interleaved: bool = False
    positions: bool = False
    channels: int | None = None
    norm: bool = False
    gradient: bool = False


FUNCTIONAL = Variant("functional")
VARIANTS = (
    Variant("positions", positions=True),
    Variant("in place", in_place=True),
    Variant("interleaved", interleaved=True),
    Variant("partial", channels=64),
)
NORMS = (Variant("norm", norm=True), Variant("norm, partial", norm=True, channels=64))
GRADIENTS = (Variant("norm's gradient", norm=True, gradient=True),)


@dataclass(frozen=True)
class Counted:
    shape: Shape
    dtype: str
    variant: Variant
    cost: Cost

    @property
    def name(self) -> str:
        return f"{self.shape.name} {self.dtype} {self.variant.name}"

    @property
    def payload(self) -> int:
        """Bytes read and written: q and k, and their gradients."""
        return (self.reads + 1) * self.written

    @property
    def written(self) -> int:
        """Bytes written: q and k, or their gradients; in place only the rotated channels."""
        channels = self.variant.channels if self.variant.in_place else None
        return self.shape.elements * ITEM[self.dtype] * (channels or self.shape.head_dim) // self.shape.head_dim

    @property
    def reads(self) -> int:
        """Bytes read, as a multiple of the bytes written."""
        return 2 if self.variant.gradient else 1

    @property
    def per_kib(self) -> float:
        """Instructions of warps per 1,024 bytes."""
        return self.cost.instructions / (self.payload / 1024)

    @property
    def sectors(self) -> str:
        """32-byte sectors read / written per 1,024 bytes of q and k: at least 32, and the sectors of tables."""
        of = self.written / 1024
        return f"{self.cost.sectors_read / of / self.reads:.0f} / {self.cost.sectors_written / of:.0f}"

    @property
    def copy(self) -> float:
        """Seconds to copy as many bytes."""
        return self.payload / COPY

    @property
    def issue(self) -> float:
        """Seconds to issue the instructions if every issue slot is used."""
        return self.cost.instructions / (MULTIPROCESSORS * ISSUE_SLOTS * CLOCK)

    @property
    def seconds(self) -> float:
        return max(self.copy, self.issue / ISSUED) + LATENCY

    @property
    def bound(self) -> str:
        """What the modeled time is spent on."""
        if max(self.copy, self.issue / ISSUED) < LATENCY:
            return "latency"
        return "memory" if self.copy > self.issue / ISSUED else "issue"


def launch_of(shape: Shape, dtype: str, variant: Variant) -> Recorded:
    """The launch of apply((q, k), cos, sin), or of its gradient.

    Tables are float32 (float64 for float64 x), weights have the dtype of x, addresses are fictitious.
    """
    i, pairs = _introspect, (variant.channels or shape.head_dim) // 2
    address = iter(range(1 << 42, 1 << 47, 1 << 42))
    heads = [shape.heads_q, shape.heads_k]
    strides = [i.Strides(shape.seqlen * n * shape.head_dim, n * shape.head_dim, shape.head_dim, 1) for n in heads]

    def tensor(n: int, s: object) -> object:
        read = next(address)
        return i.RotatedTensor(read, read if variant.in_place else next(address), s, s, n, shape.head_dim)

    def table() -> object:
        first = next(address)
        return i.Table(first, first, 0, pairs, 0, 1)

    def norm() -> object:
        return i.Norm(next(address), getattr(i.DType, dtype), inv_rms=next(address) if variant.gradient else 0)

    launches: list[Recorded] = []
    Recorder(i.__file__, launches.append).start(MULTIPROCESSORS)
    params = i.RotateParams(
        x=[tensor(n, s) for n, s in zip(heads, strides)],
        dtype=getattr(i.DType, dtype),
        table_dtype=i.DType.float64 if dtype == "float64" else i.DType.float32,
        batch=shape.batch,
        seqlen=shape.seqlen,
        rotary_offset=0,
        pairs=pairs,
        interleaved=variant.interleaved,
        cos=table(),
        sin=table(),
        positions=next(address) if variant.positions else 0,
        rows=shape.seqlen,
        norm=[norm() for _ in heads] if variant.norm else [],
        eps=1e-6,
    )
    if variant.gradient:
        of_norm = [i.NormGradTensor(next(address), s, next(address), next(address)) for s in strides]
        i.norm_grad("recorded", i.NormGradParams(params, of_norm))
    else:
        i.rotate("recorded", params)
    return launches[0]


def machine_of(library: Path = LIBRARY) -> Machine:
    """The machine of the built library, or of a .cubin with some of its kernels; NotFound if it cannot be read."""
    return Machine(kernels_of(library))


CASES = [(SHAPE[name], dtype, FUNCTIONAL) for name in NAMES for dtype in ITEM]
CASES += [(SHAPE["prefill"], dtype, variant) for variant in VARIANTS for dtype in ITEM]
CASES += [(SHAPE["decode"], dtype, VARIANTS[0]) for dtype in ITEM]
CASES += [(SHAPE["prefill"], dtype, variant) for variant in (*NORMS, *GRADIENTS) for dtype in ITEM]
CASES += [(SHAPE["decode"], dtype, NORMS[0]) for dtype in ITEM]


def counted(machine: Machine) -> list[Counted]:
    """The CASES whose kernel the machine has."""
    launches = [(case, launch_of(*case)) for case in CASES]
    return [Counted(*case, count(machine, launch)) for case, launch in launches if machine.has(launch)]
