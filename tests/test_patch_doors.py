"""rope_ext.patch with a Python module or a model type of transformers, before any model exists."""

import enum
import gc
import importlib
import re
import sys
import types

import pytest
import torch

import rope_ext
from rope_ext.integrations import _model_types
from tests import test_patch
from tests.test_patch import inputs, places, same, traced, unchanged

pytestmark = pytest.mark.devices("cpu")
remote = test_patch.remote
ROTATES = "rope_ext.rotate.default"


def names(report):
    return sorted(entry.name for entry in report.replaced)


# ---- Python modules ----


@pytest.mark.parametrize("kind", test_patch.KINDS)
def test_models_made_afterwards_are_patched(remote, kind):
    blocks = remote()
    call, before = inputs(torch.bfloat16), places(blocks)
    expected = getattr(blocks, kind)()(*call)
    with rope_ext.patched(blocks) as report:
        model = getattr(blocks, kind)()
        result, ops = traced(model, *call)
        assert same(result, expected) and ROTATES in ops and not report.warning
    assert unchanged(before, places(blocks))
    expected, ops = traced(getattr(blocks, kind)(), *call)
    assert same(result, expected) and ROTATES not in ops
    _, ops = traced(model, *call)
    assert (ROTATES in ops) == (kind == "Attribute")  # which stores the function


def test_the_report_counts_classes(remote):
    blocks = remote()
    with rope_ext.patched(blocks) as report:
        uses = {e.name.partition(".")[2]: e.uses for e in report.replaced}
        assert uses == {
            "rotary.apply_rotary_pos_emb": 8,  # Global, Renamed, ..., and Processor, which is no torch.nn.Module
            "blocks.Nested.forward.apply_rotary_pos_emb": 1,
            "blocks.Static.apply_rotary_position_embeddings": 1,
            "blocks.Method._apply_rotary_embedding": 1,
        }
        assert [e.name.partition(".")[2] for e in report.left_alone] == ["blocks.apply_rotary_emb"]
        assert not report.layers and "4 replaced (rounding='eager'), 1 left alone" in str(report)
    model = torch.nn.Sequential(*(getattr(blocks, kind)() for kind in test_patch.KINDS))
    with rope_ext.patched(model) as of_model:
        assert names(of_model) == names(report)


@pytest.mark.parametrize("first_undone", [0, 1, 2])
def test_patches_of_modules_and_models_are_counted_together(remote, first_undone):
    blocks = remote()
    rotary, before = importlib.import_module(blocks.__name__.replace("blocks", "rotary")), places(blocks)
    patched = [blocks, blocks.Global(), rotary]
    with pytest.warns(UserWarning, match="no class of these modules was found"):
        for one in patched:
            rope_ext.patch(one)
    while patched:
        assert blocks.apply_rotary_pos_emb is not before[blocks.__name__, "apply_rotary_pos_emb"]
        rope_ext.unpatch(patched.pop(first_undone % len(patched)))
    assert unchanged(before, places(blocks))


def test_one_rounding_at_a_time(remote):
    blocks = remote()
    words = r"rounding must be 'once' while .* is patched with it, got 'eager'"
    with rope_ext.patched(blocks, rounding="once"), pytest.raises(ValueError, match=words):
        rope_ext.patch(blocks.Global())


def test_a_module_that_is_gone_no_longer_counts(remote):
    """Its functions live on where others hold them."""
    blocks = remote()
    rotary, original = sys.modules[blocks.__name__.replace("blocks", "rotary")], blocks.apply_rotary_pos_emb
    module = types.ModuleType(f"{blocks.__name__}_of_its_own")
    exec(f"from {rotary.__name__} import apply_rotary_pos_emb", vars(module))
    with pytest.warns(UserWarning, match="no class of these modules was found"):
        rope_ext.patch(module)
    held = vars(module)
    assert held["apply_rotary_pos_emb"] is not original
    del module
    gc.collect()
    with rope_ext.patched(blocks.Global()):
        pass
    assert held["apply_rotary_pos_emb"] is original


def test_a_forward_that_another_package_put_into_a_class_is_read(remote):
    """As for a model: the function is replaced where that forward finds it."""
    blocks = remote()
    other = remote(blocks=f"from {blocks.__name__.replace('blocks', 'rotary')} import apply_rotary_pos_emb\n" + FORWARD)
    blocks.Global.forward = other.forward
    with rope_ext.patched(blocks):
        assert ROTATES in traced(blocks.Global(), *inputs())[1]


