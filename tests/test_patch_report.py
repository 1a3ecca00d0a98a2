"""What the report of rope_ext.patch says where a model does not run the code of its classes, or hides its modules.

Every case is called, so that the number of uses is compared with what the model does.
"""

import functools
import types
import unittest.mock
import warnings
import weakref

import pytest
import torch
from torch import nn

import rope_ext
from tests import test_patch
from tests.test_patch import inputs, traced

remote = test_patch.remote

# A package that changes the modules of others: it replaces forwards, one of them rotates, and it hooks like accelerate.
FOREIGN = """
from {rotary} import apply_rotary_pos_emb

def constant(self, q, k, cos, sin):
    return q, k

def rotating(self, q, k, cos, sin):
    return apply_rotary_pos_emb(q, k, cos, sin)

def layers(self, *args):
    return self.second(*self.first(*args), *args[2:])

def hooked(module, *args):
    return module._hook.after(module._old_forward(*module._hook.before(args)))

class Hook:
    def before(self, args):
        return args

    def after(self, result):
        return result

class Wrapper:
    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)
"""


@pytest.fixture
def foreign(remote):
    """(blocks of a model, a module of another package)"""
    blocks = remote()
    text = FOREIGN.format(rotary=blocks.__name__.replace("blocks", "rotary"))
    return blocks, remote(blocks=text)


class Two(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *args):
        return self.second(*self.first(*args), *args[2:])


class Holding(nn.Module):
    """Calls what it holds, which may be no module."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, *args):
        return self.held(*args)


class HoldingMany(Holding):
    def forward(self, *args):
        values = self.held.values() if isinstance(self.held, dict) else self.held
        for block in values:
            args = (*(block[0] if isinstance(block, tuple) else block)(*args), *args[2:])
        return args[:2]


class HoldingObject(Holding):
    def forward(self, *args):
        return self.held.block(*args)


def patched_once(model):
    """The report of a model, the number of rotations in one call, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with rope_ext.patched(model) as report:
            _, ops = traced(model, *inputs())
    messages = [str(w.message) for w in caught if str(w.message).startswith("rope_ext: ")]
    assert messages == ([f"rope_ext: {report.warning}"] if report.warning else [])
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught if str(w.message) in messages)
    return report, ops.count("rope_ext.rotate.default"), messages


def with_forward(module, make):
    module.forward = make(module)
    return module


def hook(module, foreign):
    """What accelerate.hooks.add_hook_to_module does."""
    module._hook, module._old_forward = foreign.Hook(), module.forward
    module.forward = functools.update_wrapper(functools.partial(foreign.hooked, module), module._old_forward)
    return module


def compiled(module, _):
    module.compile(backend="eager")
    return module


# ---- uses that patch cannot see are unknown ----

UNSEEN = {
    "method": lambda m, f: types.MethodType(f.constant, m),
    "function": lambda m, f: lambda q, k, cos, sin: (q, k),
    "partial": lambda m, f: functools.partial(f.constant, m),
    "wraps": lambda m, f: functools.wraps(m.forward)(lambda q, k, cos, sin: (q, k)),
    "object": lambda m, f: f.Wrapper(lambda q, k, cos, sin: (q, k)),
    "compiled": lambda m, f: torch.compile(types.MethodType(f.constant, m), backend="eager"),
}


@pytest.mark.parametrize("how", UNSEEN)
def test_uses_of_a_replaced_forward_are_unknown(foreign, how):
    blocks, other = foreign
    model = Two(with_forward(blocks.Global(), lambda m: UNSEEN[how](m, other)), blocks.Global())
    report, count, messages = patched_once(model)
    assert count == 1 and not messages  # the second block is seen to use it
    assert [e.uses for e in report.replaced] == [None]
    assert "unknown uses" in str(report)
    (layer,) = report.layers
    assert layer.names == ("first",) and layer.kind == "Global" and layer.unseen
    assert layer.reason.startswith("forward is ")
    assert layer.reason.endswith("not its class's own, and no call from it to the class's own functions was found")
    assert str(layer) in str(report)


@pytest.mark.parametrize("forward", [max, map])
def test_uses_of_a_builtin_are_unknown(foreign, forward):
    model = Two(with_forward(foreign[0].Global(), lambda m: forward), foreign[0].Global())
    with rope_ext.patched(model) as report:
        assert [e.uses for e in report.replaced] == [None]
        assert report.layers[0].names == ("first",) and forward.__name__ in report.layers[0].reason


