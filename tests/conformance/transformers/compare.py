"""Compares one small model in eager mode and patched, and checks that rope_ext ran."""

import time

import torch

import rope_ext
from tests.conformance.bits import difference, same_bits, tensors
from tests.conformance.rotations import calls, rotations
from tests.conformance.transformers import inputs, small_models

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EAGER_ERRORS = (RuntimeError, TypeError, NotImplementedError)  # of models that do not support bfloat16


def measure(model_type, gradients=True):
    """The record of one type for the JSON file, see `page.py`."""
    record, start = {"type": model_type}, time.perf_counter()
    try:
        for name, dtype in DTYPES.items():
            try:
                found = _compare(model_type, dtype, record, gradients, disturb=name == "fp32")
            except EAGER_ERRORS as error:
                if name == "fp32":
                    raise
                found = {"error": in_words(error)}
            if found is None:
                break
            record[name] = found
    except (small_models.NoModel, ImportError) as error:
        record.update(status="no model", error=small_models.why(error))
    except Exception as error:  # the eager model could not be built or does not run
        record.update(status="not run", error=in_words(error))
    record["seconds"] = round(time.perf_counter() - start, 2)
    return record


def in_words(error):
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:160]


def _compare(model_type, dtype, record, gradients, disturb):
    """Run a model in eager mode twice and patched. Adds the replaced functions and their calls to the record.

    disturb: whether to change the results of rope_ext too; the results of the model must then change.
    Returns {"equal", "largest", "finite", ...} of the forward, and "gradients"; None if there is nothing to compare.
    """
    model = small_models.build(model_type, dtype)
    record["class"] = type(model).__name__
    with rope_ext.patched(model) as report:
        record["replaced"] = [[e.name, e.dialect, e.uses] for e in report.replaced]
        record["left alone"] = [[e.name, e.reason] for e in report.left_alone]
    if not report.replaced and not report.left_alone:
        record["status"] = "nothing rotates"
        return None
    rounding, functions = "eager", {e.name for e in report.replaced}
    if not report.replaced:
        rounding = "once"  # also replaces functions that are equal up to one rounding
        with rope_ext.patched(model, rounding) as report:
            record["once"] = [[e.name, e.dialect, e.uses] for e in report.replaced]
            functions = {e.name for e in report.replaced}
    arguments = inputs.inputs(model_type, model, dtype)
    eager, again = _forward(model, arguments), _forward(model, arguments)
    if difference(eager, again) is not None:
        record["status"] = "not deterministic"
        return None
    expected = _gradients(model, arguments) if gradients else {}
    if gradients:  # some backwards of torch read uninitialized memory
        again = _gradients(model, arguments)
        expected = {name: t for name, t in expected.items() if same_bits(t, again[name])}
    try:
        with rope_ext.patched(model, rounding) as report:
            with rotations() as counted, calls(report) as (replaced, originals):
                ours = _forward(model, arguments)
            found = _verdict(difference(eager, ours))
            if gradients:
                grads = _gradients(model, arguments)
                grads = {name: grads[name] for name in expected}
                found["gradients"] = _verdict(difference(expected.values(), grads.values(), relative=True))
                found["gradients"]["differ"] = [name for name in expected if not same_bits(expected[name], grads[name])]
            if disturb:
                with rotations(change=lambda y, x: 1.01 * y):
                    found["noticed"] = difference(eager, _forward(model, arguments)) is not None
        if disturb:
            record["by type"] = _by_type(model_type, dtype, rounding, functions, arguments, eager)
    except Exception as error:  # eager code raised none
        record["status"] = "patched"
        return {"equal": False, "largest": float("inf"), "error": in_words(error)}
    found["finite"] = all(bool(t.isfinite().all()) for t in eager if t.is_floating_point())
    found.update(calls=replaced.count, went_on=originals.count, rotations=len(counted))
    record["status"] = "not called" if not replaced.count else "patched" if rounding == "eager" else "once"
    return found


def _by_type(model_type, dtype, rounding, functions, arguments, eager):
    """Compare a patch by type, before the model is built, with a patch of the model.

    functions: the names of the functions that the patch of the model replaces.
    """
    with rope_ext.patched(model_type, rounding) as report:
        model = small_models.build(model_type, dtype)
        with calls(report) as (replaced, _):
            equal = difference(eager, _forward(model, arguments)) is None
    names = {e.name for e in report.replaced}
    return {
        "equal": equal,
        "calls": replaced.count,
        "lacks": sorted(functions - names),
        "besides": sorted(names - functions),
    }


def _verdict(difference):
    return {"equal": difference is None, "largest": difference or 0.0}


def _forward(model, arguments):
    torch.manual_seed(2)
    with torch.no_grad():
        return tensors(model(**arguments))


def _gradients(model, arguments):
    """{name: gradient} of all parameters, for random gradients of all results; empty if no result requires grad."""
    torch.manual_seed(2)
    model.zero_grad()
    results = [t for t in tensors(model(**arguments)) if t.requires_grad]
    if results:
        torch.manual_seed(3)
        torch.autograd.backward(results, [torch.randn_like(t) for t in results])
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
