"""Names of segments by attention."""

import pytest
import torch

from goca.method.segments.naming import name_by_attention

SEGMENTS = torch.tensor([[0, 0, 1], [0, 1, 1]])


@pytest.mark.parametrize("vote", ["mean", "majority", "median"])
def test_a_map_of_zeros_names_nothing(vote):
    first = (SEGMENTS == 0).float()
    maps = torch.stack([torch.zeros(2, 3), first, 0.5 * (1 - first)])
    assert name_by_attention(SEGMENTS, maps, vote).tolist() == [1, 2]
    assert name_by_attention(SEGMENTS, maps[[1, 0, 2]], vote).tolist() == [0, 2]


def test_maps_are_compared_at_one_length_and_empty_segments_have_no_name():
    first = (SEGMENTS == 0).float()
    maps = torch.stack([100 * (0.1 + first), 0.01 * (1 - first)])
    assert name_by_attention(2 * SEGMENTS, maps).tolist() == [0, -1, 1]


def test_where_all_maps_are_zero_the_first_name_stands():
    assert name_by_attention(SEGMENTS, torch.zeros(2, 2, 3)).tolist() == [0, 0]
