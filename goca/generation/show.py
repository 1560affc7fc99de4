"""Pictures about pictures: what guidance saw at a step, and the same prompts under several kinds of guidance."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from goca.figures import text
from goca.figures.plots import MAP_COLOURS, render
from goca.generation.guidance import Step

_TOKEN_COLOURS = colormaps["tab20"]
_RATES = (0.8, 3.0)  # first and last colour of a rate map: the usual limits


@dataclass(frozen=True)
class Snapshot:
    """One step of one picture, as it is kept."""

    index: int  # denoiser calls before it
    owner: np.ndarray  # (f, f) int16: the token whose region a pixel is, the first where several tie
    foreground: np.ndarray  # (f, f) bool
    rate: np.ndarray  # (h, w) float32

    @classmethod
    def of(cls, step: Step) -> Snapshot:
        owner = step.regions.tokens.int().argmax(0).short()
        return cls(step.index, owner.cpu().numpy(), step.regions.foreground.cpu().numpy(), step.rate.cpu().numpy())

    def npz(self, tokens: Sequence[str]) -> bytes:
        """The maps as a NumPy archive, with the tokens as text."""
        buffer = io.BytesIO()
        parts = {"regions": self.owner, "foreground": self.foreground, "rate": self.rate, "tokens": np.array(tokens, dtype=str)}
        np.savez_compressed(buffer, **parts)  # type: ignore[arg-type]
        return buffer.getvalue()


def load_maps(path: Path) -> tuple[Image.Image, Image.Image]:
    """Regions and rate of a kept step, drawn; the colours of rates are the same everywhere."""
    with np.load(path) as stored:
        regions = _TOKEN_COLOURS(stored["regions"] % 20)
        rate = colormaps[MAP_COLOURS](Normalize(*_RATES)(stored["rate"]))
    return tuple(Image.fromarray((255 * colours[..., :3]).astype(np.uint8)) for colours in (regions, rate))  # type: ignore[return-value]


@text.figure
def snapshots_figure(image: Image.Image, snapshots: Sequence[Snapshot], tokens: Sequence[str]) -> Image.Image:
    """A row per step: the finished picture, its regions, the foreground and the rate."""
    figure = Figure(figsize=(9, 2.3 * len(snapshots) + 0.6), layout="constrained")
    grid = figure.subplots(len(snapshots), 4, squeeze=False)
    low = min(float(snapshot.rate.min()) for snapshot in snapshots)
    high = max(float(snapshot.rate.max()) for snapshot in snapshots)
    seen: set[int] = set()
    for axes, snapshot in zip(grid, snapshots, strict=True):
        for axis in axes:
            axis.axis("off")
        axes[0].imshow(image)
        axes[0].set_title(f"call {snapshot.index}", fontsize=8)
        axes[1].imshow(_TOKEN_COLOURS(snapshot.owner % 20), interpolation="nearest")
        axes[2].imshow(snapshot.foreground, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        shown = axes[3].imshow(snapshot.rate, cmap=MAP_COLOURS, vmin=low, vmax=high, interpolation="nearest")
        seen.update(np.unique(snapshot.owner).tolist())
    for axis, title in zip(grid[0][1:], ("regions", "foreground", "rate"), strict=True):
        axis.set_title(title, fontsize=8)
    figure.colorbar(shown, ax=list(grid[:, 3]), shrink=0.8).ax.tick_params(labelsize=6)
    handles = [Patch(color=_TOKEN_COLOURS(i % 20), label=text.label(tokens[i]) or "(space)") for i in sorted(seen)]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=7, frameon=False)
    return render(figure)


@text.figure
def side_by_side(columns: Mapping[str, Sequence[Image.Image]], rows: Sequence[str]) -> Image.Image:
    """The same prompts under several settings: a column per setting, a row per prompt."""
    count = len(rows)
    figure = Figure(figsize=(1.6 * len(columns) + 0.4, 1.85 * count + 0.4), layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        for axis, image in zip(grid[:, column], images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        grid[0][column].set_title(text.label(title, 24), fontsize=8)
    for axis, row in zip(grid[:, 0], rows, strict=True):
        axis.set_xlabel(text.label(row, 34), fontsize=6, loc="left")
    return render(figure)
