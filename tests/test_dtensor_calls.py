"""DTensors: derivatives of higher order, graphs, errors, packed projections, and processes outside a mesh."""

import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

import rope_ext
from tests import dtensor_calls as calls

pytestmark = pytest.mark.devices("cpu")
FORMS = ["x", "table", "rows", "rows of heads", "part", "frequencies", "norm", "norm, table"]


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Shard(2), Replicate()], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives(ranks, name, placement):
    bound = 500**2 * 100 * torch.finfo(torch.float64).eps  # of sums of some 500 terms below 100, in two orders
    differences = ranks.run(calls.second_derivatives, name, placement)
    assert all(difference <= bound for difference in differences), differences


@pytest.mark.parametrize("name, placement", [("x", Shard(1)), ("x", Shard(3)), ("table", Shard(1)), ("rows", Shard(0))])
def test_forward_mode_where_torch_makes_dual_numbers_of_dtensors(ranks, name, placement):
    assert all(ranks.run(calls.forward_mode, name, placement))


@pytest.mark.parametrize("name, dynamic", [("table", None), ("frequencies", None), ("norm", True), ("in place", False)])
def test_one_compiled_function_for_all_placements_and_offsets(ranks, name, dynamic):
    assert ranks.run(calls.compiled, name, dynamic) == [[]] * 4


ERRORS = {
    "short table": "ArgumentError: rope_ext: cos must have a row for each of the 7 tokens of x, got 6 rows",
    "short table in a graph": ".* cos must have a row for each of the 7 tokens of x from offset 0, got 6 rows",
    "positions of a rank": r"ArgumentError: .* positions must have shape .*: beside a DTensor x, positions are for all 8",
    "rows of a rank": "ArgumentError: .* cos must have batch 1 or 2 and seqlen 8.*: beside a DTensor x, cos are for all 8",
    "rows in a graph": ".* cos must have size 7 on axis 1, as x has",
    "row of the last rank": "ArgumentError: .* positions must index rows 0 to 11 of the table, got row 12 for token 6",
    "rows": "ArgumentError: .* cos must have batch 1 or 2 and seqlen 7, those of x",
    "seqlen": r"ArgumentError: .* positions must have shape \(7,\) or \(2, 7\), got \(6,\)",
    "cu_seqlens": "ArgumentError: .* cu_seqlens must end within the 7 tokens of x, got 9",
    "dimensions": "ArgumentError: .* x must have 3 dimensions for layout 'thd'",
    "tensor in x": "ArgumentTypeError: .* x must be a DTensor when another tensor of x is one, got a Tensor",
    "tensor as out": "ArgumentTypeError: .* out must be a DTensor when x is one, got a Tensor",
    "shape of out": r"ArgumentError: .* out must have the shape and dtype of x, \(2, 7, 4, 8\)",
    "partial x": "ArgumentError: .* x must not be Partial when it is written.* x.redistribute",
    "partial out": "ArgumentError: .* out must not be Partial when it is written.* out.redistribute",
    "learned table": r"ArgumentError: .* cos must be a DTensor when it requires grad.* DTensor.from_local\(cos, mesh\)",
    "learned rows": "ArgumentError: .* cos must be a DTensor when it requires grad",
    "learned inv_freq": "ArgumentError: .* inv_freq must be a DTensor when it requires grad",
    "learned norm": "ArgumentError: .* norm must be a DTensor when it requires grad",
    "positions of cos_sin": r"ArgumentTypeError: .* positions must be a Tensor, got a DTensor: use positions.to_local\(\)",
    "two meshes": "ArgumentError: .* x must be on one mesh",
    "mesh of a table": "ArgumentError: .* cos must be on the mesh of x",
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_rank_raises_the_same_error_and_writes_nothing(ranks, name):
    (text, is_unchanged), *others = ranks.run(calls.refused, name)
    assert others == [(text, is_unchanged)] * 3
    assert re.match(ERRORS[name], text) and is_unchanged


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Shard(2), Replicate()], ids=str)
@pytest.mark.parametrize(
    "shape, grouped", [((2, 7, 64), False), ((2, 7, 64), True), ((2, 7, 8, 8), False), ((2, 7, 2, 4, 8), True)]
)
def test_packed_projections(ranks, shape, grouped, placement):
    for are_equal, in_place in ranks.run(calls.packed, shape, grouped, placement):
        assert are_equal
        if placement == Shard(2) and not grouped:  # heads of q and of k are on other ranks than a view could have
            assert re.match(
                "rope_ext: qkv must be whole along the heads when it is written, or sharded by whole groups", in_place
            )
        else:
            assert in_place is True


