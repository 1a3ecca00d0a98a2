"""examples/aoti: an exported layer in a program without Python, and in a Python that never imports the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import rope_ext
from rope_ext._torch.library import native

pytestmark = pytest.mark.devices("cpu")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "aoti"
OPS = native._name
cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """What package.py wrote: attention.pt2, inputs.pt and expected.pt."""
    folder = tmp_path_factory.mktemp("aoti")
    run(sys.executable, EXAMPLE / "package.py", folder)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program of run.cpp."""
    if cmake is None:
        pytest.skip("cmake must be installed")
    folder = tmp_path_factory.mktemp("build")
    run(cmake, "-S", EXAMPLE, "-B", folder, f"-DTORCH={torch.__path__[0]}", "-DCMAKE_BUILD_TYPE=Debug")
    run(cmake, "--build", folder)
    return folder / "run"


# The layer's kernels are torch's own and ours, none is generated: every way of running it gives the same bits.


def test_program_without_python_gives_the_values_of_python(package, program):
    output = package / "output.pt"
    run(program, OPS, "attention.pt2", "inputs.pt", output, cwd=package)
    assert torch.equal(torch.load(output), torch.load(package / "expected.pt"))


def test_program_needs_no_python(program):
    """Neither the program and the libraries that it loads, nor the operators, need Python's library."""
    for file in program, OPS:
        libraries = [line.split()[0] for line in run("ldd", file).splitlines()]
        assert any("libtorch_cpu" in name for name in libraries)
        assert not [name for name in libraries if re.search("libpython|libtorch_python", name)]


@pytest.mark.parametrize("loads", [True, False])
def test_python_with_the_library_alone(package, loads):
    """torch.ops.load_library is enough; without it torch names the operator that is missing."""
    program = f"""
import sys
import torch
from torch._inductor import aoti_load_package

if {loads}:
    torch.ops.load_library({OPS!r})
attention = aoti_load_package("attention.pt2")
output = attention(*torch.load("inputs.pt"))
assert torch.equal(output, torch.load("expected.pt"))
assert "rope_ext" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=package)
    assert (done.returncode == 0) == loads, done.stderr
    assert loads or "rope_ext::rotate" in done.stderr, done.stderr


class Forms(nn.Module):
    """The ways of asking for a rotation, as one graph."""

    def __init__(self):
        super().__init__()
        self.rope = rope_ext.RotaryEmbedding(64)
        self.tables, self.weight = self.rope.tables(64), torch.rand(64) + 0.5

    def forward(self, q, k, positions, offset, cu_seqlens):
        cos, sin = self.tables
        in_place, packed, out = q * 1, torch.cat((q, k, k), dim=2).flatten(2), torch.empty_like(q)
        rope_ext.apply_(in_place, cos, sin, offset=2)
        rope_ext.apply(q, cos, sin, inverse=True, interleaved=True, out=out)
        heads = {"num_heads": q.shape[2], "num_kv_heads": k.shape[2]}
        return (
            *rope_ext.apply((q, k), cos, sin, positions=positions, rotary_dim=32),
            rope_ext.apply(q, cos, sin, offset=offset),
            rope_ext.apply(q.flatten(0, 1), cos, sin, layout="thd", cu_seqlens=cu_seqlens),
            rope_ext.apply(q, *self.rope(positions)),
            rope_ext.apply(q, inv_freq=self.rope.inv_freq, positions=positions),
            *self.rope.apply((q, k), offset=3, norm=(self.weight, None), eps=1e-6),
            rope_ext.apply(q.bfloat16(), cos.bfloat16(), sin.bfloat16(), rounding="eager"),
            rope_ext.apply(q.double(), cos.double(), sin.double()),
            *rope_ext.apply_qkv(packed, cos, sin, **heads),
            rope_ext.apply_qkv_(packed * 1, cos, sin, **heads),
            in_place,
            out,
        )


def test_every_form_in_one_package(tmp_path):
    q, k = torch.randn(2, 6, 4, 64), torch.randn(2, 6, 2, 64)
    positions, offset, cu_seqlens = torch.randint(64, (2, 6)), torch.tensor([3, 5]), torch.tensor([0, 2, 9])
    forms, inputs = Forms(), (q, k, positions, offset, cu_seqlens)
    with torch.no_grad():
        exported = torch.export.export(forms, inputs)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "forms.pt2"))
        torch.save((inputs, tree_leaves(forms(*inputs))), tmp_path / "forms.pt")
    program = f"""
import torch
from torch._inductor import aoti_load_package
from torch.utils._pytree import tree_leaves

torch.ops.load_library({OPS!r})
inputs, expected = torch.load("forms.pt")
outputs = tree_leaves(aoti_load_package("forms.pt2")(*inputs))
assert list(map(torch.equal, outputs, expected)) == [True] * 18
"""
    run(sys.executable, "-c", program, cwd=tmp_path)


def test_an_error_of_a_call_in_a_package(tmp_path):
    """A position outside the table: our sentence, in a RuntimeError, since the types of errors are the package's.

    Before 2.13 torch prints the sentence to stderr and returns None.
    """
    rotation, x = nn.Module(), torch.randn(1, 4, 2, 8)
    cos, sin = rope_ext.RotaryEmbedding(8).tables(16)
    rotation.forward = lambda x, positions: rope_ext.apply(x, cos, sin, positions=positions)
    exported = torch.export.export(rotation, (x, torch.arange(4)))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "rotation.pt2"))
    program = f"""
import torch
from torch._inductor import aoti_load_package

torch.ops.load_library({OPS!r})
rotation = aoti_load_package("rotation.pt2")
try:
    if rotation(torch.randn(1, 4, 2, 8), torch.arange(4) + 13) is None:
        raise RuntimeError("None")
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    rule = "rope_ext: positions must index rows 0 to 15 of the table, got row 16 for token 3"
    returns_none = torch.__version__.startswith(("2.11.", "2.12."))
    assert done.stdout == "None\n" if returns_none else done.stdout.startswith(rule), done.stderr
    assert rule in done.stderr + done.stdout
