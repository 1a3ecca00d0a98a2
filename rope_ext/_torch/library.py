"""Loads the compiled part of the package, _ops.so, which registers the ops with torch; `build_info` describes it."""

import ctypes
from pathlib import Path
from typing import TypedDict

import torch

from .._version import __version__

PACKAGE = Path(__file__).resolve().parents[1]
REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall rope_ext"


def exported_text(library: ctypes.CDLL, name: str) -> str | None:
    """The string that a function of a library returns; None if the library lacks the function."""
    function = getattr(library, name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


def _other_copy(path: Path, namespace: str) -> Path | None:
    """The file that registered the ops of the namespace; None if torch.ops.load_library did not load it."""
    named_alike = (p for p in map(Path, torch.ops.loaded_libraries) if p.name == path.name and p.exists())
    others = (p for p in named_alike if not p.samefile(path))
    of_namespace = (p for p in others if exported_text(ctypes.CDLL(str(p)), "rope_ext_namespace") == namespace)
    return next(of_namespace, None)


def _load() -> tuple[ctypes.CDLL, str]:
    """Registers the compiled ops with torch. Returns the library for ctypes, and its namespace."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        raise ImportError(f"rope_ext: torch must be at least 2.11, got {torch.__version__}: pip install 'torch>=2.11'")
    path = PACKAGE / "_ops.so"
    if not path.exists():
        package = PACKAGE / "__init__.py"
        cure = "pip install -e . in the checkout, or start Python in another folder, if rope_ext is installed"
        raise ImportError(f"rope_ext: _ops.so must be beside {package}, got a package that was not built: {cure}")
    try:
        torch.ops.load_library(path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"rope_ext: _ops.so must load in torch {torch.__version__}, got: {error}; rebuild: {REBUILD}"
        ) from error
    namespace = exported_text(library, "rope_ext_namespace")
    if namespace is None:
        raise ImportError(f"rope_ext: _ops.so must be built from this version, got an older {path}; rebuild: {REBUILD}")
    once = f"rope_ext: one copy of the package must define torch.ops.{namespace} in a process, got"
    library.rope_ext_defines_ops.restype = ctypes.c_bool
    if not library.rope_ext_defines_ops():
        other = _other_copy(path, namespace) or "another that torch.ops.load_library does not know of"
        raise ImportError(f"{once} {path} after {other}")
    if hasattr(getattr(torch.ops, namespace), "rotate_of_one"):  # vmap.py defines it
        raise ImportError(f"{once} {path} again: torch keeps registered ops, so the import cannot be repeated")
    return library, namespace


native, NAMESPACE = _load()
torch_ops = getattr(torch.ops, NAMESPACE)  # other modules import the ops from here, so they are registered by then


class BuildInfo(TypedDict):
    """The dictionary that `build_info` returns."""

    version: str
    torch: str
    cpu_isa: str
    cuda: str | None
    cuda_architectures: list[str]


def build_info() -> BuildInfo:
    """Describe this installation.

    Returns:
        A dictionary with these entries.

        * "version", "torch": the version of rope_ext, and the version of torch that is running.
        * "cpu_isa": the instruction set of the CPU kernels on this machine: "avx512_bf16", "avx512", "avx2", on ARM
          "neon_bf16", or "default", the compiler's baseline. ATEN_CPU_CAPABILITY can lower it.
        * "cuda": the version of the CUDA compiler; None without CUDA kernels.
        * "cuda_architectures": the architectures that the CUDA kernels were compiled for, "9.0" for machine code and
          "9.0+PTX" for machine code with PTX, which drivers compile for later GPUs; empty without CUDA kernels.
    """
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cpu_isa": exported_text(native, "rope_ext_cpu_isa") or "",
        "cuda": exported_text(native, "rope_ext_cuda_version"),
        "cuda_architectures": (exported_text(native, "rope_ext_cuda_architectures") or "").split(),
    }


DEVICES = ("cpu", "cuda", "meta") if build_info()["cuda"] else ("cpu", "meta")  # device types with kernels
