"""Rules for the size at which pictures are shown: multiples, limits, aspect ratios, and windows that leave nothing out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goca.data.sizes import Fit, KeepAspect, Limits, Square, Window, Windows, to_pixels
from goca.errors import ConfigError
from goca.ops import aspect_grid, map_grid

RULES = [Square(), *(KeepAspect(side=side) for side in ("shorter", "longer", "area")), Windows(), Windows(merge="class_maps")]
sides = st.integers(1, 5000)
shapes = st.tuples(sides, sides)


@st.composite
def limits(draw):
    multiple = draw(st.sampled_from([1, 8, 16, 64]))
    side = multiple * draw(st.integers(1, 16))
    longest = draw(st.sampled_from([None, side, 2 * side]))
    return Limits(side, multiple, longest)


@given(st.sampled_from(RULES), shapes, limits())
def test_sizes_are_multiples_within_the_limits(rule, shape, known):
    size = Fit(rule, known)(shape)
    assert all(side >= known.multiple and side % known.multiple == 0 for side in size)
    if isinstance(rule, KeepAspect) and known.longest:
        assert max(size) <= max(known.longest, known.multiple)


@given(st.sampled_from(RULES), sides, limits())
def test_square_pictures_become_the_models_square_and_are_seen_whole(rule, side, known):
    size = rule.fit((side, side), known)
    assert size == (known.side, known.side)
    assert rule.windows(size, known) == (Window(0, 0, *size),)


@given(st.sampled_from(["shorter", "longer", "area"]), shapes, limits())
def test_the_aspect_ratio_is_kept_as_far_as_multiples_allow(side, shape, known):
    size = KeepAspect(side=side).fit(shape, known)
    scale = max(size) / max(shape)
    for pixels, got in zip(shape, size, strict=True):
        # Both sides are rounded: by half a multiple each, and the scale is known through one of them alone.
        ratio = pixels / max(shape)
        assert abs(got - pixels * scale) <= known.multiple * (0.5 + 0.5 * ratio) + 1e-6 or got == known.multiple


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (KeepAspect(), (64, 128)),
        (KeepAspect(side="longer"), (32, 64)),
        (KeepAspect(side="area"), (48, 88)),
        (KeepAspect(length=128), (128, 256)),
        (KeepAspect(longest=96), (48, 96)),
        (Square(), (64, 64)),
        (Windows(), (64, 128)),
    ],
)
def test_a_picture_twice_as_wide_as_high(rule, expected):
    assert rule.fit((200, 400), Limits(64, 8)) == expected
    assert rule.fit((400, 200), Limits(64, 8)) == expected[::-1]


@given(shapes, limits(), st.integers(1, 4), st.integers(1, 4))
def test_windows_of_one_size_cover_every_pixel(shape, known, crop, stride):
    rule = Windows(
        length=known.multiple * 8, crop=known.multiple * 2 * crop, stride=known.multiple * min(stride, 2 * crop), longest=None
    )
    rule.check(known)
    size = rule.fit((min(shape[0], 4 * shape[1]), min(shape[1], 4 * shape[0])), known)
    windows = rule.windows(size, known)
    assert len({(window.height, window.width) for window in windows}) == 1
    assert all(window.top % known.multiple == 0 and window.left % known.multiple == 0 for window in windows)
    covered = np.zeros(size, int)
    for window in windows:
        assert window.top + window.height <= size[0] and window.left + window.width <= size[1]
        covered[window.top : window.top + window.height, window.left : window.left + window.width] += 1
    assert covered.min() >= 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (KeepAspect(length=100), "sizing.length: this model takes multiples of 8 px, got 100; 96 is nearest"),
        (Windows(crop=30), "sizing.crop: .* 32 is nearest"),
        (Windows(stride=3), "sizing.stride: .* 8 is nearest"),
        (Windows(crop=32, stride=40), "gaps between windows of 32 px"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        rule.check(Limits(64, 8))


def test_a_picture_is_resized_to_height_and_width_in_this_order():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 20:] = 255
    pixels = to_pixels(image, (8, 24))
    assert pixels.shape == (3, 8, 24)
    assert pixels[..., 0].mean() == -1 and pixels[..., -1].mean() == 1
    assert torch.equal(to_pixels(image, 16), to_pixels(image, (16, 16)))


@given(shapes, st.integers(1, 64))
def test_grids_of_maps_keep_squares_and_have_two_sides_else(shape, cells):
    assert map_grid((64, 64), 64, cells) == aspect_grid((100, 100), cells) == (cells, cells) or cells > 100
    rows, columns = map_grid(shape, 64, cells)
    assert abs(rows - shape[0] * cells / 64) <= 0.5 or rows == min(3, cells)
    assert abs(columns - shape[1] * cells / 64) <= 0.5 or columns == min(3, cells)
    fine = aspect_grid(shape, cells)
    assert all(got <= side for got, side in zip(fine, shape, strict=True))
    assert min(fine) == min(cells, min(shape))
