"""Every private name of torch that rope_ext uses, with its purpose; what every call needs is looked up at import.

No documentation promises these names, so a release may drop one. If every call or every derivative needs it, the
import fails; if one feature needs it, that feature alone is refused when it is used. The error names what is missing,
its purpose, and the releases that were tested.

rope_ext relies on behaviours that have no name, too:
* Python kernels can be registered at the dispatch keys Autograd, ADInplaceOrView, Python, Batched (the vmap of
  is_grads_batched) and CompositeExplicitAutograd.
* Overloads are tried in the order of their definition: a call of `torch_ops.rotate` (library.py) means the default one.
* A Python kernel at a dispatch key can call the op again below that key (kernels.py).
* In csrc/bindings, beside the C shims of the stable ABI: torch::stable::detail (StableLibrary, to, from), that
  aoti_torch_library_init_def fails for a namespace that is defined already, and two functions looked up by name:
  aoti_torch_get_current_cuda_stream, and torch_exception_get_what_without_backtrace where torch has it (2.13).
* An exception of a kernel keeps its text, after "rope_ext: ". Its type is not relied upon (errors.py).
* onnx_export.py reads the arguments of a running torch.onnx.export in the frame of that function.
* torch's errors hold the words that `_REFUSALS` of _call_errors.py looks for. Others reach the user as they are.
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
    "torch._C._are_functorch_transforms_active", "which finds calls under a transform"
)
is_tracing: Callable[[], bool] = _needed("torch._C._is_tracing", "which finds calls of torch.jit.trace")
count_write: Callable[[list[Tensor]], None] = _needed(
    "torch._C._increment_version", "which tells autograd that a tensor was written"
)
forward_ad: _ForwardMode = _needed("torch.autograd.forward_ad", "the levels of forward mode")
_needed("torch.autograd.forward_ad._current_level", "the levels of forward mode")  # hot code reads the attribute
_needed("torch.Tensor._base", "the base of a view")
_needed("torch.Tensor._backward_hooks", "the hooks that autograd calls with a gradient")
_needed("torch.Tensor._version", "which counts the writes to a tensor")
dispatch_modes: Callable[[], int] = _needed(
    "torch._C._len_torch_dispatch_stack", "which finds calls under a mode, such as FakeTensorMode"
)
function_modes: Callable[[], int] = _needed(
    "torch._C._len_torch_function_stack", "which finds calls under a TorchFunctionMode"
)
version_of: Callable[[Tensor], int] = operator.attrgetter("_version")
tree: ModuleType = _needed("torch.utils._pytree", "which takes nested arguments apart")


def function_of(overload: "OpOverload[..., Any]") -> Callable[..., Any]:
    """The function behind an OpOverload: calling it directly saves 0.4 us."""
    function: Callable[..., Any] = getattr(overload, "_op", overload)
    return function


def schema_of(overload: "OpOverload[..., Any]") -> torch.FunctionSchema:
    """The FunctionSchema, whose text vmap.py rewrites."""
    return overload._schema


# ---- derivatives ----

below_autograd: Callable[[], AbstractContextManager[None]] = _needed(  # ops inside skip kernels.py
    "torch._C._AutoDispatchBelowAutograd", "the way from a derivative's rule to the kernel"
)
below_in_place: Callable[[], AbstractContextManager[None]] = _needed(
    "torch._C._AutoDispatchBelowADInplaceOrView", "the way from a call that writes to the kernel"
)
if TYPE_CHECKING:
    SingleLevelFunction = torch.autograd.Function  # a subclass of it
else:
    SingleLevelFunction = _needed(
        "torch.autograd.function._SingleLevelFunction", "the node of one level of derivatives"
    )
creation_meta = _needed("torch._C._autograd._get_creation_meta", "which tells how a view was made")
DEFAULT_VIEW = _needed("torch._C._autograd.CreationMeta.DEFAULT", "which tells how a view was made")
unpack_dual: Callable[..., tuple[Tensor, Tensor | None]] = _needed(
    "torch._VF._unpack_dual", "which reads the tangent of a tensor"
)

compiled_autograd_key = _needed("torch.autograd.Function._compiled_autograd_key", "the key of a node that is compiled")

is_batched: Callable[[Tensor], bool] = _needed(
    "torch._C._functorch.is_legacy_batchedtensor", "which finds the batched gradients of is_grads_batched"
)

# ---- torch.func ----

level_of: Callable[[Tensor], int] = _optional(  # -1: no transform wraps the tensor
    "torch._C._functorch.maybe_get_level", "which tells the transform that wraps a tensor"
)
unwrapped: Callable[[Tensor], Tensor] = _optional(
    "torch._C._functorch.get_unwrapped", "which finds a DTensor in the wrapper of a transform"
)
one_level = _optional("torch._functorch.utils.enable_single_level_autograd_function", "which records in a transform")
forward_mode_enabled = _optional("torch.autograd.forward_ad._set_fwd_grad_enabled", "which records in a transform")

# ---- patch ----

outside_modes = _optional("torch.utils._python_dispatch._disable_current_modes", "which leaves the modes of the user")

# Attributes of a Module that its call runs before forward; if torch renames them, patch overlooks what they hold.
COMPILED_CALL, CALL = "_compiled_call_impl", "_call_impl"


def before_script(value: Any) -> Any:
    """The function that torch.jit.script compiled into value; value itself if it is no script."""
    return getattr(value, "_torchdynamo_inline", value)


# ---- torch.compile and torch.export ----


# Slower than `is_tracing`, but torch.compile traces it.
is_jit_tracing: Callable[[], bool] = _needed("torch.jit.is_tracing", "which finds calls of torch.jit.trace")


def constant_in_graphs(function: _F) -> _F:
    """Decorates function as torch.compiler.assume_constant_result does: dynamo calls it, and does not look inside.

    That decorator imports torch._dynamo, with sympy and numpy, which a program that compiles nothing does not need.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_in_graphs  # torch 2.11 lets dynamo take it for True in graphs of torch.compile too
