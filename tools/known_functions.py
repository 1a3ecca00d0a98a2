"""Record the rotary functions that `rope_ext.patch` knows, from installed libraries, in _known.json of the package.

    python -m tools.known_functions transformers diffusers timm
    python -m tools.known_functions --list transformers diffusers timm    # print what _known.json lacks, write nothing

rope_ext/integrations/known.py says what is recorded and printed. Entries of other libraries stay unchanged.
"""

import argparse
import functools
import importlib.metadata

from tqdm import tqdm

from rope_ext.integrations import known


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="+", help="names of packages")
    parser.add_argument(
        "--list", action="store_true", help="list the functions that _known.json lacks, and write nothing"
    )
    options, progress = parser.parse_args(), functools.partial(tqdm, disable=None, leave=False)
    if options.list:
        for library in options.libraries:
            print(*listed(library, progress), sep="\n")
    else:
        known.update(options.libraries, progress)


def listed(library, progress=iter):
    """The lines about a library: one per function that _known.json lacks, or the reason why there are none."""
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return [f"{library}: not installed"]
    missing = known.missing(library, progress)
    return [f"{library} {version}: {len(missing) or 'none'} new", *(f"  {line}" for line in missing)]


if __name__ == "__main__":
    main()
