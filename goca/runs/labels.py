"""Label maps of a run as PNG files, at the threshold that its summary reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from goca.data.files import file_name
from goca.figures.labels import write_labels


class LabelMaps:
    """`predictions/<image id>.png`; while several thresholds are tried, all of them in `predictions_by_threshold`.

    The best threshold is known when the last image is done. Until then each image keeps one file with its T maps, one below the
    other; `choose` makes the label maps of them, and can be repeated when more images have come.

    Args:
        path: the folder `predictions`.
        colours: RGB by class id.
    """

    def __init__(self, path: Path, colours: Sequence[tuple[int, int, int]] = ()) -> None:
        self.path, self.stacks, self.colours = path, path.with_name(f"{path.name}_by_threshold"), colours

    def write(self, image_id: str, labels: np.ndarray) -> None:
        """Keep the label maps (T, H, W) of one image."""
        folder = self.path if len(labels) == 1 else self.stacks
        write_labels(folder / file_name(image_id, ".png"), labels.reshape(-1, labels.shape[2]), self.colours)

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """The images that no label map is kept of."""
        names = {image_id: file_name(image_id, ".png") for image_id in image_ids}
        return [
            image_id for image_id, name in names.items() if not any((at / name).is_file() for at in (self.path, self.stacks))
        ]

    def choose(self, index: int, count: int) -> None:
        """Make the label maps at one of the `count` thresholds; where there is but one they are there already."""
        for path in sorted(self.stacks.rglob("*.png")):
            with Image.open(path) as picture:
                stacked = np.asarray(picture)
            write_labels(self.path / path.relative_to(self.stacks), np.split(stacked, count)[index], self.colours)
