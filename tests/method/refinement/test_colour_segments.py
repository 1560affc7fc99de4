"""Segments by colour alone: what k-means finds, and how attention names it."""

import pytest
import torch

from goca.errors import ModelError
from goca.method.refinement import ColourSegments, RefinementContext
from goca.method.segments.colour import colour_segments
from tests.helpers.explicit_attention import class_maps


def halves() -> torch.Tensor:
    """(3, 8, 12): left half red, right half blue, two red pixels far to the right."""
    image = torch.full((3, 8, 12), -1.0)
    image[0, :, :6] = 1.0
    image[2, :, 6:] = 1.0
    image[:, 3:5, 11] = torch.tensor([1.0, -1.0, -1.0])[:, None]
    return image


def test_equal_colours_are_one_segment_wherever_they_are():
    found = colour_segments(halves(), count=4)
    assert len(found.unique()) == 2
    assert (found[3:5, 11] == found[0, 0]).all()
    assert found[0, 11] != found[0, 0]


def test_compactness_keeps_segments_together():
    found = colour_segments(torch.zeros(3, 9, 9), count=9, compactness=1.0)
    ninths = [found[y : y + 3, x : x + 3].unique() for y in (0, 3, 6) for x in (0, 3, 6)]
    assert [len(ninth) for ninth in ninths] == [1] * 9
    assert len(torch.cat(ninths).unique()) == 9


def test_clusters_are_those_of_lloyds_algorithm():
    image = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = colour_segments(image, count=4, iterations=100).flatten()
    points = image.flatten(1).T
    centres = torch.stack([points[found == i].mean(0) for i in range(4)])
    assert torch.equal(((points[:, None] - centres) ** 2).sum(-1).argmin(1), found)  # a fixed point


def test_attention_names_each_segment():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 1], maps[1, 2, 3] = 1.0, 1.0  # one class is looked for on the left, the other on the right
    context = RefinementContext(size=(4, 4), image=halves())
    refined = ColourSegments(count=4).refine(class_maps(maps), context)
    assert torch.equal(refined.stack().argmax(0).bool(), halves()[2] > 0)


def test_without_names_the_segments_are_the_maps():
    context = RefinementContext(size=(4, 4), image=halves())
    refined = ColourSegments(count=4, names="none").refine(class_maps(torch.zeros(1, 4, 4)), context)
    assert (refined.scores.sum(0) == 1).all()
    with pytest.raises(ModelError, match="image"):
        ColourSegments().refine(class_maps(torch.zeros(1, 4, 4)), RefinementContext(size=(4, 4)))
