"""The functions that `rope_ext.patch` knows, from the libraries that are installed: writes _known.json of the package.

    python -m tools.known_functions transformers diffusers timm

What is kept and what is printed: rope_ext/integrations/known.py. Entries of libraries that are not named stay.
"""

import argparse
import functools

from tqdm import tqdm

from rope_ext.integrations import known


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="+", help="names of packages")
    known.update(parser.parse_args().libraries, functools.partial(tqdm, disable=None, leave=False))


if __name__ == "__main__":
    main()
