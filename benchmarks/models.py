"""Every rotary model type of transformers, small and random: eager against `rope_ext.patched`, bit for bit.

    python benchmarks/models.py [--types llama gptj ...] [--jobs 2] [--json build/models.jsonl] [--out docs/models.md]

Results are added to the JSON file after each type, and types that it holds are not run again: delete it to begin anew. The
page is made of that file alone.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import queue
import resource
import sys
import threading
import time
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LIMIT_S, MEMORY = 60, 24 << 30  # of one type; addresses of a process
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(model_type, gradients=True):
    """What becomes of one type: a record for the JSON file, see `models_page.py`."""
    import zoo

    record, start = {"type": model_type}, time.perf_counter()
    try:
        for name, dtype in DTYPES.items():
            try:
                found = _compare(model_type, dtype, record, gradients and name == "fp32")
            except (RuntimeError, TypeError, NotImplementedError) as error:
                if name == "fp32":
                    raise
                found = {"error": in_words(error)}  # eager code that has no bfloat16
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


def _compare(model_type, dtype, record, gradients):
    """Runs a model eager, eager again and patched. Adds to the record what was replaced and how often it was called.

    Returns {"equal", "largest", "finite"} of the forward, and "gradients"; None where there is nothing to compare.
    """
    import rope_ext
    import zoo
    import zoo_inputs

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
    if _difference(eager, again) is not None:
        record["status"] = "not deterministic"
        return None
    wanted = _gradients(model, arguments) if gradients else {}
    try:
        with rope_ext.patched(model, rounding):
            with _Launches() as launches, _calls() as calls:
                ours = _forward(model, arguments)
            found = _verdict(_difference(eager, ours))
            if gradients:
                grads = _gradients(model, arguments)
                found["gradients"] = _verdict(_difference(wanted.values(), grads.values(), relative=True))
                found["gradients"]["differ"] = [name for name in wanted if not _same_bits(wanted[name], grads[name])]
                with _Launches(disturb=1.01):
                    found["noticed"] = _difference(eager, _forward(model, arguments)) is not None
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


def _difference(wanted, got, relative=False):
    """None where all bits are equal (NaN is NaN), else the largest difference; relative: to each tensor's largest."""
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
        return float("inf")
    worst = None
    for a, b in zip(wanted, got):
        if not _same_bits(a, b):
            a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
            difference = (a - b).abs().max().item() / (a.abs().max().item() if relative else 1)
            worst = max(worst or 0.0, float("inf") if difference != difference else difference)
    return worst


def _same_bits(a, b):
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


# ---- all types, each in a process that may die ----


def run(types, path, jobs, gradients):
    """Measures the types that the file at path does not hold, and adds them to it."""
    waiting, lock = queue.SimpleQueue(), threading.Lock()
    todo = [t for t in types if t not in read(path)]
    for model_type in todo:
        waiting.put(model_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        from tqdm import tqdm

        bar = tqdm(total=len(todo), unit="type", smoothing=0.05)
    except ImportError:
        bar = None

    def work():
        process = None
        while not waiting.empty():
            model_type = waiting.get()
            if process is None:
                process, pipe = _start(gradients)
            record = _ask(process, pipe, model_type)
            if not process.is_alive() or record["status"] == "died":
                process.kill()
                process = None
            with lock, path.open("a") as file:
                file.write(json.dumps(record) + "\n")
                if bar is not None:
                    bar.set_postfix_str(model_type)
                    bar.update()
        if process is not None:
            pipe.send(None)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _start(gradients):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, gradients), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _ask(process, pipe, model_type):
    try:
        pipe.send(model_type)
        if pipe.poll(LIMIT_S):
            return pipe.recv()
        error = f"took more than {LIMIT_S} s"
    except (EOFError, OSError):
        process.join(5)
        error = f"the process ended with {process.exitcode}"
    return {"type": model_type, "status": "died", "error": error}


def _serve(pipe, gradients):
    """What a process does: measures the types that come through the pipe, in silence."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silence()
    torch.set_num_threads(1)
    for model_type in iter(pipe.recv, None):
        pipe.send(measure(model_type, gradients))


def silence():
    """transformers warns of defaults that the small models take on purpose."""
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1), os.dup2(devnull, 2)


def read(path):
    """{type: record}; where a type is there twice the last counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["type"]: record for record in map(json.loads, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="*", help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("build/models.jsonl"))
    parser.add_argument("--out", type=pathlib.Path, help="the page to write, for instance docs/models.md")
    parser.add_argument("--no-gradients", action="store_true")
    options = parser.parse_args()

    import models_page
    import zoo

    run(options.types or zoo.model_types(), options.json, options.jobs, not options.no_gradients)
    text = models_page.page(read(options.json))
    if options.out:
        options.out.write_text(text)
    print(text.partition("\n## ")[0])


if __name__ == "__main__":
    main()