def test_tables_and_positions_sharded_as_x_communicate_nothing(ranks):
    assert ranks.run(calls.shared_rows) == [0] * 4


def test_shards_in_another_order_are_refused(ranks):
    spec = pytest.importorskip("torch.distributed.tensor._dtensor_spec")
    if not hasattr(spec, "ShardOrderEntry"):
        pytest.skip("torch has no order of shards")
    for error in ranks.run(calls.another_order):
        assert re.match("rope_ext: x must be sharded by the dimensions of the mesh from the first to the last", error)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shards_of_fsdp_and_tensor_parallelism(ranks, axis):
    assert all(ranks.run(calls.strided, axis))


def test_tensors_of_many_placements(ranks):
    assert all(ranks.run(calls.several))


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Shard(2)], ids=str)
def test_strides_of_a_transposed_x(ranks, placement):
    assert all(ranks.run(calls.strides, placement))


def test_parameters_that_are_plain_tensors_get_the_whole_gradient(ranks):
    for shared, alone in ranks.run(calls.local_parameters):
        for got, expected in zip(shared, alone):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_processes_outside_the_mesh(ranks):
    shapes = (2, 7, 4, 8), (2, 7, 4, 8)
    assert ranks.run(calls.outside) == [(*shapes, True), (*shapes, True), (*shapes, False), (*shapes, False)]


def test_collectives_under_way(ranks):
    assert all(ranks.run(calls.waits))


@pytest.mark.parametrize("precision", ["exact", "hf"])
@pytest.mark.parametrize("placement", [Shard(1), Shard(3)], ids=str)
def test_rotary_embedding(ranks, precision, placement):
    assert all(ranks.run(calls.of_module, precision, placement))


@pytest.mark.parametrize("placement", [Shard(1), Shard(2)], ids=str)
def test_patched_model(ranks, placement):
    pytest.importorskip("transformers")
    assert all(ranks.run(calls.of_patched_model, placement))


FIRST_CALLS = """
    import os, sys, time
    from concurrent.futures import ThreadPoolExecutor
    import torch, rope_ext
    assert "torch.distributed.tensor" not in sys.modules
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
    mesh = init_device_mesh("cpu", (1,))
    rope_ext.apply(torch.randn(1, 4, 2, 8), *rope_ext.RotaryEmbedding(8).tables(4))
    assert "rope_ext._torch.dtensor_rules" not in sys.modules
    x = distribute_tensor(torch.randn(1, 4, 2, 8), mesh, [Shard(1)])
    weight, learned = (distribute_tensor(torch.ones(8), mesh, [Replicate()]) for _ in range(2))
    cos, sin = rope_ext.RotaryEmbedding(8).tables(4)
    rows = [distribute_tensor(t, mesh, [Replicate()]).requires_grad_() for t in (cos, sin)]
    graph = torch.compile(rope_ext.apply, fullgraph=True, backend="eager")

    def late(i):
        time.sleep(3e-4 * i)  # while another thread registers the rules
        return rope_ext.apply(x, cos, sin)

    calls = {
        "apply": lambda: rope_ext.apply(x, cos, sin),
        "apply_": lambda: rope_ext.apply_(x, cos, sin),
        "out": lambda: rope_ext.apply(x, cos, sin, out=x),
        "recorded": lambda: rope_ext.apply(x.requires_grad_(), cos, sin),
        "table": lambda: rope_ext.apply(x, *rows),
        "norm": lambda: rope_ext.apply(x, cos, sin, norm=weight, eps=1e-6),
        "inference": lambda: torch.inference_mode()(rope_ext.apply)(x.detach(), cos, sin),
        "op": lambda: torch.ops.rope_ext.rotate([x], cos, sin)[0],
        "graph": lambda: graph(x, cos, sin),
        "graph in inference mode": lambda: torch.inference_mode()(graph)(x.detach(), cos, sin),
        "threads": lambda: list(ThreadPoolExecutor(8).map(late, range(8)))[0],
    }
    for name, call in calls.items():
        child = os.fork()
        if not child:
            try:
                assert type(call()) is type(x)
            except BaseException as error:
                print(name, type(error).__name__, error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
"""


def test_any_call_may_be_the_first():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FIRST_CALLS)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_calls_while_another_thread_imports_torch_distributed_tensor(monkeypatch):
    module = "torch.distributed.tensor"
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))  # it is there before its names are
    cos, sin = (t.requires_grad_() for t in rope_ext.RotaryEmbedding(8).tables(4))
    assert rope_ext.apply(torch.ones(1, 4, 2, 8), cos, sin).requires_grad