@pytest.mark.parametrize("how", UNSEEN)
def test_a_patch_that_no_call_reaches_warns(foreign, how):
    blocks, other = foreign
    model = Two(*(with_forward(blocks.Global(), lambda m: UNSEEN[how](m, other)) for _ in range(2)))
    report, count, messages = patched_once(model)
    assert count == 0 and [e.uses for e in report.replaced] == [None]
    assert "no module was found to call a replaced function: Global (first and 1 more): forward is " in messages[0]
    assert messages[0].endswith("; restore the original forward, or call rope_ext.apply instead")


def test_a_class_whose_forward_is_of_another_package(foreign):
    blocks, other = foreign
    blocks.Global.forward = other.constant
    report, count, messages = patched_once(Two(blocks.Global(), blocks.Global()))
    assert count == 0 and report.replaced == ()
    assert f"nothing was replaced: Global (first and 1 more): forward of Global is {other.__name__}.c" in messages[0]
    report, count, messages = patched_once(Two(blocks.Global(), blocks.Renamed()))
    assert count == 1 and not messages
    assert [e.uses for e in report.replaced] == [None]  # the class called the function, and its forward may yet
    assert [layer.names for layer in report.layers] == [("first",)]


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_what_runs_before_forward_counts(foreign, name):
    blocks, other = foreign
    setattr(blocks.Global, name, other.constant)
    report, count, messages = patched_once(Two(blocks.Global(), blocks.Renamed()))
    assert count == 1 and not messages and [e.uses for e in report.replaced] == [None]
    assert report.layers[0].reason.startswith(f"{name} of Global is {other.__name__}.constant")


def test_a_parent_that_does_not_call_its_layers(foreign):
    blocks, other = foreign
    model = with_forward(Two(blocks.Global(), blocks.Global()), lambda m: types.MethodType(other.constant, m))
    report, count, messages = patched_once(model)
    assert count == 0 and [e.uses for e in report.replaced] == [None]
    assert "Two (the model itself): forward is " in messages[0]
    model.forward = types.MethodType(other.layers, model)
    report, count, messages = patched_once(model)
    assert count == 2 and not messages and [e.uses for e in report.replaced] == [2]


@pytest.mark.parametrize("kind", ["Global", "Method"])
def test_methods_that_a_subclass_overrides(foreign, kind):
    blocks, _ = foreign

    class Other(getattr(blocks, kind)):
        def forward(self, q, k, cos, sin):
            return q, k

    class Same(getattr(blocks, kind)):
        def forward(self, *args):
            return super().forward(*args)

    report, count, messages = patched_once(Other())
    assert count == 0 and [e.uses for e in report.replaced] == [None] and len(messages) == 1
    assert "overrides or hides methods" in report.layers[0].reason
    report, count, messages = patched_once(Same())
    assert count == 1 and [e.uses for e in report.replaced] == [1] and not report.layers and not messages


def test_functions_held_by_an_instance_stay(foreign):
    blocks, _ = foreign
    rotate = blocks.apply_rotary_pos_emb
    for held in (functools.partial(rotate, unsqueeze_dim=1), lambda *args: rotate(*args)):
        report, count, messages = patched_once(Two(Holding(held), blocks.Global()))
        assert count == 1 and [e.uses for e in report.replaced] == [None] and not messages
        assert "Holding (first): holds apply_rotary_pos_emb where it cannot be replaced: in a closure" in str(report)
    report, count, messages = patched_once(Two(HoldingMany([rotate]), blocks.Global()))
    assert count == 1 and [e.uses for e in report.replaced] == [None] and not messages
    bound = blocks.Method()
    bound._apply_rotary_embedding = bound._apply_rotary_embedding  # the function before the patch
    report, count, messages = patched_once(bound)
    assert count == 0 and [e.uses for e in report.replaced] == [None] and len(messages) == 1
    report, count, messages = patched_once(Holding(functools.partial(rotate, unsqueeze_dim=1)))
    assert count == 0 and not report.replaced
    words = (
        "nothing was replaced: Holding (the model itself): holds apply_rotary_pos_emb where it cannot be replaced: in a"
    )
    assert words in messages[0] and messages[0].endswith("bound method; call rope_ext.apply instead")


