"""What happens beside the predictions of a run: records and pictures on disk, and a progress bar with the running mIoU."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from goca.config.redact import redact
from goca.data.files import file_name
from goca.figures.example import Example
from goca.prediction import Failure, Prediction
from goca.runs.folder import RunFolder
from goca.runs.metrics import SegmentationMetric, scores
from goca.runs.records import ImageRecord
from goca.runs.summary import compact
from goca.segmentor import Segmentor
from goca.timing import StageTimer, peak_memory_bytes


class Recorder(pl.Callback):
    """Appends one record per image as its batch is done.

    Args:
        folder: the run folder.
        segmentor: says what took how long.
        positions: image id -> position in the data set, which orders the records.
    """

    def __init__(self, folder: RunFolder, segmentor: Segmentor, positions: Mapping[str, int]) -> None:
        self.folder, self.segmentor, self.positions = folder, segmentor, positions
        self._since = 0.0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_predict_batch_start(self, *_: Any) -> None:
        self._loading = time.perf_counter() - self._since

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        seconds = self.segmentor.timer.take() | {"load": self._loading}
        share = {stage: round(value / len(batch), 6) for stage, value in seconds.items()}
        for result in outputs:
            self.folder.append(_record(result, self.positions[result.image_id], self.segmentor.seed, share))
        self._since = time.perf_counter()


def _record(result: Prediction | Failure, index: int, seed: int, seconds: Mapping[str, float]) -> ImageRecord:
    common: Any = {"image_id": result.image_id, "index": index, "seed": seed, "seconds": seconds}
    common["peak_memory_bytes"] = peak_memory_bytes()
    if isinstance(result, Failure):
        return ImageRecord(**common, error=redact(result.reason))
    return ImageRecord(
        **common,
        prompts=[prompt.text for prompt in result.prompts],
        classes=list(result.class_ids),
        lost_classes=[i for prompt in result.prompts for i in prompt.lost_classes],
        confusion=None if result.counts is None else compact(result.counts),
        near_ties=list(result.near_ties),
        layer_weights={name: round(weight, 6) for name, weight in result.layer_weights.items()},
        layer_weight_errors={name: round(error, 6) for name, error in result.layer_weight_errors.items()},
        warnings=list(result.warnings),
    )


class Pictures(pl.Callback):
    """Writes what pictures are made of as batches are done: label maps, and everything there is to draw of the first images.

    Args:
        folder: the run folder.
        timer: of the segmentor, charged with the time.
        drawn: ids of the images that figures show.
        save_predictions: label maps of all images, and not only of those without ground truth.
    """

    def __init__(self, folder: RunFolder, timer: StageTimer, drawn: Collection[str], save_predictions: bool = False) -> None:
        self.folder, self.timer, self.drawn, self.save_predictions = folder, timer, frozenset(drawn), save_predictions

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        with self.timer("record"):
            for sample, result in zip(batch, outputs, strict=True):
                if not isinstance(result, Prediction):
                    continue
                if self.save_predictions or sample.label is None:
                    self.folder.labels.write(result.image_id, result.labels.cpu().numpy())
                if result.image_id in self.drawn:
                    Example.of(sample, result).save(self.folder.drawn / file_name(result.image_id, ".npz"))


class RunningMiou(TQDMProgressBar):
    """Lightning's progress bar with the mIoU so far, at the best threshold.

    Args:
        metric: gathers counts while the run goes on.
        earlier: confusion counts (T, K, K) of images that an interrupted run recorded and that do not come again.
        chosen: position of the threshold that is shown; None shows the best.
    """

    def __init__(self, metric: SegmentationMetric, earlier: Tensor | None = None, chosen: int | None = None) -> None:
        super().__init__()
        self.metric, self.earlier, self.chosen = metric, earlier, chosen

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
            best = np.nanmax(found.miou) if self.chosen is None else found.miou[self.chosen]
            miou = float(best)  # of this process; the summary is made of all records
            self.predict_progress_bar.set_postfix(mIoU=f"{100 * miou:.1f}", refresh=False)
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_exception(self, *_: Any) -> None:
        """Leave the bar's line, so that the reason begins its own."""
        if self._predict_progress_bar is not None:
            self._predict_progress_bar.leave = True
            self._predict_progress_bar.close()
