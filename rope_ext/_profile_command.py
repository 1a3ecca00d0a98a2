"""The command line of `python -m rope_ext.profile`: its options, and errors that name them."""

import argparse
from typing import NoReturn

import torch

from ._profile_case import DTYPES_BY_NAME, Case
from .errors import ArgumentError, ArgumentTypeError
from .reference import LAYOUTS


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage, which --help prints."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser_of_command() -> Parser:
    parser = Parser(
        prog="python -m rope_ext.profile",
        description="Measures what a call of rope_ext costs, next to a copy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    absent = argparse.SUPPRESS  # the function supplies the default
    batch = "number of sequences (default: 1; with --breakdown 32)"
    parser.add_argument("--batch", type=int, default=absent, help=batch)
    seqlen = "tokens per sequence (default: 4096; with --breakdown 1)"
    parser.add_argument("--seqlen", type=int, default=absent, help=seqlen)
    parser.add_argument("--heads", type=int, nargs="+", help="number of heads of each tensor, such as q and k")
    parser.add_argument("--head-dim", type=int, help="channels of a head")
    parser.add_argument("--rotary-dim", type=int, help="number of rotated channels; None: all")
    parser.add_argument("--dtype", choices=DTYPES_BY_NAME, metavar="DTYPE", help=", ".join(DTYPES_BY_NAME))
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--layout", choices=LAYOUTS, metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument("--interleaved", action="store_true", help="pairs are channels (2i, 2i + 1)")
    parser.add_argument("--norm", action="store_true", help="RMSNorm of the heads before the rotation")
    parser.add_argument("--packed", action="store_true", help="q, k and v in one tensor: apply_qkv")
    parser.add_argument("--threads", type=int, help="CPU threads")
    rounds = "upper bound; the total time is bounded too (default: 50; with --breakdown 500)"
    parser.add_argument("--rounds", type=int, default=absent, help=rounds)
    one_of = parser.add_mutually_exclusive_group()
    trace = "write a trace of a few calls for chrome://tracing or ui.perfetto.dev"
    one_of.add_argument("--trace", metavar="FILE", default=absent, help=trace)
    one_of.add_argument("--breakdown", action="store_true", help="where the time of one call goes, part by part")
    defaults = {name: value for name, value in vars(Case()).items() if name not in ("batch", "seqlen")}
    parser.set_defaults(**defaults | {"dtype": "bfloat16"}, threads=torch.get_num_threads())
    return parser


def about_option(error: ArgumentError | ArgumentTypeError) -> str:
    """The message of an error about an argument, under its name on the command line."""
    cure = f": {error.cure}" if error.cure else ""
    return f"--{error.argument.replace('_', '-')} must {error.rule}, got {error.got}{cure}"


def sentence_of(error: Exception) -> str:
    return str(error).removeprefix("rope_ext: ")
