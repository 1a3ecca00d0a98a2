"""Frequencies: by how many radians each pair of channels rotates from one position to the next.

The schedules are pure functions that return Frequencies(inv_freq, attention_scaling). They share these arguments:

* rotary_dim: number of rotated channels, even.
* base: the constant that sets the slowest frequency, "rope_theta" in configurations.
* dtype: torch.float64 is accurate to its last bits. torch.float32 repeats the operations of transformers 5.23
  (modeling_rope_utils.py) in their order, for bit-identical results. One implementation serves both.

They raise ArgumentError (a ValueError) for sizes and values, and ArgumentTypeError (a TypeError) for types.

To add a schedule: docs/architecture.md.
"""

from typing import Literal, TypeAlias, get_args

from ._axes import axial, mrope_pair_axis, per_axis
from ._default import Frequencies, default, linear
from ._llama3 import llama3
from ._longrope import longrope
from ._ntk import dynamic_ntk, ntk
from ._proportional import proportional
from ._warped import warped
from ._xpos import xpos_scale
from ._yarn import yarn

Schedule: TypeAlias = Literal[
    "default",
    "linear",
    "ntk",
    "dynamic_ntk",
    "yarn",
    "longrope",
    "llama3",
    "proportional",
    "axial",
    "warped",
]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

__all__ = [
    "SCHEDULES",
    "Frequencies",
    "Schedule",
    "axial",
    "default",
    "dynamic_ntk",
    "linear",
    "llama3",
    "longrope",
    "mrope_pair_axis",
    "ntk",
    "per_axis",
    "proportional",
    "warped",
    "xpos_scale",
    "yarn",
]

for _name in set(__all__) - {"SCHEDULES", "Schedule"}:
    globals()[_name].__module__ = __name__  # where pickles look the name up, so that the private files may change