def is_exporting() -> bool:
    """Whether torch.export traces."""
    return torch.compiler.is_exporting()


def has_static_value(value: int | torch.SymInt | None) -> bool:
    """Whether value is a number of Python, or None, and not a symbol of a graph.

    The import is inside because the module loads sympy, which `import torch` does not; dynamo traces this function.
    """
    if value is None:
        return True
    from torch.fx.experimental import symbolic_shapes

    is_static: bool = symbolic_shapes.has_static_value(value)
    return is_static


def size_in_example(size: torch.SymInt) -> int | None:
    """The size that a graph is traced with; None where it depends on the values of tensors."""
    value = size.node.hint
    return None if value is None else int(value)


def mark_static_address(tensor: Tensor) -> None:
    """Promises torch.compile that tensor stays where it is: graphs, CUDA graphs too, read it without a copy."""
    torch._dynamo.mark_static_address(tensor)


# ---- shared tables ----

# torch does not say that it exports these two.
to_dlpack = _needed("torch.utils.dlpack.to_dlpack", "which gives a table to `from_dlpack`")
from_dlpack = _needed("torch.from_dlpack", "which gives rows of a table a storage that ends with them")


# ---- torch.distributed ----

# Looked up in each call of a debug mode, and overlooked where a release has them no longer: rope_ext does not import
# torch.distributed, and the program may import it at any time.
_ATTENTION = "torch.distributed.tensor.experimental._context_parallel._attention"


def shard_order(x: Any) -> Any:
    """For each axis of a DTensor, the dimensions of the mesh that shard it, in their order (torch 2.12 and later).

    Empty for a _StridedShard, whose placement says the order. No public function makes another than the default.
    """
    if any(hasattr(placement, "split_factor") for placement in x.placements):
        return ()
    return getattr(x._spec, "shard_order", None) or ()


def context_parallel_mesh() -> tuple[Any, bool] | None:
    """The DeviceMesh of torch's context_parallel that the program is in, and whether its order is head-tail.

    None outside. Until it ends, context_parallel keeps its own function in torch.nn.functional; _replaced_functions has
    all that it ever put there, and the function has the mesh in its closure. _cp_options says how buffers are divided.
    """
    module = sys.modules.get(_ATTENTION)
    attention: Any = torch.nn.functional.scaled_dot_product_attention
    if module is None or attention not in getattr(module, "_replaced_functions", ()):
        return None
    closure = dict(zip(attention.__code__.co_freevars, attention.__closure__ or ()))
    if "device_mesh" not in closure or not hasattr(module, "_cp_options"):
        return None
    return closure["device_mesh"].cell_contents, module._cp_options.enable_load_balance
