"""Calls with DTensors beside the same calls on one process: functions that each rank runs (test_dtensor.py)."""

import functools
import traceback
import unittest.mock
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

import rope_ext
from rope_ext._torch import dtensor_parts

EPS = 1e-6
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
ROWS, FIRST = 24, 3  # rows of the tables; the offset of the forms that have one
SIZES = {  # batch, seqlen, heads of q, heads of k, head_dim
    "even": (4, 8, 4, 4, 8),
    "uneven": (3, 7, 6, 6, 8),
    "few": (1, 3, 2, 1, 8),
    "grouped": (2, 5, 4, 2, 12),
}


LEARNED = {"nothing": (), "x": (), "weights": ("norm",), "all": ("cos", "sin", "inv_freq", "norm")}


class Case(NamedTuple):
    mesh: str  # "2", "4" or "2x2"
    q: str  # a letter of PLACEMENTS for each dimension of the mesh
    k: str
    form: str  # of FORMS
    layout: str
    sizes: str
    others: str  # "plain", "replicated" or "sharded": the tensors that are not x
    op: str  # "apply", "apply_", "out", "norm", "norm_"
    needs: str  # of LEARNED; with x, but for "nothing", what requires grad
    dtype: torch.dtype
    interleaved: bool
    option: str  # of OPTIONS


OPTIONS = {  # "eager" with tables of the dtype of x, else it does nothing
    "none": {},
    "inverse": {"inverse": True},
    "other pairing": {},  # of the result
    "eager": {"rounding": "eager"},
}

# Letter -> what the test calls a placement: Shard of an axis of x, Partial, Replicate, or _StridedShard of the tokens.
PLACEMENTS = "bshdprz"


@functools.cache
def mesh_of(name):
    whole = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    return {"2x2": lambda: whole, "2": lambda: whole["columns"], "4": lambda: init_device_mesh("cpu", (4,))}[name]()


# ---- arguments ----


