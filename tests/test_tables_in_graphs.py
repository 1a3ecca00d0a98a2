"""`RotaryEmbedding.tables` and `.apply` inside torch.compile and torch.export: constants of the graph."""

import io
import warnings

import pytest
import torch

import rope_ext
from tests.conftest import assert_same_bits

DYNAMIC = {"schedule": "dynamic_ntk", "factor": 2.0, "max_position": 40}
X = torch.randn(2, 9, 3, 16, generator=torch.Generator().manual_seed(0))


class Counting:
    """A backend that keeps its graphs."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph

    def ops(self):
        """Names of the ops of the last graph, without those that only take a tuple or a tensor apart."""
        names = [
            str(getattr(n.target, "__name__", n.target)) for n in self.graphs[-1].graph.nodes if n.op[:4] == "call"
        ]
        return [name.removeprefix("rope_ext.") for name in names if name not in ("getitem", "narrow", "empty")]


def compiled(function, **options):
    torch.compiler.reset()
    backend = Counting()
    return torch.compile(function, fullgraph=True, backend=backend, **options), backend


@pytest.mark.parametrize(
    "function",
    [
        lambda rope, x: rope_ext.apply(x, *rope.tables(512)),
        lambda rope, x: rope_ext.apply(x, *rope.tables(x.shape[1])),
        lambda rope, x: rope.apply(x),
        lambda rope, x: rope.apply(x, offset=5, inverse=True),
    ],
)
def test_nothing_is_computed_in_the_graph(function):
    """One op, for every length and every equal rotation: the first graph is of one length, the second of all."""
    call, backend = compiled(function)
    for seqlen in (9, 10, 300, 11, 40):
        rope, x = rope_ext.RotaryEmbedding(16, base=4321.0), torch.randn(2, seqlen, 3, 16)
        assert_same_bits(call(rope, x), function(rope, x))
        assert backend.ops() == ["rotate.default"]
    assert len(backend.graphs) == 2


def test_a_longer_sequence_compiles_once_more():
    rope = rope_ext.RotaryEmbedding(16, base=4322.0)

    def function(x):
        return rope_ext.apply(x, *rope.tables(x.shape[1]))

    call, backend = compiled(function, dynamic=True)
    for seqlen in (9, 4096, 4097, 20_000, 5, 32_768):
        x = torch.randn(2, seqlen, 1, 16)
        assert_same_bits(call(x), function(x))
    assert len(backend.graphs) == 2


def test_a_length_that_decides_the_frequencies():
    rope = rope_ext.RotaryEmbedding(16, **DYNAMIC)

    def static(x):
        return rope_ext.apply(rope.apply(x, seqlen=100), *rope.tables(100))

    def symbolic(x):
        return rope_ext.apply(rope.apply(x, seqlen=x.shape[1]), *rope.tables(x.shape[1]))

    call, backend = compiled(static)
    assert_same_bits(call(X), static(X))
    assert backend.ops() == ["rotate.default"] * 2
    call, backend = compiled(symbolic, dynamic=True)
    for seqlen in (10, 20, 40, 41, 50, 90):
        x = torch.randn(2, seqlen, 1, 16)
        assert_same_bits(call(x), symbolic(x))
    assert len(backend.graphs) == 2  # within the training, and beyond


class Program(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call, self.rope = call, rope_ext.RotaryEmbedding(16, base=4323.0)

    def forward(self, x):
        return self.call(self.rope, x)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("call", "warns"),
    [
        (lambda rope, x: rope_ext.apply(x, *rope.tables(64)), False),
        (lambda rope, x: rope.apply(x), False),
        (lambda rope, x: rope_ext.apply(x, *rope.tables(x.shape[1])), True),
    ],
)
def test_an_exported_program(call, warns, strict):
    """A table is a constant of the program, saved with the rows that were asked for, unless its length is symbolic."""
    rope_ext.RotaryEmbedding(16, base=4323.0).tables(100_000)
    model, seqlen = Program(call), torch.export.Dim("seqlen", min=2, max=50_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.export.export(model, (X,), dynamic_shapes={"x": {1: seqlen}}, strict=strict)
    about_us = [w for w in caught if "rope_ext" in str(w.message)]
    if not strict:  # else the frames are those of dynamo, which traces the call
        assert all(w.filename == __file__ for w in about_us)
    said = [str(w.message) for w in about_us]
    rule = (
        "rope_ext: max_position must be an int in torch.export for tables that are a constant of the program, got a sym"
    )
    assert [text[: len(rule)] for text in said] == [rule] * warns
    file = io.BytesIO()
    torch.export.save(program, file)
    assert len(file.getvalue()) < 300_000
    file.seek(0)
    for x in (X, torch.randn(2, 50, 3, 16)):
        assert_same_bits(torch.export.load(file).module()(x), model(x))
        file.seek(0)
    if not warns:
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not any(made in target for target in targets for made in ("arange", "cos_sin", "pow"))


def test_a_graph_outlives_the_tables_that_it_reads():
    rope = rope_ext.RotaryEmbedding(16, base=4324.0)

    def function(x):
        return rope_ext.apply(rope.apply(x), *rope.tables(x.shape[1]))

    call, backend = compiled(function)
    expected = call(X)
    rope.tables(5)[0].zero_()
    assert_same_bits(call(X), expected)
    for _ in range(10):  # more often than dynamo would compile the function again
        rope_ext.clear_tables()
        rope_ext.RotaryEmbedding(16, base=4325.0).tables(9)
        assert_same_bits(call(X), expected)
    assert len(backend.graphs) == 1