def test_compiled_code_is_unknown(foreign):
    blocks, _ = foreign
    script = torch.jit.trace(blocks.Global(), inputs(), check_trace=False)
    graph = torch.fx.symbolic_trace(blocks.Global())
    for fixed in (script, graph):
        with rope_ext.patched(Two(blocks.Global(), fixed)) as report:
            assert [e.uses for e in report.replaced] == [None]
            assert [(layer.names, layer.unseen) for layer in report.layers] == [(("second",), True)]
        words = r"nothing was replaced: .* compiled by torch.*patch the model before it is"
        with pytest.warns(UserWarning, match=words), rope_ext.patched(fixed) as report:
            assert not report.replaced


# ---- uses behind wrappers that patch can read are counted ----


def closure(module, _):
    forward = module.forward
    return with_forward(module, lambda m: lambda *args: forward(*args))


def default(module, _):
    """A default argument holds the wrapped function, as loops bind it."""
    return with_forward(module, lambda m: lambda *args, forward=m.forward: forward(*args))


def named_class(module, _):
    kind = type(module)
    return with_forward(module, lambda m: lambda *args: kind.forward(m, *args))


WRAPPERS = {
    "hook": hook,
    "closure": closure,
    "default": default,
    "named class": named_class,
    "object": lambda m, f: with_forward(m, lambda m: f.Wrapper(m.forward)),
}
TORCH_WRAPPERS = {
    "compiled forward": lambda m, _: with_forward(m, lambda m: torch.compile(m.forward, backend="eager")),
    "compiled in place": compiled,
    "compiled": lambda m, _: torch.compile(m, backend="eager"),
    "no grad": lambda m, _: with_forward(m, lambda m: torch.no_grad()(m.forward)),
    "cache": lambda m, _: with_forward(m, lambda m: functools.lru_cache(m.forward)),
}


@pytest.mark.parametrize("how", [*WRAPPERS, *TORCH_WRAPPERS])
def test_wrappers_that_lead_to_the_function(foreign, how):
    """Around a layer, and around its parent too: a wrapper that shows what it calls takes nothing from the count."""
    blocks, other = foreign
    wrap = (WRAPPERS | TORCH_WRAPPERS)[how]
    torch._dynamo.reset()
    report, count, messages = patched_once(wrap(Two(wrap(blocks.Global(), other), blocks.Renamed()), other))
    assert count == 2 and [e.uses for e in report.replaced] == [2] and not messages
    named = [layer for layer in report.layers if layer.kind == "Global"]
    assert len(named) == (how in WRAPPERS)
    assert all("calls the code of its class" in layer.reason and not layer.unseen for layer in report.layers)


def test_a_forward_that_cannot_be_read_may_call_the_function(foreign):
    """The function is replaced in the other package, where that code finds it."""
    blocks, other = foreign
    first = with_forward(blocks.Static(), lambda m: types.MethodType(other.rotating, m))
    blocks.Global.forward = other.rotating
    report, count, messages = patched_once(Two(first, blocks.Global()))
    assert count == 2 and not messages
    uses = {e.name.rpartition(".")[2]: e.uses for e in report.replaced}
    assert uses == {"apply_rotary_pos_emb": 2, "apply_rotary_position_embeddings": None}
    assert any("and reaches apply_rotary_pos_emb" in layer.reason for layer in report.layers)


# ---- modules that model.modules() does not list ----

HIDDEN = {
    "list": (lambda b: HoldingMany([b.Global(), b.Renamed()]), 2, "held[0]"),
    "tuple in dict": (lambda b: HoldingMany({"x": (b.Global(),)}), 1, "held['x'][0]"),
    "closure": (lambda b: Holding((lambda m: lambda *args: m(*args))(b.Global())), 1, "m"),
    "bound method": (lambda b: Holding(b.Global().forward), 1, "held"),
    "partial": (lambda b: Holding(functools.partial(b.Global())), 1, "held.func"),
    "namespace": (lambda b: HoldingObject(types.SimpleNamespace(block=b.Global())), 1, "held.block"),
    "list in a hidden model": (lambda b: HoldingMany([HoldingMany([b.Global()])]), 1, "held[0].held[0]"),
}


@pytest.mark.parametrize("how", HIDDEN)
def test_hidden_modules_are_found_and_named(foreign, how):
    make, uses, name = HIDDEN[how]
    report, count, messages = patched_once(nn.Sequential(make(foreign[0]))[0])
    assert count == uses and [e.uses for e in report.replaced] == [uses] and not messages
    assert any(layer.names[0].endswith(name) and "not registered" in layer.reason for layer in report.layers)


