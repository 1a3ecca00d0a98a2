"""README.md and the pages of docs/: their code runs and prints what they show, their commands and links exist.

docs/deploy.md, which compiles programs, and docs/guide.md have tests of their own for the code: test_deploy_page.py, test_guide.py.
"""

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import pytest

import rope_ext
from tests.pages import blocks_of

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = {"models.md", "models_diffusers.md"}  # by tests/conformance
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [page for page in PAGES if blocks_of(page.read_text()) and page.name not in ("deploy.md", "guide.md")]
LANGUAGES = {"python", "text", "sh", "py", "cpp", "toml", "", "{literalinclude}"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# ---- code ----


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_code_prints_what_the_page_shows(page):
    """From top to bottom, in one namespace and a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.pages", page], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    for (line, _, shown), found in zip(blocks_of(page.read_text()), printed, strict=True):
        assert found == shown, f"{page.name}:{line}"


@each_page
def test_code_that_is_not_run_is_valid(page):
    """Blocks marked `py` need a library that the tests do not have."""
    for code in fences(page, "py"):
        ast.parse(code)


@each_page
def test_blocks_are_marked(page):
    """So that none is left out of the tests by the spelling of its language; and output follows code."""
    assert not re.search(r"^(?: *~~~| +```)", page.read_text(), re.MULTILINE)
    marks = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    assert len(marks) % 2 == 0
    opening = [re.sub(r"^({literalinclude}) \S+$", r"\1", mark) for mark in marks[::2]]
    assert set(opening) <= LANGUAGES and set(marks[1::2]) <= {""}
    assert opening.count("python") == len(blocks_of(page.read_text()))


@cache
def targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@each_page
def test_commands_exist(page):
    commands = "\n".join(fences(page, "sh") + re.findall(r"`((?:make|python) [^`\n]+)`", prose(page)))
    for target in re.findall(r"(?:^|[;&|] *)(?:\w+=\S+ )*make ([a-z0-9-]+)", commands, re.MULTILINE):
        assert target in targets(), f"make {target}"
    for module in re.findall(r"python -m ([\w.]+)", commands):
        file = ROOT / module.replace(".", "/")
        outside = module in ("pip", "pytest", "build", "mypy", "ruff", "uv", "venv")
        assert outside or file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module
    for name in re.findall(
        r"(?:python|bash|pytest(?: -\w+)*|^) ?((?:benchmarks|docs|examples|tests|tools)/[\w./]+)",
        commands,
        re.MULTILINE,
    ):
        assert (ROOT / name).exists(), name


# ---- links ----


def anchors(path):
    """The anchors that a code host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@each_page
def test_headings(page):
    """One title, and anchors that are unique."""
    assert len(re.findall(r"^# ", prose(page), re.MULTILINE)) == 1
    assert len(set(anchors(page))) == len(anchors(page))


@each_page
def test_lines_are_short(page):
    """At most 120 characters outside tables and blocks."""
    if page.name not in GENERATED:
        for line in prose(page).splitlines():
            assert len(line) <= 120 or line.startswith("|") or "](" in line, f"{page.name}: {line}"


# ---- the site ----


def test_the_reference_has_every_public_name():
    """In docs/api, by its own name or with the members of its module."""
    text = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.rst"))
    listed = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE))
    for name in rope_ext.__all__:
        value = getattr(rope_ext, name)
        module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        assert {f"rope_ext.{name}", module} & listed, name
    for _, name, _ in pkgutil.iter_modules(rope_ext.compat.__path__):
        assert name.startswith("_") or f"rope_ext.compat.{name}" in listed, name


def test_every_page_is_in_the_contents():
    """docs/conf.py lists the pages of the sidebar."""
    contents = (ROOT / "docs/conf.py").read_text()
    for page in PAGES[1:]:
        assert f'"{page.relative_to(ROOT).with_suffix("")}"' in contents, page.name


# ---- README ----


def test_the_readme_is_one_screen():
    assert len(README.splitlines()) <= 150


def test_the_readme_has_the_figures_of_the_benchmark():
    """Each row of its table of times is that of benchmarks/results/cpu.json."""
    report = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    measured = {
        (row["shape"]["name"], row["dtype"], row["pass"]): {name: r["us"] for name, r in row["results"].items()}
        for row in report["rows"]
        if row["pairing"] == "half"
    }
    columns = {  # of the table: the result, and what the number in brackets is relative to
        "`copy_`": ("copy", None),
        "`apply`": ("rope_ext", None),
        "`apply_`": ("rope_ext in place", None),
        "eager": ("eager", "rope_ext"),
        "torch.compile": ("torch.compile", "rope_ext"),
        "vLLM": ("vLLM", "rope_ext in place"),
    }
    table = re.search(r"^\| \| dtype .*?\n\n", README, re.DOTALL | re.MULTILINE)[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table if row]
    assert head[3:] == list(columns) and len(rows) >= 5
    for row in rows:
        times = measured[tuple(row[:3])]
        for cell, (name, relative_to) in zip(row[3:], columns.values(), strict=True):
            wanted = f"{times[name]:.{1 if times[name] < 100 else 0}f}" if name in times else ""
            if wanted and relative_to:
                wanted += f" ({times[name] / times[relative_to]:.1f}x)"
            assert cell == wanted, (row[:3], name)
    assert report["machine"]["commit"] in README
    prefill = measured["prefill", "bf16", "forward"]
    for peer, words in (("eager", "as fast as eager"), ("torch.compile", "as fast as `torch.compile`")):
        ratio = prefill[peer] / prefill["rope_ext"]
        assert f"{ratio:.1f} times {words}" in " ".join(README.split())
