"""Every rotary model type of transformers, small and random: eager against `rope_ext.patched`, bit for bit.

    python -m tests.conformance.transformers.run --out docs/models.md [--types llama gptj ...] [--jobs 2]

Results are added to a JSON file (--json, build/models.jsonl) after each type, and types that it holds are not run again
unless their process died: delete it to begin anew. The page is made of that file alone.
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

LIMIT_S, MEMORY = 120, 24 << 30  # of one type; addresses of a process


def run(types, path, jobs, gradients):
    """Measures the types that the file at path does not hold, and adds them to it."""
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
    ours.recv()  # imports, which can take minutes on a cold disk, do not count for the first type
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
    pipe.send("ready")
    for model_type in iter(pipe.recv, None):
        pipe.send(measure(model_type, gradients))


def silence():
    """transformers warns of defaults that the small models take on purpose."""
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

    run(options.types or small_models.model_types(), options.json, options.jobs, not options.no_gradients)
    text = page.page(read(options.json))
    if options.out:
        options.out.write_text(text)
    print(text.partition("\n## ")[0])


if __name__ == "__main__":
    main()
