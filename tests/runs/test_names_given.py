"""Precision and recall of the names a method is given, and the mIoU that no method can exceed with them."""

import numpy as np
import pytest
import torch

from goca.runs.metrics import confusion, scores
from goca.runs.names_given import NamesGiven, names_given
from goca.runs.records import ImageRecord
from goca.runs.summary import compact


def record(image: int, truth: np.ndarray, predicted: np.ndarray, given: list[int], classes: int) -> ImageRecord:
    counts = confusion(torch.from_numpy(predicted)[None], torch.from_numpy(truth), classes)
    return ImageRecord(image_id=str(image), classes=given, confusion=compact(counts))


def test_counts_are_those_of_names_over_all_images() -> None:
    truth = [np.array([[1, 1, 2]]), np.array([[0, 3, 255]])]
    records = [record(0, truth[0], truth[0], [1, 4], 5), record(1, truth[1], np.array([[0, 3, 0]]), [3], 5)]
    # Named 1, 4, 3, of which 1 and 3 are there; there are 1, 2 and 3. Reachable: all of 0, 1 and 3, nothing of 2.
    assert names_given(records, 5, True) == NamesGiven(pytest.approx(200 / 3, abs=1e-4), pytest.approx(200 / 3, abs=1e-4), 75.0)
    assert names_given(records, 5, False).bound == pytest.approx(200 / 3, abs=1e-4)
    unjudged = ImageRecord(image_id="x", classes=[2])
    assert names_given([*records, unjudged], 5, True) == names_given(records, 5, True)
    assert names_given([unjudged], 5, True) == NamesGiven(None, None, None)


@pytest.mark.parametrize("has_background", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_no_labelling_with_these_names_exceeds_the_bound(seed: int, has_background: bool) -> None:
    rng = np.random.default_rng(seed)
    records, total = [], torch.zeros(1, 6, 6, dtype=torch.long)
    for image in range(5):
        truth = rng.integers(0, 6, (8, 8))
        truth[rng.random((8, 8)) < 0.2] = 255
        given = sorted(rng.choice(range(1, 6), rng.integers(1, 5), replace=False).tolist())
        allowed = [0, *given] if has_background else given
        # The best there is: what can be found is found, what cannot becomes one of the names.
        best = np.where(np.isin(truth, allowed), truth, rng.choice(allowed, (8, 8)))
        records.append(record(image, truth, best, given, 6))
        total += confusion(torch.from_numpy(best)[None], torch.from_numpy(truth), 6)
    bound = names_given(records, 6, has_background).bound
    assert bound is not None
    assert 100 * scores(total, "skip", has_background).miou[0] <= bound + 1e-3


def test_all_names_bound_nothing_and_segments_without_names_do_no_harm() -> None:
    truth = np.array([[1, 2, 0]])
    assert names_given([record(0, truth, truth, [1, 2], 3)], 3, True).bound == 100.0
    assert names_given([record(0, truth, truth, [1, 2, 57], 3)], 3, True).precision == 100.0
