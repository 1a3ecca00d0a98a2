"""rope_ext.distributed: which tokens a rank of context parallelism holds; and the debug mode that misses positions."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import rope_ext
from rope_ext import _debug_modes
from rope_ext.distributed import ORDERS, context_parallel_order, context_parallel_positions
from tests.conftest import assert_same_bits, random

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
HEAD_TAIL = {"order": "head_tail"}


def positions_of_all(seqlen, world_size, **options):
    return [context_parallel_positions(seqlen, rank=r, world_size=world_size, **options) for r in range(world_size)]


def listed(tensors):
    return [t.tolist() for t in tensors]


# ---- numbers worked out by hand ----


def test_contiguous_chunks_may_be_uneven_and_empty():
    assert listed(positions_of_all(5, 4)) == [[0, 1], [2, 3], [4], []]
    assert listed(positions_of_all(0, 2)) == [[], []]
    assert context_parallel_positions(5, rank=1, world_size=4).dtype == torch.int64


def test_head_tail_is_the_zigzag():
    assert listed(positions_of_all(8, 2, **HEAD_TAIL)) == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert listed(positions_of_all(6, 3, **HEAD_TAIL)) == [[0, 5], [1, 4], [2, 3]]
    assert listed(positions_of_all(4, 1, **HEAD_TAIL)) == [[0, 1, 2, 3]]
    assert listed(positions_of_all(0, 2, **HEAD_TAIL)) == [[], []]


def test_packed_sequences_of_head_tail_are_divided_each():
    """As the comments of thd_get_partitioned_indices (Transformer Engine) define it."""
    boundaries = torch.tensor([0, 4, 4, 12], dtype=torch.int32)
    packed = {**HEAD_TAIL, "cu_seqlens": boundaries}
    assert listed(positions_of_all(12, 2, **packed)) == [[0, 3, 0, 1, 6, 7], [1, 2, 2, 3, 4, 5]]
    permutation, inverse = context_parallel_order(12, world_size=2, **packed)
    assert permutation.tolist() == [0, 3, 4, 5, 10, 11, 1, 2, 6, 7, 8, 9]
    assert inverse.tolist() == [0, 6, 7, 1, 2, 3, 8, 9, 10, 11, 4, 5]


def test_packed_sequences_of_contiguous_are_divided_as_one():
    boundaries = torch.tensor([0, 3, 8])
    assert listed(positions_of_all(8, 3, cu_seqlens=boundaries)) == [[0, 1, 2], [0, 1, 2], [3, 4]]
    assert listed(positions_of_all(0, 2, cu_seqlens=torch.tensor([0]))) == [[], []]


# ---- order and positions against the definition, and against torch ----

WORLDS = [1, 2, 3, 4]
LENGTHS = [[24], [24, 48], [48, 0, 24, 24]]  # multiples of 2 * world_size


def packing(lengths):
    """seqlen, the options of packed sequences, and the position of each token; one sequence is not packed."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    boundaries = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return len(positions), {} if len(lengths) == 1 else {"cu_seqlens": boundaries}, positions


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_order_places_the_tokens_of_the_ranks(world_size, lengths, order):
    seqlen, options, whole = packing(lengths)
    permutation, inverse = context_parallel_order(seqlen, world_size=world_size, order=order, **options)
    ranks = positions_of_all(seqlen, world_size, order=order, **options)
    assert torch.equal(permutation[inverse], torch.arange(seqlen))
    assert torch.equal(inverse[permutation], torch.arange(seqlen))
    assert listed(ranks) == listed(whole.index_select(0, permutation).chunk(world_size))
    assert torch.equal(torch.cat(ranks)[inverse], whole)
    assert order == "head_tail" or torch.equal(permutation, torch.arange(seqlen))


def partitioned_indices(boundaries, world_size, rank):
    """thd_get_partitioned_indices of Transformer Engine, token by token."""
    found = []
    for begin, end in pairwise(boundaries):
        chunk = (end - begin) // (2 * world_size)
        for i in (rank, 2 * world_size - 1 - rank):
            found += range(begin + i * chunk, begin + (i + 1) * chunk)
    return found


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_head_tail_is_the_order_of_transformer_engine(world_size, lengths):
    seqlen, options, _ = packing(lengths)
    boundaries = options.get("cu_seqlens", torch.tensor([0, seqlen])).tolist()
    expected = [partitioned_indices(boundaries, world_size, rank) for rank in range(world_size)]
    permutation, _ = context_parallel_order(seqlen, world_size=world_size, **HEAD_TAIL, **options)
    assert listed(permutation.chunk(world_size)) == expected


