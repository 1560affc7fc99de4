"""What the command lines of the experiments on scenes have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

Work = Callable[[argparse.Namespace], object]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Shows the description, a module's docstring, as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)


def perform(
    arguments: argparse.ArgumentParser,
    out: str,
    run: Work,
    other: Work,
    flag: str = "--report",
    help: str = "print the tables of what has been measured",
) -> None:
    """Add where results go, how many threads compute, and the flag by which `other` is done instead of `run`; do it."""
    arguments.add_argument("--out", type=Path, default=Path(out))
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument(flag, dest="instead", action="store_true", help=help)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    (other if options.instead else run)(options)
