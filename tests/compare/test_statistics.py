"""Bootstrap and mIoU against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.runs.metrics import scores
from goca.runs.summary import total_counts
from tests.helpers.fake_runs import CLASSES, record

RECORDS = [record(image, 0.2) for image in range(8)]


@pytest.mark.parametrize("has_background", [True, False])
@pytest.mark.parametrize("unseen", ["zero", "skip"])
@pytest.mark.parametrize("threshold", [0, 1, 2])
def test_miou_is_the_metric_s(threshold: int, unseen: str, has_background: bool) -> None:
    classes = len(CLASSES) + 1  # one class that is never seen
    counts = total_counts(RECORDS, classes)
    assert counts is not None
    expected = 100 * scores(counts, unseen, has_background).miou[threshold]
    found = ImageCounts.of(RECORDS, classes, threshold, has_background, unseen).miou()
    assert found == pytest.approx([expected])


def test_bootstrap_agrees_with_drawing_images_one_by_one() -> None:
    counts = ImageCounts.of(RECORDS, len(CLASSES), 1, True, "skip")
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(3000):
        drawn = [RECORDS[i] for i in rng.integers(0, len(RECORDS), len(RECORDS))]
        total = total_counts(drawn, len(CLASSES))
        assert total is not None
        plain.append(100 * scores(total).miou[1])
    fast = bootstrap(counts, 3000, seed=0)
    assert fast.mean() == pytest.approx(np.mean(plain), abs=0.15)
    assert interval(fast, 0.9) == pytest.approx(interval(np.array(plain), 0.9), abs=0.4)


def test_a_run_differs_from_itself_by_nothing_in_every_resample() -> None:
    counts = ImageCounts.of(RECORDS, len(CLASSES), 1, True, "skip")
    assert (bootstrap(counts, 50, 3) == bootstrap(counts, 50, 3)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(2, 5))
def test_an_image_s_own_miou_is_that_of_the_image_alone(images: int, classes: int) -> None:
    rng = np.random.default_rng(images)
    hits = rng.integers(0, 3, (images, classes)).astype(float)
    counts = ImageCounts(hits, hits + rng.integers(0, 3, (images, classes)))
    for image, value in enumerate(counts.miou_by_image()):
        alone = ImageCounts(counts.hits[[image]], counts.unions[[image]]).miou()[0]
        assert np.isnan(value) == np.isnan(alone)
        assert np.isnan(value) or value == pytest.approx(alone)


def test_one_image_has_an_interval_of_no_width() -> None:
    counts = ImageCounts.of(RECORDS[:1], len(CLASSES), 1, True, "skip")
    low, high = interval(bootstrap(counts, 20, 0), 0.95)
    assert low == high == pytest.approx(counts.miou()[0])
    assert torch.is_tensor(total_counts(RECORDS[:1], len(CLASSES)))
