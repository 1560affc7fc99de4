"""What `Segmentor.segment` returns: an image with its predicted classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from goca.data.classes import ClassTable
from goca.figures.plots import overlay_figure
from goca.prediction import Prediction


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """An image with its predicted classes, as `Segmentor.segment` returns it; shows itself as a picture in a notebook."""

    image: np.ndarray  # (H, W, 3) uint8
    classes: ClassTable
    prediction: Prediction

    @property
    def label_map(self) -> np.ndarray:
        """(H, W) ids into `classes.names`; 0 is background."""
        return self.prediction.labels[0].cpu().numpy()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know about this result: words that were not looked for, how the words were read, or a picture turned."""
        notes = [*self.prediction.warnings]
        if len(self.classes) == 2 and (self.label_map == 1).all():
            notes.append(
                f"every pixel is '{self.classes.names[1]}', as nothing competes with it: give more words, or background=True"
            )
        return tuple(dict.fromkeys(notes))

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        ids, counts = np.unique(self.label_map, return_counts=True)
        names = (self.classes.names[i] for i in ids)
        shares = [f"{name} {100 * count / counts.sum():.0f} %" for name, count in zip(names, counts, strict=True)]
        noted = f"; {len(self.warnings)} warnings" if self.warnings else ""
        return f"Segmentation({width} x {height} pixels: {', '.join(shares)}{noted})"

    @property
    def class_maps(self) -> dict[str, np.ndarray]:
        """Class name -> (f, f) refined score map."""
        maps = self.prediction.maps
        return {self.classes.names[i]: maps.scores[channel].cpu().numpy() for channel, i in enumerate(maps.ids)}

    @property
    def token_maps(self) -> dict[str, np.ndarray]:
        """ "position:token" -> (f, f) share of that token at each pixel, before any calibration."""
        assert self.prediction.token_maps is not None
        tokens = self.prediction.prompts[0].tokens
        return {f"{i}:{token}": self.prediction.token_maps[i].cpu().numpy() for i, token in enumerate(tokens)}

    def picture(self) -> Image.Image:
        """The image with its classes laid over, and their names."""
        return overlay_figure(self.image, self.label_map, self.classes)

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()
