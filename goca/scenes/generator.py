"""Scenes: a deterministic generator of small pictures with exact labels and words.

`scene(seed)` draws one or two textured stuff regions (grass, water, sand, sky, brick, snow) that meet at a wavy border, and
one to three overlapping objects (circle, square, triangle, star, ring, cross, heart, moon) of random size and rotation. The
look `camouflage` paints the same scenes so that colour does not give an object away (`goca.scenes.camouflage`).
There are no files: the seed is the picture. Train and test seeds come from disjoint ranges (`TRAIN_SEEDS`, `TEST_SEEDS`).
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Literal

import numpy as np

from goca.scenes.camouflage import paint
from goca.scenes.textures import STUFF, texture

OBJECTS = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
CLASSES = ("background", *STUFF, *OBJECTS)  # class ids are positions here; 0 never occurs in a scene

TRAIN_SEEDS = range(0, 1_000_000)
TEST_SEEDS = range(1_000_000, 2_000_000)

_SUPERSAMPLE = 3  # object outlines are drawn on a finer grid and averaged, so that pictures are smooth and labels exact
_MIN_VISIBLE = 0.004  # an object that shows less than this share of the picture is not named
_REACH = 1.25  # radii from its centre that no shape goes beyond: a triangle's corners are 1.2 away
_TYPICAL_HUE = {
    "circle": 0.00,  # red
    "square": 0.62,  # blue
    "triangle": 0.09,  # orange
    "star": 0.15,  # yellow
    "ring": 0.78,  # purple
    "cross": 0.48,  # cyan
    "heart": 0.91,  # pink
    "moon": 0.16,  # pale yellow: its low saturation sets it apart from the star
}
_SATURATION = {"moon": 0.25}


@dataclass(frozen=True)
class Scene:
    """One picture: `image` (size, size, 3) uint8, `label` (size, size) uint8 class ids, `words` of what is visible."""

    seed: int
    image: np.ndarray
    label: np.ndarray
    words: tuple[str, ...]


def scene(
    seed: int, size: int = 64, colours: Literal["typical", "random"] = "typical", look: Literal["plain", "camouflage"] = "plain"
) -> Scene:
    """Draw the scene of one seed.

    Args:
        seed: any integer >= 0; the same seed gives the same picture on every machine.
        size: side length in pixels (at least 16).
        colours: `typical` gives each object class its own hue with variation; `random` any hue, which is harder.
        look: `plain` objects have one colour each; `camouflage` has the same labels and words.

    Raises:
        ValueError: a size below 16, a negative seed, an unknown colour rule or look, or a colour rule with camouflage.

    >>> s = scene(3)
    >>> s.image.shape, s.label.shape, sorted(s.words) == sorted({CLASSES[i] for i in np.unique(s.label)})
    ((64, 64, 3), (64, 64), True)
    """
    if size < 16:
        raise ValueError(f"scene size must be at least 16 px, got {size}")
    if seed < 0:
        raise ValueError(f"scene seed must not be negative, got {seed}")
    if colours not in ("typical", "random"):
        raise ValueError(f"colours must be 'typical' or 'random', got {colours!r}")
    if look not in ("plain", "camouflage"):
        raise ValueError(f"look must be 'plain' or 'camouflage', got {look!r}")
    if look == "camouflage" and colours != "typical":
        raise ValueError(f"look=camouflage takes colours from the ground; leave out colours={colours}")
    rng = np.random.Generator(np.random.PCG64(seed))
    image, label = _draw_stuff(rng, size)
    ground, objects = label.astype(int) - 1, []
    for _ in range(rng.integers(1, 4)):
        name = OBJECTS[rng.integers(len(OBJECTS))]
        coverage, box = _draw_object(rng, name, size)
        inside = coverage > 0.5
        trial = np.where(inside, CLASSES.index(name), label).astype(np.uint8)
        # An object that would bury an earlier one to a sliver is not drawn: a word needs pixels to point at.
        if _smallest_share(trial) < _MIN_VISIBLE:
            continue
        label = trial
        objects.append(coverage)
        colour = _object_colour(rng, name, colours)
        shade = 1.0 + 0.12 * (np.linspace(-1, 1, size)[:, None] * rng.uniform(-1, 1))
        painted, share = np.clip(colour * shade[box[0], :, None], 0, 1), coverage[box][..., None]
        image[box] = share * painted + (1 - share) * image[box]
    image = image + rng.normal(0, 0.012, image.shape)
    words = [CLASSES[i] for i in np.unique(label)]
    rng.shuffle(words)
    if look == "camouflage":
        image = paint(seed, ground, objects)
    return Scene(seed, (np.clip(image, 0, 1) * 255).round().astype(np.uint8), label, tuple(words))


def _smallest_share(label: np.ndarray) -> float:
    counts = np.bincount(label.ravel())
    return float(counts[counts > 0].min()) / label.size


# ---------------------------------------------------------------------------------------------------------------- stuff
@cache
def _coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """y and x of every pixel (size, size), in picture sides, so that a scene looks alike at every size."""
    y, x = np.mgrid[0:size, 0:size] / size
    return y, x


def _draw_stuff(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One texture, or two that meet at a wavy border of random direction."""
    y, x = _coordinates(size)
    first, second = rng.choice(len(STUFF), 2, replace=False)
    image = texture(rng, STUFF[first], x, y)
    label = np.full((size, size), 1 + first, np.uint8)
    if rng.random() < 0.75:
        angle = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.25 else 0.0)
        along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
        across = -(x - 0.5) * np.sin(angle) + (y - 0.5) * np.cos(angle)
        wave = 0.06 * np.sin(2 * np.pi * (rng.uniform(0.7, 2.2) * along + rng.random()))
        below = across > rng.uniform(-0.2, 0.2) + wave
        image = np.where(below[..., None], texture(rng, STUFF[second], x, y), image)
        label = np.where(below, 1 + second, label).astype(np.uint8)
    return image, label


