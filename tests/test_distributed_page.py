"""docs/distributed.md: its code prints what it shows, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import blocks_of

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/distributed.md"


def test_the_code_prints_what_the_page_shows():
    blocks = blocks_of(PAGE.read_text(encoding="utf-8"))
    code = "\n".join(code for _, code, _ in blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "".join(text for _, _, text in blocks)


def test_the_page_names_each_program():
    page = PAGE.read_text(encoding="utf-8")
    programs = [path.name for path in (ROOT / "examples/distributed").glob("[a-z]*.py")]
    assert programs and all(f"`{name}`" in page for name in programs)
