"""docs/deploy.md: its code prints what it shows, in a process of its own; its recipes parse; its table has every form."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.deployed_forms import FORMS
from tests.newer_kernels import NEWER_KERNELS
from tests.pages import blocks_of
from tools import hub_kernel

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
NEEDED = "kernels", "onnx", "onnxruntime", "onnxscript", "transformers"
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]

SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
HUB = "A kernel of the Hugging Face hub"


def sections(page):
    """{title: text}"""
    titles_and_texts = SECTION.split(page)[1:]
    return dict(zip(titles_and_texts[::2], titles_and_texts[1::2], strict=True))


@pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} must be installed")
@pytest.mark.parametrize("is_hub", [False, True])
def test_the_code_prints_what_the_page_shows(is_hub, other_library, tmp_path):
    """The section about the hub runs in a folder where tools/hub_kernel.py has written build/hub, as the page says."""
    if is_hub and torch.version.cuda:
        pytest.skip("where torch has CUDA, kernels asks for a CUDA variant; this test lays out the CPU variant")
    page = sections(PAGE)
    blocks = blocks_of(page[HUB] if is_hub else PAGE.replace(page[HUB], ""))
    if is_hub:
        hub_kernel.lay_out(other_library, tmp_path / "build" / "hub")
    code = NEWER_KERNELS * is_hub + "\n".join(code for _, code, _ in blocks)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "".join(text for _, _, text in blocks) and done.stdout


def test_recipes_for_other_projects_parse():
    """Code for libraries that are not installed: it parses, imports what rope_ext has, and the page says `Not run`."""
    recipes = re.findall(r"([^\n]*)\n\n```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert recipes
    for before, code in recipes:
        assert before.endswith("Not run:")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("rope_ext"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_table_of_errors_has_each_form_once():
    rows = re.findall(
        r"^\| [^|]+ \| [^|]+ \| [^|]+ \| ([^|]+) \|$", sections(PAGE)["Errors, form by form"], re.MULTILINE
    )
    header, *rows = rows
    assert header == "forms"
    assert sorted(form for row in rows for form in row.split("; ")) == sorted(FORMS)


def test_commands_name_files_and_targets_that_exist():
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    for path in re.findall(r"\b(?:examples|tools|tests)/[\w/.]+", commands + PAGE):
        assert (ROOT / path.rstrip(".")).exists(), path
    for module in re.findall(r"python -m ((?:tools|tests)[\w.]*)", commands + PAGE):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    targets = re.findall(r"\bmake ([\w-]+)`", PAGE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
