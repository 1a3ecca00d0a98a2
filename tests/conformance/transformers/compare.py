"""One small model, eager against patched: which bits differ, and whether rope_ext was on the way at all."""

import contextlib
import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EAGER_ERRORS = (RuntimeError, TypeError, NotImplementedError)  # of models that have no bfloat16


def measure(model_type, gradients=True):
    """What becomes of one type: a record for the JSON file, see `page.py`."""
    from tests.conformance.transformers import small_models as zoo

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
    except (zoo.NoModel, ImportError) as error:
        record.update(status="no model", error=zoo.why(error))
    except Exception as error:  # of the eager model: it could not be built or does not run
        record.update(status="not run", error=in_words(error))
    record["seconds"] = round(time.perf_counter() - start, 2)
    return record


def in_words(error):
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:160]


def _compare(model_type, dtype, record, gradients, disturb):
    """Runs a model eager, eager again and patched. Adds to the record what was replaced and how often it was called.

    disturb: whether to change the results of rope_ext, which those of the model should show.
    Returns {"equal", "largest", "finite", ...} of the forward, and "gradients"; None where there is nothing to compare.
    """
    import rope_ext
    from tests.conformance.transformers import inputs as zoo_inputs
    from tests.conformance.transformers import small_models as zoo

    model = zoo.build(model_type, dtype)
    record["class"] = type(model).__name__
    with rope_ext.patched(model) as report:
        record["replaced"] = [[e.name, e.dialect, e.uses] for e in report.replaced]
        record["left alone"] = [[e.name, e.reason] for e in report.left_alone]
    if not report.replaced and not report.left_alone:
        record["status"] = "nothing rotates"
        return None
    rounding = "eager"
    if not report.replaced:
        rounding = "once"  # which replaces what is equal but for a rounding
        with rope_ext.patched(model, rounding) as report:
            record["once"] = [[e.name, e.dialect, e.uses] for e in report.replaced]
    arguments = zoo_inputs.inputs(model_type, model, dtype)
    eager, again = _forward(model, arguments), _forward(model, arguments)
    if difference(eager, again) is not None:
        record["status"] = "not deterministic"
        return None
    wanted = _gradients(model, arguments) if gradients else {}
    if gradients:  # some backwards of torch read memory that nothing wrote
        again = _gradients(model, arguments)
        wanted = {name: t for name, t in wanted.items() if same_bits(t, again[name])}
    try:
        with rope_ext.patched(model, rounding):
            with _Launches() as launches, _calls() as calls:
                ours = _forward(model, arguments)
            found = _verdict(difference(eager, ours))
            if gradients:
                grads = _gradients(model, arguments)
                grads = {name: grads[name] for name in wanted}
                found["gradients"] = _verdict(difference(wanted.values(), grads.values(), relative=True))
                found["gradients"]["differ"] = [name for name in wanted if not same_bits(wanted[name], grads[name])]
            if disturb:
                with _Launches(disturb=1.01):
                    found["noticed"] = difference(eager, _forward(model, arguments)) is not None
    except Exception as error:  # where eager code has none
        record["status"] = "patched"
        return {"equal": False, "largest": float("inf"), "error": in_words(error)}
    found["finite"] = all(bool(t.isfinite().all()) for t in eager if t.is_floating_point())
    found.update(calls=calls[0], went_on=calls[1], launches=launches.count)
    record["status"] = "not called" if calls[0] == 0 else "patched" if rounding == "eager" else "once"
    return found


def _verdict(difference):
    return {"equal": difference is None, "largest": difference or 0.0}


def _forward(model, arguments):
    torch.manual_seed(2)
    with torch.no_grad():
        return tensors(model(**arguments))


def _gradients(model, arguments):
    """{name: gradient} of all parameters, for random gradients of all results; empty where nothing has one."""
    torch.manual_seed(2)
    model.zero_grad()
    results = [t for t in tensors(model(**arguments)) if t.requires_grad]
    if results:
        torch.manual_seed(3)
        torch.autograd.backward(results, [torch.randn_like(t) for t in results])
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tensors(value, seen=None):
    """The tensors in what a model returned, those in caches and other objects too."""
    seen = set() if seen is None else seen
    found = []
    for leaf in tree_leaves(value):
        if torch.is_tensor(leaf):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not callable(leaf) and id(leaf) not in seen:
            seen.add(id(leaf))
            found += tensors([v for v in vars(leaf).values() if v is not None], seen)
    return found


def difference(wanted, got, relative=False):
    """None where all bits are equal (NaN is NaN), else the largest difference; relative: to each tensor's largest."""
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
        return float("inf")
    worst = None
    for a, b in zip(wanted, got):
        if not same_bits(a, b):
            a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
            most = (a - b).abs().max().item() / (a.abs().max().item() if relative else 1)
            worst = max(worst or 0.0, float("inf") if most != most else most)
    return worst


def same_bits(a, b):
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    parts = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b)]
    bits = [t.contiguous().view(whole[t.element_size()]) for t in parts]
    return torch.equal(*bits) or bool(((bits[0] == bits[1]) | (parts[0].isnan() & parts[1].isnan())).all())


class _Launches(TorchDispatchMode):
    """Counts ops of rope_ext. disturb: a factor on their results, which a model that depends on them must notice."""

    def __init__(self, disturb=None):
        super().__init__()
        self.count, self.disturb = 0, disturb

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace != "rope_ext":
            return results
        self.count += 1
        return results if self.disturb is None else [t * self.disturb for t in results]


@contextlib.contextmanager
def _calls():
    """[calls of replaced functions, how many of them went on to the original]"""
    from rope_ext.integrations import _patch

    originals = {id(r.candidate.function.__code__) for r in _patch._replaced.values()}
    counts = [0, 0]

    def count(frame, event, argument):
        if event == "call":
            counts[0] += frame.f_code.co_name == "replacement" and frame.f_code.co_filename == _patch.__file__
            counts[1] += id(frame.f_code) in originals

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)