def test_a_model_held_by_the_forward_of_a_class_is_found(foreign):
    inner = foreign[0].Global()

    class Outer(nn.Module):
        def forward(self, *args):
            return inner(*args)

    report, count, messages = patched_once(Outer())
    assert count == 1 and [e.uses for e in report.replaced] == [1] and not messages
    assert report.layers[0].names == (
        "test_a_model_held_by_the_forward_of_a_class_is_found.<locals>.Outer.forward.inner",
    )


def test_what_objects_hold_is_read_to_a_bounded_depth():
    """Rings, long chains, and objects to which there is no weak reference: nothing is found, and nothing raised."""

    class Strange(int):
        def __call__(self, *args):
            return args

    ring = [Strange(1)]
    ring += [ring, Strange(2).__call__]
    nested, chain = [], types.SimpleNamespace()
    for _ in range(5000):
        nested, chain = [nested], types.SimpleNamespace(block=chain)
    for held in (ring, nested, chain, Strange(3), {"x": ring}):
        for model in (HoldingObject(held), with_forward(Holding(held), lambda m: m.held)):
            with pytest.warns(UserWarning, match="nothing was replaced"):
                rope_ext.patch(model)
            rope_ext.unpatch(model)


def test_containers_that_no_code_names_stay_closed(foreign):
    class Counted(list):
        opened = 0

        def __iter__(self):
            Counted.opened += 1
            return super().__iter__()

    model = foreign[0].Global()
    model.vocabulary = Counted([(1, "a")])
    report, count, messages = patched_once(model)
    assert count == 1 and [e.uses for e in report.replaced] == [1] and not report.layers and not messages
    assert not Counted.opened


LONG = {  # -> whether all is known that may be called
    "block beyond": (lambda block: [*range(2000), block], False),
    "tuples": (lambda block: {i: (i, str(i)) for i in range(2000)}, False),
    "many in many": (lambda block: [[[], []] for _ in range(900)], False),
    "numbers beyond": (lambda block: [block, *range(2000)], True),
    "numbers in a dict": (lambda block: {"sizes": dict.fromkeys(range(2000), 1.0), "blocks": (block,)}, True),
}


@pytest.mark.parametrize("how", LONG)
def test_what_long_containers_hold_is_unknown(foreign, how):
    """Two blocks are called where both are seen; else there is no number, and a line says why."""
    make, known = LONG[how]
    blocks, _ = foreign
    with rope_ext.patched(Two(blocks.Global(), HoldingMany(make(blocks.Renamed())))) as report:
        assert [e.uses for e in report.replaced] == [2 if known else None] and not report.warning
    lines = [str(layer) for layer in report.layers if layer.unseen]
    assert len(lines) == (not known)
    assert all(line.startswith("HoldingMany (second): held") for line in lines)
    assert all(line.endswith("was not read in full: more than 1000 items, or an object that raises") for line in lines)


class Gone:
    def __call__(self, *args):
        return args


class Raises:
    """Stands for a helper that loads itself when it is first used."""

    def __call__(self, *args):
        return args

    def __getattr__(self, name):
        raise RuntimeError(name)


class RaisesSlots(Raises):
    __slots__ = ()


class NoDict(Gone):
    @property
    def __dict__(self):
        raise RuntimeError("__dict__")


class NoClass(Gone):
    @property
    def __class__(self):
        raise RuntimeError("__class__")


class NoItems(list):
    def __iter__(self):
        raise RuntimeError("__iter__")


class NoKey(Gone):
    def __repr__(self):
        raise RuntimeError("__repr__")


ODD = {  # -> whether all is known that may be called
    "gone": (lambda: weakref.proxy(Gone()), False),
    "gone, in a list": (lambda: [weakref.proxy(Gone())], False),
    "raises": (Raises, True),
    "slots": (RaisesSlots, True),
    "mock": (lambda: unittest.mock.Mock(spec=nn.Linear), True),
    "no class": (NoClass, False),
    "no dict": (NoDict, False),
    "no items": (NoItems, False),
    "no key": (lambda: {NoKey(): []}, False),
}


