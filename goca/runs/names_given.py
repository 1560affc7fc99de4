"""How well the names that a method is given fit the images, and the mIoU that no method can exceed with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goca.runs.records import ImageRecord


@dataclass(frozen=True)
class NamesGiven:
    """Over all judged images, in per cent; None where nothing was named, or nothing is in the images.

    Args:
        precision: of the names given, those of classes in the image.
        recall: of the classes in the images, those whose name was given.
        bound: mIoU if every pixel of a class that was named were found, and nothing else labelled as it: pixels of the others
            are lost whatever the method does.
    """

    precision: float | None
    recall: float | None
    bound: float | None


def names_given(records: Sequence[ImageRecord], num_classes: int, has_background: bool) -> NamesGiven:
    """Names against ground truth; the background is no name, and its pixels can always be found."""
    named = right = present = 0
    pixels, reachable = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for record in records:
        if record.confusion is None:
            continue
        truth, _, count = np.array(record.confusion[0], dtype=np.int64).reshape(-1, 3).T
        own = np.bincount(truth, count, num_classes).astype(np.int64)
        given = {i for i in (*record.classes, *record.lost_classes) if 0 < i < num_classes}  # segments have ids of their own
        seen = set(own.nonzero()[0].tolist())
        pixels += own
        kept = [*given, 0]
        reachable[kept] += own[kept]
        named, right, present = named + len(given), right + len(given & seen), present + len(seen - {0})
    judged = np.flatnonzero(pixels)
    judged = judged if has_background else judged[judged > 0]
    bound = float(np.mean(reachable[judged] / pixels[judged])) if len(judged) else None
    return NamesGiven(_per_cent(right, named), _per_cent(right, present), None if bound is None else round(100 * bound, 4))


def _per_cent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None
