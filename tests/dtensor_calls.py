"""Calls with DTensors that are no case of dtensor_cases.py: functions that each rank runs (test_dtensor_calls.py)."""

import re

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

import rope_ext
from tests.dtensor_cases import full, mesh_of, share

EPS = 1e-6


def _tensors(dtype=torch.float64, seqlen=7):
    torch.manual_seed(2)
    rope = rope_ext.RotaryEmbedding(8)
    cos, sin = rope.tables(12, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return torch.randn(2, seqlen, 4, 8, dtype=dtype), cos, sin, rope.inv_freq.to(cos.dtype)


def _differentiable(x, cos, sin, inv_freq):
    """Name -> (a call, the tensors that it is differentiated in)."""
    weight = torch.linspace(0.5, 1.5, 8, dtype=x.dtype)
    rows = [t[None, : x.shape[1]] for t in (cos, sin)]
    per_head = [t[:, :, None] * torch.linspace(0.5, 1, 4, dtype=x.dtype)[:, None] for t in rows]
    return {
        "x": (lambda x: rope_ext.apply(x, cos, sin, offset=1), [x]),
        "table": (lambda x, cos, sin: rope_ext.apply(x, cos, sin, offset=1), [x, cos, sin]),
        "rows": (lambda x, cos, sin: rope_ext.apply(x, cos, sin), [x, *rows]),
        "rows of heads": (lambda x, cos, sin: rope_ext.apply(x, cos, sin, interleaved=True), [x, *per_head]),
        "part": (
            lambda x, cos, sin: rope_ext.apply(x, cos[..., :2], sin[..., :2], rotary_dim=4, rotary_offset=2),
            [x, *rows],
        ),
        "frequencies": (lambda x, inv_freq: rope_ext.apply(x, inv_freq=inv_freq, offset=2), [x, inv_freq]),
        "norm": (lambda x, weight: rope_ext.apply(x, cos, sin, norm=weight, eps=EPS), [x, weight]),
        "norm, table": (lambda x, w, c, s: rope_ext.apply(x, c, s, norm=w, eps=EPS), [x, weight, cos, sin]),
    }


def _shared(tensors, mesh, placement):
    x, *others = tensors
    return [share(x, mesh, [placement]), *(share(t, mesh, [Replicate()]) for t in others)]


def second_derivatives(name, placement):
    """The largest difference from one process of second derivatives, and of the gradient that torch.func makes."""
    mesh = mesh_of("2")
    call, tensors = _differentiable(*_tensors())[name]
    torch.manual_seed(3)
    grad = torch.randn_like(tensors[0])

    def twice(tensors, grad):
        tensors = [t.requires_grad_() for t in tensors]
        first = torch.autograd.grad(call(*tensors), tensors, grad, create_graph=True)
        return torch.autograd.grad(sum(t.sin().sum() for t in (*first, *tensors)), tensors)

    def transformed(tensors, grad):
        places = tuple(range(len(tensors)))
        return torch.func.grad(lambda *tensors: (call(*tensors) * grad).sum(), places)(*tensors)

    differences = []
    for derivative in (twice, transformed):
        expected = derivative([t.detach().clone() for t in tensors], grad)
        got = derivative(_shared([t.detach() for t in tensors], mesh, placement), share(grad, mesh, [placement]))
        differences += [(full(mine) - whole).abs().max() for mine, whole in zip(got, expected, strict=True)]
    return torch.stack(differences).max().item()  # NaN where one is, which max() of Python may pass over


def forward_mode(name, placement):
    """Whether tangents are those of one process. torch makes no dual number of a DTensor unless told that it may."""
    import torch.autograd.forward_ad as forward_ad

    mesh = mesh_of("2")
    call, tensors = _differentiable(*_tensors())[name]
    torch.manual_seed(3)
    tangents = [torch.randn_like(t) for t in tensors]

    def tangent(tensors, tangents):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(call(*map(forward_ad.make_dual, tensors, tangents))).tangent

    library = torch.library.Library("aten", "FRAGMENT")
    torch.library.register_torch_dispatch("aten::_has_same_storage_numel", DTensor, lambda *_: True, lib=library)
    try:
        got = tangent(_shared(tensors, mesh, placement), _shared(tangents, mesh, placement))
    finally:
        library._destroy()
    return torch.equal(full(got), tangent(tensors, tangents))


def compiled(name, dynamic):
    """The placements for which one compiled function, which has met the others before, differs from one process."""
    mesh = mesh_of("2")
    x, cos, sin, inv_freq = _tensors(torch.float32, seqlen=8)
    weight = torch.rand(8)
    calls = {
        "table": lambda x, offset: rope_ext.apply(x, cos, sin, offset=offset),
        "frequencies": lambda x, offset: rope_ext.apply(x, inv_freq=inv_freq, offset=offset),
        "norm": lambda x, offset: rope_ext.apply(x, cos, sin, offset=offset, norm=weight, eps=EPS),
        "in place": lambda x, offset: rope_ext.apply_(x * 2, cos, sin, offset=offset),
    }
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 16  # more than there are placements and offsets
    call = torch.compile(calls[name], fullgraph=True, backend="aot_eager", dynamic=dynamic)
    wrong = []
    for placement in (Shard(1), Replicate(), Shard(2), Shard(0), Shard(1), Shard(3)):
        for offset in (0, 3):
            of_one, of_ranks = x.clone().requires_grad_(), share(x, mesh, [placement]).requires_grad_()
            expected, y = calls[name](of_one, offset), call(of_ranks, offset)
            expected.backward(torch.ones_like(x))
            y.backward(share(torch.ones_like(x), mesh, list(y.placements)))
            if not torch.equal(full(y), expected) or not torch.equal(full(of_ranks.grad), of_one.grad):
                wrong.append((placement, offset))
    return wrong


def refused(name):
    """The error of a call, and whether x and out are as they were."""
    mesh = mesh_of("4")
    x, cos, sin, inv_freq = _tensors()
    shared = share(x, mesh, [Shard(1)])
    before = shared.to_local().clone()
    partial = share(x, mesh, [Partial()])
    learned = cos.clone().requires_grad_()
    positions = torch.arange(7)
    weight = torch.ones(8, dtype=torch.float64)
    eight = share(_tensors(seqlen=8)[0], mesh, [Shard(1)])
    other = mesh_of("2x2")
    torch._dynamo.reset()
    graph = torch.compile(rope_ext.apply, fullgraph=True, backend="aot_eager")
    calls = {
        "short table": lambda: rope_ext.apply_(shared, cos[:6], sin[:6]),
        "row of the last rank": lambda: rope_ext.apply_(shared, cos, sin, positions=positions + 6),
        "short table in a graph": lambda: graph(shared, cos[:6], sin[:6]),
        "rows": lambda: rope_ext.apply_(shared, cos[None, :6], sin[None, :6]),
        "positions of a rank": lambda: rope_ext.apply_(eight, cos, sin, positions=torch.arange(2)),
        "rows of a rank": lambda: rope_ext.apply_(eight, cos[None, :2], sin[None, :2]),
        "rows in a graph": lambda: graph(shared, cos[None, :6], sin[None, :6]),
        "seqlen": lambda: rope_ext.apply_(shared, cos, sin, positions=positions[:6]),
        "cu_seqlens": lambda: rope_ext.apply_(shared[0], cos, sin, layout="thd", cu_seqlens=torch.tensor([0, 9])),
        "dimensions": lambda: rope_ext.apply_(shared, cos, sin, layout="thd"),
        "tensor in x": lambda: rope_ext.apply_((shared, x), cos, sin),
        "tensor as out": lambda: rope_ext.apply(shared, cos, sin, out=torch.empty_like(x)),
        "shape of out": lambda: rope_ext.apply(shared, cos, sin, out=shared[:, :6]),
        "partial x": lambda: rope_ext.apply_(partial, cos, sin),
        "partial out": lambda: rope_ext.apply(shared, cos, sin, out=partial),
        "learned table": lambda: rope_ext.apply(shared, learned, sin),
        "learned rows": lambda: rope_ext.apply(shared, learned[None, :7], sin[None, :7]),
        "learned inv_freq": lambda: rope_ext.apply(shared, inv_freq=inv_freq.requires_grad_()),
        "learned norm": lambda: rope_ext.apply(shared, cos, sin, norm=weight.requires_grad_(), eps=EPS),
        "positions of cos_sin": lambda: rope_ext.cos_sin(share(positions, mesh, [Shard(0)]), inv_freq),
        "two meshes": lambda: rope_ext.apply_((shared, share(x, other, [Shard(1)] * 2)), cos, sin),
        "mesh of a table": lambda: rope_ext.apply_(shared, *(share(t, other, [Replicate()] * 2) for t in (cos, sin))),
    }
    try:
        calls[name]()
    except (ValueError, TypeError, RuntimeError) as error:
        (sentence,) = re.findall("rope_ext: .*", str(error))[:1]  # torch.compile has more to say
        return f"{type(error).__name__}: {sentence}", torch.equal(shared.to_local(), before)
    return None, False


def packed(shape, grouped, placement):
    """(q, k, v and the gradient of qkv are those of one process; the same in place, or the refusal)."""
    mesh = mesh_of("2")
    _, cos, sin, _ = _tensors()
    torch.manual_seed(4)
    qkv = torch.randn(shape, dtype=torch.float64)
    heads = {"num_heads": 4, "num_kv_heads": 2, "grouped": grouped}
    of_one, of_ranks = qkv.clone().requires_grad_(), share(qkv, mesh, [placement]).requires_grad_()
    expected = rope_ext.apply_qkv(of_one, cos, sin, **heads)
    got = rope_ext.apply_qkv(of_ranks, cos, sin, **heads)
    grads = [torch.randn_like(t) for t in expected]
    torch.autograd.backward(expected, grads)
    torch.autograd.backward(got, [share(g, mesh, list(y.placements)) for g, y in zip(grads, got)])
    equal = all(map(torch.equal, map(full, got), expected)) and torch.equal(full(of_ranks.grad), of_one.grad)
    written, whole = share(qkv, mesh, [placement]), qkv.clone()
    rope_ext.apply_qkv_(whole, cos, sin, **heads)
    try:
        rope_ext.apply_qkv_(written, cos, sin, **heads)
    except ValueError as error:
        return equal, str(error)
    return equal, torch.equal(full(written), whole)


def shared_rows():
    """The collectives of a call whose tables, and then positions, are sharded as x, and of its gradients."""
    mesh = mesh_of("2")
    x, cos, sin, inv_freq = _tensors()
    rows = [share(t[None, :7], mesh, [Shard(1)]).requires_grad_() for t in (cos, sin)]
    positions = share(torch.arange(7.0, dtype=x.dtype), mesh, [Shard(0)]).requires_grad_()
    shared = share(x, mesh, [Shard(1)]).requires_grad_()
    with CommDebugMode() as counted:
        by_rows = rope_ext.apply(shared, *rows)
        without_table = rope_ext.apply(shared, inv_freq=inv_freq, positions=positions)
        torch.autograd.grad(by_rows, (shared, *rows), share(x, mesh, [Shard(1)]))
        torch.autograd.grad(without_table, (shared, positions), share(x, mesh, [Shard(1)]))
    return counted.get_total_counts()


def another_order():
    """The error of a tensor that the dimensions of a mesh shard in another order than placements say, or None."""
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry, TensorMeta

    x, cos, sin, _ = _tensors(seqlen=8)
    meta = TensorMeta(x.shape, x.stride(), x.dtype)
    order = (ShardOrderEntry(tensor_dim=1, mesh_dims=(1, 0)),)
    spec = DTensorSpec(mesh_of("2x2"), (Shard(1), Shard(1)), tensor_meta=meta, shard_order=order)
    try:
        rope_ext.apply(DTensor(x[:, :2].clone(), spec, requires_grad=False), cos, sin)
    except ValueError as error:
        return str(error)


def strided(axis):
    """Whether x of FSDP2 and tensor parallelism, sharded from the last dimension of the mesh on, is that of one process."""
    mesh = mesh_of("2x2")
    torch.manual_seed(5)
    x, (cos, sin) = torch.randn(4, 8, 4, 8), rope_ext.RotaryEmbedding(8).tables(16)
    placements = [_StridedShard(axis, split_factor=2), Shard(axis)]
    at = torch.arange(4)[:, None] * 2 + torch.arange(8)
    of_heads = [t[at][:, :, None] * torch.linspace(0.5, 1, 4)[:, None] for t in (cos, sin)]
    weight = torch.linspace(0.5, 1.5, 8)
    equal = []
    for tables, options in (((cos, sin), {"positions": at}), (of_heads, {"norm": weight, "eps": EPS})):
        of_one, of_ranks = x.clone().requires_grad_(), share(x, mesh, placements).requires_grad_()
        expected, got = rope_ext.apply(of_one, *tables, **options), rope_ext.apply(of_ranks, *tables, **options)
        expected.backward(x)
        got.backward(share(x, mesh, placements))
        equal += [torch.equal(full(got), expected), torch.equal(full(of_ranks.grad), of_one.grad)]
    return all(equal)


def several():
    """Whether tensors of x with placements of their own, some without elements on a rank, are those of one process."""
    mesh = mesh_of("2x2")
    x, cos, sin, _ = _tensors()
    placements = [[Shard(0), Shard(1)], [Replicate(), Shard(2)], [Shard(1), Shard(1)], [Shard(1), Replicate()]] * 2
    tensors = [x[:, :, : i % 4 + 1] for i in range(8)]
    got = rope_ext.apply([share(t, mesh, p) for t, p in zip(tensors, placements)], cos, sin, offset=2)
    return all(map(torch.equal, map(full, got), rope_ext.apply(tensors, cos, sin, offset=2)))


def strides(placement):
    """Whether results of a transposed x have the strides of one process, and can be viewed as they can."""
    x, cos, sin, _ = _tensors()
    y = rope_ext.apply(share(x, mesh_of("2"), [placement]).transpose(1, 2), cos, sin, layout="bhsd")
    expected = rope_ext.apply(x.transpose(1, 2), cos, sin, layout="bhsd")
    assert torch.equal(full(y.transpose(1, 2).flatten(2)), expected.transpose(1, 2).flatten(2))
    return y.stride() == expected.stride()


def local_parameters():
    """The gradients that the cure of "learned norm" and "learned table" gives to Tensors, and those of one process."""
    mesh = mesh_of("2")
    x, cos, sin, _ = _tensors()
    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    learned = cos.clone().requires_grad_(), sin, weight.requires_grad_()

    def gradients(x, cos, sin, weight):
        y = rope_ext.apply(x, cos, sin, norm=weight, eps=EPS)
        return torch.autograd.grad((full(y) ** 3).sum(), learned[::2])

    shared = gradients(share(x, mesh, [Shard(1)]), *(DTensor.from_local(t, mesh) for t in learned))
    return shared, gradients(x, *learned)


def outside():
    """What processes inside and outside a mesh of two get: the shapes of results and gradients."""
    mesh = DeviceMesh("cpu", [0, 1])
    x, cos, sin, _ = _tensors()
    shared = distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None).requires_grad_()
    table, other = (distribute_tensor(t, mesh, [Replicate()], src_data_rank=None).requires_grad_() for t in (cos, sin))
    weight = distribute_tensor(torch.ones(8, dtype=torch.float64), mesh, [Replicate()], src_data_rank=None)
    y = rope_ext.apply(shared, table, other)
    z = rope_ext.apply(shared, cos, sin, norm=weight, eps=EPS)
    rope_ext.apply_(distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None), cos, sin)
    if torch.distributed.get_rank() < 2:
        assert torch.equal(full(y), rope_ext.apply(x, cos, sin))
    return tuple(y.shape), tuple(z.shape), y.to_local().numel() > 0


