"""rope_ext in its three forms, and with the options that change its speed."""

from functools import partial

import torch

import rope_ext
from benchmarks.harness.cases import EPS
from benchmarks.harness.variants import NotOffered, Step, Variant, forward_only, of_tensors, refill


def _options(case):
    of_norm = {"norm": case.weights, "eps": EPS} if case.norm else {}
    return {"layout": "bhsd", "interleaved": case.interleaved, "offset": case.shape.first_position, **of_norm}


def functional(case):
    options = _options(case)
    if not case.backward:  # no Python function in between, which would add a tenth to the shortest call
        return Step(partial(rope_ext.apply, case.inputs, case.tables.cos, case.tables.sin, **options))

    def call(q, k, tables, *weights):
        given = {**options, "norm": weights} if weights else options
        return rope_ext.apply((q, k), tables.cos, tables.sin, **given)

    return of_tensors(call, normalizes=True)(case)


def packed(case):
    """apply_qkv. The gradient is that of the packed tensor and includes the part of v."""
    if case.memory != "qkv":
        raise NotOffered("q and k are not packed")
    shape, by_token = case.shape, (0, 2, 1, 3)
    heads = {"num_heads": shape.heads_q, "num_kv_heads": shape.heads_k}
    options = {**_options(case), **heads, "layout": "bshd", "cos": case.tables.cos, "sin": case.tables.sin}
    qkv = case.inputs[0]._base

    def fetch(results):
        q, k, _, *gradient = results
        parts = gradient[0].split((shape.heads_q, shape.heads_k, shape.heads_k), dim=2)[:2] if gradient else ()
        return [y.permute(by_token) for y in (q, k, *parts)]

    if not case.backward:
        return Step(partial(rope_ext.apply_qkv, qkv, **options), fetch=fetch)
    leaf, *weights = (t.detach().requires_grad_() for t in (qkv, *case.weights))
    options |= {"norm": tuple(weights)} if weights else {}
    grads = [g.permute(by_token) for g in (*case.grads, case.grads[1])]
    forward = partial(rope_ext.apply_qkv, leaf, **options)

    def forward_backward():
        y = forward()
        return *y, torch.autograd.grad(y, [leaf, *weights], grads)[0]

    return Step(forward_backward, forward=forward, fetch=fetch)


def with_out(case):
    out, options = case.outputs(), _options(case)
    return Step(partial(rope_ext.apply, case.inputs, case.tables.cos, case.tables.sin, out=out, **options))


def in_place(case):
    return _in_place(case, case.tables.cos, case.tables.sin)


def without_table(case):
    """The kernel computes cos and sin in every call."""
    return _in_place(case, inv_freq=rope_ext.angles.revolutions(case.tables.inv_freq.to(case.device)))


def eager_rounding(case):
    """Bit-identical to eager code, with its 16-bit tables."""
    dtype = case.inputs[0].dtype
    if dtype == torch.float32:
        raise NotOffered("both roundings agree in float32")
    cos, sin = (t.to(dtype) for t in (case.tables.cos, case.tables.sin))
    return _in_place(case, cos, sin, rounding="eager")


def _in_place(case, *tables, **options):
    x = case.fresh_inputs()
    call = partial(rope_ext.apply_, x, *tables, **options, **_options(case))
    return Step(call, before=partial(refill, x, case.inputs))


def pooled(case):
    """apply with results from the output pool, which is on during its own samples only."""
    step, payload = functional(case), sum(x.nbytes for x in (*case.inputs, *case.grads))

    def fill():
        rope_ext.set_output_pool(4 * payload)
        step.call()

    return Step(step.call, before=fill, after=partial(rope_ext.set_output_pool, 0))


OURS = [
    Variant("rope_ext", "functional", functional, 1, ours=True),
    Variant("rope_ext packed", "functional", packed, 1, ours=True),
    Variant("rope_ext out=", "out=", forward_only(with_out), 1, ours=True),
    Variant("rope_ext in place", "in place", forward_only(in_place), 1, ours=True),
    Variant("rope_ext without table", "in place", forward_only(without_table), 1, ours=True),
    Variant("rope_ext eager rounding", "in place", forward_only(eager_rounding), 3, ours=True),
]
POOLED = Variant("rope_ext (pool)", "functional", pooled, 1, ours=True)