def load_balancer(name):
    module = pytest.importorskip("torch.distributed.tensor.experimental._context_parallel._load_balancer")
    return getattr(module, name, None) or pytest.skip(f"this torch has no {name}")


@pytest.mark.parametrize("world_size", WORLDS)
def test_head_tail_is_the_order_of_torch(world_size):
    balancer = load_balancer("_HeadTailLoadBalancer")(24, world_size, "cpu")
    permutation, inverse = context_parallel_order(24, world_size=world_size, **HEAD_TAIL)
    assert permutation.tolist() == balancer._generate_indices()[0].tolist()
    assert inverse.tolist() == balancer._generate_indices(restore=True)[0].tolist()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_packed_head_tail_is_the_order_of_torch(world_size, lengths):
    balancer = load_balancer("_PerDocumentHeadTailLoadBalancer")([lengths], world_size, "cpu")
    seqlen, options, _ = packing(lengths)
    permutation, inverse = context_parallel_order(seqlen, world_size=world_size, **HEAD_TAIL, **options)
    if torch.__version__ < "2.14":  # all ranks' tokens of a document, then those of the next document
        rank_of = torch.arange(seqlen) // (seqlen // world_size)
        document_of = torch.bucketize(permutation, torch.tensor(lengths).cumsum(0), right=True)
        of_documents = (document_of * world_size + rank_of).argsort(stable=True)
        assert permutation[of_documents].tolist() == balancer._generate_indices()[0].tolist()
        return
    assert permutation.tolist() == balancer._generate_indices()[0].tolist()
    assert inverse.tolist() == balancer._generate_indices(restore=True)[0].tolist()


# ---- rotated by rank ----


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lengths", [[24], [8, 16]])
def test_what_the_ranks_rotate_is_the_whole_rotated(lengths, order):
    seqlen, options, whole = packing(lengths)
    rope = rope_ext.RotaryEmbedding(8)
    cos, sin = rope.tables(seqlen)
    x = random((seqlen, 3, 8), torch.bfloat16)
    split = {"world_size": 4, "order": order, **options}
    permutation, inverse = context_parallel_order(seqlen, **split)
    for angles in ({"cos": cos, "sin": sin}, {"inv_freq": rope.inv_freq}):
        parts = [
            rope_ext.apply(
                part, layout="shd", positions=context_parallel_positions(seqlen, rank=rank, **split), **angles
            )
            for rank, part in enumerate(x[permutation].chunk(4))
        ]
        assert_same_bits(torch.cat(parts)[inverse], rope_ext.apply(x, layout="shd", positions=whole, **angles))


def test_in_a_graph_of_any_length():
    """There cu_seqlens are not read."""

    def made(seqlen, cu_seqlens):
        split = {"world_size": 2, "order": "head_tail"}
        return (
            context_parallel_positions(seqlen, rank=1, world_size=3),
            context_parallel_positions(seqlen, rank=1, **split),
            *context_parallel_order(seqlen, cu_seqlens=cu_seqlens, **split),
        )

    compiled = torch.compile(made, backend="eager", fullgraph=True, dynamic=True)
    for seqlen in (16, 24):
        arguments = seqlen, torch.tensor([0, 8, seqlen])
        assert listed(compiled(*arguments)) == listed(made(*arguments))


def test_device():
    split = {"world_size": 2, "device": "meta"}
    for cu_seqlens in (None, torch.tensor([0, 8])):
        for order in ORDERS:
            made = context_parallel_order(8, order=order, cu_seqlens=cu_seqlens, **split)
            positions = context_parallel_positions(8, rank=0, order=order, cu_seqlens=cu_seqlens, **split)
            assert {t.device.type for t in (positions, *made)} == {"meta"}


