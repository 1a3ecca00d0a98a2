"""rope_ext.patch on remote code: modules of a package that is in no library and has copied functions of transformers."""

import gc
import importlib
import inspect
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
import torch

import rope_ext
from rope_ext.integrations import _patch

ROTARY = '''
import torch

def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)

def apply_rotary_pos_emb(q: torch.Tensor, k, cos, sin, unsqueeze_dim: int = 1):
    """Another docstring than in transformers."""
    cos = cos.unsqueeze(unsqueeze_dim)  # and other comments
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed
'''
UNKNOWN = ROTARY.replace("(-x2, x1)", "(-x2, 2 * x1)")
LYING = ROTARY.replace(
    "import torch",
    "import torch as real\nclass torch:\n    Tensor = real.Tensor\n    cat = lambda parts, dim: 2 * real.cat(parts, dim)",
)
BLOCKS = """
import torch
from torch import nn
from . import rotary
from .rotary import apply_rotary_pos_emb, rotate_half
from .rotary import apply_rotary_pos_emb as turn

class Global(nn.Module):
    def forward(self, q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin)

class Renamed(nn.Module):
    def forward(self, q, k, cos, sin):
        return turn(q, k, cos, sin, unsqueeze_dim=1)

class ThroughModule(nn.Module):
    def forward(self, q, k, cos, sin):
        return rotary.apply_rotary_pos_emb(q, k, cos, sin)

class Lazy(nn.Module):
    def forward(self, q, k, cos, sin):
        from .lazy import apply_rotary_pos_emb
        return apply_rotary_pos_emb(q, k, cos, sin)

def through(*args):
    return turn(*args)

class Indirect(nn.Module):
    @torch.enable_grad()
    def forward(self, q, k, cos, sin):
        return through(q, k, cos, sin)

class Inherited(Global):
    pass

class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.rotary_fn = apply_rotary_pos_emb

    def forward(self, q, k, cos, sin):
        return self.rotary_fn(q, k, cos, sin)

class Nested(nn.Module):
    def forward(self, q, k, cos, sin):
        def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
            cos = cos.unsqueeze(unsqueeze_dim)
            sin = sin.unsqueeze(unsqueeze_dim)
            q_embed = (q * cos) + (rotate_half(q) * sin)
            k_embed = (k * cos) + (rotate_half(k) * sin)
            return q_embed, k_embed
        return apply_rotary_pos_emb(q, k, sin=sin, cos=cos)

class Processor:
    def __call__(self, module, q, k, cos, sin):
        return turn(q, k, cos, sin)

class Processed(nn.Module):
    def __init__(self):
        super().__init__()
        self.processor = Processor()

    def forward(self, q, k, cos, sin):
        return self.processor(self, q, k, cos, sin)

class Static(nn.Module):
    @staticmethod
    def apply_rotary_position_embeddings(sinusoidal_pos, query_layer, key_layer, value_layer=None):
        sin, cos = sinusoidal_pos.chunk(2, dim=-1)
        sin_pos = torch.stack([sin, sin], dim=-1).reshape_as(sinusoidal_pos)
        cos_pos = torch.stack([cos, cos], dim=-1).reshape_as(sinusoidal_pos)
        rotate_half_query_layer = torch.stack([-query_layer[..., 1::2], query_layer[..., ::2]], dim=-1).reshape_as(
            query_layer
        )
        query_layer = query_layer * cos_pos + rotate_half_query_layer * sin_pos
        rotate_half_key_layer = torch.stack([-key_layer[..., 1::2], key_layer[..., ::2]], dim=-1).reshape_as(key_layer)
        key_layer = key_layer * cos_pos + rotate_half_key_layer * sin_pos
        if value_layer is not None:
            rotate_half_value_layer = torch.stack([-value_layer[..., 1::2], value_layer[..., ::2]], dim=-1).reshape_as(
                value_layer
            )
            value_layer = value_layer * cos_pos + rotate_half_value_layer * sin_pos
            return query_layer, key_layer, value_layer
        return query_layer, key_layer

    def forward(self, q, k, cos, sin):
        return self.apply_rotary_position_embeddings(torch.cat((sin, cos), dim=-1)[:1, None, :, ::2], q, k)

class Method(nn.Module):
    num_heads, head_size = 2, 8

    def _apply_rotary_embedding(self, hidden_states, relative_position_embeddings):
        batch_size, sequence_length, hidden_size = hidden_states.size()
        hidden_states = hidden_states.view(batch_size, sequence_length, self.num_heads, self.head_size)

        cos = relative_position_embeddings[0, :sequence_length, ...]
        sin = relative_position_embeddings[1, :sequence_length, ...]

        # rotate hidden_states with rotary embeddings
        hidden_states = hidden_states.transpose(0, 1)
        rotated_states_begin = hidden_states[..., : self.head_size // 2]
        rotated_states_end = hidden_states[..., self.head_size // 2 :]
        rotated_states = torch.cat((-rotated_states_end, rotated_states_begin), dim=rotated_states_begin.ndim - 1)
        hidden_states = (hidden_states * cos) + (rotated_states * sin)
        hidden_states = hidden_states.transpose(0, 1)

        hidden_states = hidden_states.view(batch_size, sequence_length, self.num_heads * self.head_size)

        return hidden_states

    def forward(self, q, k, cos, sin):
        return self._apply_rotary_embedding(k.transpose(1, 2).flatten(2), torch.stack((cos[0], sin[0]))[:, :, None, None])

class Complex(nn.Module):
    def forward(self, q, k, cos, sin):
        return apply_rotary_emb(q, k, torch.complex(cos, sin)[..., :4])

def apply_rotary_emb(
    xq: torch.Tensor,
    xk: torch.Tensor,
    freqs_cis: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))

    # Broadcast to [1, 1, seq_len, dim // 2]
    freqs_cis = freqs_cis.unsqueeze(1).to(xq_.device)

    xq_out = torch.view_as_real(xq_ * freqs_cis).flatten(3).type_as(xq)
    xk_out = torch.view_as_real(xk_ * freqs_cis).flatten(3).type_as(xk)
    return xq_out, xk_out
"""
# Class -> what a report calls its function.
KINDS = {
    "Global": "rotary.apply_rotary_pos_emb",
    "Renamed": "rotary.apply_rotary_pos_emb",
    "ThroughModule": "rotary.apply_rotary_pos_emb",
    "Lazy": "rotary.apply_rotary_pos_emb",
    "Indirect": "rotary.apply_rotary_pos_emb",
    "Inherited": "rotary.apply_rotary_pos_emb",
    "Attribute": "rotary.apply_rotary_pos_emb",
    "Processed": "rotary.apply_rotary_pos_emb",
    "Nested": "blocks.Nested.forward.apply_rotary_pos_emb",
    "Static": "blocks.Static.apply_rotary_position_embeddings",
    "Method": "blocks.Method._apply_rotary_embedding",
}


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A function that writes a package like the remote code of a model, and imports its module of blocks."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def make(rotary=ROTARY, blocks=BLOCKS):
        name = f"remote_{tmp_path.name}_{len(names)}"
        names.append(name)
        (tmp_path / name).mkdir()
        files = {"__init__": "", "rotary": rotary, "lazy": "from .rotary import apply_rotary_pos_emb", "blocks": blocks}
        for file, text in files.items():
            (tmp_path / name / f"{file}.py").write_text(text)
        importlib.import_module(f"{name}.lazy")
        return importlib.import_module(f"{name}.blocks")

    yield make
    assert not _patch._replaced and not _patch._patches
    for name in [n for n in sys.modules if n.partition(".")[0] in names]:
        del sys.modules[name]


