"""Builds the extension by driving CMakeLists.txt; everything else is in pyproject.toml.

Environment: ROPE_EXT_CUDA (1: with the CUDA kernels, 0: without; default: with them if nvcc is found),
TORCH_CUDA_ARCH_LIST (as for PyTorch: "8.0;9.0+PTX"; default: those of CMakeLists.txt), MAX_JOBS (parallel
compilations), CMAKE_ARGS (further arguments for CMake: -DROPE_EXT_NAMESPACE=name puts the ops in torch.ops.name),
ROPE_EXT_BUILD_DIR (default: a folder of build/ for each torch and configuration, kept between builds so that only what
changed is compiled).
"""

import hashlib
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # without build isolation, setuptools is the user's
    sys.exit(f"rope_ext: setuptools must be at least 77, got {setuptools.__version__}: pip install 'setuptools>=77'.")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
NEEDED = "'torch>=2.11' 'setuptools>=77' cmake ninja pybind11"  # torch, and build-system.requires of pyproject.toml
SECONDS_PER_FILE = 3  # rough processor time to compile one file for the CPU, or for one GPU architecture


def fail(sentence):
    sys.exit(f"rope_ext: {sentence}")


def torch_first():
    """The cure for a missing torch, with the option of the program that runs this build: pip, uv or build."""
    if "PIP_BUILD_TRACKER" in os.environ:  # under pip's isolation, packages of the outer environment can be found
        return "pip install 'torch>=2.11' and repeat; if it is installed elsewhere, repeat with --no-build-isolation."
    if "UV_INTERNAL__BUILD_DIR" in os.environ:
        return f"uv pip install {NEEDED}, and repeat with --no-build-isolation."
    if Path(sys.prefix).name.startswith("build-env-"):  # python -m build
        return f"pip install {NEEDED}, and repeat with --no-isolation."
    return (
        f"pip install {NEEDED}, and repeat without isolation (pip and uv: --no-build-isolation, build: --no-isolation)."
    )


def find_torch():
    """Folder and version of the installed torch, found by path: an isolated build cannot import it."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages(), *sys.path]
    for place in places:
        version_file = Path(place) / "torch" / "version.py"
        if version_file.exists():
            version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", version_file.read_text(), re.MULTILINE).group(1)
            if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
                fail(f"torch must be at least 2.11, got {version}: {torch_first()}")
            return version_file.parent, version
    fail(f"torch must be installed before rope_ext is built, not found in the build environment: {torch_first()}")


def find_tool(name, cure):
    """Path of a build tool, from PATH or from the Python packages that pyproject.toml requires."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    return path or fail(f"{name} must be installed to build rope_ext, got none on PATH: {cure}.")


