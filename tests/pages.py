"""The code of a page, and what it prints. `python -m tests.pages PAGE` runs a page, and prints the second as JSON."""

import contextlib
import io
import json
import re
import sys
import traceback
from pathlib import Path

import torch

# A block of code, and the block of text right after it, which is what the code prints.
FENCE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def blocks_of(text):
    """[(line, code, what the page says that it prints)]."""
    return [(text[: m.start()].count("\n") + 2, m[1], m[2] or "") for m in FENCE.finditer(text)]


def run_blocks(blocks, name):
    """(namespace, what each block printed) after all blocks, top to bottom; an exception is part of what it printed."""
    namespace, printed = {"__name__": name}, []
    for line, code, _ in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), torch.random.fork_rng():
            try:
                exec(compile("\n" * (line - 1) + code, f"docs/{name}.md", "exec"), namespace)
            except Exception:
                out.write(traceback.format_exc())
        printed.append("".join(f"{text.rstrip()}\n" for text in out.getvalue().splitlines()))
    torch.set_printoptions(profile="default")
    return namespace, printed


if __name__ == "__main__":
    page = Path(sys.argv[1])
    print(json.dumps(run_blocks(blocks_of(page.read_text(encoding="utf-8")), page.stem)[1]))
