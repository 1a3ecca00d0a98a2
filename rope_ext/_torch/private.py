"""Every private name of torch that rope_ext uses, with its purpose; names that every call needs are resolved at import.

No documentation promises these names, so a release may drop one. If every call or every derivative needs the name, the
import fails; if one feature needs it, only the use of that feature fails. The error states the missing name, its
purpose, and the releases that were tested.

rope_ext also relies on these undocumented behaviors:

* Python kernels can be registered at the dispatch keys Autograd, ADInplaceOrView, Python, Batched (the legacy vmap of
  is_grads_batched) and CompositeExplicitAutograd.
* A packet tries overloads in the order of their definition: a call of `torch_ops.rotate` means the default overload.
* A Python kernel at a dispatch key can call the op again below that key (kernels.py).
* In csrc/bindings, beside the C shims of the stable ABI: torch::stable::detail (StableLibrary, to, from);
  aoti_torch_library_init_def fails for a namespace that is defined already; and two functions looked up by name,
  aoti_torch_get_current_cuda_stream, and torch_exception_get_what_without_backtrace where torch has it (2.13).
* The message of a kernel's exception contains its text from "rope_ext: " on. Its type may change (errors.py).
* onnx_export.py reads the arguments of a running torch.onnx.export in the frame of that function.
* torch's errors contain the words in `_REFUSALS` of _call_errors.py. Other errors reach the user unchanged.
"""

import functools
import operator
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._ops import OpOverload

_F = TypeVar("_F", bound=Callable[..., Any])

OLDEST, NEWEST = "2.11", "2.15"  # the releases that the tests ran on
_ADVICE = f"rope_ext was tested with torch {OLDEST} to {NEWEST}"


def is_newer_than_tested() -> bool:
    """Whether this torch is later than the releases that the tests ran on."""
    return _release(torch.__version__) > _release(NEWEST)


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _missing(path: str, purpose: str) -> str:
    return f"rope_ext: torch must have {path}, {purpose}, got torch {torch.__version__} without it; {_ADVICE}"


def _find(path: str) -> Any:
    return functools.reduce(getattr, path.split(".")[1:], torch)


def _needed(path: str, purpose: str) -> Any:
    try:
        return _find(path)
    except AttributeError:
        raise ImportError(_missing(path, purpose)) from None


def _optional(path: str, purpose: str) -> Any:
    try:
        return _find(path)
    except AttributeError:
        sentence = _missing(path, purpose)

    def refuse(*_args: object, **_keywords: object) -> None:
        raise NotImplementedError(sentence)

    return refuse


# ---- every call ----


class _ForwardMode(Protocol):
    _current_level: int  # -1: no level is open


functorch_is_active: Callable[[], bool] = _needed(
    "torch._C._are_functorch_transforms_active", "which detects calls under a transform"
)
is_tracing: Callable[[], bool] = _needed("torch._C._is_tracing", "which detects calls of torch.jit.trace")
count_write: Callable[[list[Tensor]], None] = _needed(
    "torch._C._increment_version", "which bumps the version counter of a written tensor"
)
forward_ad: _ForwardMode = _needed("torch.autograd.forward_ad", "the levels of forward mode")
_needed("torch.autograd.forward_ad._current_level", "the levels of forward mode")  # hot code reads the attribute
_needed("torch.Tensor._base", "the base of a view")
_needed("torch.Tensor._backward_hooks", "the hooks that autograd calls with a gradient")
_needed("torch.Tensor._version", "the version counter of a tensor")
dispatch_modes: Callable[[], int] = _needed(
    "torch._C._len_torch_dispatch_stack", "which detects modes, such as FakeTensorMode"
)
function_modes: Callable[[], int] = _needed("torch._C._len_torch_function_stack", "which detects a TorchFunctionMode")
version_of: Callable[[Tensor], int] = operator.attrgetter("_version")
tree: ModuleType = _needed("torch.utils._pytree", "which flattens nested arguments")


def function_of(overload: "OpOverload[..., Any]") -> Callable[..., Any]:
    """The builtin behind an OpOverload: calling it directly saves 0.4 us."""
    function: Callable[..., Any] = getattr(overload, "_op", overload)
    return function


def schema_of(overload: "OpOverload[..., Any]") -> torch.FunctionSchema:
    """The schema of an overload."""
    return overload._schema


# ---- derivatives ----

below_autograd: Callable[[], AbstractContextManager[None]] = _needed(  # ops inside skip kernels.py
    "torch._C._AutoDispatchBelowAutograd", "which calls an op below the Autograd key"
)
below_in_place: Callable[[], AbstractContextManager[None]] = _needed(
    "torch._C._AutoDispatchBelowADInplaceOrView", "which calls an op below the ADInplaceOrView key"
)
if TYPE_CHECKING:
    SingleLevelFunction = torch.autograd.Function  # its actual base class has the same interface
else:
    SingleLevelFunction = _needed(
        "torch.autograd.function._SingleLevelFunction", "the Function of one level of derivatives"
    )
