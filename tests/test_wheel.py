"""The wheel and its metadata: one file for every Python, torch and Linux of the last years, which tools can read."""

import importlib.metadata as metadata
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

import rope_ext
from tools import torch_matrix

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup_py(monkeypatch):
    """The names of setup.py, which builds nothing."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """What a front end learns before it builds: the metadata of setuptools.build_meta."""
    folder = tmp_path_factory.mktemp("metadata")
    program = f"from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)
    (info,) = folder.glob("*.dist-info")
    return metadata.PathDistribution(info)


# ---- metadata ----


def test_version_is_that_of_the_package(described):
    assert described.version == rope_ext.__version__


def test_torch_is_all_that_it_requires(described):
    assert [line for line in described.requires if "extra ==" not in line] == ["torch>=2.11"]


def test_an_index_finds_it(described):
    message = described.metadata
    classifiers = message.get_all("Classifier")
    assert message["License-Expression"] == "BSD-3-Clause" and not any("License" in c for c in classifiers)
    assert (
        "Programming Language :: Python :: 3.10" in classifiers and "Operating System :: POSIX :: Linux" in classifiers
    )
    assert "RoPE" in message["Keywords"]


def test_the_page_on_an_index_has_no_relative_links(described):
    page, readme = described.metadata.get_payload(), (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", re.sub(r"`[^`\n]*`", "", page))
    assert all(link.startswith(("https://", "#")) for link in links)
    assert re.findall(r"^```.*?^```", page, re.M | re.S) == re.findall(r"^```.*?^```", readme, re.M | re.S)
    assert "(docs/migrate.md)" in page and "![" not in page
    tables, separated = r"^[|]-", r"^\n[|].*\n[|]-"  # a table that follows a paragraph without a blank line is none
    assert len(re.findall(tables, page, re.M)) == len(re.findall(separated, page, re.M)) > 0


def test_uv_locks_a_project_that_depends_on_a_checkout(tmp_path):
    """uv lock builds in an environment without torch, unless pyproject.toml states what it asks for."""
    pytest.importorskip("uv")
    stub = "torch-2.11.0.dist-info/METADATA"
    with zipfile.ZipFile(tmp_path / "torch-2.11.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(stub, "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n")
        wheel.writestr("torch-2.11.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("torch-2.11.0.dist-info/RECORD", "")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "user"\nversion = "0"\nrequires-python = ">=3.10"\ndependencies = ["rope_ext"]\n'
        f'[tool.uv.sources]\nrope_ext = {{ path = "{ROOT}" }}\n'
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    command = [sys.executable, "-m", "uv", "lock", "--offline", "--no-index", "--find-links", tmp_path, "--no-cache"]
    done = subprocess.run(
        [*command, "--python", sys.executable], cwd=tmp_path, env=others, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    locked = (tmp_path / "uv.lock").read_text()
    assert re.search(rf'name = "rope-ext"\nversion = "{re.escape(rope_ext.__version__)}"', locked)


# ---- builds ----


def test_configurations_do_not_share_a_folder(setup_py, monkeypatch):
    """Builds that alternate, with what tests need and without, would compile everything again each time."""
    monkeypatch.delenv("CXX", raising=False)
    name = setup_py["build_name"]
    first = name("2.13.0", ["-DROPE_EXT_CUDA=OFF"])
    assert first == name("2.13.0", ["-DROPE_EXT_CUDA=OFF"])
    monkeypatch.setenv("CXX", "clang++")
    others = [name("2.13.0", ["-DROPE_EXT_CUDA=OFF"])]
    monkeypatch.delenv("CXX")
    others += [name("2.15.0", ["-DROPE_EXT_CUDA=OFF"]), name("2.13.0", ["-DROPE_EXT_CUDA=ON"])]
    assert len({first, *others}) == 4


@pytest.mark.parametrize(
    ("steps", "jobs", "said"),
    [
        ("ninja: no work to do.\n", 2, "nothing to compile"),
        ("[1/2] c++ -O3 -c a/b.cpp\n[2/2] c++ -shared -o _ops.so b.o\n", 1, "1 files for the CPU, 0 for GPUs"),
        ("[1/40] c++ -o b.o -c b.cpp\n" * 40, 1, "about 2 min 0 s with 1 jobs"),
        ("[1/40] c++ -o b.o -c b.cpp\n" * 40, 4, "about 30 s with 4 jobs"),
        ("[1/1] nvcc --generate-code=arch=1 --generate-code=arch=2 -c a.cu -o a.o\n", 1, "2 for GPUs"),
    ],
)
def test_builds_say_how_long_they_take(setup_py, steps, jobs, said):
    assert said in setup_py["forecast"](steps, jobs)


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_wrong_number_of_jobs(jobs, tmp_path):
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"MAX_JOBS": jobs}, capture_output=True, text=True)
    sentence = f"rope_ext: MAX_JOBS must be a number of parallel compilations, at least 1, got {jobs!r}."
    assert done.stderr.strip().splitlines()[-1] == sentence


# ---- the library and the tools that pack it ----


def test_library_asks_for_nothing_that_manylinux_lacks():
    """By name; that older releases know functions of glibc under older versions is for tools/wheel.py."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", Path(rope_ext.__file__).with_name("_ops.so")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    newest = [tuple(map(int, found.split("."))) for found in re.findall(r"@GLIBCXX_([\d.]+)", listed)]
    assert newest and max(newest) <= (3, 4, 24) and "__libc_single_threaded" not in listed


def test_matrix_finds_torches_and_environments(tmp_path):
    for name in ("2.9.0/torch/version.py", "2.15.0/torch/version.py", "3.12/bin/python", "cu/nvidia/file"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = [(str(python), torch and torch.name) for python, torch in torch_matrix.installations(tmp_path)]
    assert found == [
        (sys.executable, "2.9.0"),
        (sys.executable, "2.15.0"),
        (str(tmp_path / "3.12" / "bin" / "python"), None),
    ]


def test_matrix_writes_a_row_in_place_of_its_older_one(tmp_path):
    table = tmp_path / "support.md"
    table.write_text("before\n<!-- matrix -->\n<!-- end of matrix -->\nafter\n")
    for version, tests in (("2.15.0", "1 failed"), ("2.9.0", "1 passed"), ("2.15.0", "2 passed")):
        torch_matrix.write(table, ["3.12.1", version, "wheel", "abc", tests])
    assert table.read_text().splitlines() == [
        "before",
        "<!-- matrix -->",
        *torch_matrix.HEADER,
        "| 3.12.1 | 2.9.0 | wheel | abc | 1 passed |",
        "| 3.12.1 | 2.15.0 | wheel | abc | 2 passed |",
        "<!-- end of matrix -->",
        "after",
    ]


def test_table_in_the_docs_is_one_that_the_command_can_write(tmp_path):
    table = tmp_path / "support.md"
    table.write_text((ROOT / "docs" / "support.md").read_text())
    torch_matrix.write(table, ["3.99.0", "2.99.0", "wheel", "abc", "1 passed"])
    assert "| 3.99.0 | 2.99.0 | wheel | abc | 1 passed |\n<!-- end of matrix -->" in table.read_text()
