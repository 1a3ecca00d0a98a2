"""A variant: one implementation in one form of call, and the step that it builds from a case for the clock."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

FORMS = ["functional", "out=", "in place"]  # compared within a form only, as forms move different numbers of bytes


class NotOffered(Exception):
    """A variant does not support this case; the message says why."""


def nothing():
    pass


@dataclass
class Step:
    """The clock times call(). before() and after() are not timed and surround every sample of calls."""

    call: Callable  # () -> results: rotated q and k, and with derivatives their gradients
    before: Callable = nothing
    after: Callable = nothing
    forward: Callable | None = None  # with derivatives: the part of call() that records them
    fetch: Callable = tuple  # results -> torch tensors, (batch, heads, seqlen, head_dim)


@dataclass(frozen=True)
class Variant:
    """roundings: number of roundings to the dtype of x between exact angles and a result (exactness.error_bound)."""

    name: str
    form: str
    build: Callable  # Case -> Step, or raises NotOffered
    roundings: int
    pairing: str | None = None  # None: both pairings
    float32_angles: bool = False  # the implementation computes the angles itself, in float32
    reads: str = ""  # the tables that it reads, where these are not the float32 cos and sin of rope_ext
    ours: bool = False
    foreign: bool = False  # failures and wrong results are reported; in other variants they end the program


def of_tensors(call, order=(0, 1, 2, 3), normalizes=False):
    """`Variant.build` for call(q, k, tables) -> (q, k) on torch tensors, which autograd differentiates.

    order: order of the axes (batch, heads, seqlen, head_dim) in the arguments and results of call.
    normalizes: call also accepts the weights of q and k, where the case has a norm, and differentiates them.
    """
    back = [order.index(axis) for axis in range(4)]

    def fetch(results):
        return [y.permute(back) for y in results]

    def build(case):
        if case.norm and not normalizes:
            raise NotOffered("no norm of heads")
        inputs, grads = ([x.permute(order) for x in group] for group in (case.inputs, case.grads))
        if not case.backward:
            return Step(partial(call, *inputs, case.tables, *case.weights), fetch=fetch)
        leaves, weights = ([x.detach().requires_grad_() for x in group] for group in (inputs, case.weights))

        def forward_backward():  # autograd.grad of given gradients: nothing is accumulated, no loss is computed
            y = call(*leaves, case.tables, *weights)
            return *y, *torch.autograd.grad(y, [*leaves, *weights], grads)[:2]

        return Step(forward_backward, forward=partial(call, *leaves, case.tables, *weights), fetch=fetch)

    return build


def forward_only(build):
    """`build` for a variant without derivatives."""

    def checked(case):
        if case.backward:
            raise NotOffered("no derivative")
        return build(case)

    return checked


def refill(targets, sources):
    """Restore x: 16-bit tables change norms slightly, and 10,000 rotations in place would give infinities or zeros."""
    for target, source in zip(targets, sources):
        target.copy_(source)
