"""The Segmentor: an inference-only LightningModule that turns images and prompts into label maps. Also the Python API."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from goca import config
from goca.attention.statistics import AttentionStatistics, Observation, Plan
from goca.backbones.base import Backbone
from goca.backbones.loading.pipelines import free_memory
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.datamodule import Unreadable, to_pixels
from goca.data.pictures import ImageSource, read_picture
from goca.errors import ConfigError, DataError, ModelError
from goca.method.aggregation import Aggregation
from goca.method.calibration import Calibration, ClassMaps
from goca.method.decision import Decision, Hungarian
from goca.method.refinement import RefinementContext, Refinements
from goca.method.views import Views
from goca.metrics import SegmentationMetric, confusion
from goca.prediction import Failure, Prediction, Segmentation, join
from goca.prompts import sources
from goca.prompts.prompt import Prompt
from goca.timing import StageTimer

log = logging.getLogger(__name__)


class Segmentor(pl.LightningModule):
    """One noisy forward per prompt, then aggregation, calibration, refinement and decision (METHOD 1).

    Args:
        backbone: the pipeline whose attention is read; `load()` it before the first image.
        aggregation, calibration, refinement, decision: the method.
        prompts: where an image's words come from.
        classes: the class table of the data set.
        has_background: whether class 0 is a class and competes.
        metric: gathers confusion counts; None where there is no ground truth.
        seed: with the image id it determines the noise.
        max_bytes: largest block of attention probabilities held at a time.
        views: in how many ways every image is seen; the maps of all are averaged.
    """

    def __init__(
        self,
        backbone: Backbone,
        aggregation: Aggregation,
        calibration: Calibration,
        refinement: Refinements,
        decision: Decision | Hungarian,
        prompts: sources.PromptSource,
        classes: ClassTable,
        has_background: bool,
        metric: SegmentationMetric | None = None,
        seed: int = 0,
        max_bytes: int = 2**28,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.aggregation, self.calibration = backbone, aggregation, calibration
        self.refinement, self.decision, self.prompts = refinement, decision, prompts
        self.classes, self.has_background, self.metric = classes, has_background, metric
        self.seed, self.max_bytes, self.views = seed, max_bytes, views or Views()
        self.timer = StageTimer()
        self._fits: int | None = None  # images at once, after a larger batch ran out of memory

    # ------------------------------------------------------------------------------------------------------ Python API
    @classmethod
    def from_config(cls, model: str = "scenes_unet", *overrides: str) -> Segmentor:
        """A loaded segmentor for single images.

        Args:
            model: a name in `conf/model`.
            overrides: as on the command line, such as `"preset=vanilla"` or `"model.dtype=bfloat16"`.

        Raises:
            ConfigError, ModelError: with what to change.
        """
        cfg = config.compose([f"model={model}", *overrides])
        segmentor = cls.from_components(cfg, classes=ClassTable.from_names(["object"]), has_background=False)
        segmentor.backbone.load()
        return segmentor

    @classmethod
    def from_components(
        cls, cfg: Any, classes: ClassTable, has_background: bool, metric: SegmentationMetric | None = None, prompts: Any = None
    ) -> Segmentor:
        """Build every part from the composed configuration; reads no weights."""
        parts = {key: config.build(cfg, key) for key in ("aggregation", "calibration", "refinement", "decision")}
        return cls(
            backbone=config.build(cfg, "model"),
            prompts=prompts or sources.Classes(),
            classes=classes,
            has_background=has_background,
            metric=metric,
            seed=cfg.seed,
            max_bytes=cfg.attention.max_bytes,
            views=config.build(cfg, "views") if "views" in cfg else None,
            **parts,
        )

    def segment(self, image: ImageSource, words: str | Sequence[str], background: float | None = None) -> Segmentation:
        """Segment one image by words.

        Args:
            image: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 array.
            words: class names, or a caption in the form "(person, clothes), dog, grass" whose entities become classes.
            background: threshold tau of the configured background rule; None lets every pixel belong to a class.

        Raises:
            ConfigError: no content word. DataError: an image that cannot be read.
        """
        segments = self.backbone.text_segments
        if isinstance(words, str):
            table, prompts = sources.from_text(words, segments)
        else:
            table, prompts = sources.from_names(words, segments)
        if not any(prompt.class_tokens for prompt in prompts):
            raise ConfigError(f"the prompt {words!r} names nothing to look for; give at least one noun")
        picture = read_picture(image)
        pixels = to_pixels(picture.pixels, self.backbone.size)
        sample = Sample("image", picture.pixels, None, (), pixels=pixels, notes=picture.notes)
        (prediction,) = self._predict([(sample, prompts)], table, background is not None, self.decision_at(background))
        return Segmentation(picture.pixels, table, prediction)

    def decision_at(self, background: float | None) -> Decision | Hungarian:
        """The configured decision with one threshold in place of its sweep."""
        if background is None or not isinstance(self.decision, Decision):
            return self.decision
        return dataclasses.replace(self.decision, thresholds=(background,))

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Load the model and check the layer names; with `model.text_encoders=first`, encode the prompts of all samples before.

        Raises:
            ModelError: as `Backbone.load` and `check`.
        """
        if self.backbone.text_encoders == "first":
            self.backbone.inspect()
            self.backbone.encode_prompts(list(self._texts(samples)))
        self.backbone.load()
        self.check()

    def _texts(self, samples: Iterable[Sample]) -> Iterator[str]:
        for sample in samples:
            try:
                yield from (prompt.text for prompt in self.prompts(sample, self.classes, self.backbone.text_segments))
            except DataError:
                continue  # it is recorded when its batch comes

    def check(self) -> None:
        """Resolve every layer name that the configuration asks for, before the first image; raises ModelError."""
        needs = self.refinement.needs
        self.backbone.plan(self.aggregation, needs.self_attention, needs.features)

    # -------------------------------------------------------------------------------------------------------- Lightning
    def predict_step(self, batch: list[Sample | Unreadable], batch_idx: int = 0) -> list[Prediction | Failure]:
        """One result per entry of the batch, in order; counts predictions in the metric where there is a label.

        An image that cannot be read, prompted or computed becomes a `Failure` and does not keep the others from their results.

        Raises:
            ConfigError: a setting that suits no image.
        """
        results: dict[str, Prediction | Failure] = {}
        pairs = []
        segments = self.backbone.text_segments
        with self.timer("prompt"):
            for entry in batch:
                try:
                    if isinstance(entry, Unreadable):
                        raise DataError(entry.reason)
                    if isinstance(self.prompts, sources.Captions) and self.prompts.leaves_out(entry.image_id):
                        entry = dataclasses.replace(entry, label=None)  # predicted as nothing, and not counted as wrong
                    pairs.append((entry, self.prompts(entry, self.classes, segments)))
                except DataError as error:
                    results[entry.image_id] = Failure(entry.image_id, str(error))
        size = self._fits or max(1, len(pairs))
        for first in range(0, len(pairs), size):
            results |= {result.image_id: result for result in self._attempt(pairs[first : first + size])}
        return [results[entry.image_id] for entry in batch]

    def _attempt(self, pairs: Sequence[tuple[Sample, tuple[Prompt, ...]]]) -> list[Prediction | Failure]:
        """Predict and count; if that fails, once more in halves, down to the image that is the reason."""
        try:
            predictions = self._predict(pairs, self.classes, self.has_background, self.decision)
            with self.timer("decide"):
                return [self._count(sample, prediction) for (sample, _), prediction in zip(pairs, predictions, strict=True)]
        except (DataError, ModelError, RuntimeError, MemoryError) as error:
            reason, exhausted = str(error), is_out_of_memory(error)
            if isinstance(error, RuntimeError) and not exhausted:
                raise
        # Outside the handler: the error's traceback would keep the tensors of the failed attempt alive.
        if exhausted:
            free_memory()
        if len(pairs) == 1:
            return [Failure(pairs[0][0].image_id, f"out of memory, even alone: {reason}" if exhausted else reason)]
        half = len(pairs) // 2
        if exhausted:
            self._fits = half
            log.warning("out of memory with %d images at once; going on with %d", len(pairs), half)
        return [*self._attempt(pairs[:half]), *self._attempt(pairs[half:])]

    def _count(self, sample: Sample, prediction: Prediction) -> Prediction:
        """Count the prediction in the metric and keep its own counts for the record."""
        if self.metric is None or sample.label is None:
            return prediction
        counts = confusion(prediction.labels, torch.from_numpy(sample.label).to(prediction.labels.device), len(self.classes))
        self.metric.add(counts)
        return dataclasses.replace(prediction, counts=counts)

    @torch.inference_mode()
    def _predict(
        self,
        pairs: Sequence[tuple[Sample, tuple[Prompt, ...]]],
        table: ClassTable,
        has_background: bool,
        decision: Decision | Hungarian,
    ) -> list[Prediction]:
        """One forward for all views and prompts of all images, then each image on its own."""
        rows = [(seen, prompt) for sample, prompts in pairs for prompt in prompts for seen in self.views.of(sample)]
        observation = self.observe(rows) if rows else None
        predictions, first = [], 0
        for sample, prompts in pairs:
            chosen = range(first, first + len(prompts) * len(self.views))
            first = chosen.stop
            predictions.append(self.conclude(sample, prompts, observation, chosen, table, has_background, decision))
        return predictions

    def plan(self) -> Plan:
        """The layers that the configured methods observe, by name; raises ModelError for names the model lacks."""
        needs = self.refinement.needs
        return self.backbone.plan(self.aggregation, needs.self_attention, needs.features)

    def observe(self, rows: Sequence[tuple[Sample, Prompt]], statistics: AttentionStatistics | None = None) -> Observation:
        """Run the denoiser once for (image, prompt) rows and return what its attention showed.

        `statistics` that follow `plan()` may keep more than the method needs.
        """
        statistics = statistics or AttentionStatistics(self.aggregation, self.plan(), self.max_bytes)
        pixels = [sample.pixels for sample, _ in rows]
        if any(image is None for image in pixels):
            raise ValueError("samples need `pixels`; set the data module's size to the backbone's")
        return self.backbone.observe(
            torch.stack(pixels),  # type: ignore[arg-type]
            [prompt.text for _, prompt in rows],
            [sample.image_id for sample, _ in rows],
            self.seed,
            statistics,
            self.timer,
        )

    def conclude(
        self,
        sample: Sample,
        prompts: tuple[Prompt, ...],
        observation: Observation | None,
        rows: range,
        table: ClassTable,
        has_background: bool,
        decision: Decision | Hungarian,
    ) -> Prediction:
        """Calibrate and refine each prompt's maps, join them, and decide; `rows` are all views of its prompts, in order."""
        calibrated, refined = [], []
        for number, prompt in enumerate(prompts):
            assert observation is not None
            shown = zip(self.views.of(sample), rows[number * len(self.views) :], strict=False)
            parts = [self._class_maps(seen, prompt, observation, row) for seen, row in shown]
            calibrated.append(self.views.merge([part for part, _ in parts], sample))
            refined.append(self.views.merge([part for _, part in parts], sample))
        before, after = join(calibrated, self.aggregation.feature_size), join(refined, self.aggregation.feature_size)
        with self.timer("decide"):
            label = None if sample.label is None else torch.from_numpy(sample.label)
            labels = decision(after, sample.image.shape[:2], len(table), has_background, label)
        warnings = [*sample.notes, *(warning for prompt in prompts for warning in prompt.warnings), *after.warnings]
        if not prompts:
            warnings.append("no prompt: there is no class to look for in this image")
        weights = {} if observation is None or not rows else observation.layer_weights
        heads = {} if observation is None or not rows else observation.head_weights
        return Prediction(
            image_id=sample.image_id,
            labels=labels,
            maps=after,
            calibrated=before,
            token_maps=observation.token_maps[rows[0]] if observation is not None and rows else None,
            prompts=prompts,
            layer_weights={name: float(weight[rows[0]]) for name, weight in weights.items()},
            head_weights={name: weight[rows[0]].tolist() for name, weight in heads.items()},
            warnings=tuple(dict.fromkeys(warnings)),
        )

    def _class_maps(self, sample: Sample, prompt: Prompt, observation: Observation, row: int) -> tuple[ClassMaps, ClassMaps]:
        """Calibrated and refined maps of one row of the observation."""
        token_maps = observation.token_maps[row]
        if not token_maps.isfinite().all():
            raise ModelError(f"{sample.image_id}: the model gave attention that is not finite; try model.dtype=float32")
        with self.timer("calibrate"):
            calibrated = self.calibration(token_maps, prompt)
        with self.timer("refine"):
            context = RefinementContext(
                size=calibrated.size,
                self_attention=observation.self_attention(row),
                features={name: feature[row] for name, feature in observation.features.items()},
                image=sample.pixels,
                max_bytes=self.max_bytes,
            )
            return calibrated, self.refinement.refine(calibrated, context)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "can't allocate memory"))