@pytest.mark.parametrize("how", ODD)
def test_values_that_raise_when_read_do_no_harm(foreign, how):
    """No error where no code names them, or where they are an attribute, a default, a global, or a forward."""
    make, known = ODD[how]
    blocks, _ = foreign
    held, unnamed, named = make(), blocks.Renamed(), HoldingMany(None)
    vars(unnamed)["held"] = vars(named)["held"] = held  # torch asks too what it sets, which may be gone later only
    with rope_ext.patched(unnamed) as report:
        assert [e.uses for e in report.replaced] == [1] and not report.layers
    with rope_ext.patched(Two(unnamed, named)) as report:
        assert [e.uses for e in report.replaced] == [1 if known else None] and not report.warning
        lines = [str(layer) for layer in report.layers if "or an object that raises" in layer.reason]
        assert len(lines) == (not known) and all(line.startswith("HoldingMany (second): held") for line in lines)
    with rope_ext.patched(
        with_forward(blocks.Global(), lambda m: lambda *args, f=m.forward, h=held: f(*args))
    ) as report:
        assert [e.uses for e in report.replaced] == [1 if known else None] and not report.warning
    vars(blocks)["through"] = held
    for model in (blocks.Indirect(), blocks.Global()):
        vars(model)["forward"] = held if isinstance(model, blocks.Global) else model.forward
        with rope_ext.patched(Two(blocks.Renamed(), model)) as report:
            assert [e.uses for e in report.replaced] in ([1], [None]) and not report.warning


def test_a_reference_is_no_call(foreign):
    """A submodule that knows its parent, or one that it never calls, is no use of the parent."""
    blocks, _ = foreign
    model = Two(blocks.Global(), blocks.Renamed())
    model.first.parent = [model]
    report, count, messages = patched_once(model.first)
    assert count == 1 and [e.uses for e in report.replaced] == [1] and not report.layers and not messages


NAMED_TWICE = """
model = Global()

class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(8, 8)

    def forward(self, q, k, cos, sin):
        return self.model(q), k

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn = [Global()]

    def forward(self, q, k, cos, sin):
        return turn(q, k, cos, sin)
"""


def test_an_attribute_is_no_global_of_its_name(remote):
    """A global is not an attribute of its name: `model` is both in the first block, `turn` in the second, and one is called."""
    blocks = remote(blocks=test_patch.BLOCKS + NAMED_TWICE)
    before = blocks.apply_rotary_pos_emb
    report, count, messages = patched_once(blocks.Wrapper())
    assert count == 0 and not report.replaced and not report.layers and len(messages) == 1
    assert blocks.apply_rotary_pos_emb is before
    report, count, messages = patched_once(blocks.Other())
    assert count == 1 and [e.uses for e in report.replaced] == [1] and not report.layers and not messages


# ---- nothing was replaced ----


def test_nothing_replaced_says_why(remote):
    unknown, inexact = remote(test_patch.UNKNOWN).Global(), remote().Complex()
    for model, words in (
        (unknown, r"apply_rotary_pos_emb was left alone \(unknown source: not .*\); call rope_ext.apply or"),
        (inexact, "rounding='once' also replaces functions that are equal up to one rounding"),
        (
            nn.Linear(2, 2),
            "no code that was found to run in the model .*BERT, has none.*; patch the model that has",
        ),
    ):
        with pytest.warns(UserWarning, match=f"^rope_ext: nothing was replaced: .*{words}") as caught:
            report = rope_ext.patch(model)
        rope_ext.unpatch(model)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert report.warning in str(report).splitlines()


def test_a_warning_that_is_an_error_changes_nothing(foreign):
    blocks, other = foreign
    model = with_forward(blocks.Global(), lambda m: types.MethodType(other.constant, m))
    before = test_patch.places(blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (rope_ext.patch, lambda m: rope_ext.patched(m).__enter__()):
            with pytest.raises(UserWarning, match=r"^rope_ext: no module was found to call"):
                call(model)
    assert test_patch.unchanged(before, test_patch.places(blocks))
    with pytest.raises(ValueError, match="must be patched"):
        rope_ext.unpatch(model)


def test_ordinary_models_of_transformers_do_not_warn():
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    for family in ("llama", "qwen3", "gpt_neox"):
        config = transformers.AutoConfig.for_model(family, **sizes, intermediate_size=32)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with rope_ext.patched(model) as report:
                assert [e.uses for e in report.replaced] == [3] and not report.layers and not report.warning
        name = "gpt_neox.layers.1.attention" if family == "gpt_neox" else "model.layers.1.self_attn"
        attention = model.get_submodule(name)
        attention.forward = types.MethodType(lambda self, x, **more: (x, None), attention)
        with rope_ext.patched(model) as report:
            assert [e.uses for e in report.replaced] == [None] and not report.warning
            assert [layer.names for layer in report.layers] == [(name,)]
