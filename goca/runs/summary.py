"""From records to numbers: confusion counts in compact form, and the summary as a pure function of the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goca.metrics import scores
from goca.runs.journal import Record

NO_THRESHOLD = "none"  # key of results that compare no class with a background
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


def total_counts(records: Iterable[Record], num_classes: int) -> Tensor | None:
    """Confusion counts of all records that have ground truth, added up: (T, K, K); None if none has."""
    total = None
    for record in records:
        if record.get("confusion") is not None:
            counts = expand(record["confusion"], num_classes)
            total = counts if total is None else total + counts
    return total


def summarize(
    records: Sequence[Record],
    class_names: Sequence[str],
    thresholds: Sequence[float | None],
    unseen_classes: Any,
    has_background: bool,
) -> dict[str, Any]:
    """The numbers of a run from its records: mIoU at the best and every threshold, IoU per class, accuracy, times, warnings."""
    images = len(records)
    failures = {record["image_id"]: record["error"] for record in records if record.get("error")}
    warnings: dict[str, int] = {}
    for record in records:
        for warning in record["warnings"]:
            warnings[warning] = warnings.get(warning, 0) + 1
    stages = sorted({stage for record in records for stage in record["seconds"]})
    seconds = {stage: sum(record["seconds"].get(stage, 0.0) for record in records) / max(images, 1) for stage in stages}
    summary: dict[str, Any] = {
        "images": images,
        "failed": len(failures),
        "failures": dict(list(failures.items())[:_SHOWN_FAILURES]),
        "peak_memory_bytes": max((record.get("peak_memory_bytes", 0) for record in records), default=0),
        "seconds_per_image": round(sum(seconds.values()), 5),
        "seconds_by_stage": {stage: round(value, 5) for stage, value in seconds.items()},
        "lost_classes": sum(len(record["lost_classes"]) for record in records),
        "warnings": warnings,
        "layer_weights": _mean_of([record["layer_weights"] for record in records if record["layer_weights"]]),
        "miou": None,
    }
    counts = total_counts(records, len(class_names))
    if counts is None:
        return summary
    found = scores(counts, unseen_classes, has_background)
    best = int(np.nanargmax(found.miou)) if not np.isnan(found.miou).all() else 0
    keys = [NO_THRESHOLD if tau is None else f"{tau:g}" for tau in thresholds]
    return summary | {
        "miou": _number(found.miou[best]),
        "miou_by_threshold": {key: _number(value) for key, value in zip(keys, found.miou, strict=True)},
        "threshold": None if thresholds[best] is None else thresholds[best],
        "threshold_choice": "no background score"
        if thresholds[best] is None
        else f"best of {len(keys)} on the evaluated images",
        "iou_by_class": {
            name: _number(value) for name, value in zip(class_names, found.iou[best], strict=True) if not np.isnan(value)
        },
        "pixel_accuracy": _number(found.pixel_accuracy[best]),
    }


def _mean_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([part[name] for part in parts])), 6) for name in (parts[0] if parts else ())}


def _number(value: float) -> float | None:
    """IoU and accuracy in per cent, four decimals; None for what is not defined."""
    return None if np.isnan(value) else round(100 * float(value), 4)
