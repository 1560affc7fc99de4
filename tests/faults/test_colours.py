"""Colours of overlays are those of the legend, whatever the picture's own colours are."""

import colorsys

import numpy as np
import pytest

from goca.data.classes import ClassTable
from goca.figures.plots import enlarged, overlay

CLASSES = ClassTable.from_names(["circle", "grass", "sky"])


@pytest.mark.parametrize("paint", [(255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 200, 30)])
def test_the_hue_is_the_classs_on_every_ground(paint: tuple[int, int, int]) -> None:
    image = np.full((20, 40, 3), paint, np.uint8)
    label = np.repeat(np.arange(4, dtype=np.uint8), 10)[None].repeat(20, 0)
    drawn = overlay(image, label, CLASSES)
    for class_id in (1, 2, 3):
        inside = drawn[10, 10 * class_id + 5] / 255
        wanted = np.array(CLASSES.colours[class_id]) / 255
        difference = abs(colorsys.rgb_to_hsv(*inside)[0] - colorsys.rgb_to_hsv(*wanted)[0])
        assert min(difference, 1 - difference) < 0.02
        assert np.abs(inside - wanted).max() < 0.3
        assert tuple(drawn[10, 10 * class_id]) == CLASSES.colours[class_id]  # the outline
    assert len(set(drawn[10, 2].tolist())) == 1  # background is grey


def test_enlarging_repeats_pixels() -> None:
    label = np.arange(6).reshape(2, 3)
    assert (enlarged(label, 9)[::3, ::3] == label).all()
    assert enlarged(label, 9).shape == (6, 9)
    assert enlarged(np.zeros((500, 3, 3))).shape == (500, 3, 3)
