"""Patched models do what eager models do, bit for bit, wherever models are used: generate, compile, training, copies, threads.

Small models of transformers with random weights, in bfloat16, where eager code rounds each product.
"""

import contextlib
import copy
import gc
import importlib
import itertools
import pickle
import sys
import threading

import pytest
import torch

import rope_ext
from tests.conftest import assert_same_bits

transformers = pytest.importorskip("transformers", exc_type=ImportError)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
# llama: pairs of halves; gemma3_text: two sets of frequencies and a sliding window; glm: interleaved, part of head_dim;
# cohere: interleaved, in float32.
FAMILIES = ["llama", "gemma3_text", "glm", "cohere"]
cpu = pytest.mark.devices("cpu")


def built(family="llama", dtype=torch.bfloat16, **more):
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **more})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def modeling(model):
    """The namespace that holds the rotary function of a model."""
    return sys.modules[type(model).__module__]


def function(model):
    return modeling(model).apply_rotary_pos_emb


def tokens(batch=2, seqlen=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 64, (batch, seqlen), generator=generator, device="cpu").to(torch.get_default_device())


@contextlib.contextmanager
def rotations():
    """A list with an element per call of rope_ext.apply within the block."""
    calls, call = [], rope_ext.ops.call_op
    rope_ext.ops.call_op = lambda *args: calls.append(args[0]) or call(*args)
    try:
        yield calls
    finally:
        rope_ext.ops.call_op = call


@pytest.fixture(autouse=True)
def functions_are_restored():
    """Each test leaves the functions of transformers as it found them."""
    names = [name.partition("_")[0] for name in FAMILIES]
    modules = [importlib.import_module(f"transformers.models.{name}.modeling_{name}") for name in names]
    before = [module.apply_rotary_pos_emb for module in modules]
    yield
    assert [module.apply_rotary_pos_emb for module in modules] == before


# ---- generate ----

GENERATE = {
    "greedy": {},
    "without cache": {"use_cache": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "temperature": 0.7},
}


@pytest.mark.parametrize("family, how", [*zip(itertools.cycle(FAMILIES), GENERATE), ("gemma3_text", "greedy")])
def test_generate(family, how):
    """Tokens and the logits of each step are equal; one of the two sequences is padded on the left."""
    model, ids = built(family), tokens()
    mask = torch.ones_like(ids)
    ids[0, :3] = mask[0, :3] = 0
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True, **GENERATE[how]}

    def run():
        torch.manual_seed(1)
        output = model.generate(ids, attention_mask=mask, **options)
        return [output.sequences, *output.logits]

    expected = run()
    with rope_ext.patched(model), rotations() as calls:
        got = run()
    assert len(calls) >= 2 * 4  # layers, tokens
    assert torch.equal(got[0], expected[0])
    assert_same_bits(got[1:], expected[1:])
    assert_same_bits(run()[1:], expected[1:])


def test_inference_mode():
    model, ids = built(), tokens()
    with torch.inference_mode():
        expected = model(ids).logits
        with rope_ext.patched(model), rotations() as calls:
            assert_same_bits(model(ids).logits, expected)
    assert len(calls) == 2


# ---- torch.compile ----


class Graphs:
    """A backend for torch.compile that runs graphs unchanged and counts those with an op of rope_ext."""

    def __init__(self):
        self.rotating, self.others = 0, 0

    def __call__(self, graph, inputs):
        ours = any("rope_ext" in str(node.target) for node in graph.graph.nodes)
        self.rotating, self.others = self.rotating + ours, self.others + (not ours)
        return graph.forward


@pytest.mark.parametrize("first", ["eager", "patched"])
def test_compile(first):
    """The model compiles with fullgraph, before or after patch; patch and unpatch take effect in a compiled model."""
    torch.compiler.reset()
    model, ids, graphs = built(num_hidden_layers=1), tokens(), Graphs()
    with torch.no_grad():
        expected = model(ids).logits
        compiled = torch.compile(model, fullgraph=True, backend=graphs)
        if first == "eager":
            assert_same_bits(compiled(ids).logits, expected)
            assert (graphs.rotating, graphs.others) == (0, 1)
        for _ in range(2):
            with rope_ext.patched(model):
                assert_same_bits(compiled(ids).logits, expected)
                assert_same_bits(compiled(ids).logits, expected)
            assert graphs.rotating == 1
            assert_same_bits(compiled(ids).logits, expected)
        assert (graphs.rotating, graphs.others) == (1, 1)
        with rope_ext.patched(compiled):
            assert_same_bits(compiled(ids).logits, expected)


