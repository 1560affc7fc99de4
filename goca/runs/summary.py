"""From records to numbers: confusion counts in compact form, and the summary as a pure function of the records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goca.runs.kinds import image_set
from goca.runs.metrics import scores
from goca.runs.names_given import names_given
from goca.runs.records import Facts, ImageRecord, Summary, threshold_key

NO_BACKGROUND = "no background score"
FIXED = "fixed beforehand"
_SHOWN_FAILURES = 20


def compact(counts: Tensor) -> list[list[int]]:
    """Confusion counts (T, K, K) as one list per threshold: truth, prediction, count, truth, prediction, count ...

    >>> compact(torch.tensor([[[5, 0], [2, 0]]]))
    [[0, 0, 5, 1, 0, 2]]
    """
    lists = []
    for matrix in counts.cpu():
        places = matrix.nonzero()
        lists.append(torch.cat([places, matrix[places[:, 0], places[:, 1]][:, None]], dim=1).flatten().tolist())
    return lists


def expand(lists: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """The inverse of `compact`: (T, K, K) int64."""
    counts = torch.zeros(len(lists), num_classes, num_classes, dtype=torch.long)
    for matrix, flat in zip(counts, lists, strict=True):
        truth, predicted, count = torch.tensor(flat, dtype=torch.long).view(-1, 3).unbind(1)
        matrix[truth, predicted] = count
    return counts


def total_counts(records: Iterable[ImageRecord], num_classes: int) -> Tensor | None:
    """Confusion counts of all records that have ground truth, added up: (T, K, K); None if none has."""
    total = None
    for record in records:
        if record.confusion is not None:
            counts = expand(record.confusion, num_classes)
            total = counts if total is None else total + counts
    return total


def summarize(facts: Facts, records: Sequence[ImageRecord]) -> Summary:
    """The numbers of a run from its records: mIoU, IoU per class and accuracy at one threshold, mIoU at all, times, warnings.

    That threshold is the one fixed beforehand or else the best; without ground truth the middle one stands for the pictures.
    """
    images = len(records)
    failures = {record.image_id: record.error for record in records if record.error}
    judged = [record.image_id for record in records if record.confusion is not None]
    warnings: dict[str, int] = {}
    for record in records:
        for warning in record.warnings:
            warnings[warning] = warnings.get(warning, 0) + 1
    stages = sorted({stage for record in records for stage in record.seconds})
    seconds = {stage: sum(record.seconds.get(stage, 0.0) for record in records) / max(images, 1) for stage in stages}
    numbers: dict[str, Any] = {
        "images": images,
        "failed": len(failures),
        "judged": len(judged),
        "image_set": image_set(judged),
        "failures": dict(list(failures.items())[:_SHOWN_FAILURES]),
        "peak_memory_bytes": max((record.peak_memory_bytes for record in records), default=0),
        "seconds_per_image": round(sum(seconds.values()), 5),
        "seconds_by_stage": {stage: round(value, 5) for stage, value in seconds.items()},
        "lost_classes": sum(len(record.lost_classes) for record in records),
        "warnings": warnings,
        "layer_weights": _mean_of([record.layer_weights for record in records if record.layer_weights]),
        "layer_weight_errors": _mean_of([record.layer_weight_errors for record in records if record.layer_weight_errors]),
    }
    given = names_given(records, len(facts.classes), facts.has_background)
    numbers |= {"names_precision": given.precision, "names_recall": given.recall, "miou_bound": given.bound}
    known = {part.name: getattr(facts, part.name) for part in dataclasses.fields(Facts)}
    counts = total_counts(records, len(facts.classes))
    chosen, results = _unscored(facts) if counts is None else _scored(facts, counts)
    return Summary(**known, **numbers, **results, near_ties=_near_ties(records, chosen))


def _unscored(facts: Facts) -> tuple[int, dict[str, Any]]:
    """Position and description of the threshold that stands for a run without ground truth."""
    thresholds = facts.thresholds
    if (fixed := facts.fixed_threshold) is not None:
        return thresholds.index(fixed), {"miou": None, "threshold": fixed, "threshold_choice": FIXED}
    middle = len(thresholds) // 2
    tau = thresholds[middle] if thresholds else None
    choice = NO_BACKGROUND if tau is None else f"middle of {len(thresholds)}: there is no ground truth to choose by"
    return middle, {"miou": None, "threshold": tau, "threshold_choice": choice}


def _scored(facts: Facts, counts: Tensor) -> tuple[int, dict[str, Any]]:
    """Position of the fixed or the best threshold, and the results there."""
    thresholds, fixed = facts.thresholds, facts.fixed_threshold
    found = scores(counts, facts.unseen_classes, facts.has_background)
    best = 0 if np.isnan(found.miou).all() else int(np.nanargmax(found.miou))
    best = best if fixed is None else thresholds.index(fixed)
    tau, keys = thresholds[best], list(map(threshold_key, thresholds))
    choice = FIXED if fixed is not None else _choice(found.miou, best)
    return best, {
        "miou": _number(found.miou[best]),
        "miou_by_threshold": {key: _number(value) for key, value in zip(keys, found.miou, strict=True)},
        "threshold": tau,
        "threshold_choice": NO_BACKGROUND if tau is None else choice,
        "iou_by_class": _by_class(facts, found.iou[best]),
        "pixel_accuracy": _number(found.pixel_accuracy[best]),
        "mean_accuracy": _number(found.mean_accuracy[best]),
        "accuracy_by_class": _by_class(facts, found.accuracy[best]),
    }


def _by_class(facts: Facts, values: np.ndarray) -> dict[str, float | None]:
    """Per cent by name, of the classes that take part."""
    return {name: _number(value) for name, value in zip(facts.classes, values, strict=True) if not np.isnan(value)}


def _choice(miou: np.ndarray, best: int) -> str:
    """How the threshold was chosen; one alone was given, and the best at an end of its sweep may be better beyond it.

    >>> _choice(np.array([0.5]), 0), _choice(np.array([0.1, 0.3, 0.2]), 1)
    ('given beforehand', 'best of 3 on the evaluated images')
    >>> _choice(np.array([0.1, 0.2, 0.3]), 2), _choice(np.array([0.2, 0.2]), 0)
    ('best of 3 on the evaluated images, the last of its sweep', 'all of 2 give the same number')
    """
    if len(miou) == 1:
        return "given beforehand"
    if np.isnan(miou).all():
        return f"first of {len(miou)}: no pixel is evaluated"
    if np.nanmin(miou) == np.nanmax(miou):
        return f"all of {len(miou)} give the same number"
    ends = {0: ", the first of its sweep", len(miou) - 1: ", the last of its sweep"}
    return f"best of {len(miou)} on the evaluated images{ends.get(best, '')}"


def _near_ties(records: Sequence[ImageRecord], chosen: int) -> int | None:
    """Over all images at one threshold; None where an earlier version recorded some without counting them."""
    done = [record.near_ties for record in records if not record.error]
    return None if not done or any(counts is None for counts in done) else sum(counts[chosen] for counts in done if counts)


def _mean_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([part[name] for part in parts])), 6) for name in (parts[0] if parts else ())}


def _number(value: float) -> float | None:
    """IoU and accuracy in per cent, four decimals; None for what is not defined."""
    return None if np.isnan(value) else round(100 * float(value), 4)
