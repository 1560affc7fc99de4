"""What `Segmentor.segment` takes as a background, and what it returns: an image with its predicted classes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from goca.data.classes import ClassTable
from goca.disk import replacing
from goca.errors import ConfigError
from goca.figures.labels import write_labels
from goca.method import Method
from goca.prediction import Prediction

# On 30 bundled scenes, words of which the rest of the picture has none: mean IoU of one word alone 37.5 (without: 25.9), of two
# words and the background 56.2 (without: 50.2), of three 57.5 (without: 55.7).
BACKGROUND_OF_ONE, BACKGROUND_OF_SEVERAL = 0.5, 0.7
Threshold = float | bool | None  # what a user may give as a background


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
        """Class name -> (h, w) refined score map."""
        maps = self.prediction.maps
        return {self.classes.names[i]: maps.scores[channel].cpu().numpy() for channel, i in enumerate(maps.ids)}

    @property
    def token_maps(self) -> dict[str, np.ndarray]:
        """ "position:token" -> (h, w) share of that token at each pixel, before any calibration."""
        assert self.prediction.token_maps is not None
        tokens = self.prediction.prompts[0].tokens
        return {f"{i}:{token}": self.prediction.token_maps[i].cpu().numpy() for i, token in enumerate(tokens)}

    def picture(self) -> Image.Image:
        """The image with its classes laid over, and their names."""
        from goca.figures.plots import overlay_figure  # matplotlib loads only when there is something to draw

        return overlay_figure(self.image, self.label_map, self.classes)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to a folder, or a part of it to a file; returns where it is.

        Args:
            path: a folder for `labels.png`, `picture.png`, `classes.txt` and `maps.npz`; or a file that ends in `.png` (the
                label map: class ids, with the classes' colours as a palette) or `.npz` (`label_map`, `names`, and every class
                map as `class:NAME` and token map as `token:POSITION:TOKEN`). What is there already is replaced.

        Raises:
            ConfigError: another kind of file.
        """
        target = Path(path)
        if target.suffix.lower() == ".png":
            write_labels(target, self.label_map, self.classes.colours)
        elif target.suffix.lower() == ".npz":
            arrays: dict[str, Any] = {f"class:{name}": scores for name, scores in self.class_maps.items()}
            arrays |= {f"token:{name}": share for name, share in self.token_maps.items()}
            with replacing(target) as part, open(part, "wb") as file:
                np.savez_compressed(file, label_map=self.label_map, names=np.array(self.classes.names), **arrays)
        elif target.suffix and not target.is_dir():
            raise ConfigError(
                f"a result is saved to a folder, or as .png (label map) or .npz (all maps), not as {target.suffix}"
            )
        else:
            self.save(target / "labels.png")
            self.save(target / "maps.npz")
            with replacing(target / "picture.png") as part:
                self.picture().save(part, format="PNG")
            with replacing(target / "classes.txt") as part:  # in the order of the ids from 1, as `dataset=folder` reads them
                part.write_text("".join(f"{name}\n" for name in self.classes.names[1:]), encoding="utf-8")
        return target

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()


def background_of(asked: Any, words: int, method: Method) -> tuple[bool, float | None]:
    """Whether a background competes with the words, and the threshold that stands in place of the decision's own.

    Args:
        asked: a threshold; True for the usual one, and for a decision that has none; None or False for no background.
        words: how many are looked for.
        method: decides.

    Raises:
        ConfigError: it is none of these, or a threshold that the method does not read or cannot compare its scores with.
    """
    if asked is None or asked is False:
        return False, None
    if asked is not True and not (isinstance(asked, Real) and math.isfinite(asked)):
        raise ConfigError(f"background is a threshold such as 0.2, True for a usual one, or None for none; got {asked!r}")
    usual = BACKGROUND_OF_ONE if words == 1 else BACKGROUND_OF_SEVERAL
    tau = float(asked) if asked is not True else usual if method.decision.has_threshold else None
    method.at(tau).check_background()
    return True, tau
