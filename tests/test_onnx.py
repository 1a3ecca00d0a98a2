"""rope_ext.onnx: models that call rope_ext in ONNX Runtime, with the numbers of the calls.

Bounds, of the largest |x| in float32: a product and a sum that ONNX Runtime fuses lose up to 2^-23 |x1| and 2^-23 |x2|;
a norm of x has another order of its sum, 2^-21 of a head of 16; cos and sin of inv_freq differ by 1.8e-7. float64 is
computed as in PyTorch, but for the order of the norm. x of 16 bits is rounded once: another last bit where the float32
value was at the edge. Products that are rounded to 16 bits cannot be fused: their forms have the bits of the calls.
"""

import contextlib
import importlib.util
import logging
import subprocess
import sys

import pytest
import torch

import rope_ext
from rope_ext._torch import flags
from rope_ext._torch.library import torch_ops
from tests.conftest import random
from tests.deployed_forms import (
    COS,
    FORMS,
    HEAD_DIM,
    REFUSED,
    SIN,
    WEIGHT,
    AllForms,
    by_form,
    decomposed,
    inputs,
    run_onnx,
    to_onnx,
)

pytestmark = [pytest.mark.devices("cpu"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SIZES = {0: "batch", 1: "seqlen"}
RATES = rope_ext.angles.revolutions(random((4,), torch.float64))[:2]
NAMES = ("custom_translation_table=rope_ext.onnx.translation_table()", "rope_ext: ")

# Forms that ONNX's RotaryEmbedding cannot say. table per head, bhsd has one head.
COMPOSED = {
    *("table per channel", "table per channel, interleaved", "table per token, equal halves, interleaved"),
    *("table per head", "inv_freq per head"),
    *(name for name in FORMS if "float64" in name or "eager" in name),
}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(4)


def bound(form, x):
    if form.endswith("16, eager"):
        return 0
    largest = max(float(t.abs().max()) for t in x[:2])
    for dtype, unit in (("bfloat16", 2**-8), ("float16", 2**-11)):
        if dtype in form:
            return unit * 4 * largest
    if "float64" in form:
        return 8.4e-15 * largest
    unit = 2.7e-7 if any(word in form for word in ("inv_freq", "rope.apply", "scaling", "token")) else 2**-22
    return (unit + 2**-21 * ("norm" in form)) * 2 * largest


@pytest.fixture(scope="module")
def exported():
    """{opset: (program, [(x, what the calls return, what ONNX Runtime returns)])}."""
    model, found = AllForms().eval(), {}
    for opset, sizes in ((23, SIZES), (20, None)):
        program = to_onnx(model, inputs(), opset_version=opset, optimize=False, dynamic_shapes=sizes and (sizes,) * 3)
        given = (inputs(), inputs(3, 12)) if sizes else (inputs(),)
        with torch.no_grad():
            found[opset] = program, [(x, model(*x), run_onnx(program, x)) for x in given]
    return found


@pytest.mark.parametrize("opset", [23, 20])
@pytest.mark.parametrize("form", FORMS)
def test_numbers(exported, form, opset):
    for x, called, found in exported[opset][1]:
        for a, b in zip(by_form(found)[form], called[list(FORMS).index(form)]):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert (a - b).abs().max() <= bound(form, x)


def test_operators(exported):
    """RotaryEmbedding for every form that it can say, in opset 23; no operator of another domain."""
    for opset, (program, _) in exported.items():
        graph = program.model_proto.graph
        assert {node.domain for node in graph.node} == {""} and not program.model_proto.functions
        makers = {name: node for node in graph.node for name in node.output}
        rotated = set()
        for form, names in by_form(value.name for value in graph.output).items():
            ops = set()
            while names:
                if node := makers.get(names.pop()):
                    ops.add(node.op_type)
                    names += node.input
            if "RotaryEmbedding" in ops:
                rotated.add(form)
        assert rotated == (set(FORMS) - COMPOSED if opset == 23 else set())


def test_rows_outside_the_table_are_nan():
    class Model(torch.nn.Module):
        def forward(self, q, positions):
            return rope_ext.apply(q, COS, SIN, positions=positions), rope_ext.apply(q, COS, SIN, offset=positions[:, 0])

    x, inside = random((2, 3, 2, HEAD_DIM + 2), torch.float32)[..., :HEAD_DIM], torch.zeros(2, 3, dtype=torch.int64)
    outside = torch.tensor([[-1, 0, 63], [62, 64, 2**40]])
    for opset in (23, 20):
        first, second = run_onnx(to_onnx(Model(), (x, inside), opset_version=opset), (x, outside))
        assert first.isnan().all((-1, -2)).tolist() == [[True, False, False], [False, True, True]]
        assert not first[0, 1:].isnan().any() and not first[1, 0].isnan().any()
        assert second.isnan().all((-1, -2)).tolist() == [[True, False, False], [False, False, True]]


def test_one_position_for_all_tokens_is_refused():
    """As in a call. Earlier opsets broadcast it."""

    class Model(torch.nn.Module):
        def forward(self, q, positions):
            return rope_ext.apply(q, COS, SIN, positions=positions)

    q, _, positions = inputs()
    program = to_onnx(Model(), (q, positions), opset_version=23, dynamic_shapes=(SIZES, {0: "b", 1: "s"}))
    run_onnx(program, (q, positions))
    with pytest.raises(Exception, match="position_ids"):
        run_onnx(program, (q, positions[:, :1]))


@pytest.mark.parametrize("opset", [23, 20])
def test_no_tokens(opset):
    class Model(torch.nn.Module):
        def forward(self, q):
            return rope_ext.apply(q, COS, SIN, interleaved=True)

    q, _, _ = inputs()
    program = to_onnx(Model(), (q,), opset_version=opset, dynamic_shapes=({1: torch.export.Dim("s", min=0)},))
    (found,) = run_onnx(program, (q[:, :0],))
    assert found.shape == (2, 0, 4, HEAD_DIM)


def test_offsets_meet_float_positions_as_one_number():
    """Each sum of float32 rounds: positions + (offsets + offset), as in the op."""

    class Model(torch.nn.Module):
        def forward(self, x, positions, offsets):
            return torch_ops.cos_sin([x], *RATES, 77_777, flags.FREQUENCIES, None, 0, 1.0, positions, offsets)

    x = random((2, 64, 1, 8), torch.float32), random((2, 64), torch.float32) * 1000, torch.tensor([-77_700, 7])
    (_, _, found), (_, _, wanted) = run_onnx(to_onnx(Model(), x), x), Model()(*x)
    assert torch.equal(found, wanted)


# ---- errors ----


class Rotation(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return rope_ext.apply(x, COS, SIN, **self.options)


X = random((2, 3, 2, HEAD_DIM), torch.float32)


@pytest.mark.parametrize("table", [None, {}])
@pytest.mark.parametrize("as_program", [False, True])
def test_error_without_the_table(as_program, table):
    model = torch.export.export(Rotation(), (X,)) if as_program else Rotation()
    with pytest.raises(Exception) as info:
        to_onnx(model, (X,), custom_translation_table=table)
    assert all(name in str(info.value) for name in NAMES)


@pytest.mark.parametrize("table", [None, rope_ext.onnx.translation_table()])
def test_a_wrapper_in_the_place_of_the_exporter(monkeypatch, table):
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **options: export(*given, **options))
    with contextlib.nullcontext() if table else pytest.raises(Exception, match=NAMES[1]):
        to_onnx(Rotation(), (X,), custom_translation_table=table)


@pytest.mark.parametrize("options", [{}, {"norm": WEIGHT, "eps": 1e-6}])
def test_error_of_the_exporter_with_torchscript(options, tmp_path):
    with pytest.raises(rope_ext.ArgumentError, match=r"^rope_ext: dynamo must be True .* got False: ") as info:
        torch.onnx.export(Rotation(**options), (X,), tmp_path / "x.onnx", dynamo=False)
    assert NAMES[0] in str(info.value)


@pytest.mark.parametrize("message", REFUSED)
def test_calls_that_apply_refuses(message):
    class Model(torch.nn.Module):
        def forward(self, q, k, positions):
            return REFUSED[message](q, k, positions)

    with pytest.raises(Exception, match=f"rope_ext: {message}"):
        to_onnx(Model(), inputs(), dynamic_shapes=(SIZES,) * 3)


def test_error_of_ops_of_derivatives():
    table = rope_ext.onnx.translation_table()
    assert set(table) == set(rope_ext.export.decompositions())
    with pytest.raises(NotImplementedError, match=r"^rope_ext: .* table_grad .*rope_ext\.export\.decompositions\(\)"):
        table[torch_ops.table_grad.default](None, None, None, None)


def test_error_of_a_translation_outside_an_export():
    with pytest.raises(rope_ext.ArgumentError, match=r"^rope_ext: custom_.* of torch 2\.11 to 2\.15, got .* torch 2"):
        rope_ext.onnx.translation_table()[torch_ops.rotate.default]([X], COS, SIN, 0, 0, None, 0, 1.0)


def test_a_decomposed_program_needs_no_table():
    program = decomposed(torch.export.export(Rotation(), (X,)))
    (found,) = run_onnx(to_onnx(program, (X,), custom_translation_table=None), (X,))
    torch.testing.assert_close(found, Rotation()(X), rtol=0, atol=bound("", (X, X)))


def test_error_without_onnxscript(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(
        ImportError, match=r"^rope_ext: onnxscript must be installed, got .*: pip install onnx onnxscript$"
    ):
        rope_ext.onnx.translation_table()


def test_import_needs_torch_alone():
    program = "import sys, rope_ext; print({'onnx', 'onnxscript', 'onnx_ir'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout == "set()\n"


# ---- patched models ----


def test_patched_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(0)
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(64, (2, 7))

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits

    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with rope_ext.patched(model):
        for options, rotated in (({"opset_version": 23}, 2), ({"custom_translation_table": None}, 0)):
            program = to_onnx(Logits(), (ids,), **options)
            assert [node.op_type for node in program.model_proto.graph.node].count("RotaryEmbedding") == rotated
            (found,) = run_onnx(program, (ids,))
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # logits below 1, of sums in another order
