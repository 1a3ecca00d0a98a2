"""Two copies of the package in one process, each with its ops in a namespace of its own, in all that torch does with ops."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rope_ext
from rope_ext._torch.library import NAMESPACE
from tests import namespaces

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(rope_ext.__file__).parent

# The second copy is imported as `other`. `global`: its symbols, like those of the first, are found by libraries that
# are loaded later.
PROGRAM = """
import ctypes
import sys

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

if sys.argv[1] == "global":
    for library in sys.argv[2:]:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)

import other
import rope_ext
from tests.conftest import assert_same_bits

COPIES = {"rope_ext": rope_ext, "_rope_ext_test": other}
assert {name: copy._torch.library.NAMESPACE for name, copy in COPIES.items()} == {name: name for name in COPIES}
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
torch.manual_seed(0)
x, cotangents = torch.randn(2, 5, 3, 8), torch.randn(4, 2, 5, 3, 8)

class Ops(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        called.add(op.namespace)
        return op(*args, **(kwargs or {}))

def record(graph):
    called.update(node.target.namespace for node in graph.nodes if hasattr(node.target, "namespace"))

def backend(module, inputs):
    record(module.graph)
    return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

for name, copy in COPIES.items():
    def only_this_is_called():
        assert called & COPIES.keys() == {name}, called
        called.clear()

    called = set()
    tables = copy.RotaryEmbedding(8).tables(5)
    apply = lambda x: copy.apply(x, *tables)
    expected = copy.reference.apply(x, *tables)
    leaf = x.clone().requires_grad_()
    with Ops():
        y = apply(leaf)
        gradient = torch.autograd.grad(y, leaf, cotangents[0])[0]
    only_this_is_called()
    assert_same_bits(y.detach(), expected)
    assert_same_bits(gradient, copy.reference.apply(cotangents[0], *tables, inverse=True))

    compiled = torch.compile(apply, fullgraph=True, backend=backend)
    assert_same_bits(torch.autograd.grad(compiled(leaf), leaf, cotangents[0])[0], gradient)
    only_this_is_called()

    module = torch.nn.Module()
    module.forward = apply
    exported = torch.export.export(module, (x,))
    assert_same_bits(exported.module()(x), expected)
    record(exported.graph)
    only_this_is_called()

    gradients = torch.stack([copy.reference.apply(g, *tables, inverse=True) for g in cotangents])
    assert_same_bits(torch.func.vmap(lambda x: copy.apply(x, *tables, inverse=True))(cotangents), gradients)
    assert_same_bits(torch.autograd.grad(apply(leaf), leaf, cotangents, is_grads_batched=True)[0], gradients)

    with Ops():
        assert_same_bits(apply(distribute_tensor(x, mesh, [Shard(2)])).full_tensor(), expected)
    only_this_is_called()

    # The library of each copy has its own state: here the type of the last error.
    take = {key: one._torch.library.native.rope_ext_take_error_type for key, one in COPIES.items()}
    try:
        getattr(torch.ops, name).rotate.unrecorded([x], *tables, 1)
    except (ValueError, RuntimeError) as error:
        assert "rope_ext: offset must index rows 0 to " in str(error)
    assert {key: one() for key, one in take.items()} == {key: int(key == name) for key in take}
    try:
        copy.apply(x, *tables, offset=1)
    except copy.ArgumentError as error:
        assert type(error).__module__ == f"{copy.__name__}.errors"
    else:
        raise AssertionError("an offset beyond the table")
torch.distributed.destroy_process_group()
print("works")
"""


@pytest.mark.parametrize("symbols", ["local", "global"])
def test_two_copies(symbols, other_library, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "other", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    library = shutil.copy2(other_library, tmp_path / "other" / "_ops.so")
    path = os.pathsep.join(map(str, (tmp_path, PACKAGE.parent, ROOT, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-c", PROGRAM, symbols, str(PACKAGE / "_ops.so"), str(library)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "works\n", done.stderr[-2000:]


# ---- one source of truth ----


def test_no_other_literal_of_the_namespace():
    """CMakeLists.txt names it; the library tells Python."""
    literal = re.compile(r"torch\.ops\.rope_ext|rope_ext::|Library\(\s*[\"']rope_ext")
    sources = [path for folder in (PACKAGE, ROOT / "csrc") for path in folder.rglob("*.*") if path.suffix != ".pyc"]
    found = [path.name for path in sources if path.suffix != ".so" and literal.search(path.read_text())]
    assert len(sources) > 150 and not found
    assert NAMESPACE == "rope_ext"


def test_the_package_imports_itself_by_relative_imports():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.split(".")[0] == "rope_ext"], path


def test_cmake_refuses_what_is_no_name(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        namespaces.build("3rd", False, tmp_path, ROPE_EXT_BUILD_DIR=str(tmp_path))


def test_a_library_of_an_older_version(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "rope_ext", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    library = tmp_path / "rope_ext" / "_ops.so"
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", str(library)], check=True)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", "import rope_ext"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True)
    error = (
        f"ImportError: rope_ext: _ops.so must be built from this version, got an older {library}; rebuild: pip install "
    )
    assert done.stderr.splitlines()[-1].startswith(error), done.stderr
