"""One call of gpu_check.sh: its parts one after the other; the result of each is written immediately."""

import dataclasses
import json
import subprocess
import time

from benchmarks.gpu_check.plan import MIN_SECONDS, play
from benchmarks.gpu_check.programs import command_of, environment_of
from benchmarks.gpu_check.run import FAILED, PASSED, Result, run

# Lines of output that are shown of a part that passed, and of one that did not.
SHOWN, SHOWN_IF_FAILED = {"candidates": 30, "ncu": 12, "bench": 0}, 12


def run_call(call, parts, seconds, out, python, paths):
    """The names of the parts that failed. paths: where Python finds peers."""
    log, results, began = out / f"gpu_{call}.log", [], time.time()
    log.unlink(missing_ok=True)

    def run_part(part, limit):
        output = ""
        try:
            if limit < MIN_SECONDS:
                result = Result(part.name, FAILED, 0.0, limit, "no time left")
            elif part.needs_library and any(r.name == "build" and r.status != PASSED for r in results):
                result = Result(part.name, FAILED, 0.0, limit, "not started, since rope_ext does not load")
            else:
                command = command_of(part.name, call, limit, out, python, paths)
                result, output = run(part.name, command, limit, log, environment_of(part.name, paths))
        except KeyboardInterrupt:  # the whole program is stopped
            record(Result(part.name, FAILED, 0.0, limit, "interrupted"), output)
            raise
        record(result, output)

    def record(result, output):
        results.append(result)
        text = json.dumps({"call": call, "parts": [dataclasses.asdict(r) for r in results]}, indent=1)
        (out / f"gpu_{call}.parts.json").write_text(text + "\n")
        print(result.line(), flush=True)
        count = SHOWN.get(result.name, 1) if result.status == PASSED else SHOWN_IF_FAILED
        for line in output.strip().splitlines()[-count:] if count else []:
            print(f"    {line[:200]}", flush=True)

    print(f"{call}: at most {seconds:.0f} s", flush=True)
    for _ in play(parts, seconds, run_part, time.monotonic):
        pass
    report = out / f"gpu_{call}"
    written = report.with_name(f"{report.name}.json")
    if written.exists() and written.stat().st_mtime >= began:
        subprocess.run([python, "-m", "benchmarks.report", report], env=environment_of("report", paths), check=False)
    return [f"{result.name} of {call}" for result in results if result.status == FAILED]
