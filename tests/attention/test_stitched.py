"""Windows joined to one picture: the same as a matrix of the whole picture that holds every window's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goca.attention.statistics import Observation
from goca.attention.stitched import StitchedAttention, average, merged, stitched
from goca.data.sizes import Limits, Window, Windows
from goca.errors import ConfigError, ModelError
from goca.method.calibration import ClassMaps
from tests.helpers.explicit_attention import ExplicitAttention

CELL = 8  # pixels


class Heads(ExplicitAttention):
    """Two heads whose mean is the maps."""

    heads = 2
    through_kernel = True

    def head_rows(self, index, heads=None):
        for head in (0, 1) if heads is None else heads:
            yield self.maps[index] * (0.5 if head else 1.5)

    def apply(self, values, rows=None):
        return (self.maps if rows is None else self.maps[rows]) @ values


pictures = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))


def _windows(case):
    """(height, width) in pixels, and the windows of a picture of so many cells."""
    rows, columns, crop, stride, _ = case
    rule = Windows(crop=CELL * crop, stride=CELL * min(crop, stride))
    picture = (rows * CELL, columns * CELL)
    return picture, rule.windows(picture, Limits(CELL * crop, CELL))


def _whole(parts, windows, picture):
    """The matrix of the whole picture, entry by entry."""
    rows, columns = picture[0] // CELL, picture[1] // CELL
    total = torch.zeros(rows * columns, rows * columns)
    count = torch.zeros(rows * columns)
    for part, window in zip(parts, windows, strict=True):
        height, width = part.grid
        top, left = window.top // CELL, window.left // CELL
        place = [(top + y) * columns + left + x for y in range(height) for x in range(width)]
        for i, at in enumerate(place):
            count[at] += 1
            for j, to in enumerate(place):
                total[at, to] += part.maps[i, j]
    return total / count[:, None]


@settings(deadline=None, max_examples=40)
@given(pictures)
def test_attention_of_windows_is_one_matrix_over_the_picture(case):
    picture, windows = _windows(case)
    grid = (windows[0].height // CELL, windows[0].width // CELL)
    parts = [Heads.random(grid, seed=case[-1] + number) for number in range(len(windows))]
    joined = StitchedAttention(parts, windows, picture)
    whole = _whole(parts, windows, picture)
    index = torch.randperm(len(whole), generator=torch.Generator().manual_seed(case[-1]))[: len(whole) // 2 + 1]
    values = torch.rand(len(whole), 3, generator=torch.Generator().manual_seed(case[-1]))
    assert joined.grid == (picture[0] // CELL, picture[1] // CELL)
    torch.testing.assert_close(joined.rows(index), whole[index])
    torch.testing.assert_close(torch.stack(list(joined.head_rows(index))).mean(0), whole[index])
    torch.testing.assert_close(next(iter(joined.head_rows(index, [1]))), 0.5 * whole[index])
    torch.testing.assert_close(joined.apply(values), whole @ values)
    torch.testing.assert_close(joined.apply(values, index), whole[index] @ values)
    torch.testing.assert_close(joined.rows(index).sum(1), torch.ones(len(index)))


@settings(deadline=None, max_examples=40)
@given(pictures)
def test_maps_are_averaged_by_how_many_windows_cover_a_place(case):
    picture, windows = _windows(case)
    grid = (picture[0] // CELL, picture[1] // CELL)
    own = (windows[0].height // CELL, windows[0].width // CELL)
    maps = [torch.rand(2, *own, generator=torch.Generator().manual_seed(number)) for number in range(len(windows))]
    expected, count = torch.zeros(2, *grid), torch.zeros(grid)
    for part, window in zip(maps, windows, strict=True):
        for y in range(own[0]):
            for x in range(own[1]):
                expected[:, window.top // CELL + y, window.left // CELL + x] += part[:, y, x]
                count[window.top // CELL + y, window.left // CELL + x] += 1
    torch.testing.assert_close(average(maps, windows, picture, grid), expected / count)
    # On any other grid a constant stays one, and nothing is left empty.
    ones = [torch.ones_like(part) for part in maps]
    torch.testing.assert_close(average(ones, windows, picture, (5, 7)), torch.ones(2, 5, 7))


def test_windows_that_begin_within_a_cell_are_refused():
    parts = [ExplicitAttention.random((2, 2)), ExplicitAttention.random((2, 2))]
    with pytest.raises(ModelError, match="begin where a layer's cells do"):
        StitchedAttention(parts, [Window(0, 0, 16, 16), Window(0, 4, 16, 16)], (16, 20))


def test_one_window_is_the_picture_itself():
    seen = Observation(torch.rand(1, 3, 4, 4), {}, {})
    assert stitched([seen], [Window(0, 0, 8, 8)], (8, 8), (4, 4)) is seen


def test_an_observation_of_windows_has_the_pictures_shape_and_mean_weights():
    windows, picture = [Window(0, 0, 16, 16), Window(0, 8, 16, 16)], (16, 24)
    parts = [
        Observation(
            token_maps=torch.full((1, 3, 4, 4), float(number)),
            layer_weights={"a": torch.tensor([float(number)])},
            head_weights={"a": torch.tensor([[0.0, float(number)]])},
            layer_maps={"a": torch.full((1, 3, 2, 2), float(number))},
            features={"a": torch.full((1, 5, 2, 2), float(number))},
            level_maps=((torch.full((1, 3, 4, 4), float(number)), 0.25),),
        )
        for number in range(2)
    ]
    seen = stitched(parts, windows, picture, (4, 6))
    assert seen.token_maps[0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert seen.features["a"][0, 0].tolist() == seen.layer_maps["a"][0, 0].tolist() == [[0, 0.5, 1], [0, 0.5, 1]]
    assert seen.level_maps[0][0].shape == (1, 3, 4, 6) and seen.level_maps[0][1] == 0.25
    assert float(seen.layer_weights["a"]) == 0.5 and seen.head_weights["a"].tolist() == [[0, 0.5]]
    maps = [ClassMaps((1, 2), part.token_maps[0, :2], part.token_maps[0, 2], part.token_maps[0, :2]) for part in parts]
    joined = merged(maps, seen)
    assert joined.size == (4, 6) and joined.ids == (1, 2)
    assert joined.scores[0, 0].tolist() == joined.supporting[0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    with pytest.raises(ConfigError, match="use token_maps"):
        merged([maps[0], ClassMaps((1, 3), *(getattr(maps[1], name) for name in ("scores", "supporting", "raw")))], seen)
