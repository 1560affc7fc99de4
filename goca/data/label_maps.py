"""From the values that masks store to class ids."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

IGNORE = 255  # label value of pixels that the evaluation leaves out
UNKNOWN = -1  # entry for values that do not exist in the data set


def identity_map(classes: int) -> np.ndarray:
    """(256,) for masks that store class ids 0 ... classes - 1, and 255 for void."""
    table = np.full(256, UNKNOWN)
    table[:classes] = np.arange(classes)
    table[255] = IGNORE
    return table


def stored_map(name: str, size: int, other: Iterable[int] = (), void: Iterable[int] = ()) -> np.ndarray:
    """(size,) from `label_maps.yaml`: values of no evaluated class (`other`) become 0, `void` ones are ignored."""
    table = np.full(size, UNKNOWN)
    table[list(other)] = 0
    table[list(void)] = IGNORE
    for class_id, values in enumerate(stored_lists(name), start=1):
        table[values] = class_id  # one value, or a list of them
    return table


@cache
def stored_lists(name: str) -> tuple[Any, ...]:
    """The values of the classes 1, 2, ... in `label_maps.yaml`: one each, or a list."""
    text = (resources.files("goca.data") / "label_maps.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text)[name])
