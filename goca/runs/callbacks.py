"""What happens beside the predictions of a run: records on disk, pictures, and a progress bar that shows the running mIoU."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.files import file_name
from goca.figures import plots
from goca.loggers import Example
from goca.metrics import SegmentationMetric, scores
from goca.prediction import Failure, Prediction
from goca.redact import redact
from goca.runs.folder import RunFolder, compact
from goca.segmentor import Segmentor
from goca.timing import peak_memory_bytes

log = logging.getLogger(__name__)
_NAME_BYTES = 120  # of a figure; loggers make file names of it with more around it


class Recorder(pl.Callback):
    """Appends one record per image as its batch is done; saves label maps where there is no ground truth, or when asked to.

    Args:
        folder: the run folder.
        segmentor: says what took how long.
        classes: the class table, for the colours of label maps.
        positions: image id -> position in the data set, which orders the records.
        recorded: ids that have a record already; they come again only because others of their batch do.
        save_predictions: label maps of all images.
    """

    def __init__(
        self,
        folder: RunFolder,
        segmentor: Segmentor,
        classes: ClassTable,
        positions: Mapping[str, int],
        recorded: Collection[str] = (),
        save_predictions: bool = False,
    ) -> None:
        self.folder, self.segmentor, self.classes, self.positions = folder, segmentor, classes, positions
        self.recorded, self.save_predictions = recorded, save_predictions
        self._since = 0.0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_predict_batch_start(self, *_: Any) -> None:
        self._loading = time.perf_counter() - self._since

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        timer = self.segmentor.timer
        with timer("record"):
            for sample, prediction in predicted(batch, outputs):
                if self.save_predictions or sample.label is None:
                    self._save_label(prediction)
        seconds = timer.take() | {"load": self._loading}
        share = {stage: round(value / len(batch), 6) for stage, value in seconds.items()}
        for result in outputs:
            if result.image_id not in self.recorded:
                facts = {"image_id": result.image_id, "index": self.positions[result.image_id], "seed": self.segmentor.seed}
                self.folder.append(facts | _record(result) | {"seconds": share, "peak_memory_bytes": peak_memory_bytes()})
        self._since = time.perf_counter()

    def _save_label(self, prediction: Prediction) -> None:
        """A palette PNG whose values are class ids, at the first threshold."""
        picture = Image.fromarray(prediction.labels[len(prediction.labels) // 2].cpu().numpy().astype(np.uint8), mode="P")
        picture.putpalette([channel for colour in self.classes.colours[:256] for channel in colour])
        path = self.folder.path / "predictions" / file_name(prediction.image_id, ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def predicted(batch: Sequence[Any], outputs: Sequence[Prediction | Failure]) -> list[tuple[Sample, Prediction]]:
    """The samples of a batch that did not fail, with what was predicted."""
    return [(sample, result) for sample, result in zip(batch, outputs, strict=True) if isinstance(result, Prediction)]


def _record(result: Prediction | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        empty: dict[str, Any] = {"prompts": [], "classes": [], "lost_classes": [], "confusion": None, "layer_weights": {}}
        return {"error": redact(result.reason), **empty, "warnings": []}
    return {
        "error": None,
        "prompts": [prompt.text for prompt in result.prompts],
        "classes": list(result.maps.ids),
        "lost_classes": [i for prompt in result.prompts for i in prompt.lost_classes],
        "confusion": None if result.counts is None else compact(result.counts),
        "layer_weights": {name: round(weight, 6) for name, weight in result.layer_weights.items()},
        "warnings": list(result.warnings),
    }


class Figures(pl.Callback):
    """Keeps the first few images of a run and draws them when it has ended."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[tuple[Sample, Prediction]] = []

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._kept += predicted(batch, outputs)[: self.count - len(self._kept)]

    def draw(self, folder: RunFolder, classes: ClassTable, threshold: int) -> dict[str, Image.Image]:
        """Write the overview and one stages figure per image; returns them by name. A finished run has them already."""
        if not self._kept:
            drawn = sorted(folder.figures.rglob("*.png"))
            return {path.relative_to(folder.figures).with_suffix("").as_posix(): Image.open(path) for path in drawn}
        samples, predictions = zip(*self._kept, strict=True)
        figures = {"overview": partial(plots.overview, samples, predictions, classes, threshold)}
        for sample, prediction in self._kept:
            if prediction.maps.ids:
                name = file_name(f"attention_{sample.image_id}", most=_NAME_BYTES)
                figures[name] = partial(plots.stages, sample, prediction, classes)
        pictures = {}
        for name, draw in figures.items():
            try:
                pictures[name] = draw()
            except Exception as error:  # the numbers are on the disk, and a figure is not worth a run
                log.warning("the figure %s could not be drawn (%s: %s)", name, type(error).__name__, error)
                continue
            path = folder.figures / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures[name].save(path)
        return pictures

    def examples(self, summary: Mapping[str, Any], thresholds: Sequence[float | None]) -> list[Example]:
        """The kept images with their labels at the summary's threshold."""
        chosen = list(thresholds).index(summary.get("threshold")) if summary.get("threshold") in thresholds else 0
        return [Example(sample, prediction, prediction.labels[chosen].cpu().numpy()) for sample, prediction in self._kept]


class RunningMiou(TQDMProgressBar):
    """Lightning's progress bar with the mIoU so far, at the best threshold.

    Args:
        metric: gathers counts while the run goes on.
        earlier: confusion counts (T, K, K) of images that an interrupted run recorded and that do not come again.
    """

    def __init__(self, metric: SegmentationMetric, earlier: Tensor | None = None) -> None:
        super().__init__()
        self.metric, self.earlier = metric, earlier

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        metric = self.metric
        if bool(metric.counts.any()):
            counts = metric.counts if self.earlier is None else metric.counts + self.earlier.to(metric.counts.device)
            found = scores(counts, metric.unseen_classes, metric.has_background)
            miou = float(np.nanmax(found.miou))  # of this process; the summary is made of all records
            self.predict_progress_bar.set_postfix(mIoU=f"{100 * miou:.1f}", refresh=False)
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_exception(self, *_: Any) -> None:
        """Leave the bar's line, so that the reason begins its own."""
        if self._predict_progress_bar is not None:
            self._predict_progress_bar.leave = True
            self._predict_progress_bar.close()