def _table(rope, rows, dtype):
    return rope.tables(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def _looked_up(more):
    def form(case, rope, sizes):
        cos, sin = _table(rope, ROWS, case.dtype)
        return {"cos": cos, "sin": sin, **more(*sizes)}

    return form


def _per_token(batched, per_head):
    def form(case, rope, sizes):
        batch, seqlen, heads, _, _ = sizes
        batch = batch if batched and "b" in case.layout else 1
        first = torch.arange(batch) * 2
        at = first[:, None] + torch.arange(seqlen)
        cos, sin = (t[at] for t in _table(rope, ROWS, case.dtype))
        if per_head is not None:
            cos, sin = (t[:, :, None] * torch.linspace(0.5, 1, heads if per_head else 1)[:, None] for t in (cos, sin))
            order = case.layout.replace("t", "s") if "b" in case.layout else "b" + case.layout.replace("t", "s")
            cos, sin = (t.permute(*("bshd".index(axis) for axis in order)) for t in (cos, sin))
        wide = torch.float64 if case.dtype == torch.float64 else torch.float32
        return {"cos": cos.to(wide), "sin": sin.to(wide)}

    return form


def _frequencies(more, per_head=False, axes=0):
    def form(case, rope, sizes):
        inv_freq = rope.inv_freq.to(torch.float64 if case.dtype == torch.float64 else torch.float32)
        if per_head:
            inv_freq = inv_freq * torch.linspace(0.5, 1, sizes[2], dtype=inv_freq.dtype)[:, None]
        if axes:
            inv_freq = torch.stack([inv_freq * (axis + 1) for axis in range(axes)])[:, None]
        found = {"inv_freq": inv_freq, **more(*sizes)}
        if "positions" in found and found["positions"].is_floating_point():
            found["positions"] = found["positions"].to(inv_freq.dtype)
        return found

    return form


def _lengths(total, tail):
    """cu_seqlens of sequences of 2, 0, 1 and all other tokens but the last `tail`."""
    ends = [0, min(2, total - tail), min(2, total - tail), min(3, total - tail), total - tail]
    return torch.tensor(ends, dtype=torch.int32)


def _positions(*shape):
    return (torch.arange(torch.Size(shape).numel()) * 5 % 13).reshape(shape)


FORMS = {
    "table": _looked_up(lambda *_: {}),
    "table, offset": _looked_up(lambda *_: {"offset": FIRST}),
    "table, positions (s,)": _looked_up(lambda b, s, *_: {"positions": _positions(s), "offset": FIRST}),
    "table, positions (b, s)": _looked_up(lambda b, s, *_: {"positions": _positions(b, s).int()}),
    "table, positions (1, s)": _looked_up(lambda b, s, *_: {"positions": _positions(1, s)}),
    "table, offset ()": _looked_up(lambda *_: {"offset": torch.tensor(FIRST)}),
    "table, offset (b,)": _looked_up(lambda b, *_: {"offset": torch.arange(b) * 2}),
    "rows (1, s)": _per_token(False, None),
    "rows (b, s)": _per_token(True, None),
    "rows (1, s, 1)": _per_token(False, False),
    "rows (b, s, h)": _per_token(True, True),
    "frequencies": _frequencies(lambda *_: {"offset": FIRST}),
    "frequencies (h, p)": _frequencies(lambda *_: {}, per_head=True),
    "frequencies (a, 1, p)": _frequencies(lambda b, s, *_: {"positions": _positions(2, b, s)}, axes=2),
    "frequencies, float positions": _frequencies(lambda b, s, *_: {"positions": _positions(s) * 0.75}),
    "frequencies, offset (b,)": _frequencies(lambda b, *_: {"offset": torch.arange(b) * 2}),
    "table, cu_seqlens": _looked_up(lambda b, s, *_: {"cu_seqlens": _lengths(s, 0), "offset": FIRST}),
    "table, cu_seqlens, tail": _looked_up(lambda b, s, *_: {"cu_seqlens": _lengths(s, 2)}),
    "frequencies, cu_seqlens": _frequencies(lambda b, s, *_: {"cu_seqlens": _lengths(s, 1)}),
}


def fitting(case):
    """The case with a layout that its form can have, and as many heads in q as in k where each has angles of its own."""
    form = case.form
    if "cu_seqlens" in form:
        case = case._replace(layout="thd")
    elif "(b" in form or "(a" in form or "positions (1" in form:
        case = case._replace(layout=case.layout if "b" in case.layout else "bshd")
    if "h" in form.split("(")[-1] and case.sizes in ("few", "grouped"):
        case = case._replace(sizes="uneven")
    if "b" not in case.layout:  # there is no batch to split
        case = case._replace(q=case.q.replace("b", "r"), k=case.k.replace("b", "r"))
    return case


def _tensors(case):
    torch.manual_seed(1)
    batch, seqlen, q_heads, k_heads, head_dim = sizes = SIZES[case.sizes]
    shapes = [{"b": batch, "s": seqlen, "t": seqlen, "h": heads, "d": head_dim} for heads in (q_heads, k_heads)]
    x = [torch.randn([shape[axis] for axis in case.layout], dtype=case.dtype) for shape in shapes]
    rope = rope_ext.RotaryEmbedding(head_dim)
    others = FORMS[case.form](case, rope, sizes)
    if case.option == "eager":
        others |= {name: others[name].to(case.dtype) for name in ("cos", "sin") if name in others}
    if case.op.startswith("norm"):
        others["norm"] = 1 + torch.rand(head_dim, dtype=case.dtype)
    grads = [torch.randn_like(t) for t in x]
    return x, others, grads


# ---- placements ----


def _axis(letter, layout):
    letter = letter.replace("z", "s")
    return layout.index("t" if letter == "s" and "t" in layout else letter)


def placements_of(letters, layout):
    """The placements that the letters stand for, one for each dimension of the mesh."""
    return [
        {"p": Partial(), "r": Replicate()}.get(letter)
        or (_StridedShard(_axis(letter, layout), split_factor=2) if letter == "z" else Shard(_axis(letter, layout)))
        for letter in letters
    ]


def result_placements(letters, layout):
    return placements_of(letters.replace("p", "r").replace("d", "r"), layout)


def share(t, mesh, placements):
    """The DTensor of t. Where it is Partial, ranks past the first have zeros, so that the sum is exact."""
    whole = [Replicate() if p.is_partial() else p for p in placements]
    shared = distribute_tensor(t, mesh, whole, src_data_rank=None)
    if whole == placements:
        return shared
    part = shared.to_local()
    for dim, p in enumerate(placements):
        if p.is_partial() and mesh.get_local_rank(dim):
            part = torch.zeros_like(part)
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=t.shape, stride=t.stride())