# -------------------------------------------------------------------------------------------------------------- objects
def _draw_object(rng: np.random.Generator, name: str, size: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """(size, size) coverage in [0, 1] of one object at a random place, scale and rotation; rows and columns it lies in."""
    radius = rng.uniform(0.15, 0.30)
    centre = rng.uniform(0.18, 0.82, 2)
    angle = rng.uniform(-np.pi, np.pi) if name in ("square", "cross", "star") else rng.uniform(-0.5, 0.5)
    coverage = np.zeros((size, size))
    # Only the square around the object is looked at, and coordinates are sums of a row's and a column's part.
    rows, columns = (_near(middle, radius, size) for middle in (centre[1], centre[0]))
    dy, dx = (
        ((np.arange(part.start * _SUPERSAMPLE, part.stop * _SUPERSAMPLE) + 0.5) / (size * _SUPERSAMPLE) - middle) / radius
        for part, middle in ((rows, centre[1]), (columns, centre[0]))
    )
    u = dx * np.cos(angle) + (dy * np.sin(angle))[:, None]
    v = -dx * np.sin(angle) + (dy * np.cos(angle))[:, None]
    inside = _SHAPES[name](u, v).view(np.uint8)
    along = reduce(np.add, [inside[:, shift::_SUPERSAMPLE] for shift in range(_SUPERSAMPLE)])
    covered = reduce(np.add, [along[shift::_SUPERSAMPLE] for shift in range(_SUPERSAMPLE)])
    coverage[rows, columns] = covered / _SUPERSAMPLE**2
    return coverage, (rows, columns)


def _near(middle: float, radius: float, size: int) -> slice:
    """Pixels of an axis that an object around `middle`, in picture sides, can touch."""
    low, high = ((middle + sign * _REACH * radius) * size for sign in (-1, 1))
    return slice(max(0, int(low)), min(size, int(high) + 1))


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: the radius falls linearly along each edge between outer (1) and inner (0.42) corners."""
    sector = np.abs((np.arctan2(u, -v) / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * 2  # 0 at a tip, 1 between tips
    theta = sector * np.pi / 5
    inner_x, inner_y = 0.42 * np.sin(np.pi / 5), 0.42 * np.cos(np.pi / 5)
    r = np.hypot(u, v)
    px, py = r * np.sin(theta), r * np.cos(theta)
    return (inner_x - 0) * (py - 1) - (inner_y - 1) * px < 0


# Each shape is an inequality on coordinates in units of its radius, v pointing down.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: u**2 + v**2 < 0.81,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.76,
    "triangle": lambda u, v: (v < 0.72) & (v > np.abs(u) * 1.75 - 0.95),
    "star": _star,
    "ring": lambda u, v: (u**2 + v**2 < 0.95) & (u**2 + v**2 > 0.26),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 0.95),
    "heart": lambda u, v: (
        ((1.15 * u) ** 2 + (1.15 * (0.15 - v)) ** 2 - 0.62) ** 3 - 1.9 * u**2 * np.sign(0.15 - v) * np.abs(0.15 - v) ** 3 < 0
    ),
    "moon": lambda u, v: (u**2 + v**2 < 0.9) & ((u - 0.5) ** 2 + v**2 > 0.55),
}


def _object_colour(rng: np.random.Generator, name: str, colours: str) -> np.ndarray:
    hue = rng.random() if colours == "random" else _TYPICAL_HUE[name] + rng.normal(0, 0.018)
    saturation = np.clip(_SATURATION.get(name, 0.85) + rng.normal(0, 0.07), 0, 1)
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, rng.uniform(0.75, 1.0)))
