"""The run folder: one record per image, appended as it is done, and a summary that is a function of the records alone."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from goca.errors import ConfigError
from goca.metrics import scores
from goca.paths import PACKAGE

Record = dict[str, Any]
NO_THRESHOLD = "none"  # key of results that compare no class with a background
_PACKAGES = ("goca", "torch", "diffusers", "transformers", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb", "numpy")


class RunFolder:
    """Where one run leaves what it found.

    config.yaml      the composed configuration
    records.jsonl    one line per image
    summary.json     the numbers
    figures/         pictures

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: IO[str] | None = None
        try:
            self.figures.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"the output folder {path} cannot be written to ({error.strerror}); set paths.output") from error

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def append(self, record: Record) -> None:
        """Add one image's record; it is in the file when this returns."""
        if self._records is None:
            self._records = open(self.path / "records.jsonl", "a", encoding="utf-8")
        self._records.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._records.flush()

    def close(self) -> None:
        if self._records is not None:
            self._records.close()
            self._records = None

    def records(self) -> list[Record]:
        """All records so far, in the order in which they were written."""
        with open(self.path / "records.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def write_json(self, name: str, content: Any) -> Path:
        path = self.path / name
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


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
    warnings: dict[str, int] = {}
    for record in records:
        for warning in record["warnings"]:
            warnings[warning] = warnings.get(warning, 0) + 1
    stages = sorted({stage for record in records for stage in record["seconds"]})
    seconds = {stage: sum(record["seconds"].get(stage, 0.0) for record in records) / max(images, 1) for stage in stages}
    summary: dict[str, Any] = {
        "images": images,
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


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what a reader needs to repeat the numbers."""
    return {
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}},
        "commit": _commit(),
        "machine": platform.processor() or platform.machine(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that is running, marked where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _mean_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([part[name] for part in parts])), 6) for name in (parts[0] if parts else ())}


def _number(value: float) -> float | None:
    """IoU and accuracy in per cent, four decimals; None for what is not defined."""
    return None if np.isnan(value) else round(100 * float(value), 4)