def _share_other(t, case, mesh, needs_grad):
    if not isinstance(t, torch.Tensor) or (case.others == "plain" and not needs_grad):
        return t
    last = Shard(0) if case.others == "sharded" and t.dim() else Replicate()
    return distribute_tensor(t, mesh, [Replicate()] * (mesh.ndim - 1) + [last], src_data_rank=None)


def full(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


# ---- a case ----


def run(case):
    """Compares the case with one process, and its collectives with those that docs/distributed.md promises."""
    case = fitting(case)
    mesh = mesh_of(case.mesh)
    x, others, grads = _tensors(case)
    learned = [name for name in LEARNED[case.needs] if name in others]
    if case.needs == "all" and "positions" in others and others["positions"].is_floating_point():
        learned.append("positions")
    placements = [placements_of(letters, case.layout) for letters in (case.q, case.k)]
    shared_x = [share(t, mesh, p) for t, p in zip(x, placements)]
    shared = {name: _share_other(t, case, mesh, name in learned) for name, t in others.items()}
    for tensors, named in ((x, others), (shared_x, shared)):
        if case.needs != "nothing":
            for t in (*tensors, *(named[name] for name in learned)):
                t.requires_grad_()
    expected = _call(case, x, others)
    with CommDebugMode() as forward:
        got = _call(case, shared_x, shared, mesh)
    wanted_placements = (
        placements if case.op.endswith("_") else [result_placements(p, case.layout) for p in (case.q, case.k)]
    )
    for name, y, whole, wanted in zip("qk", got, expected, wanted_placements):
        assert list(y.placements) == wanted, f"{name} has placements {y.placements}, not {wanted}"
        assert y.shape == whole.shape and y.stride() == whole.stride(), f"{name}: {y.stride()}, not {whole.stride()}"
        assert torch.equal(full(y), whole), f"{name} differs by {(full(y) - whole).abs().max()}"
    promised = collectives(case)
    assert promised is None or forward.get_total_counts() == promised[0], f"{forward.get_total_counts()} collectives"
    if case.needs == "nothing":
        return
    inputs, shared_inputs = [*x, *map(others.get, learned)], [*shared_x, *map(shared.get, learned)]
    of_inputs = torch.autograd.grad(expected, inputs, grads)
    shared_grads = [share(g, mesh, list(y.placements)) for g, y in zip(grads, got)]
    with CommDebugMode() as backward:
        of_shared = torch.autograd.grad(got, shared_inputs, shared_grads)
    for name, mine, whole in zip("qk", of_shared, of_inputs):
        assert torch.equal(full(mine), whole), f"gradient of {name} differs by {(full(mine) - whole).abs().max()}"
    for name, mine, whole in zip(learned, of_shared[2:], of_inputs[2:]):
        assert (full(mine) - whole).abs().max() <= bound(case, x, grads), f"gradient of {name}"
        if promised is not None and case.q == case.k:
            wanted = gradient_placements(case, name, whole)
            assert list(mine.placements) == wanted, f"gradient of {name} has placements {mine.placements}, not {wanted}"
    assert promised is None or backward.get_total_counts() == promised[1], f"{backward.get_total_counts()} backward"


def collectives(case):
    """How many the forward and the backward pass take; None: not promised.

    Forward one for each tensor of x, and dimension of the mesh, whose channels are split or whose parts are to be added
    up; backward as many where x is needed again (norm, gradients of tables), and where the gradient is split as x was.
    """
    if (
        case.others == "sharded"
        or (case.needs == "all" and case.q != case.k)
        or (case.op[:4], case.needs) == ("norm", "all")
        or (case.op.endswith("_") and TORCH < (2, 13))  # whose rule for copy_ communicates where nothing is sharded
    ):
        return None
    gathered = sum(letters.count("d") + letters.count("p") for letters in (case.q, case.k))
    needs_x = case.op.startswith("norm") or case.needs == "all"
    return gathered, gathered * (needs_x + case.op.endswith("_"))


def gradient_placements(case, name, t):
    """Shard along axes that x shares, Partial along the other sharded axes of x."""
    layout = case.layout.replace("t", "s")
    axes = {"inv_freq": "ah."[-t.dim() :], "norm": ".", "positions": "s"}.get(name)
    if axes is None:
        axes = {2: "..", 3: "bs."}.get(t.dim(), layout if "b" in layout else "b" + layout)
    axes = "".join("." if n == 1 else axis for n, axis in zip(t.shape, axes))

    def of_axis(letter):
        if letter in "rpd":
            return Replicate()
        axis = letter.replace("z", "s")
        if axis not in axes:
            return Partial()
        return _StridedShard(axes.index(axis), split_factor=2) if letter == "z" else Shard(axes.index(axis))

    return [of_axis(letter) for letter in case.q]


def bound(case, x, grads):
    """The most that two sums of the same terms differ: each is off by at most terms * eps * sum of |terms|.

    A term is a product of x or its normalised value, of a gradient, and of a position or an angle below 100.
    """
    terms = sum(t.numel() for t in x)
    most = max(t.abs().max().item() for t in x + grads)
    return 2 * terms**2 * torch.finfo(case.dtype).eps * 100 * most**2


def _call(case, x, others, mesh=None):
    """The rotated q and k. mesh: where x are DTensors."""
    options = {name: t for name, t in others.items() if name not in ("cos", "sin")}
    options |= {"layout": case.layout, "interleaved": case.interleaved, **OPTIONS[case.option]}
    options |= {"out_interleaved": not case.interleaved} if case.option == "other pairing" else {}
    options |= {"eps": EPS} if "norm" in options else {}
    x = tuple(x)
    tables = others.get("cos"), others.get("sin")
    if case.op.endswith("_"):
        return rope_ext.apply_(tuple(t * 1 for t in x), *tables, **options)
    if case.op == "out":
        out = tuple(torch.empty_like(t) for t in x)
        if mesh is not None:
            out = [
                share(torch.empty(t.shape, dtype=t.dtype), mesh, result_placements(p, case.layout))
                for t, p in zip(x, (case.q, case.k))
            ]
        return rope_ext.apply(x, *tables, **options, out=tuple(out))
    return rope_ext.apply(x, *tables, **options)


def run_all(cases):
    """A line for each case that fails on some rank. Ends there, since the ranks may wait for one another after it."""
    for case in cases:
        failed = ""
        try:
            run(case)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failed = f"{case}: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        everywhere = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, failed)
        if any(everywhere):
            return [f"rank {rank}: {text}" for rank, text in enumerate(everywhere) if text]
    return []


def run_without_shift(cases):
    """run_all with a fault: each rank begins with the first row of the tables, or the first of the positions."""
    bounds = dtensor_parts.Shards.bounds

    def first(self, letter, size):
        found = bounds(self, letter, size)
        return found if found is None or letter != "s" else (0, found[1])

    with unittest.mock.patch.object(dtensor_parts.Shards, "bounds", first):
        return run_all(cases)