creation_meta = _needed("torch._C._autograd._get_creation_meta", "which tells how a view was created")
DEFAULT_VIEW = _needed("torch._C._autograd.CreationMeta.DEFAULT", "which tells how a view was created")
unpack_dual: Callable[..., tuple[Tensor, Tensor | None]] = _needed(
    "torch._VF._unpack_dual", "which reads the tangent of a dual tensor"
)

compiled_autograd_key = _needed("torch.autograd.Function._compiled_autograd_key", "the key of a compiled node")

is_batched: Callable[[Tensor], bool] = _needed(
    "torch._C._functorch.is_legacy_batchedtensor", "which detects gradients of is_grads_batched"
)

# ---- torch.func ----

level_of: Callable[[Tensor], int] = _optional(  # -1: no transform wraps the tensor
    "torch._C._functorch.maybe_get_level", "the level of the transform that wraps a tensor"
)
unwrapped: Callable[[Tensor], Tensor] = _optional(
    "torch._C._functorch.get_unwrapped", "which removes the wrapper of a transform"
)
one_level = _optional("torch._functorch.utils.enable_single_level_autograd_function", "which records under a transform")
forward_mode_enabled = _optional("torch.autograd.forward_ad._set_fwd_grad_enabled", "which records under a transform")

# ---- patch ----

outside_modes = _optional("torch.utils._python_dispatch._disable_current_modes", "which suspends the dispatch modes")

# Attributes through which Module.__call__ reaches forward; if torch renames them, patch overlooks what they hold.
COMPILED_CALL, CALL = "_compiled_call_impl", "_call_impl"


def before_script(value: Any) -> Any:
    """The Python function that torch.jit.script compiled into value; value itself if it is not scripted."""
    return getattr(value, "_torchdynamo_inline", value)


# ---- torch.compile and torch.export ----


# Slower than `is_tracing`, but dynamo can trace it.
is_jit_tracing: Callable[[], bool] = _needed("torch.jit.is_tracing", "which detects calls of torch.jit.trace")


def constant_in_graphs(function: _F) -> _F:
    """As torch.compiler.assume_constant_result: dynamo calls the function instead of tracing it.

    That decorator imports torch._dynamo, with sympy and numpy, which a program that compiles nothing does not need.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_in_graphs  # otherwise dynamo of torch 2.11 folds the call below to True in torch.compile, too
def is_exporting() -> bool:
    """Whether torch.export traces."""
    return torch.compiler.is_exporting()


def has_static_value(value: int | torch.SymInt | None) -> bool:
    """Whether value is None or has a static value, rather than being a symbol of the graph.

    symbolic_shapes is imported here because it loads sympy, which `import torch` does not. Dynamo traces this function.
    """
    if value is None:
        return True
    from torch.fx.experimental import symbolic_shapes

    is_static: bool = symbolic_shapes.has_static_value(value)
    return is_static


def size_in_example(size: torch.SymInt) -> int | None:
    """The size in the example inputs of a trace (the hint); None for an unbacked SymInt."""
    value = size.node.hint
    return None if value is None else int(value)


def mark_static_address(tensor: Tensor) -> None:
    """Promises torch.compile a tensor of fixed address: graphs, including CUDA graphs, read it without a copy."""
    torch._dynamo.mark_static_address(tensor)


# ---- shared tables ----

# torch does not mark these two names as exported.
to_dlpack = _needed("torch.utils.dlpack.to_dlpack", "which exports a table to from_dlpack")
from_dlpack = _needed("torch.from_dlpack", "which gives rows of a table a storage that ends with them")


# ---- torch.distributed ----

# Resolved in each call of a debug mode, since the program, not rope_ext, imports torch.distributed, at any time. In a
# release without these names the mode checks nothing.
_ATTENTION = "torch.distributed.tensor.experimental._context_parallel._attention"


def shard_order(x: Any) -> Any:
    """For each sharded axis of a DTensor, the mesh dimensions that shard it, in order (torch 2.12 and later).

    Empty with a _StridedShard, whose placement implies the order. No public function creates another order.
    """
    if any(hasattr(placement, "split_factor") for placement in x.placements):
        return ()
    return getattr(x._spec, "shard_order", None) or ()


def context_parallel_mesh() -> tuple[Any, bool] | None:
    """(mesh, whether the order is head-tail) of the active context_parallel of torch; None outside of it.

    While active, it replaces a function of torch.nn.functional. _replaced_functions has all replacements so far, and a
    replacement has the mesh in its closure. _cp_options says how buffers are split.
    """
    module = sys.modules.get(_ATTENTION)
    attention: Any = torch.nn.functional.scaled_dot_product_attention
    if module is None or attention not in getattr(module, "_replaced_functions", ()):
        return None
    closure = dict(zip(attention.__code__.co_freevars, attention.__closure__ or ()))
    if "device_mesh" not in closure or not hasattr(module, "_cp_options"):
        return None
    return closure["device_mesh"].cell_contents, module._cp_options.enable_load_balance
