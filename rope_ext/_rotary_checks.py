"""Checks of the arguments of RotaryEmbedding and of its apply."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import _numbers, _positions
from ._options import RopeOptions
from ._rotary_frequencies import BY_LENGTH, DTYPES
from ._shown import shown
from ._signatures import check_names
from .errors import ArgumentError, ArgumentTypeError
from .frequencies import Frequencies

_CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def check_channels(head_dim: int, rotary_dim: int | None) -> None:
    """head_dim and rotary_dim must be ints, the number of rotated channels even and at most head_dim."""
    _numbers.integer(head_dim=head_dim)
    if not 2 <= head_dim <= _numbers.MAX_CHANNELS:
        rule = "at least 2" if head_dim < 2 else f"at most {_numbers.MAX_CHANNELS}"
        raise ArgumentError("head_dim", f"be {rule}", shown(head_dim))
    if rotary_dim is None:
        if head_dim % 2:
            cure = f"rotary_dim={head_dim - 1} leaves one channel unrotated"
            raise ArgumentError("head_dim", "be even when rotary_dim is not given", shown(head_dim), cure)
        return
    _numbers.integer(rotary_dim=rotary_dim)
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise ArgumentError("rotary_dim", f"be even and in 2 to head_dim {head_dim}", shown(rotary_dim))


def check_precision(precision: object) -> None:
    if not isinstance(precision, str) or precision not in DTYPES:
        raise ArgumentError("precision", "be 'exact' or 'hf'", shown(precision))


def check_frequencies(
    frequencies: Callable[[int | None], Frequencies],
    schedule: str,
    precision: str,
    named: Sequence[tuple[str, object]],
) -> None:
    """Run the schedule, which checks its arguments, and refuse frequencies that are not finite. Once, not in each call.

    frequencies: seqlen -> Frequencies. named: (name, value) of the parameters, for the error.
    """
    try:
        for seqlen in (None, 2**62) if schedule in BY_LENGTH else (None,):
            inv_freq, attention_scaling = frequencies(seqlen)
            if type(inv_freq) is not torch.Tensor or torch.compiler.is_compiling():
                return  # a fake or traced tensor has no values
            if not (inv_freq.isfinite().all() and math.isfinite(attention_scaling)):
                raise OverflowError("inf or nan")
    except ArithmeticError as error:
        got = ", ".join(f"{name}={shown(value)}" for name, value in named)
        rule = f"give finite frequencies in schedule {schedule!r} at precision {precision!r}"
        raise ArgumentError("parameters", rule, got) from error


def check_heads(tensors: Sequence[Any], head_dim: int, rotary_dim: int) -> None:
    """The tensors of x must have head_dim channels. Anything else passes: `apply` raises the error about it."""
    try:
        for t in tensors:
            if (got := t.size(-1)) != head_dim:
                cure = f"pass rotary_dim={rotary_dim} to rotate its first {rotary_dim} channels"
                raise ArgumentError("x", f"have head_dim {head_dim}", got, cure)
    except (AttributeError, IndexError, TypeError):
        pass  # not a tensor (`size` of an array is an int), or a tensor without axes


def check_options(options: Mapping[str, Any], rotary_dim: int) -> None:
    """Refuse unknown options of `rope.apply`, and options that contradict its frequencies."""
    given = options.get("rotary_dim")
    if given is not None and _numbers.as_int("rotary_dim", given) != rotary_dim:
        raise ArgumentError("rotary_dim", f"equal that of the frequencies, {rotary_dim}", given)
    for name in ("cos", "sin", "inv_freq", "attention_scaling"):
        if name in options:
            cure = "rope_ext.apply accepts it; this apply has its own frequencies"
            raise ArgumentTypeError(name, "not be given", shown(options[name]), cure)
    check_names("apply", options, RopeOptions.__optional_keys__)


def check_positions(positions: object) -> None:
    """Check the positions of `rope(positions)`; a list of tensors was probably meant as x."""
    if isinstance(positions, (tuple, list)) and any(isinstance(p, torch.Tensor) for p in positions):
        raise ArgumentTypeError("positions", "be a Tensor", shown(positions), "to rotate x call rope.apply(x)")
    _numbers.tensor(positions=positions)
    _positions.check_positions(positions)


def length_of(positions: torch.Tensor) -> int:
    """The minimum length of a sequence with these positions: the largest position plus 1."""
    longest = positions.max().item()
    if not math.isfinite(longest):
        raise ArgumentError("positions", "be finite when no seqlen is given", longest)
    return max(int(longest) + 1, 0)


def device_of(device: Any) -> torch.device:
    """The device with its index. device: anything that torch accepts; None: PyTorch's default device."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        # If the CUDA context does not fit on a full GPU, torch raises an AcceleratorError.
        if isinstance(error, torch.OutOfMemoryError) or getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY:
            raise
        raise ArgumentError("device", "be a device that torch can use", shown(device), str(error)) from error
