"""The error that the caller of `apply` should see, worked out only after a call has failed: other calls pay nothing.

What csrc/bindings refuses has its sentence already. What torch refuses on the way there (types that no schema takes,
ints beyond 64 bits, tensors without a kernel) is said in the words of the arguments of `apply`.
"""

import functools

import torch
from torch import is_inference_mode_enabled

from ._numbers import shown
from ._torch.errors import allocators, typed
from ._torch.library import REBUILD, build_info
from ._torch.private import NEWEST, OLDEST, functorch_is_active, is_newer_than_tested

_INT = (int, torch.SymInt)
_OPTIONAL_TENSOR = (torch.Tensor, type(None))
# Name, types and rule of the arguments after x, in the order of csrc/bindings/schema.cpp.
_EXPECTED = [
    ("cos", torch.Tensor, "a Tensor"),
    ("sin", torch.Tensor, "a Tensor"),
    ("offset", _INT, "an int or a Tensor"),
    ("flags", _INT, "an int"),
    ("rotary_dim", (*_INT, type(None)), "an int"),
    ("rotary_offset", _INT, "an int"),
    ("attention_scaling", (float, int), "a number"),
    ("positions", _OPTIONAL_TENSOR, "a Tensor"),
    ("offset", _OPTIONAL_TENSOR, "an int or a Tensor"),
    ("cu_seqlens", _OPTIONAL_TENSOR, "a Tensor"),
]
_UNINITIALIZED = torch.nn.parameter.UninitializedTensorMixin
_DEVICES = ("cpu", "cuda", "meta") if build_info()["cuda"] else ("cpu", "meta")


def explained(error, op, arguments, x, out):
    """The error for the caller. op, arguments: what was called; x, out: as the caller gave them."""
    if str(error).startswith("rope_ext: "):
        return typed(error, functools.partial(allocators[op.recorded.name().split("::")[1]], *arguments))
    for name, value in (("x", x), ("out", out))[: 1 + op.at_x]:
        listed = [value] if isinstance(x, torch.Tensor) else value
        if not isinstance(listed, (tuple, list)) or not all(isinstance(t, torch.Tensor) for t in listed):
            return not_tensors(name, listed)
    given = [(name, value) for (name, _, _), value in zip(_EXPECTED, arguments[op.at_x + 1 :])]
    for (name, value), (_, types, wanted) in zip(given, _EXPECTED):
        if not isinstance(value, types):
            return TypeError(f"rope_ext: {name} must be {wanted}, got {value!r}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:  # what the dispatcher takes for no int
            return ValueError(f"rope_ext: {name} must be at least -2^63 and below 2^63, got {shown(value)}")
    outs = [("out", t) for t in arguments[0]] if op.at_x else []
    tensors = [*(("x", t) for t in arguments[op.at_x]), *outs]
    tensors += [(name, value) for name, value in given if isinstance(value, torch.Tensor)]
    written = outs or tensors if op.writes else []
    if op.at_x and functorch_is_active():
        return ValueError("rope_ext: out must be None under a transform of torch.func, got tensors")
    return _about_tensors(tensors, written) or _about_torch(error) or error


def _about_tensors(tensors, written):
    for name, t in tensors:
        if isinstance(t, _UNINITIALIZED) or t.is_quantized or t.is_nested:
            kind = type(t).__name__ if isinstance(t, _UNINITIALIZED) else "quantized" if t.is_quantized else "nested"
            return NotImplementedError(f"rope_ext: {name} must be an ordinary tensor, got one that is {kind}")
        if t.device.type not in _DEVICES or t.layout != torch.strided:
            devices = "cpu, cuda" if "cuda" in _DEVICES else f"cpu; for CUDA rebuild where nvcc is: {REBUILD}"
            rule = f"be a strided tensor on a device of this build ({devices})"
            return NotImplementedError(f"rope_ext: {name} must {rule}, got {t.device} {t.layout}")
        if t.is_inference() and not is_inference_mode_enabled():
            got = f"one of shape {tuple(t.shape)}; clone() makes an ordinary copy"
            return ValueError(
                f"rope_ext: {name} must not be an inference tensor while a derivative is recorded, got {got}"
            )
    for name, t in written:
        if t.is_neg():  # PyTorch passes the op a negated copy, so what it writes would be lost
            got = f"a lazy negation of shape {tuple(t.shape)}; resolve_neg() makes an ordinary copy"
            return ValueError(f"rope_ext: {name} must not be a lazy negation when it is written, got {got}")
    return None


def _about_torch(error):
    if not is_newer_than_tested() or not isinstance(error, (NotImplementedError, AttributeError, TypeError)):
        return None
    return RuntimeError(
        f"rope_ext: torch must be a release that rope_ext was tested with, {OLDEST} to {NEWEST}, got"
        f" {torch.__version__}, in which this call failed: {type(error).__name__}: {error}"
    )


def not_tensors(name, x):
    """The TypeError of an x, or an out, that does not hold tensors."""
    return TypeError(f"rope_ext: {name} must be a Tensor or a tuple or list of Tensors, like x, got {_kind(x)}")


def _kind(x):
    name = type(x).__name__
    return f"{name} of {', '.join(map(_kind, x))}" if isinstance(x, (tuple, list)) else name
