"""Figures of many pictures: one pair of axes for all of them, in inches, where matplotlib's grids of axes take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

MAP_COLOURS = "viridis"  # perceptually uniform
_LEGEND_LINE = 0.22  # inches
Limits = tuple[float, float]  # of the values of maps


class Canvas:
    """A figure of `width` x `height` inches, places being (left, top) in inches from its upper left corner.

    Args:
        width, height: of the pictures, in inches.
        legend: patches with labels, which get lines of their own below.
    """

    def __init__(self, width: float, height: float, legend: Sequence[Patch] = ()) -> None:
        columns = min(len(legend), max(1, min(5, int(width / 1.3))))
        below = _LEGEND_LINE * ceil(len(legend) / columns) + 0.1 if legend else 0.0
        self.figure = Figure(figsize=(width, height + below))
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.axis("off")
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height + below, 0)
        self._axes.set_autoscale_on(False)
        if legend:
            self.figure.legend(handles=list(legend), loc="lower center", ncols=columns, fontsize=8, frameon=False)

    def picture(self, values: np.ndarray, left: float, top: float, side: float, limits: Limits | None = None) -> None:
        """A picture (H, W, 3), or a map (h, w) in the colours of its limits, as large as fits a square of `side` inches."""
        self.within(values, left, top, side, side, limits)

    def within(
        self,
        values: np.ndarray,
        left: float,
        top: float,
        width: float,
        height: float,
        limits: Limits | None = None,
    ) -> None:
        """As `picture`, in a box that need not be square."""
        scale = min(height / max(1, values.shape[0]), width / max(1, values.shape[1]))
        tall, wide = values.shape[0] * scale, values.shape[1] * scale
        self._draw(values, (left + (width - wide) / 2, top + (height - tall) / 2, wide, tall), limits)

    def scale(self, left: float, top: float, height: float, limits: Limits) -> None:
        """The colours of maps between two limits, with the numbers that the lowest, middle and highest stand for."""
        self._draw(np.linspace(1, 0, 128)[:, None], (left, top, 0.08, height), (0.0, 1.0))
        for share in (0.0, 0.5, 1.0):
            value = limits[0] + share * (limits[1] - limits[0])
            self.words(f"{value:.2g}", left + 0.12, top + (1 - share) * height, size=6, ha="left", va="center")

    def words(self, text: str, left: float, top: float, size: float = 8, **options: object) -> None:
        """Text at a place; options are matplotlib's, by default it stands above the place, in the middle."""
        self._axes.text(left, top, text, fontsize=size, **{"ha": "center", "va": "bottom", **options})  # type: ignore[arg-type]

    def _draw(self, values: np.ndarray, box: tuple[float, float, float, float], limits: Limits | None = None) -> None:
        left, top, width, height = box
        low, high = limits or (None, None)
        self._axes.imshow(
            values, cmap=MAP_COLOURS, vmin=low, vmax=high, interpolation="nearest", aspect="auto",
            extent=(left, left + width, top + height, top),
        )  # fmt: skip
