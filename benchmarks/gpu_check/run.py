"""Run the command of a part within its limit, and judge its result."""

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass

from benchmarks.gpu_check.plan import GRACE

PASSED, FAILED, NOT_AVAILABLE = "passed", "FAILED", "not available"
UNAVAILABLE = 77  # exit status of a program whose last line says what this machine lacks
# compute-sanitizer: the errors that it finds, and its messages where it cannot work, as on some virtual machines.
FOUND = re.compile(r"^=========\s+(Invalid|Misaligned|Leaked|.* out of bounds).*", re.MULTILINE)
CANNOT = re.compile(
    r"^=========.*(not supported|not permitted|insufficient|fail\w* to initiali[sz]e|initiali[sz]\w+ failed"
    r"|internal sanitizer error).*",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass
class Result:
    name: str
    status: str
    seconds: float
    limit: float
    said: str = ""  # the reason in a line, where the part did not pass

    def line(self):
        reason = f": {self.said}" if self.said else ""
        return f"{self.name}: {self.status} in {self.seconds:.0f} s of {self.limit:.0f}{reason}"


def run(name, command, limit, log, environment):
    """(Result, output). log: the file to which the output is appended, even where the part is stopped."""
    with log.open("ab") as file:
        file.write(f"==== {name} ====\n".encode())
        file.flush()
        start, began = file.tell(), time.monotonic()
        try:
            code = within(command, limit, file, environment)
        except FileNotFoundError:
            return Result(name, NOT_AVAILABLE, 0.0, limit, f"{command[0]} is not installed"), ""
    output = log.read_bytes()[start:].decode(errors="replace")
    status, said = judged(name, code, output)
    return Result(name, status, time.monotonic() - began, limit, said), output


def lead_a_group():
    """In the child: let an interrupt reach it and its children, which ignore it if a shell runs them in background."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def within(command, limit, file, environment):
    """The exit status; None if the limit ended it. An interrupt comes first: pytest and bench.py then write results."""
    grace = min(GRACE, limit / 4)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, preexec_fn=lead_a_group
    )
    try:
        return process.wait(limit - grace)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(grace)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait()


def judged(name, code, output):
    """(status, reason) of a part with this exit status."""
    last = (output.strip().splitlines() or [""])[-1][:200]
    if name == "sanitizer":
        return judged_sanitizer(code, output)
    if code is None:
        return FAILED, "out of time"
    if code == UNAVAILABLE:
        return NOT_AVAILABLE, last
    return (PASSED, "") if code == 0 else (FAILED, f"exit status {code}")


def judged_sanitizer(code, output):
    """(status, reason). An error that it found is always a failure; passing requires that tests ran."""
    if found := FOUND.search(output):
        return FAILED, found[0].lstrip("= ")[:200]
    if cannot := CANNOT.search(output):
        return NOT_AVAILABLE, cannot[0].lstrip("= ")[:200]
    if code is None:
        return FAILED, "out of time"
    if code:
        return FAILED, f"exit status {code}"
    ran = re.search(r"\b\d+ passed", output) and "ERROR SUMMARY: 0 errors" in output
    return (PASSED, "") if ran else (FAILED, "no test ran under it")
