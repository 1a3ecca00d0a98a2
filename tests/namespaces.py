"""A second copy of the library, whose ops are in another namespace: tests/test_namespaces.py, test_hub_kernel.py."""

import re
import shutil
from pathlib import Path

from tools.hub_kernel import ROOT, build

NAMESPACE = "_rope_ext_test"


def other_library(folder):
    """Builds _ops.so for the CPU, with its ops in NAMESPACE, in a folder. Returns the file.

    Starts with a copy of the newest build of this checkout, where there is one, whose CPU kernels need no compilation.
    """
    caches = [path for path in ROOT.glob("build/*/CMakeCache.txt") if is_usable(path.read_text(), path.parent)]
    options = ""
    if caches:
        newest = max(caches, key=lambda path: path.stat().st_mtime)
        shutil.copytree(newest.parent, folder / "build", ignore=shutil.ignore_patterns("*.so", "*.a", "*.cu.o"))
        options = "-DROPE_EXT_WERROR=" + (value_of("ROPE_EXT_WERROR", newest.read_text()) or "OFF")
    return build(NAMESPACE, False, folder, CMAKE_ARGS=options, ROPE_EXT_BUILD_DIR=str(folder / "build"))


def is_usable(cache, folder: Path):
    objects = folder.glob("CMakeFiles/cpu_*.dir/csrc/cpu/rotate_cpu.cpp.o")
    return any(objects) and (folder / ".ninja_log").exists() and not value_of("ROPE_EXT_SANITIZE", cache)


def value_of(name, cache):
    """The value of an option in CMakeCache.txt; empty where an older cache lacks it."""
    return "".join(re.findall(rf"^{name}:\w+=(.*)$", cache, re.MULTILINE))
