"""Confidence intervals by bootstrap over images, from the confusion counts of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goca.ops import blocks
from goca.runs.records import ImageRecord

_BYTES = 2**26  # of resampling weights at once


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of N images and K classes at one threshold, and how an mIoU is made of them."""

    hits: np.ndarray  # (N, K) float64: truth and prediction agree on the class
    unions: np.ndarray  # (N, K) float64: either is the class
    has_background: bool = True  # False: class 0 takes no part
    unseen_classes: str = "skip"  # zero: a class without a pixel counts 0

    @classmethod
    def of(
        cls, records: Sequence[ImageRecord], num_classes: int, threshold: int, has_background: bool, unseen_classes: str
    ) -> ImageCounts:
        """Counts of the given records, in their order."""
        hits = np.zeros((len(records), num_classes))
        sums = np.zeros((len(records), num_classes))  # truth + prediction
        for row, record in enumerate(records):
            truth, predicted, count = np.array((record.confusion or ())[threshold], dtype=np.int64).reshape(-1, 3).T
            np.add.at(sums[row], truth, count)
            np.add.at(sums[row], predicted, count)
            same = truth == predicted
            hits[row, truth[same]] = count[same]
        return cls(hits, sums - hits, has_background, unseen_classes)

    def miou(self, weights: np.ndarray | None = None) -> np.ndarray:
        """mIoU in per cent when image i counts weights[b, i] times: (B, N) -> (B,); of all images once without weights."""
        ones = np.ones((1, len(self.hits))) if weights is None else weights
        iou = self._iou(ones @ self.hits, ones @ self.unions)
        return 100 * _nanmean(iou)

    def miou_by_image(self) -> np.ndarray:
        """Each image's own mIoU in per cent, over the classes seen in it: (N,)."""
        seen = ImageCounts(self.hits, self.unions, self.has_background)
        return 100 * _nanmean(seen._iou(self.hits, self.unions))

    def _iou(self, hits: np.ndarray, unions: np.ndarray) -> np.ndarray:
        """(B, K) IoU; NaN for classes that take no part."""
        iou = np.divide(
            hits, unions, out=np.full_like(hits, 0.0 if self.unseen_classes == "zero" else np.nan), where=unions > 0
        )
        return iou if self.has_background else iou[:, 1:]


def bootstrap(counts: ImageCounts, samples: int, seed: int) -> np.ndarray:
    """mIoU of `samples` resamplings of the images: (samples,).

    Runs on the same images in the same order, with the same seed, are resampled alike: the differences of their results are a
    paired bootstrap.
    """
    images = len(counts.hits)
    rng = np.random.default_rng(seed)
    parts = []
    for rows in blocks(samples, 8 * images, _BYTES):
        size = len(range(*rows.indices(samples)))
        parts.append(counts.miou(rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)))
    return np.concatenate(parts)


def interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The central `level` of the values, by percentiles.

    >>> interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    low, high = np.percentile(values[~np.isnan(values)], [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing is left, without a warning."""
    kept = ~np.isnan(values)
    count = kept.sum(-1)
    return np.divide(np.where(kept, values, 0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)