def check_compiler():
    """Fails without a C++ compiler: CXX, or one that CMake looks for."""
    requested = os.environ.get("CXX", "").split()
    compilers = requested[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        fail(f"a C++17 compiler must be on PATH, got no {' or '.join(compilers)}: apt install g++, or set CXX.")


def cuda_arguments():
    """CMake's arguments about CUDA: whether kernels are built, by which nvcc, for which GPUs. Prints the decision."""
    requested = os.environ.get("ROPE_EXT_CUDA", "")
    if requested not in ("", "0", "1"):
        fail(f"ROPE_EXT_CUDA must be 0, 1 or unset, got {requested!r}.")
    home, path = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"), os.environ.get("PATH", "")
    places = [os.path.join(home, "bin"), path] if home else [path, "/usr/local/cuda/bin"]
    nvcc = None if requested == "0" else shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None:
        if requested == "1":
            fail(
                "nvcc must be in CUDA_HOME/bin or on PATH when ROPE_EXT_CUDA is 1, got none: install the CUDA toolkit."
            )
        print(
            "rope_ext: building without CUDA kernels:",
            "ROPE_EXT_CUDA is 0" if requested else "no nvcc found",
            flush=True,
        )
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
    """Translates a list of GPU architectures from PyTorch's form, "8.0;9.0a+PTX", to CMake's, "80-real;90a"."""
    found = []
    for entry in torch_list.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match is None:
            fail(f"TORCH_CUDA_ARCH_LIST must hold numbers like 8.0 or 9.0+PTX, got {entry!r}.")
        major, minor, ptx = match.groups()
        found.append(f"{major}{minor}" + ("" if ptx else "-real"))
    return ";".join(found)


def index_page():
    """README.md for a package index, where relative links would lead nowhere: each becomes its text."""
    page = re.sub(r"^!\[.*\]\((?!https?:).*\)\n", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return re.sub(r"\[([^][]+)\]\((?!https?:|#)[^)\s]+\)", r"\1", page)


def default_jobs():
    """One compilation per core, and per 2 GB of memory: the cap keeps small machines from swapping."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**32
    return max(1, min(os.cpu_count() or 1, memory // 2**31))


def introspect_arguments():
    """CMake's arguments for the module _introspect of this Python."""
    try:
        import pybind11
    except ImportError:
        fail("pybind11 must be installed to build what the tests need, got none: pip install pybind11.")
    return [
        "-DROPE_EXT_INTROSPECT=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]


def build_name(torch_version, arguments):
    """Name of the build folder of a configuration. Builds that alternate between two of them reuse both folders.

    Namespaces share a folder: one small file depends on them.
    """
    arguments = [argument for argument in arguments if not argument.startswith("-DROPE_EXT_NAMESPACE=")]
    flags = [os.environ.get(name) for name in ("CXX", "CXXFLAGS", "CUDAFLAGS", "CUDAHOSTCXX", "LDFLAGS")]
    digest = hashlib.sha256(repr((arguments, flags)).encode()).hexdigest()
    return f"cmake-{sys.implementation.cache_tag}-torch{torch_version}-{digest[:8]}"


def forecast(steps, jobs):
    """The number of files that ninja will compile, read from its list of commands, and a rough duration."""
    files = re.findall(r" -c \S+\.(cpp|cu)\b", steps)
    if not files:
        return "nothing to compile"
    for_gpus = max(steps.count("--generate-code="), files.count("cu"))
    minutes, seconds = divmod(SECONDS_PER_FILE * (files.count("cpp") + for_gpus) // jobs, 60)
    what = f"{files.count('cpp')} files for the CPU, {for_gpus} for GPUs (one per architecture)"
    return f"compiling {what}, about {f'{minutes} min ' * bool(minutes)}{seconds} s with {jobs} jobs"


class CMakeBuild(build_ext):
    def get_ext_filename(self, name):
        # The name of _ops.so has no Python version, because the file uses no Python symbol.
        return str(Path(*name.split("."))) + ".so" if name.endswith("_ops") else super().get_ext_filename(name)

    def run(self):
        torch, version = find_torch()
        check_compiler()
        cmake, ninja = find_tool("cmake", "pip install cmake"), find_tool("ninja", "pip install ninja")
        jobs = os.environ.get("MAX_JOBS") or str(default_jobs())
        if not jobs.isdecimal() or int(jobs) == 0:
            fail(f"MAX_JOBS must be a number of parallel compilations, at least 1, got {jobs!r}.")
        arguments = [*cuda_arguments(), *os.environ.get("CMAKE_ARGS", "").split()]
        if shutil.which("ccache"):
            arguments += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("CXX", "CUDA")]
        build = Path(os.environ.get("ROPE_EXT_BUILD_DIR") or ROOT / "build" / build_name(version, arguments))
        print(f"rope_ext: building for torch {version} in {torch}", flush=True)
        # The cache of an isolated build names tools that were deleted with its environment.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        arguments += [f"-DROPE_EXT_TORCH_DIR={torch}", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DROPE_EXT_JOBS={jobs}"]
        if len(self.extensions) > 1:
            arguments += introspect_arguments()
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments], check=True)
        steps = subprocess.run([ninja, "-C", str(build), "-n", "-v"], check=True, capture_output=True, text=True).stdout
        print(f"rope_ext: {forecast(steps, int(jobs))}, in {build}", flush=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # The rename leaves the old file to processes that have it mapped.
            temporary = target.with_name(target.name + ".new")
            shutil.copy2(build / target.name, temporary)
            temporary.replace(target)


class Wheel(bdist_wheel):
    def run(self):
        # setuptools would pack the leftovers of earlier builds: deleted modules, and _introspect.
        shutil.rmtree(Path(self.get_finalized_command("build").build_lib, "rope_ext"), ignore_errors=True)
        super().run()

    def get_tag(self):
        # One wheel serves every Python and torch: _ops.so uses neither Python's ABI nor torch's C++ ABI.
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if len(extensions) > 1 else ("py3", "none", platform)


class DistInfo(dist_info):
    def run(self):
        # pip asks for the metadata first. A missing torch must fail here, before pip downloads gigabytes of it.
        find_torch()
        super().run()


extensions = [Extension("rope_ext._ops", [])]
# `make test` requests _introspect, which only tests need. Without Python's headers it is left out.
test_hooks = re.search(r"-DROPE_EXT_TEST_HOOKS(:BOOL)?=(?i:ON|1|TRUE|YES)\b", os.environ.get("CMAKE_ARGS", ""))
if test_hooks and Path(sysconfig.get_path("include"), "Python.h").exists():
    extensions.append(Extension("rope_ext._introspect", []))

setup(
    long_description=index_page(),
    long_description_content_type="text/markdown",
    ext_modules=extensions,
    cmdclass={"bdist_wheel": Wheel, "build_ext": CMakeBuild, "dist_info": DistInfo},
)
