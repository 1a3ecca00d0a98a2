"""What rope_ext does while a model runs: how often it rotates, and whether the model notices if it does something else."""

import contextlib
import pkgutil
import sys
from unittest import mock

from torch.utils._pytree import tree_leaves

from rope_ext import apply


@contextlib.contextmanager
def rotations(change=None):
    """A list with an entry for each call of rope_ext.apply, in whatever module of the package.

    change: (rotated, x) -> what such a call gives instead, which a model that rotates must show.
    """
    counted = []

    def rotate(x, *tables, **options):
        counted.append(options)
        results = apply(x, *tables, **options)
        if change is not None:
            for y, before in zip(tree_leaves(results), tree_leaves(x)):
                y.copy_(change(y, before))
        return results

    holders = [m for name, m in sys.modules.items() if name.startswith("rope_ext.") and vars(m).get("apply") is apply]
    with contextlib.ExitStack() as stack:
        for module in holders:
            stack.enter_context(mock.patch.object(module, "apply", rotate))
        yield counted


class Calls:
    """Counts the calls of some functions, as a part of `calls`."""

    def __init__(self, functions):
        self.count, self.codes = 0, {id(function.__code__) for function in functions}


@contextlib.contextmanager
def calls(report):
    """(Calls of the functions that replace others, Calls that they leave to the originals), of a report of `patch`."""
    functions = [pkgutil.resolve_name(entry.name) for entry in report.replaced]
    counters = Calls(functions), Calls(function.__wrapped__ for function in functions)

    def count(frame, event, argument):
        if event == "call":
            for counter in counters:
                counter.count += id(frame.f_code) in counter.codes

    sys.setprofile(count)
    try:
        yield counters
    finally:
        sys.setprofile(None)
