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
    """What becomes of one type: a record for the JSON file, see `page`."""
    import zoo

    record, start = {"type": model_type, "status": "compared"}, time.perf_counter()
    try:
        for name, dtype in DTYPES.items():
            model = zoo.build(model_type, dtype)
            record["class"] = type(model).__name__
            record[name] = _compare(model_type, model, dtype, record, gradients and name == "fp32")
            if record["status"] != "compared":
                break
    except Exception as error:  # of the eager model: it could not be built or does not run
        record["status"] = "no model" if isinstance(error, (zoo.NoModel, ImportError)) else "not run"
        record["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200] if record["status"] == "not run" else zoo.why(error)
    record["seconds"] = round(time.perf_counter() - start, 2)
    return record


def _compare(model_type, model, dtype, record, gradients):
    """Runs model eager, eager and patched. Returns {"equal", "largest", "finite"} of the forward, and "gradients"."""
    import rope_ext
    import zoo_inputs

    arguments = zoo_inputs.inputs(model_type, model, dtype)
    eager, again = _forward(model, arguments), _forward(model, arguments)
    grads = _gradients(model, arguments) if gradients else None
    if _difference(eager, again) is not None:
        record["status"] = "not deterministic"
        return None
    with rope_ext.patched(model) as report, _Launches() as launches, _calls(report) as calls:
        try:
            ours = _forward(model, arguments)
        except Exception as error:
            ours = None
            record["error"] = f"patched, {dtype}: {type(error).__name__}: {error}"[:300]
        record["replaced"] = [[e.name, e.dialect, e.uses] for e in report.replaced]
        record["left alone"] = [[e.name, e.reason] for e in report.left_alone]
    record.update(calls=calls[0], eager_calls=calls[1], launches=launches.count)
    if not report.replaced:
        record["status"] = "left alone" if report.left_alone else "nothing rotates"
    found = _verdict(_difference(eager, ours))
    found["finite"] = all(t.isfinite().all().item() for t in eager if t.is_floating_point())
    if grads is not None and report.replaced:
        with rope_ext.patched(model):
            found["gradients"] = _verdict(_difference(grads, _gradients(model, arguments), relative=True))
            found["gradients"]["count"] = len(grads)
    return found


def _verdict(difference):
    return {"equal": difference is None, "largest": difference or 0.0}


def _forward(model, arguments):
    torch.manual_seed(2)
    with torch.no_grad():
        return tensors(model(**arguments))


def _gradients(model, arguments):
    """Gradients of all parameters for random gradients of all results; None where nothing is differentiable."""
    torch.manual_seed(2)
    model.zero_grad()
    results = [t for t in tensors(model(**arguments)) if t.requires_grad]
    if not results:
        return None
    torch.manual_seed(3)
    torch.autograd.backward(results, [torch.randn_like(t) for t in results])
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


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
    if got is None or [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
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
    """Counts ops of rope_ext."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "rope_ext"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _calls(report):
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