def inputs(dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, 5, heads, 8, generator=generator).to(dtype).transpose(1, 2) for heads in (4, 2))
    return q, k, *(torch.randn(batch, 5, 8, generator=generator).to(dtype) for _ in range(2))


def same(a, b):
    a, b = (t if isinstance(t, tuple) else (t,) for t in (a, b))
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def places(module):
    """What the names of a package hold, methods and their code included."""
    held = {}
    for name, value in list(sys.modules.items()):
        if name.partition(".")[0] == module.__name__.partition(".")[0]:
            for key, v in vars(value).items():
                if key.startswith(("__", "_rope_ext_")):  # _rope_ext_: left for calls that are still running
                    continue
                held[name, key] = v
                if inspect.isclass(v) and v.__module__ == name:
                    held |= {(name, key, k): m for k, m in vars(v).items() if not k.startswith("__dict")}
                    held |= {(name, key, k, "code"): m.__code__ for k, m in vars(v).items() if inspect.isfunction(m)}
    return held


def unchanged(before, after):
    return before.keys() == after.keys() and all(before[key] is after[key] for key in before)


def traced(model, *args):
    """The result of a model and the ops that it ran, by name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            ops.append(str(op))
            return op(*args, **(kwargs or {}))

    ops = []
    with Record():
        return model(*args), ops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_are_replaced_wherever_a_model_reaches_them(remote, kind, dtype):
    blocks = remote()
    model = torch.nn.Sequential(getattr(blocks, kind)())[0]
    call = inputs(dtype)
    before, expected = places(blocks), model(*call)
    with rope_ext.patched(model) as report:
        assert [e.name.partition(".")[2] for e in report.replaced] == [KINDS[kind]]
        assert not report.left_alone
        result, ops = traced(model, *call)
    assert "rope_ext.rotate.default" in ops
    assert same(result, expected)
    assert unchanged(before, places(blocks))
    assert model.__dict__.get("rotary_fn", blocks.turn) is blocks.turn


def test_the_report_tells_what_was_left_alone(remote):
    for rotary, reason in (
        (UNKNOWN, "unknown source"),
        (LYING, "known, but not proven equal: different result in example 0"),
    ):
        blocks = remote(rotary)
        model, call = blocks.Global(), inputs()
        expected, before = model(*call), places(blocks)
        with rope_ext.patched(model) as report:
            assert unchanged(before, places(blocks))
            assert same(model(*call), expected)
        (entry,) = report.left_alone
        assert not report.replaced and entry.reason.startswith(reason) and entry.uses == 1
        assert "left alone" in str(report) and entry.name in str(report) and reason in str(report)


def test_functions_without_a_source_are_left_alone(remote):
    blocks = remote()
    exec(ROTARY, vars(blocks.rotary))
    blocks.turn = blocks.rotary.apply_rotary_pos_emb
    with rope_ext.patched(blocks.Renamed()) as report:
        assert not report.replaced
        assert [e.reason for e in report.left_alone] == ["no source, or its file has changed since the import"]


def test_functions_that_may_differ_by_a_rounding_need_rounding_once(remote):
    blocks = remote()
    model, call = blocks.Complex(), inputs()
    with rope_ext.patched(model) as report:
        assert not report.replaced and "rounding='once' replaces it" in report.left_alone[0].reason
    expected = model(*call)
    with rope_ext.patched(model, rounding="once") as report:
        (entry,) = report.replaced
        result, ops = traced(model, *call)
    assert "rope_ext.rotate.default" in ops and entry.reason != "equal bit for bit"
    torch.testing.assert_close(result, expected, rtol=3e-7, atol=3e-7)


def test_rounding_once_is_more_exact_than_eager_code(remote):
    model, call = remote().Global(), inputs(torch.bfloat16)
    exact = model(*(t.double() for t in call))[0]
    eager = model(*call)[0]
    with rope_ext.patched(model, rounding="once"):
        once = model(*call)[0]
    assert (once - exact).abs().sum() < (eager - exact).abs().sum()
    assert torch.equal(once, exact.bfloat16())


def test_the_last_undone_patch_restores(remote):
    blocks = remote()
    before = places(blocks)
    first, second = blocks.Global(), blocks.Renamed()
    for order in ((first, second), (second, first)):
        rope_ext.patch(first)
        rope_ext.patch(second)
        rope_ext.unpatch(order[0])
        assert blocks.apply_rotary_pos_emb is not before[blocks.__name__, "apply_rotary_pos_emb"]
        assert "rope_ext.rotate.default" in traced(order[1], *inputs())[1]
        rope_ext.unpatch(order[1])
        assert unchanged(before, places(blocks))


def test_patches_of_one_model_are_counted(remote):
    blocks = remote()
    before, model = places(blocks), blocks.Nested()
    with pytest.raises(RuntimeError, match="stop"), rope_ext.patched(model):
        with rope_ext.patched(model):
            rope_ext.patch(model)
            rope_ext.unpatch(model)
        assert "rope_ext.rotate.default" in traced(model, *inputs())[1]
        raise RuntimeError("stop")
    assert unchanged(before, places(blocks))
    with pytest.raises(ValueError, match="rope_ext: model must be patched, got a Nested that is not"):
        rope_ext.unpatch(model)


def test_a_function_is_replaced_with_one_rounding_at_a_time(remote):
    blocks = remote()
    before = places(blocks)
    with rope_ext.patched(blocks.Global()):
        with pytest.raises(
            ValueError, match=r"rounding must be 'eager' while .*apply_rotary_pos_emb is patched with it, got 'once'"
        ):
            rope_ext.patch(blocks.Renamed(), rounding="once")
        both = torch.nn.Sequential(blocks.Static(), blocks.Global())
        with pytest.raises(ValueError, match="rounding must be"):  # and no function stays replaced
            rope_ext.patch(both, rounding="once")
    assert unchanged(before, places(blocks))


def test_arguments_are_checked(remote):
    with pytest.raises(TypeError, match=r"rope_ext: model must be a torch\.nn\.Module, .*, got function"):
        rope_ext.patch(lambda x: x)
    with pytest.raises(ValueError, match="rope_ext: rounding must be 'once' or 'eager', got 'twice'"):
        rope_ext.patch(torch.nn.Identity(), rounding="twice")


def test_a_patch_does_not_keep_a_model_alive(remote):
    blocks = remote()
    before = places(blocks)
    for kind in ("Attribute", "Nested"):
        model = getattr(blocks, kind)()
        model.weight = torch.nn.Parameter(torch.zeros(1))
        gone = weakref.ref(model), weakref.ref(model.weight)
        rope_ext.patch(model)
        del model
        gc.collect()
        assert [reference() for reference in gone] == [None, None]
    with rope_ext.patched(blocks.Static()):  # the next call puts back what the model had replaced
        pass
    assert unchanged(before, places(blocks))


def test_a_hundred_patches_leave_nothing_behind(remote):
    blocks = remote()
    model = torch.nn.Sequential(*(getattr(blocks, kind)() for kind in KINDS))
    rope_ext.patch(model)
    rope_ext.unpatch(model)
    before = places(blocks)
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(100):
        rope_ext.patch(model)
        rope_ext.unpatch(model)
    gc.collect()
    assert len(gc.get_objects()) - objects < 50
    assert unchanged(before, places(blocks))


def test_threads_may_patch_and_call_at_once(remote):
    blocks = remote()
    before, call = places(blocks), inputs()
    models = [getattr(blocks, kind)() for kind in ("Global", "Renamed", "Nested", "Static")]
    expected = [model(*call) for model in models]
    failures = []

    def work(i):
        try:
            for _ in range(20):
                with rope_ext.patched(models[i]):
                    if not same(models[i](*call), expected[i]):
                        failures.append(i)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i % len(models),)) for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(interval)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert unchanged(before, places(blocks))


def test_a_later_replacement_by_others_stays(remote):
    blocks = remote()
    with rope_ext.patched(blocks.Global()):
        blocks.apply_rotary_pos_emb = other = lambda q, k, cos, sin: (q, k)
    assert blocks.apply_rotary_pos_emb is other


def test_replacements_look_like_what_they_replace(remote):
    blocks = remote()
    original = blocks.apply_rotary_pos_emb
    with rope_ext.patched(blocks.Global()):
        replacement = blocks.apply_rotary_pos_emb
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(replacement, name) == getattr(original, name)
    assert replacement is not original and inspect.signature(replacement) == inspect.signature(original)


def test_calls_that_apply_refuses_go_to_the_original(remote):
    model = remote().Global()
    q, k, cos, sin = inputs()
    calls = [
        (q[:1], k[:1], cos, sin),  # x that broadcasts to the tables
        (q, k.bfloat16(), cos, sin),
        (q, k, cos[..., :1], sin[..., :1]),
        (q.cfloat(), k.cfloat(), cos, sin),
    ]
    expected = [model(*call) for call in calls]
    with rope_ext.patched(model):
        assert all(same(model(*call), y) for call, y in zip(calls, expected))
        with pytest.raises(RuntimeError, match="The size of tensor a"):  # its own errors too
            model(q, k, cos[:, :3], sin)


def test_derivatives_are_those_of_the_original(remote):
    model = remote().Global()
    for dtype in (torch.float32, torch.bfloat16):
        q, k, cos, sin = inputs(dtype)

        def grads(q=q, k=k, cos=cos, sin=sin):
            states = q.clone().requires_grad_(), k.clone().requires_grad_()
            return torch.autograd.grad([y.square().sum() for y in model(*states, cos, sin)], states)

        expected = grads()
        with rope_ext.patched(model):
            assert same(grads(), expected)


@pytest.mark.parametrize("kind", ["Global", "Nested", "Static"])
def test_a_compiled_model_follows(remote, kind):
    graphs = []

    def backend(graph, example):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.reset()
    model, call = getattr(remote(), kind)(), inputs()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    expected = compiled(*call)
    with rope_ext.patched(compiled):
        assert same(compiled(*call), expected)
    assert same(compiled(*call), expected)
    uses = [any("rope_ext" in target for target in graph) for graph in graphs]
    assert uses == [False, True]  # the first graph serves again


def test_functions_that_the_package_kernels_wraps(remote):
    pytest.importorskip("kernels", reason="the package kernels is not installed")
    decorated = ROTARY.replace("def apply", '@use_kernel_forward_from_hub("rotary_pos_emb")\ndef apply')
    blocks = remote("from kernels import use_kernel_forward_from_hub\n" + decorated)
    before, model, call = blocks.turn, blocks.Global(), inputs()
    assert isinstance(before, torch.nn.Module)
    expected = model(*call)
    with rope_ext.patched(model) as report:
        result, ops = traced(model, *call)
    assert report.replaced and "rope_ext.rotate.default" in ops
    assert same(result, expected) and blocks.turn is before


def test_importing_rope_ext_imports_no_library_and_patches_nothing():
    code = """
    import sys, rope_ext
    assert not {"transformers", "diffusers", "timm", "kernels"} & set(sys.modules)
    assert not {m for m in sys.modules if m.startswith("rope_ext.integrations.") and not m.rpartition(".")[2].startswith("_")}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_running_calls_survive_unpatch(remote):
    """The method that defines the function undoes the patch while it runs, and then finds the original function."""
    nested = BLOCKS.replace(
        "        return apply_rotary_pos_emb(q, k, sin=sin, cos=cos)",
        "        self.under_way()\n        return apply_rotary_pos_emb(q, k, sin=sin, cos=cos)",
    )
    model, call = remote(blocks=nested).Nested(), inputs()
    model.under_way = lambda: None
    expected = model(*call)
    rope_ext.patch(model)
    model.under_way = lambda: rope_ext.unpatch(model)
    assert same(model(*call), expected)


