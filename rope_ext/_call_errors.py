"""The error that the caller of `apply` should see, determined only after a call has failed: other calls pay nothing.

Errors of csrc/bindings already have their sentence. Errors that torch raises before the kernel (types that no schema
accepts, ints beyond 64 bits, tensors without a kernel) are reworded in terms of the arguments of `apply`, but only if
an argument and the text of the error agree: modes, hooks and subclasses of the user raise errors too, and memory runs
out. An error that is not understood is left unchanged.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_inference_mode_enabled

from ._numbers import UNINITIALIZED, beyond_int64
from ._shown import converted, name_of, shown
from ._torch.arguments import weights_of
from ._torch.call import Op
from ._torch.dtensor import is_dtensor
from ._torch.errors import allocators, typed
from ._torch.library import DEVICES, NAMESPACE, REBUILD
from ._torch.private import NEWEST, OLDEST, functorch_is_active, is_newer_than_tested
from .errors import ArgumentError, ArgumentTypeError, is_of_rope_ext
from .reference import DTYPE_NAMES

_INT = (int, torch.SymInt)
_OPTIONAL_TENSOR = (Tensor, type(None))
# (name, types, what it must be) of the arguments after x, in the order of csrc/bindings/schema.cpp.
_EXPECTED: list[tuple[str, type | tuple[type, ...], str]] = [
    ("cos", Tensor, "a Tensor"),
    ("sin", Tensor, "a Tensor"),
    ("offset", _INT, "an int or a Tensor"),
    ("flags", _INT, "an int"),
    ("rotary_dim", (*_INT, type(None)), "an int"),
    ("rotary_offset", _INT, "an int"),
    ("attention_scaling", (float, int), "a number"),
    ("positions", _OPTIONAL_TENSOR, "a Tensor"),
    ("offset", _OPTIONAL_TENSOR, "an int or a Tensor"),
    ("cu_seqlens", _OPTIONAL_TENSOR, "a Tensor"),
    ("norm", (list, tuple), "a list of weights"),
    ("eps", (float, torch.SymFloat), "a number"),
]


def explained(error: Exception, op: Op, arguments: Sequence[Any], x: object, out: object) -> Exception:
    """The error to raise for the caller. op, arguments: the call that failed. x, out: as the user passed them."""
    if is_of_rope_ext(error):
        return typed(error, functools.partial(allocators[op.name], *arguments))
    try:
        return _about_arguments(error, op, arguments, x, out) or _about_torch(error) or error
    except Exception:  # attributes of a Tensor subclass may run user code
        return error


def _about_arguments(error: Exception, op: Op, arguments: Sequence[Any], x: object, out: object) -> Exception | None:
    for name, value in (("x", x), ("out", out))[: 1 + op.at_x]:
        listed = [value] if isinstance(x, Tensor) else value
        if not isinstance(listed, (tuple, list)) or not all(isinstance(t, Tensor) for t in listed):
            return not_tensors(name, value)
    given = [(name, value) for (name, _, _), value in zip(_EXPECTED, arguments[op.at_x + 1 :])]
    for (name, value), (_, types, wanted) in zip(given, _EXPECTED):
        if not isinstance(value, types):
            cure = _cure(name, value, cos=given[0][1])
            return ArgumentTypeError(name, f"be {wanted}", shown(value), cure)
        if isinstance(value, int) and (error_of_int := beyond_int64(name, value)):  # not an int to the dispatcher
            return error_of_int
    outs = [("out", t) for t in arguments[0]] if op.at_x else []
    words = str(error)
    if op.at_x and functorch_is_active() and f"{NAMESPACE}::rotate_out" in words:
        return ArgumentError("out", "be None under a transform of torch.func", "tensors")
    tensors = [*outs, *(("x", t) for t in arguments[op.at_x])]  # out first: _about_lazy assumes that x is written
    tensors += [(name, value) for name, value in given if isinstance(value, Tensor)]
    tensors += [("norm", weight) for weight in weights_of(arguments[op.at_x + 3 :])]
    for kind, words_of_torch, about in _REFUSALS:
        if isinstance(error, kind) and words_of_torch in words:
            found = next(filter(None, (about(name, t, words) for name, t in tensors)), None)
            if found:
                return found
    return None


def _about_dtensor(name: str, t: Tensor, words: str) -> Exception | None:
    if not is_dtensor(t):
        return None
    cure = "call apply in torch.distributed.tensor.experimental.local_map, with placements of arguments and gradients"
    return _not_taken(name, "be a local tensor in this call", f"a DTensor, for which torch lacks an op; {cure}", words)


def _about_uninitialized(name: str, t: Tensor, words: str) -> Exception | None:
    if not isinstance(t, UNINITIALIZED):
        return None
    return _not_taken(name, "be an ordinary tensor", f"an {type(t).__name__}", words)


def _about_kind(name: str, t: Tensor, words: str) -> Exception | None:
    rule = "be an ordinary tensor"
    if t.is_nested:
        packed = 'use values() as x, with layout="thd" and cu_seqlens=x.offsets().int()'
        cure = "use unbind()" if t.layout == torch.strided else packed
        return _not_taken(name, rule, f"a nested tensor; {cure}", words)
    if t.is_quantized:
        return _not_taken(name, rule, "a quantized tensor; use dequantize()", words)
    if t.layout != torch.strided:
        return _not_taken(name, "be a strided tensor", f"{t.layout}; use to_dense()", words)
    if t.device.type not in DEVICES:
        devices = "cpu, cuda" if "cuda" in DEVICES else f"cpu; for CUDA rebuild where nvcc is: {REBUILD}"
        return _not_taken(name, f"be on a device of this build ({devices})", t.device, words)
    return None


def _not_taken(name: str, rule: str, got: object, words: str) -> NotImplementedError:
    """The error quotes only torch's first sentence about a missing kernel, which is sufficient."""
    first = words.split(". This could be because")[0]
    return NotImplementedError(f"rope_ext: {name} must {rule}, got {got} (torch: {first})")