@cpu
def test_compile_gradients():
    """Compared with the compiled model, since in torch 2.11 compiling alone changes bits of some gradients."""
    torch.compiler.reset()
    model, ids = built(num_hidden_layers=1), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients(compiled, ids)
    with rope_ext.patched(model):
        assert_same_bits(gradients(compiled, ids), expected)


# ---- training ----


def gradients(model, ids):
    """The loss and the gradients of all parameters that require them."""
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@cpu
@pytest.mark.parametrize("family", [*FAMILIES, "olmo2"])  # olmo2: float32 tables
def test_training(family):
    model, ids = built(family).train(), tokens()
    expected = gradients(model, ids)
    with rope_ext.patched(model), rotations() as calls:
        assert_same_bits(gradients(model, ids), expected)
    assert len(calls) == 2


@cpu
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointing(use_reentrant):
    model, ids = built().train(), tokens()
    expected = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same_bits(gradients(model, ids), expected)
    with rope_ext.patched(model), rotations() as calls:
        assert_same_bits(gradients(model, ids), expected)
    assert len(calls) == 4  # two layers, each runs forward twice


class Adapter(torch.nn.Module):
    """LoRA: a frozen linear layer plus a product of two small trainable ones."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Linear(linear.in_features, 2, bias=False, dtype=linear.weight.dtype)
        self.up = torch.nn.Linear(2, linear.out_features, bias=False, dtype=linear.weight.dtype)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


@cpu
@pytest.mark.parametrize("adapted", ["q_proj", "v_proj"])  # the gradient passes through q; through no rotated tensor
def test_frozen_weights(adapted):
    model, ids = built().requires_grad_(False), tokens()
    for layer in model.model.layers[1:]:
        setattr(layer.self_attn, adapted, Adapter(getattr(layer.self_attn, adapted)).requires_grad_(True))
        getattr(layer.self_attn, adapted).linear.requires_grad_(False)
    expected = gradients(model, ids)
    assert len(expected) == 3
    with rope_ext.patched(model), rotations() as calls:
        assert_same_bits(gradients(model, ids), expected)
    assert len(calls) == 2


@cpu
def test_autocast():
    """Under autocast q and k are bfloat16, cos and sin float32: results are equal, gradients are rounded once less.

    Eager code rounds both terms a, b of a gradient and then their sum to bfloat16, of unit roundoff u; rope_ext the sum.
    They differ by u (|a| + |b|) + 2 u |a + b| at most, and terms of second order.
    """
    model, ids, u = built(dtype=torch.float32), tokens(), 2**-8
    q, k, gradient = (torch.randn(2, heads, 5, 8).bfloat16() for heads in (4, 2, 4))
    cos, sin = torch.randn(2, 5, 8), torch.randn(2, 5, 8)

    def run():
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            logits = model(ids).logits
        leaf = q.clone().requires_grad_()
        result = function(model)(leaf, k, cos, sin)
        result[0].backward(gradient.float())
        return [logits, *(t.detach() for t in result)], leaf.grad

    expected, expected_gradient = run()
    with rope_ext.patched(model), rotations() as calls:
        got, got_gradient = run()
    assert len(calls) == 3
    assert_same_bits(got, expected)
    a, b = gradient * cos[:, None].double(), (gradient * sin[:, None].double()).roll(4, dims=-1)
    b[..., 4:] *= -1
    bound = 1.02 * u * (a.abs() + b.abs() + 2 * (a + b).abs())
    assert ((got_gradient.double() - expected_gradient.double()).abs() <= bound).all()


# ---- several models, and many times ----


@pytest.mark.parametrize("families", [("llama", "llama"), ("llama", "glm")])
@pytest.mark.parametrize("first_undone", [0, 1])
def test_two_models(families, first_undone):
    models, ids = [built(family) for family in families], tokens()
    originals = [function(model) for model in models]
    expected = [model(ids).logits for model in models]
    for model in models:
        rope_ext.patch(model)
    assert_same_bits([model(ids).logits for model in models], expected)
    rope_ext.unpatch(models[first_undone])
    still = function(models[1 - first_undone])
    assert still is not originals[1 - first_undone]
    assert (function(models[first_undone]) is still) == (families[0] == families[1])
    assert_same_bits([model(ids).logits for model in models], expected)
    rope_ext.unpatch(models[1 - first_undone])
    assert [function(model) for model in models] == originals
    with pytest.raises(ValueError, match=r"^rope_ext: model must be patched, got a \w+ForCausalLM that is not$"):
        rope_ext.unpatch(models[0])


def test_nested_and_exceptions():
    model = built()
    original = function(model)
    with pytest.raises(KeyError), rope_ext.patched(model), rope_ext.patched(model):
        replacement = function(model)
        raise KeyError
    assert function(model) is original is not replacement


@cpu
def test_a_hundred_patches_leave_nothing_behind():
    """The functions are restored each time, and no objects are left behind."""
    model = built()
    attention, original, ids = model.model.layers[0].self_attn, function(model), tokens()
    expected = model(ids).logits.detach()
    counts = []
    for step in range(100):
        with rope_ext.patched(attention):
            if step % 10 == 0:
                assert_same_bits(model(ids).logits.detach(), expected)
        assert function(model) is original
        if step in (20, 99):
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[1] - counts[0] < 20, counts


@cpu
def test_threads():
    """Threads that run the model while others patch and unpatch it get results bit-identical to eager code throughout."""
    model, ids, failed, done = built(), tokens(), [], threading.Event()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        expected = model(ids).logits

    def run():
        with torch.no_grad():
            while not done.is_set():
                if not torch.equal(model(ids).logits, expected):
                    failed.append("another result")

    def patch():
        try:
            for _ in range(5):
                with rope_ext.patched(attention):
                    pass
        except Exception as error:
            failed.append(error)

    runners, patchers = ([threading.Thread(target=f) for _ in range(2)] for f in (run, patch))
    for thread in runners + patchers:
        thread.start()
    for thread in patchers:
        thread.join()
    done.set()
    for thread in runners:
        thread.join()
    assert not failed


# ---- copies ----


def test_copies():
    """state_dict, deepcopy and pickle see the model as if it were not patched."""
    model, ids = built(), tokens()
    expected, weights, pickled = model(ids).logits, model.state_dict(), pickle.dumps(model)
    with rope_ext.patched(model):
        assert list(model.state_dict()) == list(weights)
        assert pickle.dumps(model) == pickled
        twin, again = copy.deepcopy(model), pickle.loads(pickled)
        for other in (twin, again):
            assert_same_bits(other(ids).logits, expected)
            with pytest.raises(ValueError, match="must be patched"):
                rope_ext.unpatch(other)
    assert_same_bits(twin(ids).logits, expected)
    assert_same_bits(again(ids).logits, expected)


# ---- where rope_ext has no kernel ----


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on a device without kernels."""

    device = property(lambda self: torch.device("xpu"))