def waits():
    """Whether a DTensor whose collective is under way is waited for, as x and as a weight, which is in a list."""
    mesh = mesh_of("2")
    x, cos, sin, _ = _tensors()
    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    late_x = share(x, mesh, [Shard(1)]).redistribute(placements=[Replicate()], async_op=True)
    late = share(weight, mesh, [Shard(0)]).redistribute(placements=[Replicate()], async_op=True)
    got = rope_ext.apply(late_x, cos, sin, norm=late, eps=EPS)
    return torch.equal(full(got), rope_ext.apply(x, cos, sin, norm=weight, eps=EPS))


def of_module(precision, placement):
    """Whether RotaryEmbedding.apply is that of one process."""
    x, *_ = _tensors(torch.float32)
    rope = rope_ext.RotaryEmbedding(8, precision=precision)
    got = rope.apply(share(x, mesh_of("2"), [placement]), offset=2)
    return torch.equal(full(got), rope.apply(x, offset=2))


def of_patched_model(placement):
    """Whether the function of a patched transformers model has its own bits, and takes Tensors beside DTensors."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=1, **sizes))
    x, *_ = _tensors(torch.float32)
    q, k = x.transpose(1, 2), x[:, :, :2].transpose(1, 2)
    tables = model.model.rotary_emb(q, torch.arange(7)[None])
    expected = modeling_llama.apply_rotary_pos_emb(q, k, *tables)
    with rope_ext.patched(model):
        shared = [share(t.contiguous(), mesh_of("2"), [placement]) for t in (q, k)]
        got = modeling_llama.apply_rotary_pos_emb(*shared, *tables)
    return all(map(torch.equal, map(full, got), expected))
