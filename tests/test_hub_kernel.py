"""rope_ext as a hub kernel: laid out in a folder, loaded by the package `kernels`, put into a model, trained."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import rope_ext
from tests.namespaces import NAMESPACE
from tests.newer_kernels import NEWER_KERNELS
from tools import hub_kernel

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(rope_ext.__file__).parent
missing = [name for name in ("kernels", "transformers") if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} must be installed")

PROGRAM = """
import sys
from pathlib import Path

import torch
import transformers
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize, register_kernel_mapping

FOLDER, NAMESPACE = Path(sys.argv[1]), sys.argv[2]
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
torch.manual_seed(0)
ids = torch.randint(64, (2, 7))

def built():
    config = transformers.LlamaConfig(**SIZES, vocab_size=64)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)

def backend(module, inputs):
    called.update(node.target.namespace for node in module.graph.nodes if hasattr(node.target, "namespace"))
    return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

def trained(model, is_compiled=False):
    call = torch.compile(model, fullgraph=True, backend=backend) if is_compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(call(ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    return [*losses, *model.parameters(), model(ids).logits]

def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), (a, b)

class Ops(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        called.add(op.namespace)
        return op(*args, **(kwargs or {}))

def namespaces(model):
    called.clear()
    with Ops():
        model(ids)
    return of_rope_ext(called)

def of_rope_ext(names):
    return {name for name in names if "rope_ext" in name}

called = set()
expected, expected_compiled = trained(built()), trained(built(), is_compiled=True)
torch.compiler.reset()
assert namespaces(built()) == set()
eager = built()(ids).logits

rotary = LocalLayerRepository(FOLDER, layer_name="RotaryEager")
for mode in Mode.INFERENCE, Mode.TRAINING, Mode.INFERENCE | Mode.TORCH_COMPILE, Mode.TRAINING | Mode.TORCH_COMPILE:
    model = built()
    register_kernel_mapping({"rotary_pos_emb": {"cpu": {mode: rotary}}}, inherit_mapping=False)
    kernelize(model, mode=mode, device="cpu", use_fallback=True)
    assert namespaces(model) == {NAMESPACE}, mode
    if Mode.TRAINING in mode:
        assert_same_bits(trained(model), expected)

called.clear()
model = kernelize(built(), mode=mode, device="cpu")
assert_same_bits(trained(model, is_compiled=True), expected_compiled)
assert of_rope_ext(called) == {NAMESPACE}

kernel = get_local_kernel(FOLDER)
assert kernel.__name__ == NAMESPACE and "rope_ext" not in sys.modules
assert {*kernel.rope_ext.__all__, "layers"} == set(kernel.__all__) <= set(dir(kernel))

# The layer "once", and the installed package as the layer, beside the hub kernel.
import rope_ext
from rope_ext.integrations.kernels import register

once = LocalLayerRepository(FOLDER, layer_name="RotaryOnce")
register_kernel_mapping({"rotary_pos_emb": {"cpu": {Mode.TRAINING: once}}}, inherit_mapping=False)
model = kernelize(built(), mode=Mode.TRAINING, device="cpu")
assert namespaces(model) == {NAMESPACE} and not torch.equal(model(ids).logits, eager)
register()
model = kernelize(built(), mode=Mode.TRAINING, device="cpu")
assert namespaces(model) == {"rope_ext"}
assert_same_bits(trained(model), expected)
print("works")
"""


@pytest.fixture(scope="module")
def folder(other_library, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub")
    hub_kernel.lay_out(other_library, out)
    return out


@installed
def test_kernelize_trains(folder):
    path = os.pathsep.join([*map(str, (PACKAGE.parent, ROOT)), os.environ.get("PYTHONPATH", "")])
    if torch.version.cuda:  # with such a torch, kernels looks for variants with CUDA only, unless a path names one
        (folder,) = folder.glob("build/*")
    done = subprocess.run(
        [sys.executable, "-c", NEWER_KERNELS + PROGRAM, str(folder), NAMESPACE],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout == "works\n", done.stderr[-2000:]


@installed
def test_kernels_reads_the_folder(folder):
    from kernels._rust import Backend, Build, Digest, Metadata
    from kernels.variants import get_variants_local, resolve_variant

    (variant,) = get_variants_local(folder / "build")
    assert resolve_variant([variant], "cpu")[0] == variant
    metadata = Metadata.read_from_file(folder / "build" / variant.variant_str / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, folder / "build" / variant.variant_str))
    assert metadata.id == NAMESPACE and metadata.name.python_name == "rope_ext" and metadata.python_depends == []
    assert Build.open(folder).general.backends == [Backend.CPU]


def test_the_variant_of_a_build_with_cuda(tmp_path):
    """A second variant in the folder; build.toml names both devices."""
    architectures = rope_ext.build_info()["cuda_architectures"]
    if not architectures:
        pytest.skip("built without CUDA kernels")
    (tmp_path / "build" / "cpu").mkdir(parents=True)
    (tmp_path / "build" / "cpu" / "metadata.json").write_text('{"backend": {"type": "cpu"}}')
    variant = hub_kernel.lay_out(PACKAGE / "_ops.so", tmp_path)
    major, minor = rope_ext.build_info()["cuda"].split(".")[:2]
    assert f"-cu{major}{minor}-" in variant.name
    backend = json.loads((variant / "metadata.json").read_text())["backend"]
    assert backend == {"type": "cuda", "archs": architectures}
    assert 'backends = ["cpu", "cuda"]' in (tmp_path / "build.toml").read_text()


@pytest.mark.parametrize("options", [[], ["--cuda"], ["--namespace", "mine"]])
def test_command(options, other_library, tmp_path, monkeypatch, capsys):
    """The build of the command is that of test_namespaces.py."""
    built, lowered = [], []

    def build(*arguments):
        built.append(arguments[:2])
        return shutil.copy2(other_library, arguments[2])

    monkeypatch.setattr(hub_kernel, "build", build)
    monkeypatch.setitem(sys.modules, "tools.wheel", types.SimpleNamespace(lower_versions=lowered.append))
    monkeypatch.setattr(sys, "argv", ["hub_kernel", *options, str(tmp_path / "out")])
    hub_kernel.main()
    ((namespace, cuda),) = built
    device = "cuda" if options == ["--cuda"] else "cpu"
    assert cuda == (device == "cuda") and namespace.isidentifier() and len(lowered) == 1
    assert namespace == "mine" if "mine" in options else namespace.startswith(f"_rope_ext_{device}_")
    variant = Path(capsys.readouterr().out.strip())
    assert {path.name for path in variant.iterdir()} == {"__init__.py", "layers.py", "metadata.json", "rope_ext"}
    assert not list(variant.rglob("_introspect*")) and (variant / "rope_ext" / "integrations" / "_known.json").exists()
