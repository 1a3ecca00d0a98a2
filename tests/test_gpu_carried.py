"""What is built for a GPU machine where there is none: the library, wheels, the program of candidates.cu."""

import json
import os
import shutil
import subprocess
import zipfile

import pytest

from benchmarks.gpu_check import candidates, carry, library, programs
from benchmarks.harness import shapes

pytestmark = pytest.mark.devices("cpu")


# ---- the library and wheels ----


def test_the_library_in_build_gpu_is_used_where_the_present_one_does_not_load(tmp_path, monkeypatch, capsys):
    (tmp_path / "rope_ext").mkdir()
    (tmp_path / "gpu").mkdir()
    for name in ("_ops.so", "_introspect.cpython-312-x86_64-linux-gnu.so"):
        (tmp_path / "gpu" / name).write_text("carried")
    monkeypatch.setattr(library, "ROOT", tmp_path)
    monkeypatch.setattr(library, "CARRIED", tmp_path / "gpu")
    there = tmp_path / "rope_ext" / "_ops.so"
    monkeypatch.setattr(library, "python", lambda code: (there.exists(), "ImportError: no _ops.so"))
    monkeypatch.setattr(library, "compile_here", lambda: pytest.fail("compiled"))
    assert library.main() == 0 and there.read_text() == "carried"
    assert capsys.readouterr().out.splitlines()[0] == "present library: unusable: ImportError: no _ops.so"
    there.write_text("built by a user")
    assert library.main() == 0 and there.read_text() == "built by a user"
    os.utime(tmp_path / "gpu" / "_ops.so", (there.stat().st_mtime + 1,) * 2)  # prepared after that
    assert library.main() == 0 and there.read_text() == "carried"
    there.unlink()
    (tmp_path / "gpu" / "_ops.so").unlink()
    monkeypatch.setattr(library, "compile_here", lambda: there.write_text("compiled"))
    assert library.main() == 0 and there.read_text() == "compiled"


def test_wheels_are_used_where_a_package_is_missing(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("pytest-1.0-py3-none-any.whl", "a_peer-1.0-py3-none-any.whl"):
        with zipfile.ZipFile(wheels / name, "w") as archive:
            archive.writestr(f"{name.split('-')[0]}/__init__.py", "")
    paths = programs.unpacked(wheels, False, tmp_path / "missing")
    assert [path.name for path in (tmp_path / "missing").iterdir()] == ["a_peer"]
    assert programs.environment_of("bench", paths)["PYTHONPATH"].endswith(f"{tmp_path}/missing{os.pathsep}{wheels}")
    programs.unpacked(wheels, True, tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"a_peer", "pytest"}


# ---- candidates ----


def timed_row(candidate, us, stores="default", same=True):
    case = {"shape": "decode", "dtype": "bf16", "candidate": candidate, "stores": stores}
    return {**case, "us": us, "copy_us": 1.5, "copy_percent": 150 / us, "same_bits": same}


def test_candidates_are_kept_line_by_line_and_compared(tmp_path, capsys):
    rows = [{"gpu": "made up", "empty_launch_us": 1.25}, timed_row("shipped", 2.0), timed_row("other", 1.0, same=False)]
    echoes = [f"echo '{json.dumps(row)}'\n" for row in rows]
    # The lines of the first program are there before the second has ended.
    of_b = f"[ $(wc -l <{tmp_path}/lines) -ge 3 ] && echo '{json.dumps(timed_row('shipped', 1.5, 'st.cs'))}'"
    for name, text in (("a", "".join(echoes)), ("b", of_b), ("fails", f"{echoes[1]}exit 7")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    assert candidates.timed([tmp_path / "a", tmp_path / "b"], tmp_path / "lines") == 1
    assert [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()][:3] == rows
    assert capsys.readouterr().out.splitlines() == [
        "an empty kernel: 1.25 us",
        "decode bf16: 2.00 us, 75 % of a copy; other 0.500; shipped, st.cs 0.750",
        "not bit-identical to the shipped kernel: decode bf16 other",
    ]
    assert candidates.timed([tmp_path / "b"], tmp_path / "other") == 0
    assert candidates.timed([tmp_path / "fails"], tmp_path / "other") == 1


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_candidates_compile_and_differ_in_their_grids(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "PROGRAMS", {"evict_first": carry.PROGRAMS["candidates_st_cs"]})
    (program,) = carry.compile_candidates(tmp_path, "sm_90")
    rows = [json.loads(line) for line in subprocess.check_output([program, "--plans"], text=True).splitlines()]
    assert {row["shape"] for row in rows} == {"prefill", "train", "decode", "tiny", "long", "video"}
    by_case = {(row["shape"], row["dtype"], row["candidate"]): row for row in rows}
    for heads in (1, 2, 4):
        assert by_case["prefill", "bf16", f"{heads} head{'s' * (heads > 1)} per thread"]["heads_per_thread"] == heads
    for shape in shapes.SHAPES:  # every head of every token has its threads: two vectors of 16 bytes each
        for (name, dtype, _), row in by_case.items():
            if name == shape.name:
                work = shape.elements // (8 if dtype == "fp32" else 16)
                assert row["blocks"] * row["threads"] * row["heads_per_thread"] >= work and row["threads"] <= 256
    assert {row["stores"] for row in rows} == {"st.cs"}
