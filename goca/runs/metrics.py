"""Confusion counts and mean intersection over union."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from goca.data.base import IGNORE
from goca.errors import DataError

_BLOCK = 2**20  # pixels counted at once: bounds the index tensor, and an ordinary label is one block


def confusion(prediction: Tensor, label: Tensor, num_classes: int, ignore: int = IGNORE) -> Tensor:
    """Pixel counts (T, K, K), rows ground truth, columns prediction, of T predictions (T, H, W) of one label (H, W).

    Pixels whose label is `ignore` are not counted.

    >>> confusion(torch.tensor([[[0, 1, 1]]]), torch.tensor([[0, 0, 255]]), num_classes=2).tolist()
    [[[1, 1], [0, 0]]]
    """
    if prediction.shape[1:] != label.shape:
        raise DataError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in height or width")
    # One more row of counts takes the ignored pixels: cheaper than picking the others out.
    count, size = len(prediction), (num_classes + 1) * num_classes
    offset = torch.arange(count, device=label.device)[:, None] * size
    counts = torch.zeros(count * size, dtype=torch.long, device=label.device)
    for predicted, truth in zip(prediction.flatten(1).split(_BLOCK, dim=1), label.flatten().split(_BLOCK), strict=True):
        ignored = truth == ignore
        _check_ids("label", truth.masked_fill(ignored, 0), num_classes)
        _check_ids("prediction", predicted, num_classes)
        first = truth.long().masked_fill(ignored, num_classes) * num_classes + offset  # (T, P): where each row begins
        counts += torch.bincount(first.add_(predicted.long()).flatten(), minlength=count * size)
    return counts.view(count, num_classes + 1, num_classes)[:, :num_classes]


def _check_ids(name: str, ids: Tensor, num_classes: int) -> None:
    if not ids.numel():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= num_classes:
        raise DataError(f"the {name} holds id {low if low < 0 else high}; ids are 0 ... {num_classes - 1}")


class SegmentationScores(NamedTuple):
    """What a data set's confusion counts say, for each of T thresholds. (Arrays: torchmetrics squeezes tensors of one.)"""

    miou: np.ndarray  # (T,) float64
    iou: np.ndarray  # (T, K) float64; NaN for classes that do not take part in the mean
    pixel_accuracy: np.ndarray  # (T,) float64
    mean_accuracy: np.ndarray  # (T,) float64: mean over classes of the share of their pixels that was found
    accuracy: np.ndarray  # (T, K) float64; NaN for classes that do not take part in the mean


def scores(counts: Tensor, unseen_classes: Literal["zero", "skip"] = "skip", has_background: bool = True) -> SegmentationScores:
    """IoU and accuracy per class, their means (mIoU, mAcc) and the pixel accuracy (aAcc) from counts (T, K, K).

    `zero`: the mean is over all classes, and one in no label and no prediction counts 0 (protocol `upstream`,
    docs/parity.md, E5);
    `skip`: such classes do not take part (`standard` and `ovss`), nor does one without a labelled pixel in mAcc. Without a
    background class, id 0 never takes part. With `skip` these are the numbers of mmsegmentation's `IoUMetric`.

    >>> counts = torch.tensor([[[2, 1, 0], [0, 1, 0], [0, 0, 0]]])
    >>> scores(counts, "skip").miou.item(), scores(counts, "zero").miou.item()
    (0.5833333333333333, 0.38888888888888884)
    >>> scores(counts).mean_accuracy.item(), scores(counts).pixel_accuracy.item()
    (0.8333333333333333, 0.75)
    """
    counts = counts.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)  # (T, K)
    unions = counts.sum(-1) + counts.sum(-2) - hits
    iou, recall = hits / unions, hits / counts.sum(-1)  # 0/0 = NaN for a class never seen
    if unseen_classes == "zero":
        iou, recall = iou.nan_to_num(0.0), recall.nan_to_num(0.0)
    if not has_background:
        iou[:, 0] = recall[:, 0] = torch.nan
    accuracy = hits.sum(-1) / counts.sum((-2, -1))
    found = (iou.nanmean(-1), iou, accuracy, recall.nanmean(-1), recall)
    return SegmentationScores(*(values.cpu().numpy() for values in found))


class SegmentationMetric(Metric):
    """Confusion counts of a data set for every threshold, summed over images and processes.

    >>> metric = SegmentationMetric(num_classes=2, thresholds=(0.0, 0.5))
    >>> metric.update(torch.tensor([[[0, 1]], [[0, 0]]]), torch.tensor([[0, 1]]))
    >>> metric.compute().miou.tolist()
    [1.0, 0.25]
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float | None] = (None,),
        unseen_classes: Literal["zero", "skip"] = "skip",
        has_background: bool = True,
        ignore: int = IGNORE,
        **options: Any,
    ) -> None:
        """`options` are those of every torchmetrics metric, such as `sync_on_compute`."""
        super().__init__(**options)
        self.num_classes, self.thresholds, self.ignore = num_classes, tuple(thresholds), ignore
        self.unseen_classes, self.has_background = unseen_classes, has_background
        shape = (len(self.thresholds), num_classes, num_classes)
        self.add_state("counts", default=torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add one image: predictions (T, H, W), one per threshold, and its label (H, W)."""
        self.add(confusion(prediction, label, self.num_classes, self.ignore))

    def add(self, counts: Tensor) -> None:
        """Add confusion counts (T, K, K) that have been computed already."""
        self.counts += counts.to(self.counts.device)
        self._update_count, self._computed = self._update_count + 1, None

    def compute(self) -> SegmentationScores:
        """The scores of all images so far."""
        return scores(self.counts, self.unseen_classes, self.has_background)
