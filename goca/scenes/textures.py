"""Kinds of stuff and what tells them apart: a base colour and a pattern."""

from __future__ import annotations

import numpy as np

STUFF = ("grass", "water", "sand", "sky", "brick", "snow")

# Base colour, and how far the pattern lightens and darkens it.
TONES: dict[str, tuple[tuple[float, float, float], float]] = {
    "grass": ((0.25, 0.52, 0.16), 0.16),
    "water": ((0.12, 0.36, 0.58), 0.14),
    "sand": ((0.80, 0.69, 0.46), 0.09),
    "sky": ((0.55, 0.76, 0.94), 0.12),
    "brick": ((0.56, 0.27, 0.20), 0.06),
    "snow": ((0.92, 0.94, 0.97), 0.03),
}


def texture(rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RGB in [0, 1] of one kind of stuff; x and y (H, W) in picture sides."""
    base, amplitude = TONES[name]
    tone = np.asarray(base) + rng.normal(0, 0.025, 3)
    return np.clip(tone + amplitude * pattern(rng, name, x, y)[..., None], 0, 1)


def pattern(rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lightness (H, W) around 0 of one kind of stuff, about 1 in size."""
    phase = rng.random(4)
    noise = rng.normal(0, 1, x.shape)
    match name:
        case "grass":  # upright blades: noise that varies quickly along x and slowly along y
            return 0.6 * _smooth(noise, 2, axis=0) + 0.5 * np.sin(2 * np.pi * (15 * x + phase[0] + 0.4 * np.sin(9 * y)))
        case "water":  # lying waves
            return np.sin(2 * np.pi * (9 * y + phase[0] + 0.25 * np.sin(2 * np.pi * (2 * x + phase[1])))) + 0.2 * noise
        case "sand":  # grains
            return noise
        case "sky":  # soft clouds
            return 0.9 * np.sin(2 * np.pi * (1.2 * x + phase[0])) * np.sin(2 * np.pi * (1.6 * y + phase[1])) + 0.5 * y
        case "brick":  # rows of offset bricks with pale mortar
            rows = 8 * y + phase[0]
            columns = 4 * x + phase[1] + 0.5 * (np.floor(rows) % 2)
            mortar = ((rows % 1) < 0.18) | ((columns % 1) < 0.1)
            return np.where(mortar, 4.0, 0.6 * noise)
        case _:  # snow: nearly even, with faint drifts
            return 0.8 * noise + np.sin(2 * np.pi * (1.5 * x + 2.5 * y + phase[0]))


def _smooth(values: np.ndarray, radius: int, axis: int) -> np.ndarray:
    return np.mean([np.roll(values, shift, axis) for shift in range(-radius, radius + 1)], axis=0) * (2 * radius + 1) ** 0.5