def _about_inference(name: str, t: Tensor, _words: str) -> Exception | None:
    if not t.is_inference() or is_inference_mode_enabled():
        return None
    got = f"one of shape {tuple(t.shape)}; use clone()"
    return ArgumentError(name, "not be an inference tensor while a derivative is recorded", got)


def _about_lazy(name: str, t: Tensor, _words: str) -> Exception | None:
    """A lazy tensor cannot be written: PyTorch passes a resolved copy to the op, so the result would be lost."""
    if name not in ("x", "out"):
        return None
    if t.is_complex():
        got = name_of(t.dtype)
        return ArgumentTypeError(name, f"be {DTYPE_NAMES}", got)
    if t.is_neg():
        got = f"a lazy negation of shape {tuple(t.shape)}; use resolve_neg()"
        return ArgumentError(name, "not be a lazy negation when it is written", got)
    return None


# (type and words of torch's error about a tensor, the function that returns ours if this tensor is the cause).
_REFUSALS: list[tuple[type[Exception], str, Callable[[str, Tensor, str], Exception | None]]] = [
    (RuntimeError, "mixed torch.Tensor and DTensor", _about_dtensor),
    (NotImplementedError, "sharding strategy", _about_dtensor),
    (ValueError, "uninitialized parameter", _about_uninitialized),
    (RuntimeError, "uninitialized parameter", _about_uninitialized),
    (NotImplementedError, NAMESPACE, _about_kind),  # torch has no kernel for an op of this namespace
    (RuntimeError, "API call failed", _about_kind),  # the dispatcher does not inspect norm
    (RuntimeError, "saved for", _about_inference),
    (RuntimeError, "mutable TensorList", _about_lazy),
]


def _about_torch(error: Exception) -> RuntimeError | None:
    if not is_newer_than_tested() or not isinstance(error, (NotImplementedError, AttributeError, TypeError)):
        return None
    return RuntimeError(
        f"rope_ext: torch must be a release that rope_ext was tested with, {OLDEST} to {NEWEST}, got"
        f" {torch.__version__}, in which this call failed: {type(error).__name__}: {error}"
    )


def _cure(name: str, value: object, cos: object) -> str:
    """What to write instead of a value of the wrong type; "" if there is no suggestion."""
    if name == "sin" and value is None and isinstance(cos, Tensor):
        if cos.is_complex():
            return "pass cos.real and cos.imag as cos and sin"
        if cos.dim() == 1:
            return "pass frequencies as apply(x, inv_freq=inv_freq)"
        return "apply(x, cos, sin) needs both; pass several tensors as a tuple, apply((q, k), cos, sin)"
    if name == "cos" and isinstance(value, (tuple, list)) and len(value) == 2:
        return "pass both as apply(x, *tables)"
    if name == "cos" and hasattr(value, "tables"):
        return "rope.apply(x) needs no table, and rope.tables(max_position) returns cos and sin"
    if name in ("cos", "sin") and value is None:
        return "call apply(x, cos, sin) or apply(x, inv_freq=inv_freq)"
    if name == "positions" and isinstance(value, int):
        return "pass an int as offset"
    return converted(name, value)


def not_tensors(name: str, x: object) -> ArgumentTypeError:
    """The error of an x or out that is neither a Tensor nor a tuple or list of Tensors."""
    like = ", like x" if name == "out" else ""
    cure = converted(name, x) if name == "x" and not isinstance(x, (tuple, list)) else ""
    return ArgumentTypeError(name, f"be a Tensor or a tuple or list of Tensors{like}", _kind(x), cure)


def _kind(x: object) -> str:
    """The type of x, with the types of its items for a tuple or list; nested items would make the line too long."""
    name = type(x).__name__
    if not isinstance(x, (tuple, list)) or not x:
        return name
    kinds = [type(item).__name__ for item in x[:8]] + ["..."] * (len(x) > 8)
    return f"{name} of {', '.join(kinds)}"
