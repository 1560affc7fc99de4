"""Thumbnails of a run's failures: the images with the lowest mIoU of their own are kept, and no others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goca.data.base import Sample
from goca.figures.thumbnails import Gallery, read
from goca.method.calibration import ClassMaps
from goca.prediction import Failure, Prediction
from goca.runs.metrics import confusion
from goca.runs.summary import compact
from goca.runs.tables import _miou
from tests.helpers.fake_runs import CLASSES, SIZE, TAUS, labels


def predicted(image: int, noise: float) -> tuple[Sample, Prediction, float]:
    """A sample, its prediction with counts, and its mIoU at the threshold where it is best."""
    truth, found = labels(image, noise)
    counts = confusion(found, torch.from_numpy(truth), len(CLASSES))
    maps = ClassMaps((1,), torch.zeros(1, 4, 4), torch.zeros(4, 4), torch.zeros(1, 4, 4))
    facts: dict[str, Any] = {"maps": maps, "calibrated": maps, "token_maps": torch.zeros(1, 4, 4), "prompts": ()}
    facts |= {"layer_weights": {}, "head_weights": {}, "warnings": (), "counts": counts}
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    best = max(_miou(flat, True) or 0.0 for flat in compact(counts))
    return Sample(f"{image}", picture, truth, (1,)), Prediction(image_id=f"{image}", labels=found, **facts), best


@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_images_keep_their_thumbnails(tmp_path: Path, order: int) -> None:
    made = [predicted(image, noise) for image, noise in enumerate((0.05, 0.5, 0.1, 0.4, 0.02, 0.3, 0.2, 0.45))][::order]
    gallery = Gallery(tmp_path, CLASSES, ["4"], worst=3)
    for sample, result, _ in made:
        gallery.on_predict_batch_end(None, None, [result], [sample], 0)  # type: ignore[arg-type]
    worst = sorted(made, key=lambda entry: entry[2])[:3]
    assert set(read(tmp_path, len(TAUS))) == {sample.image_id for sample, *_ in worst} | {"4"}
    assert len(list((tmp_path / "gallery").glob("*.jpg"))) == 4


def test_images_without_a_judged_pixel_are_no_failures(tmp_path: Path) -> None:
    sample, result, _ = predicted(0, 0.5)
    assert result.counts is not None
    unjudged = [replace(result, counts=None), replace(result, counts=torch.zeros_like(result.counts)), Failure("0", "damaged")]
    gallery = Gallery(tmp_path, CLASSES, [], worst=3)
    for outcome in unjudged:
        gallery.on_predict_batch_end(None, None, [outcome], [sample], 0)  # type: ignore[arg-type]
    assert read(tmp_path, len(TAUS)) == {}
