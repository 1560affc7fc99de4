"""The Evaluator: a data set's batches through a segmentor, and what is counted, timed and survived on the way."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence

import pytorch_lightning as pl
import torch

from goca.backbones.loading.pipelines import free_memory
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.datamodule import Unreadable
from goca.errors import DataError, ModelError
from goca.prediction import Failure, Prediction
from goca.prompts import Concepts, Unprompted
from goca.prompts.sources import Captions, PromptSource
from goca.runs.metrics import SegmentationMetric, confusion
from goca.segmentor import Asked, Segmentor

log = logging.getLogger(__name__)


class Evaluator(pl.LightningModule):
    """Predicts batches of a data set. There is nothing to train: Lightning brings devices, processes and callbacks.

    Args:
        segmentor: does the work; its timer says what took how long.
        prompts: where an image's words come from.
        classes: the class table of the data set.
        has_background: whether class 0 is a class and competes.
        metric: gathers confusion counts; None where there is no ground truth.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        prompts: PromptSource,
        classes: ClassTable,
        has_background: bool,
        metric: SegmentationMetric | None = None,
    ) -> None:
        super().__init__()
        self.segmentor, self.prompts, self.metric = segmentor, prompts, metric
        self.classes, self.has_background = classes, has_background
        self._fits: int | None = None  # images at once, after a larger batch ran out of memory

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Load the model and check the layer names; with `model.text_encoders=first`, encode the prompts of all samples before.

        Raises:
            ModelError: as `Backbone.load` and `Segmentor.plan`. ConfigError: prompts or data that do not fit the method.
        """
        self.segmentor.method.check_prompts(isinstance(self.prompts, Concepts), isinstance(self.prompts, Unprompted))
        if self.has_background:
            self.segmentor.method.check_background()
        backbone = self.segmentor.backbone
        if backbone.text_encoders == "first":
            backbone.inspect()
            backbone.encode_prompts(list(self._texts(samples)))
        backbone.load()
        self.segmentor.plan()  # names every layer that is missing, before the first image

    def _texts(self, samples: Iterable[Sample]) -> Iterator[str]:
        segments = self.segmentor.backbone.text_segments
        for sample in samples:
            try:
                yield from (prompt.text for prompt in self.prompts(sample, self.classes, segments))
            except DataError:
                continue  # it is recorded when its batch comes

    def predict_step(self, batch: list[Sample | Unreadable], batch_idx: int = 0) -> list[Prediction | Failure]:
        """One result per entry of the batch, in order; counts predictions in the metric where there is a label.

        An image that cannot be read, prompted or computed becomes a `Failure` and does not keep the others from their results.

        Raises:
            ConfigError: a setting that suits no image.
        """
        results: dict[str, Prediction | Failure] = {}
        asked: list[Asked] = []
        segments = self.segmentor.backbone.text_segments
        with self.segmentor.timer("prompt"):
            for entry in batch:
                try:
                    if isinstance(entry, Unreadable):
                        raise DataError(entry.reason)
                    if isinstance(self.prompts, Captions) and self.prompts.leaves_out(entry.image_id):
                        entry = dataclasses.replace(entry, label=None)  # predicted as nothing, and not counted as wrong
                    asked.append((entry, self.prompts(entry, self.classes, segments)))
                except DataError as error:
                    results[entry.image_id] = Failure(entry.image_id, str(error))
        size = self._fits or max(1, len(asked))
        for first in range(0, len(asked), size):
            results |= {result.image_id: result for result in self._attempt(asked[first : first + size])}
        return [results[entry.image_id] for entry in batch]

    def _attempt(self, asked: Sequence[Asked]) -> list[Prediction | Failure]:
        """Predict and count; if that fails, once more in halves, down to the image that is the reason."""
        try:
            predictions = self.segmentor.predict(asked, len(self.classes), self.has_background)
            with self.segmentor.timer("decide"):
                return [self._count(sample, prediction) for (sample, _), prediction in zip(asked, predictions, strict=True)]
        except (DataError, ModelError, RuntimeError, MemoryError) as error:
            reason, exhausted = str(error), is_out_of_memory(error)
            if isinstance(error, RuntimeError) and not exhausted:
                raise
        # Outside the handler: the error's traceback would keep the tensors of the failed attempt alive.
        if exhausted:
            free_memory()
        if len(asked) == 1:
            return [Failure(asked[0][0].image_id, f"out of memory, even alone: {reason}" if exhausted else reason)]
        half = len(asked) // 2
        if exhausted:
            self._fits = half
            log.warning("out of memory with %d images at once; going on with %d", len(asked), half)
        return [*self._attempt(asked[:half]), *self._attempt(asked[half:])]

    def _count(self, sample: Sample, prediction: Prediction) -> Prediction:
        """Count the prediction in the metric and keep its own counts for the record."""
        if self.metric is None or sample.label is None:
            return prediction
        counts = confusion(prediction.labels, torch.from_numpy(sample.label).to(prediction.labels.device), len(self.classes))
        self.metric.add(counts)
        return dataclasses.replace(prediction, counts=counts)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "can't allocate memory"))