def test_a_helper_that_changed_is_seen_at_the_next_patch(remote):
    blocks = remote()
    model, rotary = blocks.Global(), sys.modules[blocks.__name__.replace("blocks", "rotary")]
    with rope_ext.patched(model) as report:
        assert len(report.replaced) == 1
    original = rotary.rotate_half
    rotary.rotate_half = lambda x: 0.5 * original(x)
    with rope_ext.patched(model) as report:
        assert report.replaced == () and len(report.left_alone) == 1


@pytest.mark.parametrize("reload", [False, True])
def test_a_file_that_changed_after_import_is_left_alone(remote, reload):
    """The function is left alone while its source is not what runs, and replaced once its module is reloaded."""
    half = ROTARY.replace("rotate_half(k) * sin", "0.5 * rotate_half(k) * sin")
    assert half != ROTARY
    blocks = remote(rotary=half)
    rotary = sys.modules[blocks.__name__.replace("blocks", "rotary")]
    with open(rotary.__file__, "w") as file:
        file.write(ROTARY)
    if reload:
        importlib.reload(rotary)
        blocks = importlib.reload(blocks)
    with rope_ext.patched(blocks.Global()) as report:
        assert len(report.replaced) == reload
        assert reload or [e.reason for e in report.left_alone] == [
            "no source, or its file has changed since the import"
        ]


