"""What is predicted for one image, as plain data, and what stands in its place where an image fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from goca.method.calibration import ClassMaps, highest
from goca.ops import Grid
from goca.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What the segmentor says about one image.

    Attributes:
        labels: (T, H, W) class ids at the image's size, one map per threshold, or one alone where no threshold applies.
        maps: refined class maps and the supporting map.
        calibrated: the class maps before refinement; their `raw` are the scores before calibration.
        token_maps: (n, h, w) share of each token at each pixel, of the first prompt.
        prompts: one, or several where a vocabulary needed several forwards.
        layer_weights: weight of each cross-attention layer, adding up to 1.
        layer_weight_errors: their standard errors, where they are estimated from a part of the rows (`aggregation.rows`).
        head_weights: cross-attention layer -> mean weight of each head.
        warnings: what a reader of the results should know about this image.
        near_ties: pixels at each threshold whose label another rounding could change.
        counts: (T, K, K) confusion counts, where there is ground truth.
    """

    image_id: str
    labels: Tensor
    maps: ClassMaps
    calibrated: ClassMaps
    token_maps: Tensor | None
    prompts: tuple[Prompt, ...]
    layer_weights: dict[str, float]
    head_weights: dict[str, list[float]]
    warnings: tuple[str, ...]
    near_ties: tuple[int, ...] = ()
    counts: Tensor | None = None
    layer_weight_errors: dict[str, float] = field(default_factory=dict)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The classes that competed: channels of `calibrated`, and of `maps` where these are no segments without names."""
        return self.maps.ids if self.maps.named else self.calibrated.ids

    def __repr__(self) -> str:
        return f"Prediction({self.image_id!r}, labels {tuple(self.labels.shape)}, classes {self.class_ids})"


@dataclass(frozen=True)
class Failure:
    """Stands where a prediction would be: the image could not be read or computed, and why."""

    image_id: str
    reason: str


def join(parts: Sequence[ClassMaps], size: Grid) -> ClassMaps:
    """Class maps of one image from several prompts: classes side by side, the supporting map their maximum.

    A class that several prompts ask for, by different words, has the maximum of its maps too.
    """
    if not parts:
        empty = torch.zeros(0, *size)
        return ClassMaps((), empty, torch.zeros(size), empty)
    if len(parts) == 1 or not parts[0].named:  # segments found with one prompt are all of the picture already
        return parts[0]
    every = [class_id for part in parts for class_id in part.ids]
    stacks = (torch.cat([part.scores for part in parts]), torch.cat([part.raw for part in parts]))
    ids, (scores, raw) = highest(every, *stacks)
    return ClassMaps(
        ids=ids,
        scores=scores,
        supporting=torch.stack([part.supporting for part in parts]).amax(0),
        raw=raw,
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )
