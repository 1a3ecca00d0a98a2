"""Compares every rotary model type of transformers, small and with random weights, in eager mode and patched.

For example::

    python -m tests.conformance.transformers.run --out docs/models.md [--types llama gptj ...] [--jobs 2]

Results are appended to a JSON file (--json, build/models.jsonl) after each type. Types in the file are not run again
unless their process died; delete the file to start over. The page is generated from that file alone.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import queue
import resource
import threading
import warnings

import torch
import transformers
from tqdm import tqdm

from tests.conformance.transformers import page, small_models
from tests.conformance.transformers.compare import measure

LIMIT_S, MEMORY = 120, 24 << 30  # time limit of one type; limit on the address space of a process


def run(types, path, jobs, gradients):
    """Measure the types that are missing in the file at path, and append them to it."""
    waiting, lock = queue.SimpleQueue(), threading.Lock()
    held = {t for t, record in read(path).items() if record["status"] != "died"}
    todo = [t for t in types if t not in held]
    for model_type in todo:
        waiting.put(model_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(todo), unit="type", smoothing=0.05)

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
    ours.recv()  # wait for the imports, which can take minutes on a cold disk, outside the limit of the first type
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
    """The main function of a worker process: measures the types that it receives through the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silence()
    torch.set_num_threads(1)
    pipe.send("ready")
    for model_type in iter(pipe.recv, None):
        pipe.send(measure(model_type, gradients))


def silence():
    """Suppress the warnings of transformers about defaults that the small models use on purpose."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1), os.dup2(devnull, 2)


def read(path):
    """{type: record}; the last record of a type counts."""
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

    run(options.types or small_models.model_types(), options.json, options.jobs, not options.no_gradients)
    text = page.page(read(options.json))
    if options.out:
        options.out.write_text(text)
    print(text.partition("\n## ")[0])


if __name__ == "__main__":
    main()
