"""The Segmentor: an image and words become a label map, by the attention of one backbone and one method. The Python API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from goca import config
from goca.attention.call import Precision
from goca.attention.class_maps import ClassMapper
from goca.attention.mixture import Statistics, collector
from goca.attention.statistics import Observation
from goca.attention.stitched import stitched
from goca.backbones.auto import propose_for, without_references
from goca.backbones.base import Backbone
from goca.backbones.word_losses import class_exponents
from goca.data.base import Sample
from goca.data.pictures import ImageSource, read_picture
from goca.data.sizes import Fit, Window, to_pixels
from goca.errors import ConfigError
from goca.method import Method, Plan
from goca.method.outside import MapFiles
from goca.ops import Grid, map_grid
from goca.prediction import Prediction, join
from goca.prompts import sources
from goca.prompts.prompt import Prompt
from goca.registry import load
from goca.segmentation import Segmentation, Threshold, background_of
from goca.timing import StageTimer

log = logging.getLogger(__name__)
Many = list[ImageSource] | tuple[ImageSource, ...]
Asking = str | Sequence[str]
Asked = tuple[Sample, tuple[Prompt, ...]]  # an image and what to look for in it


@dataclass(frozen=True, eq=False)
class Row:
    """One entry of a forward's batch.

    Args:
        index: its place in the batch.
        sample: the image.
        prompt: one of the image's prompts.
        seen: the image as one of the views shows it.
    """

    index: int
    sample: Sample
    prompt: Prompt
    seen: Sample


class Segmentor:
    """Segments images: one noisy forward per prompt and view, then the stages of the method.

    Args:
        backbone: the pipeline whose attention is read; `load()` it before the first image.
        method: what is done with the attention.
        seed: with the image id it determines the noise.
        max_bytes: largest block of attention probabilities held at a time.
        precision: of the products of queries and keys, as `AttentionStatistics` has it.

    Attributes:
        timer: seconds by stage since they were last taken.
    """

    def __init__(
        self, backbone: Backbone, method: Method, seed: int = 0, max_bytes: int = 2**28, precision: Precision = "auto"
    ) -> None:
        self.backbone, self.method, self.seed = backbone, method, seed
        self.max_bytes, self.precision = max_bytes, precision
        self.timer = StageTimer()

    @classmethod
    def from_config(cls, model: str = "scenes_unet", *overrides: str) -> Segmentor:
        """A loaded segmentor for single images.

        Args:
            model: a name in `conf/model`.
            overrides: as on the command line, such as `"preset=vanilla"` or `"model.dtype=bfloat16"`.

        Raises:
            ConfigError, ModelError: with what to change.
        """
        segmentor = cls.build(config.compose([f"model={model}", *overrides]))
        segmentor.backbone.load()
        return segmentor

    @classmethod
    def from_pipeline(cls, pipeline: Any, *overrides: str) -> Segmentor:
        """A segmentor around a diffusers pipeline that is in memory already.

        The pipeline is set to evaluation without gradients and can still be used for anything else.

        Args:
            pipeline: of a supported family.
            overrides: as on the command line; `"model=sd15"` takes that model's settings instead of the proposal.

        Raises:
            ConfigError, ModelError: with what to change.
        """
        segmentor = cls.proposed(pipeline, *overrides)
        segmentor.backbone.load(pipeline)
        return segmentor

    @classmethod
    def proposed(cls, pipeline: Any, *overrides: str) -> Segmentor:
        """The segmentor that suits a pipeline, which it neither holds nor changes.

        Settings are proposed as by `model=auto`; device and dtype are the pipeline's own.

        Args:
            pipeline: of a supported family.
            overrides: as on the command line; `"model=sd15"` takes that model's settings instead of the proposal.

        Raises:
            ConfigError, ModelError: with what to change.
        """
        proposal = propose_for(pipeline)
        known = [] if any(override.startswith("model=") for override in overrides) else ["model=auto"]
        own = [f"++model.dtype={str(pipeline.dtype).removeprefix('torch.')}", f"++model.device={pipeline.device}"]
        cfg = config.compose([*known, *own, *overrides])
        model = OmegaConf.to_container(cfg.model, resolve=False)
        assert isinstance(model, dict)
        if known:
            # What nobody set is still a reference to the proposal.
            kept = without_references(model)
            cfg.model = OmegaConf.merge(proposal, kept, {"_target_": proposal["_target_"]})
        elif not issubclass(load(cfg.model._target_), load(proposal["_target_"])):
            raise ConfigError(f"model={cfg.model.name} is not of the family of {type(pipeline).__name__}: leave it out")
        cfg.model.checkpoint = proposal["checkpoint"]
        return cls.build(cfg)

    @classmethod
    def build(cls, cfg: Any) -> Segmentor:
        """Backbone and method of a composed configuration; reads no weights.

        Raises:
            ConfigError: a key, value or type that does not fit.
        """
        return cls(config.build(cfg, "model"), Method.from_config(cfg), cfg.seed, **cfg.attention)

    @overload
    def segment(self, image: Many, words: Asking, background: Threshold = ..., batch: int = ...) -> list[Segmentation]: ...
    @overload
    def segment(self, image: ImageSource, words: Asking, background: Threshold = ..., batch: int = ...) -> Segmentation: ...
    def segment(self, image: Any, words: Asking, background: Threshold = None, batch: int = 4) -> Any:
        """Segment one image by words, or several by the same words.

        Args:
            image: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 array; or a list of these: a list of results.
            words: class names; or a caption in the form "(person, clothes), dog, grass" whose entities become classes; or a
                sentence, whose content words do.
            background: how high a word has to score to beat the background, id 0: 0 (no background) ... 1 (nothing else) under
                the default method. True takes what is best on bundled scenes: 0.5 for one word alone, 0.7 for several. None or
                False lets every pixel belong to a word.
            batch: images of a list in one forward. Each gets the noise that it would get alone.

        Raises:
            ConfigError: no content word, or a background that the method cannot have. DataError: an image that cannot be read.
        """
        segments = self.backbone.text_segments
        asked = sources.from_text(words, segments) if isinstance(words, str) else sources.from_names(words, segments)
        table, prompts = asked
        if not any(prompt.class_tokens for prompt in prompts):
            raise ConfigError(f"the prompt {words!r} names nothing to look for; give at least one noun")
        competes, tau = background_of(background, len(table) - 1, self.method)
        results: list[Segmentation] = []
        images = image if isinstance(image, (list, tuple)) else [image]
        for start in range(0, len(images), max(1, batch)):
            pictures = [read_picture(one) for one in images[start : start + max(1, batch)]]
            samples = [Sample("image", p.pixels, None, (), pixels=self.pixels(p.pixels), notes=p.notes) for p in pictures]
            predictions = self.predict([(sample, prompts) for sample in samples], len(table), competes, tau)
            results += [Segmentation(sample.image, table, found) for sample, found in zip(samples, predictions, strict=True)]
        for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
            log.warning("%s", warning)
        return results if images is image else results[0]

    def __repr__(self) -> str:
        backbone, stages = self.backbone, (self.method.aggregation, self.method.calibration, self.method.decision)
        return f"Segmentor({backbone.name} from {backbone.checkpoint}, {', '.join(map(repr, stages))}, seed={self.seed})"

    @torch.inference_mode()
    def predict(
        self, asked: Sequence[Asked], num_classes: int, has_background: bool, background: float | None = None
    ) -> list[Prediction]:
        """One forward for all views and prompts of all images of one shape, then each image on its own.

        Args:
            asked: images with pixels, and their prompts; class ids are those of the prompts.
            num_classes: of the class table, background included.
            has_background: whether class 0 competes; ConfigError where the method's thresholds mean nothing.
            background: one threshold in place of the decision's sweep.
        """
        if has_background:
            self.method.at(background).check_background()
        shapes = [None if sample.pixels is None else sample.pixels.shape for sample, _ in asked]
        found: dict[int, Prediction] = {}
        for shape in dict.fromkeys(shapes):
            places = [place for place, own in enumerate(shapes) if own == shape]
            rows = self.rows([asked[place] for place in places])
            observation = self.observe(rows) if rows else None
            for place in places:
                found[place] = self.finish(*asked[place], rows, observation, num_classes, has_background, background)
        return [found[place] for place in range(len(asked))]

    @property
    def fit(self) -> Fit:
        """The shape of a picture -> the size at which it is shown."""
        rule, limits = self.method.sizing, self.backbone.limits
        rule.check(limits)
        return Fit(rule, limits)

    def pixels(self, image: np.ndarray) -> Tensor:
        """A picture (H, W, 3) uint8 as it is shown to the model: (3, height, width) in [-1, 1]."""
        return to_pixels(image, self.fit((image.shape[0], image.shape[1])))

    def windows(self, pixels: Tensor) -> tuple[Window, ...]:
        """The parts of a picture (3, height, width) that the model sees one by one; mostly there is one."""
        return self.method.sizing.windows((pixels.shape[-2], pixels.shape[-1]), self.backbone.limits)

    def map_grid(self, pixels: Tensor) -> Grid:
        """The grid of the token maps of a picture (3, height, width)."""
        picture = (pixels.shape[-2], pixels.shape[-1])
        return map_grid(picture, self.backbone.size, self.method.aggregation.feature_size)

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        """The batch of a forward: every view of every image with each prompt. ConfigError: one that does not fit the method."""
        for prompt in (prompt for _, prompts in asked for prompt in prompts):
            self.method.check_prompts(bool(prompt.concepts))
        entries = [
            (sample, prompt, seen) for sample, prompts in asked for prompt in prompts for seen in self.method.views.of(sample)
        ]
        return [Row(index, *entry) for index, entry in enumerate(entries)]

    def plan(self) -> Plan:
        """The layers that the method observes, by name; raises ModelError for names the model lacks."""
        return self.method.plan(self.backbone)

    def observe(self, rows: Sequence[Row], statistics: Callable[[Grid], Statistics] | None = None) -> Observation:
        """Run the denoiser for these rows, once for every window of the picture, and return what its attention showed.

        Args:
            rows: of pictures of one shape.
            statistics: makes those of a window from the grid of its maps; following `plan()`, they may keep more than the
                method needs.
        """
        if any(row.seen.pixels is None for row in rows):
            raise ValueError("samples need `pixels`; set the data module's size to the segmentor's `fit`")
        pictures = torch.stack([row.seen.pixels for row in rows])  # type: ignore[misc]
        windows, parts = self.windows(pictures), []
        for number, window in enumerate(windows):
            pixels = window.cut(pictures)
            parts.append(
                self.backbone.observe(
                    pixels,
                    [row.prompt.text for row in rows],
                    [f"{row.seen.image_id}/window{number}" if number else row.seen.image_id for row in rows],
                    self.seed,
                    (statistics or self._statistics)(self.map_grid(pixels)),
                    self.timer,
                    self.method.passes,
                    [row.prompt for row in rows],
                )
            )
        with self.timer("aggregate"):
            return stitched(parts, windows, (pictures.shape[-2], pictures.shape[-1]), self.map_grid(pictures))

    def _statistics(self, size: Grid) -> Statistics:
        passes = len(self.method.passes)
        return collector(self.method.aggregation, self.plan(), self.max_bytes, passes, self.precision, size)

    def finish(
        self,
        sample: Sample,
        prompts: Sequence[Prompt],
        rows: Sequence[Row],
        observation: Observation | None,
        num_classes: int,
        has_background: bool,
        background: float | None = None,
    ) -> Prediction:
        """Calibrate and refine the maps of one image, join those of its prompts, and decide.

        Args:
            sample, prompts: the image and what to look for.
            rows: of the forward; those of other images are left alone.
            observation: what these rows showed; None where there are none.
            num_classes, has_background, background: as of `predict`.
        """
        method = self.method.at(background)
        rows = [row for row in rows if row.sample is sample]
        calibrated, refined = [], []
        mapper = ClassMapper(method, self.timer, self.max_bytes, self._exponents(sample, prompts), num_classes)
        together = len(prompts) > 1 and all(prompt.across == prompts[0].across != "each" for prompt in prompts)
        for group in [prompts] if together else [[prompt] for prompt in prompts]:
            assert observation is not None
            seen_as = zip(*([row for row in rows if row.prompt is prompt] for prompt in group), strict=True)  # one of each view
            parts = []
            for each in seen_as:
                assert each[0].seen.pixels is not None
                asked = {row.index: row.prompt for row in each}
                parts.append(mapper(sample.image_id, each[0].seen.pixels, observation, asked))
            calibrated.append(method.views.merge([part for part, _ in parts], sample))
            refined.append(method.views.merge([part for _, part in parts], sample))
        size = (method.aggregation.feature_size,) * 2 if sample.pixels is None else self.map_grid(sample.pixels)
        before, after = join(calibrated, size), join(refined, size)
        with self.timer("decide"):
            label = None if sample.label is None else torch.from_numpy(sample.label)
            compared = replace(after, raw=before.scores)  # which `Scored` looks at
            decided = method.decision.decide(compared, sample.image.shape[:2], num_classes, has_background, label)
        warnings = [*sample.notes, *(warning for prompt in prompts for warning in prompt.warnings), *after.warnings]
        if not prompts:
            warnings.append("no prompt: there is no class to look for in this image")
        first, shown = (rows[0].index, observation) if rows else (0, None)
        weights, errors = shown.weights_of(first) if shown else ({}, {})
        return Prediction(
            image_id=sample.image_id,
            labels=decided.labels,
            near_ties=decided.near_ties,
            maps=after,
            calibrated=before,
            token_maps=shown.token_maps[first] if shown else None,
            prompts=tuple(prompts),
            layer_weights=weights,
            layer_weight_errors=errors,
            head_weights={name: weight[first].tolist() for name, weight in shown.head_weights.items()} if shown else {},
            warnings=tuple(dict.fromkeys(warnings)),
        )

    def _exponents(self, sample: Sample, prompts: Sequence[Prompt]) -> dict[int, float] | None:
        """Class -> exponent of its map, where the calibration wants them; costs forwards of its own."""
        calibration = self.method.calibration
        if isinstance(calibration, MapFiles) or calibration.exponents is None:
            return None
        with self.timer("losses"):
            assert sample.pixels is not None
            windows = self.windows(sample.pixels)
            return class_exponents(calibration.exponents, self.backbone, sample, prompts, self.seed, windows)
