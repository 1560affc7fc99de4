"""The decision of methods that also ask whether a class is in the image at all (CLIPer, Sun et al., ICCV 2025)."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import ConfigDict, FiniteFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.data.base import IGNORE
from goca.method.calibration import ClassMaps
from goca.method.decision import Decided, Thresholds, near_best, upsampled_bands

_CONFIG = ConfigDict(extra="forbid")
_EPSILON = 1e-5


@dataclass(frozen=True, config=_CONFIG)
class Scored:
    """A class's score is the mean of the maxima of its map after and before refinement; its map is scaled to have that maximum.

    As `raw` the maps that went into the refinement are handed over: calibrated ones, or those from files.

    Args:
        min_score: classes whose score is not above it are left out.
        thresholds: values below which a map counts as 0, each giving a result of its own; where all are 0 is background. At a
            threshold of 0 the background's score is (1 - the best class)^2.
        stretch: min-max normalise the scaled maps before the threshold.
        max_bytes: of upsampled maps at once.
    """

    min_score: FiniteFloat = 0.5
    thresholds: Thresholds = (0.4,)
    stretch: bool = False
    max_bytes: PositiveInt = 2**26

    has_threshold: ClassVar[bool] = True

    @property
    def scale(self) -> str:
        """What thresholds are compared with, by which data sets fix theirs."""
        return "scored"

    def taus(self, has_background: bool) -> tuple[float | None, ...]:
        """The thresholds that apply; without a background class none does."""
        return self.thresholds if has_background else (None,)

    def __call__(
        self, maps: ClassMaps, size: tuple[int, int], num_classes: int, has_background: bool = True, label: Tensor | None = None
    ) -> Tensor:
        """The label maps of `decide` alone."""
        return self.decide(maps, size, num_classes, has_background, label).labels

    def decide(
        self, maps: ClassMaps, size: tuple[int, int], num_classes: int, has_background: bool = True, label: Tensor | None = None
    ) -> Decided:
        """Label maps (T, H, W) of class ids, and how many pixels two classes nearly share."""
        scores = class_scores(maps)
        ids = torch.tensor(maps.ids, device=maps.scores.device, dtype=torch.long)
        present = scores > self.min_score if has_background else torch.ones_like(scores, dtype=torch.bool)
        dtype = torch.uint8 if num_classes <= IGNORE else torch.int16
        labels = torch.zeros(len(self.taus(has_background)), *size, dtype=dtype, device=maps.scores.device)
        near = 0
        for rows, band in self.score_bands(maps, size) if len(ids) else ():
            band = band * present[:, None, None]
            near += int(near_best(band, band.amax(0)).sum())
            for t, tau in enumerate(self.taus(has_background)):
                labels[t, rows] = _decide(band, ids, tau).to(dtype)
        return Decided(labels, (near,) * len(labels))

    def score_bands(self, maps: ClassMaps, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
        """The maps that are compared, (C, rows, W), a band of rows at a time."""
        high = maps.scores.new_full((len(maps.ids),), -torch.inf)
        low = -high
        for _, band in upsampled_bands(maps.scores, size, self.max_bytes):
            low, high = torch.minimum(low, band.amin((1, 2))), torch.maximum(high, band.amax((1, 2)))
        factor = class_scores(maps) / (high + _EPSILON)
        bottom, top = low * factor, high * factor
        for rows, band in upsampled_bands(maps.scores, size, self.max_bytes):
            scaled = band * factor[:, None, None]
            if self.stretch:
                scaled = (scaled - bottom[:, None, None]) / (top - bottom + 1e-6)[:, None, None]
            yield rows, scaled


def class_scores(maps: ClassMaps) -> Tensor:
    """(C,): half the refined map's maximum plus half that of the map that went into the refinement, `raw`."""
    if not len(maps.ids):
        return maps.scores.new_zeros(0)
    return 0.5 * maps.scores.amax((-2, -1)) + 0.5 * maps.raw.amax((-2, -1)).to(maps.scores)


def _decide(scores: Tensor, ids: Tensor, tau: float | None) -> Tensor:
    if tau is None:
        return ids[scores.argmax(0)]
    if tau > 0:
        best, channel = scores.masked_fill(scores < tau, 0.0).max(0)
        return ids[channel].masked_fill(best == 0, 0)
    best, channel = scores.max(0)
    return ids[channel].masked_fill((1 - best) ** 2 >= best, 0)
