"""What `Segmentor.segment` returns: an image with its predicted classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from goca.data.classes import ClassTable
from goca.figures.plots import overlay_figure
from goca.prediction import Prediction


@dataclass(frozen=True)
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
