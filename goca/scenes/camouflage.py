"""The camouflage look: the same scenes painted so that colour does not give an object away.

Layout, labels and words of a seed are those of the plain look, so that two looks can be compared picture by picture. What
changes is the paint. All colours of a picture come from one small palette, the tones of its ground and of further stuff: the
ground has stains in the colours of the objects, and every object is patterned in two colours of the ground. Light falls from
one side, objects are rounded by shading and cast a shadow, and a camera blurs and adds noise that grows with brightness.
What remains to tell an object by is its pattern, its shading and its outline.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from goca.scenes.textures import STUFF, TONES, pattern

_LEAST_CONTRAST = 0.22  # between the two colours of an object, so that its pattern can be seen
_STREAM = 1  # the paint has random numbers of its own, beside those of the layout


def paint(seed: int, ground: np.ndarray, objects: Sequence[np.ndarray]) -> np.ndarray:
    """RGB (H, W, 3) float, to be clipped to [0, 1].

    Args:
        seed: of the scene.
        ground: (H, W) indices into `STUFF`.
        objects: coverage (H, W) in [0, 1] of each object, the lowest first.
    """
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM]))
    size = len(ground)
    y, x = np.mgrid[0:size, 0:size] / size
    kinds = [STUFF[i] for i in np.unique(ground)]
    others = [name for name in STUFF if name not in kinds]
    palette = [_tone(rng, name) for name in (*kinds, *rng.choice(others, 3 - len(kinds), replace=False))]
    image = np.zeros((size, size, 3))
    for tone, name in zip(palette, kinds, strict=False):
        lightness = TONES[name][1] * pattern(rng, name, x, y)
        image = np.where((ground == STUFF.index(name))[..., None], tone + lightness[..., None], image)
    for tone in palette:  # stains of every colour on all of the ground
        stain = _soft_step(_blotches(rng, size, 0.07), 0.9)
        image += 0.7 * stain[..., None] * (tone - image.mean((0, 1)))
    light = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.sin(light), np.cos(light)])  # (down, right) of where shadows fall
    for coverage in objects:
        image = _cast_shadow(rng, image, coverage, toward)
        painted = _two_coloured(rng, palette, x, y) * _rounded(coverage, toward)[..., None]
        image = coverage[..., None] * painted + (1 - coverage[..., None]) * image
    fall = 1 - 0.22 * ((x - 0.5) * toward[1] + (y - 0.5) * toward[0])
    return _camera(rng, image * fall[..., None])


def _tone(rng: np.random.Generator, name: str) -> np.ndarray:
    return np.clip(np.asarray(TONES[name][0]) + rng.normal(0, 0.05, 3), 0.08, 0.95)


def _two_coloured(rng: np.random.Generator, palette: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W, 3): stripes, checks, spots, two halves or blotches in two colours of the palette, whatever the object is."""
    one, other = (palette[i] + rng.normal(0, 0.03, 3) for i in rng.choice(len(palette), 2, replace=False))
    gap = float(other.mean() - one.mean())
    if abs(gap) < _LEAST_CONTRAST:
        push = (_LEAST_CONTRAST - abs(gap)) / 2 * (1 if gap >= 0 else -1)
        one, other = one - push, other + push
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(5.0, 9.0)
    u, v = x * np.cos(angle) + y * np.sin(angle) + rng.random(), y * np.cos(angle) - x * np.sin(angle) + rng.random()
    waves = np.sin(2 * np.pi * frequency * u), np.sin(2 * np.pi * frequency * v)
    match rng.integers(5):
        case 0:
            field = waves[0]
        case 1:
            field = waves[0] * waves[1]
        case 2:
            field = waves[0] * waves[1] - 0.35
        case 3:
            field = np.sin(2 * np.pi * 2.2 * u)
        case _:
            field = _blotches(rng, len(x), 0.035)
    share = _soft_step(field, 0.0)[..., None]
    return share * one + (1 - share) * other + rng.normal(0, 0.03, x.shape)[..., None]


def _blotches(rng: np.random.Generator, size: int, width: float) -> np.ndarray:
    """Smooth noise of unit variance whose blotches are about `width` picture sides wide."""
    # Drawn on a grid that does not depend on the size, as the stains of a picture should not.
    coarse = gaussian_filter(rng.normal(0, 1, (64, 64)), width * 64, mode="wrap")
    coarse /= coarse.std()
    place = np.arange(size) * 64 // size
    return coarse[np.ix_(place, place)]


def _soft_step(field: np.ndarray, threshold: float) -> np.ndarray:
    return 1 / (1 + np.exp(-8 * (field - threshold)))


def _rounded(coverage: np.ndarray, toward: np.ndarray) -> np.ndarray:
    """Brightness (H, W) of a body that bulges: lighter towards the light, darker away from it."""
    size = len(coverage)
    slope = np.gradient(gaussian_filter(coverage, 0.05 * size))
    return 1 + 2.2 * 0.05 * size * (slope[0] * toward[0] + slope[1] * toward[1])


def _cast_shadow(rng: np.random.Generator, image: np.ndarray, coverage: np.ndarray, toward: np.ndarray) -> np.ndarray:
    size = len(coverage)
    moved = shift(coverage, toward * rng.uniform(0.03, 0.07) * size, order=1)
    depth = rng.uniform(0.25, 0.5) * gaussian_filter(moved, 0.02 * size)
    return image * (1 - depth[..., None])


def _camera(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Blur, then noise that grows with the square root of brightness, as that of a sensor does."""
    size = len(image)
    image = np.clip(gaussian_filter(image, (rng.uniform(0.003, 0.009) * size,) * 2 + (0,)), 0, 1)
    return image + rng.uniform(0.01, 0.03) * (0.3 + np.sqrt(image)) * rng.normal(0, 1, image.shape)
