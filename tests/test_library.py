"""What must hold of the built files: symbols, instruction sets, hardening, one OpenMP runtime, a light import."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import _introspect

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(rope_ext.__file__).parent
OPS = PACKAGE / "_ops.so"


def run(*command, **keywords):
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, **keywords
    ).stdout


def undefined_symbols(path):
    return [line.split()[-1].split("@")[0] for line in run("nm", "-D", "--undefined-only", path).splitlines()]


# ---- instruction sets ----


def test_instruction_set_follows_pytorchs_switch():
    program = "import _introspect; print(_introspect.best_isa())"  # by itself, without the seconds of torch
    for isa in _introspect.supported_isas():
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": isa, "PYTHONPATH": str(PACKAGE)}
        assert run(sys.executable, "-c", program, env=environment, cwd="/").strip() == isa


def built_objects(tmp_path):
    """The objects of rotate_cpu.cpp in the newest build of the checkout; where there is none, they are built here."""
    builds = [tree for tree in ROOT.glob("build/cmake-*") if list(tree.rglob("rotate_cpu.cpp.o"))]
    if builds:
        return list(max(builds, key=lambda tree: tree.stat().st_mtime).rglob("rotate_cpu.cpp.o"))
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DROPE_EXT_TORCH=OFF", "-DROPE_EXT_WERROR=ON")
    run("cmake", "--build", tmp_path, "--parallel")
    return list(tmp_path.rglob("rotate_cpu.cpp.o"))


def test_objects_of_an_instruction_set_export_only_their_table(tmp_path):
    """A weak symbol compiled for AVX-512 could be linked into the path of a machine without it."""
    objects = built_objects(tmp_path)
    assert len(objects) >= len(_introspect.supported_isas())
    for path in objects:
        exported = [line.split() for line in run("nm", "--defined-only", path).splitlines()]
        exported = [(kind, name) for *_, kind, name in exported if kind not in "tbdr"]
        assert len(exported) == 1 and re.fullmatch(r"_ZN4rope3cpuL?\d+kernels_\w+E", exported[0][1]), exported


# ---- the built file ----


def test_ops_holds_no_python_symbol():
    assert not [s for s in undefined_symbols(OPS) if re.match(r"_?Py[A-Z_]", s)]


def test_ops_needs_nothing_newer_than_torch_2_11():
    """_ops.so uses only the C shims of torch's stable ABI. torch/csrc/stable/c/shim.h says which version introduced
    each: those after 2.11 stand behind an #if."""
    shims = [s for s in undefined_symbols(OPS) if re.match(r"(aoti_)?torch_", s)]
    assert shims
    foreign = [s for s in undefined_symbols(OPS) if re.search(r"(2at|3c10|5torch)", s)]
    assert not foreign, "C++ symbols of torch change with every release"
    header = (Path(torch.__file__).parent / "include/torch/csrc/stable/c/shim.h").read_text()
    newer = re.findall(r"#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_(?:1[2-9])_0(.*?)#endif", header, re.DOTALL)
    assert newer or torch.__version__.startswith("2.11."), "the header is not laid out as this test expects"
    assert not [s for s in shims if any(re.search(rf"\b{s}\(", block) for block in newer)]


def test_ops_is_built_for_torch_2_11():
    """pytorch#187727: a C++ symbol vanished in 2.13."""
    assert "TORCH_TARGET_VERSION=0x020b000000000000ULL" in (ROOT / "CMakeLists.txt").read_text()


def test_hardened():
    """The hardening of PyTorch's own wheels, and every address read-only once the library is loaded."""
    for path in (OPS, Path(_introspect.__file__)):
        segments, dynamic = run("readelf", "-lW", path), run("readelf", "-dW", path)
        assert "GNU_RELRO" in segments and re.search(r"FLAGS.*\bNOW\b", dynamic)
        assert re.search(r"GNU_STACK.* RW +0x", segments)  # not executable
        assert "__stack_chk_fail" in undefined_symbols(path)


def test_no_path_of_the_machine_that_built_it():
    """In messages and everywhere else, sources are named csrc/... and headers of torch torch/..."""
    contents = OPS.read_bytes()
    assert b"csrc/bindings/" in contents
    for path in (ROOT, Path(torch.__file__).parent, Path(sys.prefix)):
        assert str(path).encode() not in contents
    assert not re.findall(
        rb"/[\w./+-]*/[\w.+-]+\.(?:c|cc|cpp|cu|cuh|h)\b", re.sub(rb"\b(?:csrc|torch)/[\w./+-]+", b"", contents)
    )


def test_no_static_variable_is_initialised_at_the_first_call():
    """A static variable of a function has a guard: a forked child would wait if another thread was initialising it.

    Two are initialised while the library is loaded. A child does not use those of CUDA.
    """
    guards = re.findall(r"guard variable for (.*\(.*)", run("nm", "-C", OPS))
    at_load = r"defines_ops\(\)::|register_kernels<"
    cuda = r"__device_stub__|current_stream\(|checks_positions\(|multiprocessors_of\("
    assert guards and not [name for name in guards if not re.search(f"{at_load}|{cuda}", name)]


def test_the_cuda_runtime_is_linked_statically():
    """Two instances share no last error: see csrc/cuda/launch.cuh. torch's may have another version, too."""
    assert not re.search(r"NEEDED.*libcuda", run("readelf", "-dW", OPS))


def test_one_openmp_runtime():
    maps = run(sys.executable, "-c", "import rope_ext; print(open('/proc/self/maps').read())")
    runtimes = {
        Path(line.split()[-1]).resolve() for line in maps.splitlines() if re.search(r"lib(gomp|omp|iomp5)[-.]", line)
    }
    assert len(runtimes) == 1, runtimes


def test_import_is_light():
    """Besides torch, importing rope_ext imports nothing that has to be installed."""
    program = "import sys, torch; before = set(sys.modules); import rope_ext; print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    imported = set(run(sys.executable, "-c", program).split())
    assert imported <= {"rope_ext", "torch"} | set(sys.stdlib_module_names) | {
        m for m in imported if m.startswith("__editable__")
    }