def test_overridden_methods_of_bases_elsewhere_are_read(remote):
    """As for a model: code that is not seen may call them."""
    name = remote().__name__
    other = remote(blocks=f"from {name.partition('.')[0]} import blocks\n" + OVERRIDES)
    constructs = f"from torch import nn\nfrom {other.__name__.partition('.')[0]} import blocks\n" + CONSTRUCTS
    for given in (other, remote(blocks=constructs.replace("Renamed", "Overrides")), other.Overrides()):
        with (
            pytest.warns(UserWarning, match="was found to call a replaced function"),
            rope_ext.patched(given) as report,
        ):
            assert names(report) == [f"{name}.Static.apply_rotary_position_embeddings"]


def test_classes_that_constructors_name_are_read(remote):
    name = remote().__name__
    other = remote(blocks=f"from torch import nn\nfrom {name.partition('.')[0]} import blocks\n" + CONSTRUCTS)
    with rope_ext.patched(other) as report:
        assert ROTATES in traced(other.Outer(), *inputs())[1] and not report.warning


CONSTRUCTS = """
def made():
    return blocks.Renamed()

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = made()

    def forward(self, *args):
        return self.inner(*args)
"""
OVERRIDES = """
class Overrides(blocks.Static):
    def apply_rotary_position_embeddings(self, *args):
        return args

    def forward(self, q, k, cos, sin):
        return self.apply_rotary_position_embeddings(q, k)
"""
FORWARD = """
def forward(self, q, k, cos, sin):
    return apply_rotary_pos_emb(q, k, cos, sin)
"""
WARNINGS = {  # -> (source of a module beside `rotary`, words of the warning)
    "only imports": (
        "from .rotary import apply_rotary_pos_emb",
        "no class of these modules was found to call a replaced function; also patch the modules that import it by name",
    ),
    "names none": ("", "nothing was replaced: no code of these modules names a rotary function; patch the module that"),
    "holds it out of reach": (
        "from .rotary import apply_rotary_pos_emb as f\nCHOICES = {'default': f}\ndel f",
        "nothing was replaced: module \\(.*\\.blocks\\): holds apply_rotary_pos_emb where it cannot be replaced: in a closure, ",
    ),
}


@pytest.mark.parametrize("how", WARNINGS)
def test_warnings(remote, how):
    source, words = WARNINGS[how]
    blocks = remote(blocks=source)
    with pytest.warns(UserWarning, match=f"^rope_ext: {words}") as caught:
        report = rope_ext.patch(blocks)
    rope_ext.unpatch(blocks)
    assert caught[0].filename == __file__ and report.warning in str(report)
    assert [e.uses for e in report.replaced] == ([0] if how == "only imports" else [])
    assert [layer.kind for layer in report.layers] == (["module"] if how == "holds it out of reach" else [])


def test_what_is_not_patched_cannot_be_undone(remote):
    blocks = remote()
    for given, got in ((blocks, repr(blocks.__name__)), ("llama", "'llama'")):
        with pytest.raises(ValueError, match=f"^rope_ext: model must be patched, got {got} that is not$"):
            rope_ext.unpatch(given)
    with rope_ext.patched(blocks):
        cure = f"got 'llama' that is not: currently patched: {blocks.__name__!r}$"
        with pytest.raises(ValueError, match=cure):
            rope_ext.unpatch("llama")


def test_unpatch_in_a_block_leaves_that_of_the_block(remote):
    """What `patched` has made, `patched` undoes."""
    blocks = remote()
    rope_ext.patch(blocks)
    with rope_ext.patched(blocks):
        rope_ext.unpatch(blocks)
        assert ROTATES in traced(blocks.Renamed(), *inputs())[1]
    assert ROTATES not in traced(blocks.Renamed(), *inputs())[1]


def test_a_class_is_no_model():
    class Attention(torch.nn.Module):
        pass

    with pytest.raises(TypeError, match=rf"got the class Attention: pass sys.modules\['{__name__}'\]$"):
        rope_ext.patch(Attention)


# ---- model types ----


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def modeling(model_type):
    return [module.__name__.rpartition(".modeling_")[2] for module in _model_types.modules_of(model_type)]


