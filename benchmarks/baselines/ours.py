"""rope_ext in its three forms, and with the options that have a cost or a gain of their own."""

from functools import partial

import torch

import rope_ext
from benchmarks.harness.variants import NotOffered, Step, Variant, forward_only, of_tensors, refill


def _options(case):
    return {"layout": "bhsd", "interleaved": case.interleaved, "offset": case.shape.first_position}


def functional(case):
    options = _options(case)
    if not case.backward:  # no Python function in between: it would add a tenth to the shortest call
        return Step(partial(rope_ext.apply, case.inputs, case.tables.cos, case.tables.sin, **options))
    return of_tensors(lambda q, k, tables: rope_ext.apply((q, k), tables.cos, tables.sin, **options))(case)


def with_out(case):
    out, options = case.outputs(), _options(case)
    return Step(partial(rope_ext.apply, case.inputs, case.tables.cos, case.tables.sin, out=out, **options))


def in_place(case):
    return _in_place(case, case.tables.cos, case.tables.sin)


def without_table(case):
    """The kernel computes cos and sin, anew in each call."""
    return _in_place(case, inv_freq=rope_ext.angles.revolutions(case.tables.inv_freq.to(case.device)))


def eager_bits(case):
    """Bit-identical to eager code, with its 16-bit tables."""
    dtype = case.inputs[0].dtype
    if dtype == torch.float32:
        raise NotOffered("the same bits anyway")
    cos, sin = (t.to(dtype) for t in (case.tables.cos, case.tables.sin))
    return _in_place(case, cos, sin, rounding="eager")


def _in_place(case, *tables, **options):
    x = case.fresh_inputs()
    call = partial(rope_ext.apply_, x, *tables, **options, **_options(case))
    return Step(call, before=partial(refill, x, case.inputs))


def pooled(case):
    """apply with results from the output pool, which is off outside its samples, so that no other variant uses it."""
    step, payload = functional(case), sum(x.nbytes for x in (*case.inputs, *case.grads))

    def fill():
        rope_ext.set_output_pool(4 * payload)
        step.call()

    return Step(step.call, before=fill, after=partial(rope_ext.set_output_pool, 0))


OURS = [
    Variant("rope_ext", "functional", functional, 1, ours=True),
    Variant("rope_ext out=", "out=", forward_only(with_out), 1, ours=True),
    Variant("rope_ext in place", "in place", forward_only(in_place), 1, ours=True),
    Variant("rope_ext without table", "in place", forward_only(without_table), 1, ours=True),
    Variant("rope_ext eager bits", "in place", forward_only(eager_bits), 3, ours=True),
]
POOLED = Variant("rope_ext (pool)", "functional", pooled, 1, ours=True)
