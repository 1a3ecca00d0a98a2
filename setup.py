"""Builds the extension by driving CMakeLists.txt; everything else is in pyproject.toml.

Environment: ROPE_EXT_CUDA (1: with the CUDA kernels, 0: without; default: with them if nvcc is found),
TORCH_CUDA_ARCH_LIST (as for PyTorch: "8.0;9.0+PTX"; default: those of CMakeLists.txt), MAX_JOBS (parallel
compilations), CMAKE_ARGS (further arguments for CMake), ROPE_EXT_BUILD_DIR (default build/cmake-<python>-<torch>, kept
between builds so that only what changed is compiled).
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
TORCH_FIRST = (
    "pip install 'torch>=2.11', then install rope_ext again"
    " (with --no-build-isolation where builds run in an environment without the user's packages)."
)


def fail(sentence):
    sys.exit(f"rope_ext: {sentence}")


def find_torch():
    """(folder, version) of the installed torch, found by path: an isolated build cannot import it, and need not."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages(), *sys.path]
    for place in places:
        version_file = Path(place) / "torch" / "version.py"
        if version_file.exists():
            version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", version_file.read_text(), re.MULTILINE).group(1)
            if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
                fail(f"torch must be at least 2.11, got {version}: {TORCH_FIRST}")
            return version_file.parent, version
    fail(f"torch must be installed before rope_ext is built, got none: {TORCH_FIRST}")


def find_tool(name, apt):
    """Path of a build tool: on PATH, or in the Python packages that pyproject.toml asks for."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    return path or fail(f"{name} must be installed to build rope_ext, got none on PATH: {apt}.")


def find_compiler():
    wish = os.environ.get("CXX", "").split()
    compilers = wish[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        fail(f"a C++17 compiler must be on PATH, got no {' or '.join(compilers)}: apt install g++, or set CXX.")


def cuda_arguments():
    """For CMake: whether CUDA kernels are built, by which nvcc and for which GPUs. Says so, whatever it decides."""
    wish = os.environ.get("ROPE_EXT_CUDA", "")
    if wish not in ("", "0", "1"):
        fail(f"ROPE_EXT_CUDA must be 0, 1 or unset, got {wish!r}.")
    home, path = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"), os.environ.get("PATH", "")
    places = [os.path.join(home, "bin"), path] if home else [path, "/usr/local/cuda/bin"]
    nvcc = None if wish == "0" else shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None:
        if wish == "1":
            fail(
                "nvcc must be in CUDA_HOME/bin or on PATH when ROPE_EXT_CUDA is 1, got none: install the CUDA toolkit."
            )
        print("rope_ext: building without CUDA kernels:", "ROPE_EXT_CUDA is 0" if wish else "no nvcc found", flush=True)
        return ["-DROPE_EXT_CUDA=OFF"]
    print(f"rope_ext: building CUDA kernels with {nvcc}", flush=True)
    architectures = cmake_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    arguments = [
        "-DROPE_EXT_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DROPE_EXT_CUDA_ARCHITECTURES={architectures}",
    ]
    if os.environ.get("CXX") and not os.environ.get("CUDAHOSTCXX"):
        arguments.append(f"-DCMAKE_CUDA_HOST_COMPILER={os.environ['CXX'].split()[0]}")
    return arguments


def cmake_architectures(torch_list):
    """PyTorch's way to write a list of architectures, "8.0;9.0a+PTX", as CMake's, "80-real;90a"."""
    found = []
    for entry in torch_list.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match is None:
            fail(f"TORCH_CUDA_ARCH_LIST must hold numbers like 8.0 or 9.0+PTX, got {entry!r}.")
        major, minor, ptx = match.groups()
        found.append(f"{major}{minor}" + ("" if ptx else "-real"))
    return ";".join(found)


def default_jobs():
    """One compilation per core, and per 2 GB of memory: the cap keeps small machines from swapping."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**32
    return max(1, min(os.cpu_count() or 1, memory // 2**31))


class CMakeBuild(build_ext):
    def get_ext_filename(self, name):
        # _ops holds no Python symbol, so its name carries no Python version.
        return str(Path(*name.split("."))) + ".so" if name.endswith("_ops") else super().get_ext_filename(name)

    def run(self):
        torch, version = find_torch()
        find_compiler()
        cmake, ninja = find_tool("cmake", "pip install cmake"), find_tool("ninja", "pip install ninja")
        tag = f"cmake-{sys.implementation.cache_tag}-torch{version}"
        build = Path(os.environ.get("ROPE_EXT_BUILD_DIR") or ROOT / "build" / tag)
        jobs = os.environ.get("MAX_JOBS") or str(default_jobs())
        import pybind11  # of the build environment

        arguments = [
            f"-DROPE_EXT_TORCH_DIR={torch}",
            f"-DROPE_EXT_INTROSPECT={'ON' if len(self.extensions) > 1 else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DROPE_EXT_JOBS={jobs}",
            *cuda_arguments(),
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        if shutil.which("ccache"):
            arguments += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("CXX", "CUDA")]
        print(f"rope_ext: building for torch {version} in {torch}", flush=True)
        # A build directory that an isolated environment configured names tools that are gone by now.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments], check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # A new file in place of the old one: a process that has the old one mapped keeps it.
            temporary = target.with_name(target.name + ".new")
            shutil.copy2(build / target.name, temporary)
            temporary.replace(target)


class DistInfo(dist_info):
    def run(self):
        # pip asks for the metadata first: fail here, before it downloads gigabytes to satisfy the dependency on torch.
        find_torch()
        super().run()


extensions = [Extension("rope_ext._ops", [])]
# For tests only: `make test` asks for it. The lack of Python's headers is no reason to fail.
test_hooks = re.search(r"-DROPE_EXT_TEST_HOOKS(:BOOL)?=(?i:ON|1|TRUE|YES)\b", os.environ.get("CMAKE_ARGS", ""))
if test_hooks and Path(sysconfig.get_path("include"), "Python.h").exists():
    extensions.append(Extension("rope_ext._introspect", []))

setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild, "dist_info": DistInfo})