def test_the_modules_of_a_type(transformers):
    """A type stands for its modeling module, whatever its name, and those of the parts of its default configuration."""
    cases = {
        "llama": ["llama"],
        "gpt-sw3": ["gpt2"],
        "qwen2_5_vl": ["qwen2_5_vl"],
        "qwen2_5_vl_text": ["qwen2_5_vl"],
        "gemma3": ["gemma3", "siglip"],
        "llava": ["llava", "clip", "llama"],
        "glmga": ["glm46v", "glm4v"],  # its models are those of others
    }
    verbosity = transformers.logging.get_verbosity()
    for model_type, modules in cases.items():
        if model_type in transformers.CONFIG_MAPPING:
            assert sorted(modeling(model_type)) == sorted(modules)
    assert transformers.logging.get_verbosity() == verbosity


def test_a_part_that_cannot_be_imported(transformers, monkeypatch):
    """None in sys.modules makes an import fail, as a missing dependency would."""
    if "llava" in transformers.CONFIG_MAPPING:
        monkeypatch.setitem(sys.modules, "transformers.models.clip.modeling_clip", None)
        with pytest.raises(ImportError, match=r"(?i)clip"):
            rope_ext.patch("llava")


SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}


def test_a_type_before_its_model(transformers):
    """Counted together with a patch of the model."""
    config = transformers.AutoConfig.for_model("qwen3", **SIZES, num_key_value_heads=2, intermediate_size=32)
    module, ids = importlib.import_module("transformers.models.qwen3.modeling_qwen3"), torch.arange(10)[None]
    original = module.apply_rotary_pos_emb

    def made():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    expected = made()(ids).logits
    report = rope_ext.patch("".join(("qw", "en3")))  # no literal, which Python may share with the next one
    assert names(report) == ["transformers.models.qwen3.modeling_qwen3.apply_rotary_pos_emb"]
    assert [e.uses for e in report.replaced] == [1] and not report.warning
    model = made()
    result, ops = traced(model, ids)
    assert torch.equal(result.logits, expected) and ROTATES in ops
    rope_ext.patch(model)
    rope_ext.unpatch("".join(("qwe", "n3")))
    assert ROTATES in traced(model, ids)[1]
    rope_ext.unpatch(model)
    assert ROTATES not in traced(model, ids)[1]
    assert module.apply_rotary_pos_emb is original


def test_a_type_in_an_enum(transformers):
    kind = enum.Enum("Kind", {"LLAMA": "llama"}, type=str).LLAMA
    with rope_ext.patched(kind), rope_ext.patched("llama"):
        rope_ext.unpatch(kind)
        with pytest.raises(ValueError, match="llama"):
            for _ in range(2):
                rope_ext.unpatch("llama")


def test_a_type_that_a_package_registers(transformers, remote, monkeypatch):
    for mapping in (transformers.CONFIG_MAPPING, transformers.MODEL_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    blocks = remote(blocks=test_patch.BLOCKS + REGISTERED)
    assert _model_types.modules_of("rope_ext_test_type") == [blocks]
    with rope_ext.patched("rope_ext_test_type") as report:
        assert len(report.replaced) == 4


REGISTERED = """
import transformers

class Config(transformers.PreTrainedConfig):
    model_type = "rope_ext_test_type"

class Model(transformers.PreTrainedModel):
    config_class = Config

transformers.AutoConfig.register("rope_ext_test_type", Config)
transformers.AutoModel.register(Config, Model)
"""


def test_types_that_do_not_exist(transformers):
    rule = f"^rope_ext: model must be a model type of transformers {re.escape(transformers.__version__)}, got "
    for given, words in (
        ("qwen33", "'qwen33': similar types are 'qwen3' and .*$"),
        (
            "Qwen/Qwen3-8B",
            "'Qwen/Qwen3-8B': pass transformers.AutoConfig.from_pretrained\\('Qwen/Qwen3-8B'\\).model_type$",
        ),
        ("#" * 40, "'#+'$"),
    ):
        for function in (rope_ext.patch, lambda given: rope_ext.patched(given).__enter__()):
            with pytest.raises(rope_ext.ArgumentError, match=rule + words):
                function(given)
    with pytest.raises(rope_ext.ArgumentError, match="has a modeling module, got 'layoutxlm'"):
        rope_ext.patch("layoutxlm")


def test_a_type_without_rotary_functions(transformers):
    with pytest.warns(UserWarning, match="nothing was replaced: no code of these modules names a rotary function"):
        rope_ext.patch("bert")
    rope_ext.unpatch("bert")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    words = r"^rope_ext: transformers must be installed \(pip install transformers\) to patch a model type, got "
    with pytest.raises(ImportError, match=words):
        rope_ext.patch("llama")
