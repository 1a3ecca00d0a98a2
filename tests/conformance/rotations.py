"""Observes rope_ext while a model runs: counts its rotations, and changes their results."""

import contextlib
import pkgutil
import sys
from unittest import mock

from torch.utils._pytree import tree_leaves

from rope_ext import apply


@contextlib.contextmanager
def rotations(change=None):
    """A list with an entry for each call of rope_ext.apply, in any module of the package.

    change: (rotated, x) -> the result of each call instead. The result of a model that rotates must then change.
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
    """The number of calls of some functions, counted by `calls`."""

    def __init__(self, functions):
        self.count, self.codes = 0, {id(function.__code__) for function in functions}


@contextlib.contextmanager
def calls(report):
    """(`Calls` of the replacements in a report of `patch`, `Calls` of the originals that they run instead)"""
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
