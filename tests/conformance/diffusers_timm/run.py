"""Compares models of diffusers and timm in eager mode and patched: writes docs/models_diffusers.md.

All models, or those named; a library that is not installed is skipped::

    python -m tests.conformance.diffusers_timm.run [names]

Models have small configurations (models.py) and random weights. They run on the CPU, forward and backward, in float32
and bfloat16. Another run without any rotation must change the result. The exit code is 1 if a result is not bit-identical
although every replaced function should be.
"""

import argparse
import importlib
import pathlib
import sys

import torch
from tqdm import tqdm

from tests.conformance.diffusers_timm.compare import row
from tests.conformance.diffusers_timm.models import DIFFUSERS, TIMM
from tests.conformance.diffusers_timm.page import page

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "models_diffusers.md"


def models():
    """(library, name, function that builds the model, function that creates its inputs)"""
    for library in ("diffusers", "timm"):
        try:
            module = importlib.import_module(library)
        except ImportError as error:
            print(f"{library} is skipped: {error}")
            continue
        if library == "diffusers":
            for name, (config, inputs) in DIFFUSERS.items():
                kind = getattr(module, name.split()[0])
                yield library, name, lambda kind=kind, config=config: kind(**config), inputs
        else:
            for name, config in TIMM.items():
                size = config.get("img_size", 64)
                yield (
                    library,
                    name,
                    lambda make=module.create_model, name=name, config=config: make(name, **config),
                    lambda r, size=size: {"x": r(2, 3, size, size)},
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="models to run; the page is then not written")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    rows, failed = {}, []
    chosen = [m for m in models() if not names or m[1] in names]
    for library, name, make, inputs in tqdm(chosen, disable=None, leave=False):
        cells, ok = row(name, make, inputs)
        rows.setdefault(library, []).append(cells)
        failed += [] if ok else [name]
        if names or not ok:
            print(" | ".join(cells))
    if not names:
        PAGE.write_text(page(rows))
    print(f"{sum(map(len, rows.values()))} models, {len(failed)} wrong: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