def test_modes_around_patch_do_not_matter(remote):
    for around in (torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        model = remote().Global()
        with around:
            report = rope_ext.patch(model)
        rope_ext.unpatch(model)
        assert len(report.replaced) == 1


def test_functions_imported_from_another_package(remote):
    library = remote()
    blocks = remote(rotary=f"from {library.__name__.replace('blocks', 'rotary')} import *")
    model, call = blocks.Global(), inputs()
    expected = model(*call)
    with rope_ext.patched(model) as report:
        assert len(report.replaced) == 1
        result, ops = traced(model, *call)
        assert same(result, expected) and any("rope_ext" in op for op in ops)


def test_symbolic_tracing_gets_the_original_function(remote):
    model, call = remote().Global(), inputs()
    with rope_ext.patched(model):
        graph = torch.fx.symbolic_trace(model)
    assert same(graph(*call), model(*call))
    assert not any("rope_ext" in str(node.target) for node in graph.graph.nodes)


def test_the_report_says_when_bits_differ(remote):
    with rope_ext.patched(remote().Global(), rounding="once") as report:
        assert [e.reason for e in report.replaced] == ["equal bit for bit, but 16-bit results round once"]


def test_the_signature_of_transformers_4_is_replaced(remote):
    """With position_ids, which it does not read: the form that most remote code has copied."""
    four = ROTARY.replace("sin, unsqueeze_dim: int = 1", "sin, position_ids=None, unsqueeze_dim=1")
    assert four != ROTARY
    model, call = remote(rotary=four).Global(), inputs()
    expected = model(*call)
    with rope_ext.patched(model) as report:
        assert [e.dialect for e in report.replaced] == ["transformers.llama_position_ids"]
        assert same(model(*call), expected)


def test_a_helper_of_equal_source_but_other_globals_is_proven_again(remote, tmp_path):
    """The helper's `torch` is another object. Its fingerprint is the same, so an earlier proof must not count."""
    blocks = remote()
    package = blocks.__name__.partition(".")[0]
    other = ROTARY.replace("import torch\n", "import torch\nfrom types import SimpleNamespace\n", 1)
    other += (
        "\n_cat = torch.cat\ntorch = SimpleNamespace(cat=lambda *a, **k: 0.5 * _cat(*a, **k), Tensor=torch.Tensor)\n"
    )
    (tmp_path / package / "other.py").write_text(other)
    model, rotary = blocks.Global(), sys.modules[f"{package}.rotary"]
    with rope_ext.patched(model) as report:
        assert len(report.replaced) == 1
    rotary.rotate_half = importlib.import_module(f"{package}.other").rotate_half
    with rope_ext.patched(model) as report:
        assert report.replaced == ()
        assert [e.reason[:21] for e in report.left_alone] == ["known, but not proven"]
