"""What the command lines of the experiments on scenes have in common, and how their counts are written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from goca.disk import replacing
from goca.errors import ConfigError

Work = Callable[[argparse.Namespace], object]
CLAIM = "training.json"  # of which training the counts beside it are


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
    """Add where results go, how many threads compute, and the flag by which `other` is done instead of `run`; do it.

    Raises:
        ConfigError: tables are asked for of a folder without any result.
    """
    arguments.add_argument("--out", type=Path, default=Path(out))
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument(flag, dest="instead", action="store_true", help=help)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found = (path for path in options.out.rglob("*") if path.is_file() and path.name != CLAIM)
    if options.instead and flag == "--report" and not any(found):
        raise ConfigError(f"{options.out} holds no results: run the experiment without {flag} first, or give its --out")
    (other if options.instead else run)(options)


def save(path: Path, **arrays: np.ndarray) -> None:
    """A compressed npz file of these arrays, whole or not at all: what is there counts as done."""
    with replacing(path) as part, part.open("wb") as file:  # a name without .npz would get it
        np.savez_compressed(file, **arrays)
