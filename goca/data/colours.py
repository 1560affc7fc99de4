"""Colours for classes that have no official palette."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Colour = tuple[int, int, int]

# Linear RGB -> cone responses -> OKLab, in which Euclidean distance follows perceived difference (Ottosson, 2020).
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB in 0 ... 255 -> (N, 3) OKLab."""
    srgb = rgb / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


@lru_cache(maxsize=16)
def distinct_colours(count: int) -> tuple[Colour, ...]:
    """The first `count` colours of one fixed sequence; each as far as possible from those before it.

    >>> distinct_colours(3) == distinct_colours(5)[:3], len(set(distinct_colours(200)))
    (True, 200)
    """
    levels = np.linspace(15, 255, 16).round().astype(int)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = oklab(grid)
    taken = oklab(np.array([[0, 0, 0], [255, 255, 255]]))  # background and ignored pixels are drawn so
    nearest = np.linalg.norm(lab[:, None] - taken[None], axis=-1).min(1)
    colours: list[Colour] = []
    for _ in range(count):
        index = int(nearest.argmax())
        red, green, blue = (int(value) for value in grid[index])
        colours.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[index], axis=-1))
    return tuple(colours)