# ---- errors ----


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (
            {"rank": 2},
            ValueError,
            "rank must be in 0 to world_size - 1 = 1, got 2: torch.distributed.get_rank(group) is the rank in the group",
        ),
        ({"rank": 1.0}, TypeError, "rank must be an int, got 1.0"),
        ({"world_size": 0}, ValueError, "world_size must be at least 1, got 0"),
        ({"world_size": True}, TypeError, "world_size must be an int, got True"),
        ({"order": "zigzag"}, ValueError, "order must be 'contiguous' or 'head_tail', got 'zigzag'"),
        ({"order": None}, ValueError, "order must be 'contiguous' or 'head_tail', got None"),
        ({"seqlen": -1}, ValueError, "seqlen must be at least 0, got -1"),
        ({"seqlen": None}, TypeError, "seqlen must be an int, got None"),
        (
            {"seqlen": 10},
            ValueError,
            "seqlen must be a multiple of 2 * world_size = 4 with order 'head_tail', got 10: pad to 12 tokens",
        ),
        (
            {"cu_seqlens": [0, 8]},
            TypeError,
            "cu_seqlens must be a Tensor, got [0, 8]: use torch.tensor(cu_seqlens)",
        ),
        ({"cu_seqlens": torch.tensor([0.0, 8.0])}, TypeError, "cu_seqlens must be int32 or int64, got float32"),
        ({"cu_seqlens": torch.tensor([[0, 8]])}, ValueError, "cu_seqlens must have shape (nseq + 1,), got (1, 2)"),
        ({"cu_seqlens": torch.tensor([4, 8])}, ValueError, "cu_seqlens must start at 0, got 4"),
        ({"cu_seqlens": torch.tensor([0, 12, 8])}, ValueError, "cu_seqlens must ascend, got 8 after 12 at [2]"),
        (
            {"cu_seqlens": torch.tensor([0, 2, 8])},
            ValueError,
            "cu_seqlens must hold lengths that are multiples of 2 * world_size = 4, got 2 for sequence 0: pad each"
            " sequence to a multiple of 4",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 4])},
            ValueError,
            "cu_seqlens must end at seqlen, 8, got 4: add a last boundary of 8, which makes the padding a sequence",
        ),
        ({"cu_seqlens": torch.tensor([0, 12])}, ValueError, "cu_seqlens must end at seqlen, 8, got 12"),
    ],
)
def test_wrong_arguments(wrong, error, message):
    arguments = {"seqlen": 8, "rank": 0, "world_size": 2, **HEAD_TAIL, **wrong}
    calls = [lambda: context_parallel_positions(arguments.pop("seqlen"), **arguments)]
    if "rank" not in wrong:
        others = {name: value for name, value in arguments.items() if name not in ("seqlen", "rank")}
        calls.append(lambda: context_parallel_order({"seqlen": 8, **wrong}["seqlen"], **others))
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"rope_ext: {message}"


# ---- ROPE_EXT_CHECK_POSITIONS in torch's context_parallel ----


@pytest.mark.parametrize("value, wanted", [("1", True), ("0", False), ("", False), (None, False)])
def test_without_the_mode_a_call_is_not_decorated(value, wanted, monkeypatch):
    monkeypatch.delenv("ROPE_EXT_CHECK_TABLES", raising=False)
    monkeypatch.delenv("ROPE_EXT_CHECK_POSITIONS", raising=False)
    if value is not None:
        monkeypatch.setenv("ROPE_EXT_CHECK_POSITIONS", value)
    assert (_debug_modes.in_wanted_modes(rope_ext.apply) is not rope_ext.apply) == wanted


CALLS_WITHOUT_POSITIONS = {"apply", "apply_", "apply_qkv", "rope.apply"}
OFFSETS = {"offset", "offset in a tensor"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What context_parallel_calls.py prints without the mode and in it, for each rank: [in the mode][rank]."""
    pytest.importorskip("torch.distributed.tensor.experimental")
    processes = []
    for mode in ("", "1"):
        command = [sys.executable, "-m", "tests.context_parallel_calls", tmp_path_factory.mktemp("store")]
        environment = {**os.environ, "ROPE_EXT_CHECK_POSITIONS": mode, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return [dict(map(json.loads, lines.splitlines())) for lines in printed]


@pytest.mark.parametrize("rank", [0, 1])
def test_without_the_mode_a_call_without_positions_rotates_by_those_of_others(rank, outcomes):
    found = outcomes[False][rank]
    assert {name for name, outcome in found["head_tail"].items() if outcome != "right"} == CALLS_WITHOUT_POSITIONS | (
        OFFSETS if rank == 0 else set()  # the two chunks of the last rank meet
    )
    of_rank_1 = CALLS_WITHOUT_POSITIONS if rank == 1 else set()
    assert {name for name, outcome in found["contiguous"].items() if outcome != "right"} == of_rank_1
    assert set(found["alone"].values()) == {"right"}


@pytest.mark.parametrize("rank", [0, 1])
def test_the_mode_refuses_these_calls_and_no_others(rank, outcomes):
    without, found = outcomes[False][rank], outcomes[True][rank]
    assert found["alone"] == without["alone"]
    for order in ORDERS:
        for name, outcome in found[order].items():
            is_refused = without[order][name] != "right" or (order == "head_tail" and name in OFFSETS)
            x = "qkv" if name == "apply_qkv" else "x"
            message = (
                f"rope_ext: positions must be given in torch's context_parallel, where {x} holds the tokens of one rank,"
                " got None: pass a torch.arange(seqlen) that is among the buffers, or rope_ext.distributed."
                f'context_parallel_positions(seqlen, rank={rank}, world_size=2, order="{order}")'
            )
            assert outcome == (message if is_refused else "right"), (order, name)
