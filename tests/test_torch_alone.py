"""rope_ext with torch and its requirements only: it needs no numpy, and does not warn that there is none."""

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_patch import ROTARY

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]
HIDE = """
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""
MODEL = (
    "\nclass Attention(torch.nn.Module):\n    def forward(self, *args):\n        return apply_rotary_pos_emb(*args)\n"
)


def requirements(name, extras=()):
    """Canonical names of a distribution and of all that it requires, where they are installed."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return set()
    found = {canonicalize_name(name)}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            found |= requirements(requirement.name, requirement.extras)
    return found


def modules(distribution):
    """Top-level names that the files of a distribution can be imported by."""
    return {file.parts[0].partition(".")[0] for file in distribution.files or () if file.suffix in (".py", ".so")}


def run_with_torch_alone(program, folder):
    """What the program prints where modules of other distributions than torch's requirements cannot be imported."""
    kept = requirements("torch")
    others = [d for d in metadata.distributions() if canonicalize_name(d.metadata["Name"]) not in kept]
    hidden = set().union(*map(modules, others)) - {"rope_ext"}
    assert {"numpy", "pytest"} <= hidden
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder), *sys.path])}
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    return done.stdout


def test_first_screen_of_the_readme(tmp_path):
    (tmp_path / "attention.py").write_text(ROTARY + MODEL)
    first_screen = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    patched = "\nfrom attention import Attention\nassert rope_ext.patch(Attention()).replaced\nprint('ran')"
    program = "import rope_ext\n" + first_screen + patched  # without rope_ext, torch warns
    assert run_with_torch_alone(program, tmp_path) == "ran\n"


def test_the_environment_has_no_numpy(tmp_path):
    program = "try:\n    import numpy\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert run_with_torch_alone(program, tmp_path) == "No module named 'numpy'\n"