@cpu
def test_device_without_kernels():
    """On such a device the function of the model itself runs."""
    model = built()
    table = torch.randn(1, 5, 8)
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    expected = function(model)(q, k, table, table)
    with rope_ext.patched(model), rotations() as calls:
        assert_same_bits(function(model)(q.as_subclass(Elsewhere), k.as_subclass(Elsewhere), table, table), expected)
        assert len(calls) == 0
        assert_same_bits(function(model)(q, k, table, table), expected)
        assert len(calls) == 1


@cpu
def test_meta():
    model = built().to("meta")
    with rope_ext.patched(model):
        assert model(tokens().to("meta")).logits.shape == (2, 7, 64)


@cpu
def test_calls_that_apply_refuses_go_to_the_original_function():
    """Shapes that broadcast in another way give the results of the original function, or its errors word for word."""
    model = built()
    original, q, k = function(model), torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    for table in (torch.randn(5), torch.randn(1, 5, 1), torch.randn(1, 1, 8), torch.randn(1, 3, 8)):
        results = []
        for f in (original, None):
            with rope_ext.patched(model):
                try:
                    results.append((f or function(model))(q, k, table, table))
                except Exception as error:
                    results.append((type(error), str(error)))
        eager, patched = results
        if isinstance(eager[0], torch.Tensor):
            assert_same_bits(patched, eager)
        else:
            assert patched == eager
