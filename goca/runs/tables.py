"""The numbers of one run as tables: plain rows that loggers, CSV files and the comparison page show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from goca.runs.records import ImageRecord, Summary
from goca.runs.summary import total_counts
from goca.runs.table import Cell, Table


def run_tables(
    summary: Summary,
    records: Sequence[ImageRecord],
    head_weights: Sequence[Mapping[str, Sequence[float]]] = (),
) -> dict[str, Table]:
    """Every table of a run by name; those it has no numbers for are left out.

    Args:
        summary, records: of the run folder.
        head_weights: of the drawn images, one mapping each: layer -> mean weight of each head.
    """
    tables = {
        "seconds_by_stage": Table(("stage", "seconds per image"), tuple(summary.seconds_by_stage.items())),
        "layer_weights": _layer_weights(records),
        "head_weights": _head_weights(head_weights),
        "images": _images(records, summary),
    }
    if summary.miou_by_threshold is not None:
        tables["miou_by_threshold"] = Table(("threshold", "mIoU"), tuple(summary.miou_by_threshold.items()))
        tables["iou_by_class"] = Table(("class", "IoU"), tuple((summary.iou_by_class or {}).items()))
        tables["confusion"] = _confusion(records, summary.classes, summary.threshold_index)
    return {name: table for name, table in tables.items() if table.rows}


def _layer_weights(records: Sequence[ImageRecord]) -> Table:
    """Mean weight of each layer and its spread over images, and the mean standard error where there are any."""
    errors = [record.layer_weight_errors for record in records if record.layer_weight_errors]
    weights = [record.layer_weights for record in records if record.layer_weights]
    rows: list[tuple[str | float, ...]] = []
    for layer in weights[0] if weights else ():
        values = np.array([weight[layer] for weight in weights if layer in weight])
        error = (round(float(np.mean([found[layer] for found in errors])), 6),) if errors else ()
        rows.append((layer, *(round(float(f(values)), 6) for f in (np.mean, np.std, np.min, np.max)), *error))
    return Table(("layer", "mean", "std", "min", "max", *(("standard error",) if errors else ())), tuple(rows))


def _head_weights(images: Sequence[Mapping[str, Sequence[float]]]) -> Table:
    """Mean over pixels and drawn images of each head's weight, and its spread over the images."""
    rows = []
    for layer in images[0] if images else ():
        values = np.array([image[layer] for image in images])  # (images, H)
        for head, (mean, std) in enumerate(zip(values.mean(0), values.std(0), strict=True)):
            rows.append((layer, head, round(float(mean), 6), round(float(std), 6)))
    return Table(("layer", "head", "mean", "std"), tuple(rows))


def _images(records: Sequence[ImageRecord], summary: Summary) -> Table:
    """One row per image: mIoU over the classes seen in it, share of correct pixels, the time it took and what went wrong."""
    chosen = summary.threshold_index
    rows: list[tuple[Cell, ...]] = [
        (
            str(record.image_id),
            None if record.confusion is None else _miou(record.confusion[chosen], summary.has_background),
            None if record.confusion is None else _accuracy(record.confusion[chosen]),
            round(sum(record.seconds.values()), 5),
            "; ".join(filter(None, (record.error, *record.warnings))),
        )
        for record in records
    ]
    return Table(("image", "mIoU", "pixel accuracy", "seconds", "warnings"), tuple(rows))


def _miou(flat: Sequence[int], has_background: bool) -> float | None:
    """Mean IoU in per cent over the classes of one compact confusion matrix."""
    truth, predicted, count = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    classes = [i for i in np.union1d(truth, predicted) if i or has_background]
    hits = [count[(truth == i) & (predicted == i)].sum() for i in classes]
    unions = [count[(truth == i) | (predicted == i)].sum() for i in classes]
    return round(100 * float(np.mean(np.divide(hits, unions))), 4) if classes else None


def _accuracy(flat: Sequence[int]) -> float | None:
    """Per cent of pixels on the diagonal of one compact confusion matrix."""
    truth, predicted, count = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    return round(100 * float(count[truth == predicted].sum() / count.sum()), 4) if count.sum() else None


def _confusion(records: Sequence[ImageRecord], class_names: Sequence[str], threshold: int) -> Table:
    """Pixels by (truth, prediction) at one threshold; pairs that never occur are left out."""
    counts = total_counts(records, len(class_names))
    if counts is None:
        return Table(("truth", "prediction", "pixels"), ())
    matrix = counts[threshold]
    rows = [(class_names[i], class_names[j], int(matrix[i, j])) for i, j in matrix.nonzero().tolist()]
    return Table(("truth", "prediction", "pixels"), tuple(rows))
