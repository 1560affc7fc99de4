"""Confusion counts and scores."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goca.errors import DataError
from goca.runs import metrics
from goca.runs.metrics import IGNORE, SegmentationMetric, confusion, scores


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([1, 7, 2**20]))
def test_confusion_counts_pixel_by_pixel(classes, thresholds, seed, block):
    random = np.random.default_rng(seed)
    prediction = random.integers(0, classes, (thresholds, 5, 4))
    label = np.where(random.random((5, 4)) < 0.2, IGNORE, random.integers(0, classes, (5, 4)))
    expected = np.zeros((thresholds, classes, classes), dtype=int)
    for t, y, x in np.ndindex(prediction.shape):
        if label[y, x] != IGNORE:
            expected[t, label[y, x], prediction[t, y, x]] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK", block)
        as_bytes = torch.from_numpy(prediction).to(torch.uint8), torch.from_numpy(label).to(torch.uint8)
        counts = confusion(*as_bytes, classes)
    assert np.array_equal(counts.numpy(), expected)


def test_ids_out_of_range_and_sizes_are_refused():
    with pytest.raises(DataError, match="label holds id 3; ids are 0"):
        confusion(torch.zeros(1, 1, 2), torch.tensor([[3, 0]]), 3)
    with pytest.raises(DataError, match="prediction holds id -1"):
        confusion(torch.tensor([[[-1, 0]]]), torch.zeros(1, 2), 3)
    with pytest.raises(DataError, match="differ in height or width"):
        confusion(torch.zeros(1, 2, 2), torch.zeros(2, 3), 3)


def test_an_image_without_counted_pixels_changes_nothing():
    metric = SegmentationMetric(3, (0.0,))
    metric.update(torch.zeros(1, 2, 2), torch.full((2, 2), IGNORE))
    assert not metric.counts.any()


def test_unseen_classes_and_the_missing_background():
    # Class 3 is never seen, class 2 only predicted.
    counts = torch.tensor([[[4, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    skipped, zero = scores(counts, "skip"), scores(counts, "zero")
    assert skipped.miou[0] == pytest.approx((1 + 0.5 + 0) / 3)
    assert np.isnan(skipped.iou[0, 3])
    assert zero.miou[0] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert scores(counts, "skip", has_background=False).miou[0] == pytest.approx((0.5 + 0) / 2)
    assert skipped.pixel_accuracy[0] == pytest.approx(6 / 8)


@pytest.mark.parametrize("thresholds", [(0.1,), (0.1, 0.2)])
def test_shapes_do_not_depend_on_the_number_of_thresholds(thresholds):
    metric = SegmentationMetric(2, thresholds)
    metric.update(torch.zeros(len(thresholds), 1, 2), torch.tensor([[0, 1]]))
    result = metric.compute()
    assert result.miou.shape == result.pixel_accuracy.shape == (len(thresholds),)
    assert result.iou.shape == (len(thresholds), 2)


def test_processes_add_up():
    """What torchmetrics does across processes: the sum of the states scores like all images in one process."""
    images = [(torch.randint(0, 3, (2, 4, 4)), torch.randint(0, 3, (4, 4))) for _ in range(6)]
    together, first, second = (SegmentationMetric(3, (0.0, 0.1)) for _ in range(3))
    for i, image in enumerate(images):
        together.update(*image)
        (first if i % 2 else second).update(*image)
    assert first._reductions["counts"](torch.stack([first.counts, second.counts])).equal(together.counts)
    first.merge_state(second)
    assert np.array_equal(first.compute().miou, together.compute().miou)
    assert np.array_equal(pickle.loads(pickle.dumps(together)).compute().iou, together.compute().iou)


def _mmsegmentation(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[float, float, float]:
    """mIoU, mAcc, aAcc as IoUMetric has them: histograms of each area, added up, 0/0 dropped from the means."""
    intersect, predicted, labelled = (np.zeros(classes) for _ in range(3))
    for prediction, label in pairs:
        kept = label != 255
        prediction, label = prediction[kept], label[kept]
        for c in range(classes):
            intersect[c] += ((prediction == c) & (label == c)).sum()
            predicted[c] += (prediction == c).sum()
            labelled[c] += (label == c).sum()
    with np.errstate(invalid="ignore"):
        iou, acc = intersect / (predicted + labelled - intersect), intersect / labelled
        all_acc = intersect.sum() / labelled.sum()
    mean = [np.nanmean(values) if not np.isnan(values).all() else np.nan for values in (iou, acc)]
    return mean[0], mean[1], all_acc


def _adversarial(random: np.random.Generator, number: int) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Images of a set: classes that are absent, only predicted or never predicted, void everywhere, one pixel, all right."""
    classes = int(random.choice([1, 2, 3, 19, 60, 171]))
    kind = ("plain", "absent", "void", "pixel", "perfect", "one class", "only predicted")[number % 7]
    pairs = []
    for _ in range(int(random.integers(1, 4))):
        shape = (1, 1) if kind == "pixel" else tuple(random.integers(1, 12, 2))
        seen = random.permutation(classes)[: max(1, classes // 2)] if kind == "absent" else np.arange(classes)
        label = random.choice(seen, shape)
        prediction = label.copy() if kind == "perfect" else random.integers(0, classes, shape)
        if kind == "one class":
            prediction[:] = classes - 1
        if kind == "only predicted":
            label[:] = 0
        share = 1.0 if kind == "void" else random.choice([0, 0.3])
        pairs.append((prediction, np.where(random.random(shape) < share, 255, label)))
    return classes, pairs


@pytest.mark.parametrize("reduce_zero_label", [False, True])
def test_200_sets_score_as_mmsegmentation_scores_them(reduce_zero_label):
    """`reduce_zero_label` moves classes down by one there; here class 0 stays and takes no part."""
    random = np.random.default_rng(3)
    for number in range(100):
        classes, pairs = _adversarial(random, number)
        metric = SegmentationMetric(classes + reduce_zero_label, has_background=not reduce_zero_label)
        for prediction, label in pairs:
            ours = np.where(label == 255, IGNORE, label + reduce_zero_label)
            metric.update(torch.from_numpy(prediction + reduce_zero_label)[None], torch.from_numpy(ours))
        found = metric.compute()
        got = (found.miou[0], found.mean_accuracy[0], found.pixel_accuracy[0])
        np.testing.assert_allclose(got, _mmsegmentation(pairs, classes), rtol=1e-12, equal_nan=True)
