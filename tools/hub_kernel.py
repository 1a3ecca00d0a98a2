"""Build rope_ext as a kernel of the Hugging Face hub: a folder that the package `kernels` loads without installation.

    python tools/hub_kernel.py [--namespace NAME] [--cuda] [OUT]

Builds _ops.so with its ops in torch.ops.NAMESPACE, so that it can be loaded beside an installed rope_ext and beside
other versions of the kernel, and writes:

    OUT/build.toml
    OUT/build/torch-stable-abi211-cpu-x86_64-linux/     with --cuda: -cu130-, with CUDA kernels too
        metadata.json   its id is NAMESPACE, as the hub requires; a digest of each file
        __init__.py     the public names of rope_ext, and `layers`
        layers.py       the layers for kernels.register_kernel_mapping
        rope_ext/       the package, with _ops.so

Another run with other options adds a variant. Needs auditwheel, by which the library becomes loadable with the glibc of
manylinux_2_28. The program does not publish: that is `kernel-builder upload OUT`, or the hub's own tools.
"""

import argparse
import base64
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python tools/hub_kernel.py

from rope_ext import __version__
from rope_ext._torch.library import PACKAGE, exported_text
from rope_ext._torch.private import OLDEST
from tools.torch_matrix import ROOT, commit

NAME = "rope-ext"
LICENSE = "bsd-3-clause"
VERSION = int(__version__.partition(".")[0])  # the version in the hub's sense, a branch; 0 promises no compatibility

INIT = """from . import layers
from .rope_ext import *
from .rope_ext import __all__ as _public
from .rope_ext import __version__

__all__ = [*_public, "layers"]
"""
LAYERS = """from .rope_ext.integrations.kernels import RotaryEager, RotaryOnce

__all__ = ["RotaryEager", "RotaryOnce"]
"""
BUILD = """# What kernel-builder reads about the kernel. The folder build/ comes from tools/hub_kernel.py of rope_ext.
[general]
name = "{name}"
version = {version}
edition = 5
license = "{license}"
backends = {backends}

[torch]
stable-abi = "{torch}"
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build" / "hub", help="default: build/hub")
    parser.add_argument("--namespace", help="default: from the device and the commit, such as _rope_ext_cpu_1a2b3c4")
    parser.add_argument("--cuda", action="store_true", help="include the CUDA kernels; needs nvcc")
    chosen = parser.parse_args()
    try:
        from tools.wheel import lower_versions  # late, because tests of the layout run without auditwheel
    except ImportError as error:
        sys.exit(f"rope_ext: auditwheel must be installed (pip install auditwheel), got {error}")
    default = f"_rope_ext_{'cuda' if chosen.cuda else 'cpu'}_{commit()}"
    namespace = chosen.namespace or re.sub(r"\W", "_", default)
    with tempfile.TemporaryDirectory() as folder:
        library = build(namespace, chosen.cuda, Path(folder))
        # `kernel-builder check-abi` would find versions of glibc in symbols that only debuggers need.
        subprocess.run(["strip", str(library)], check=True)
        lower_versions(library)
        print(lay_out(library, chosen.out))


def build(namespace, cuda, folder, **variables):
    """Build _ops.so with its ops in torch.ops.<namespace>. variables: added to the environment of setup.py."""
    environment = {**os.environ, **variables, "ROPE_EXT_CUDA": str(int(cuda))}
    environment["CMAKE_ARGS"] = f"{environment.get('CMAKE_ARGS', '')} -DROPE_EXT_NAMESPACE={namespace}"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return folder / "rope_ext" / "_ops.so"


def lay_out(library, out):
    """Write the variant of a library, and build.toml for all variants in `out`. Return the variant's folder."""
    loaded = ctypes.CDLL(str(library))
    namespace, cuda = (exported_text(loaded, f"rope_ext_{name}") for name in ("namespace", "cuda_version"))
    backend, device = {"type": "cpu"}, "cpu"
    if cuda:
        backend = {"type": "cuda", "archs": exported_text(loaded, "rope_ext_cuda_architectures").split()}
        device = "cu" + "".join(cuda.split(".")[:2])
    abi = f"torch-stable-abi{OLDEST.replace('.', '')}"
    variant = out / "build" / f"{abi}-{device}-{platform.machine()}-linux"
    shutil.rmtree(variant, ignore_errors=True)
    shutil.copytree(PACKAGE, variant / "rope_ext", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy2(library, variant / "rope_ext" / "_ops.so")
    (variant / "__init__.py").write_text(INIT)
    (variant / "layers.py").write_text(LAYERS)
    digest = {"algorithm": "sha256", "files": digests(variant)}
    metadata = {"id": namespace, "name": NAME, "version": VERSION, "license": LICENSE, "python-depends": []}
    metadata |= {"backend": backend, "digest": digest}
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    found = {json.loads(path.read_text())["backend"]["type"] for path in out.glob("build/*/metadata.json")}
    text = BUILD.format(name=NAME, version=VERSION, license=LICENSE, backends=json.dumps(sorted(found)), torch=OLDEST)
    (out / "build.toml").write_text(text)
    return variant


def digests(folder):
    """{path: SHA-256 in base64} of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = (base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for path in files)
    return dict(zip((path.relative_to(folder).as_posix() for path in files), sums))


if __name__ == "__main__":
    main()
