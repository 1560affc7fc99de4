"""Thumbnails in a run folder, written as images are done, so that `goca.compare` can show the same images across runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image

from goca.data.base import IGNORE, Sample
from goca.data.classes import ClassTable
from goca.data.files import file_name
from goca.prediction import Prediction

SIDE = 160  # px, the longer side of a thumbnail
_VOID = (128, 128, 128)


class Gallery(pl.Callback):
    """Writes `gallery/<image id>.jpg` and, as palette PNG, the labels in one column: ground truth, then each threshold.

    Label maps are tiny and compress well; keeping every threshold lets the page show the best one, known only at the end.

    Args:
        folder: the run folder.
        classes: the class table, for the colours.
        count: thumbnails of so many images, the first ones of the data set.
    """

    def __init__(self, folder: Path, classes: ClassTable, count: int) -> None:
        self.folder, self.classes, self.count = folder / "gallery", classes, count

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        samples = {sample.image_id: sample for sample in batch if isinstance(sample, Sample)}
        present = len(list(self.folder.rglob("*.png"))) if self.count else 0
        predictions = [result for result in outputs if isinstance(result, Prediction)]
        for prediction in predictions[: max(0, self.count - present)]:
            write(self.folder, samples[prediction.image_id], prediction, self.classes)


def write(folder: Path, sample: Sample, prediction: Prediction, classes: ClassTable) -> None:
    """Write the two thumbnails of one image."""
    height, width = sample.image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    truth = np.full((height, width), IGNORE, np.uint8) if sample.label is None else sample.label
    labels = [_resized(label, size) for label in (truth, *prediction.labels.cpu().numpy())]
    strip = Image.fromarray(np.concatenate(labels), mode="P")
    palette = np.full((256, 3), _VOID, np.uint8)
    palette[: min(len(classes), IGNORE)] = classes.colours[:IGNORE]
    strip.putpalette(palette.tobytes())
    path = folder / file_name(prediction.image_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS).save(path.with_name(f"{path.name}.jpg"), quality=85)
    strip.save(path.with_name(f"{path.name}.png"), optimize=True)


@dataclass(frozen=True)
class Thumbnails:
    """What the gallery of one run holds about one image."""

    image: bytes  # JPEG
    labels: np.ndarray  # (1 + T, h, w) uint8: ground truth, then each threshold
    palette: bytes  # 256 RGB triples

    def png(self, index: int) -> bytes:
        """One label map as a palette PNG; background and ignored pixels are transparent."""
        picture = Image.fromarray(self.labels[index], mode="P")
        picture.putpalette(self.palette)
        buffer = BytesIO()
        transparency = bytes([0] + [255] * (IGNORE - 1) + [0])
        picture.save(buffer, format="png", optimize=True, transparency=transparency)
        return buffer.getvalue()


def read(folder: Path, thresholds: int) -> dict[str, Thumbnails]:
    """Thumbnails by image id, of run folder `folder`; those that cannot be read are left out."""
    found = {}
    for path in sorted((folder / "gallery").rglob("*.png")):
        try:
            with Image.open(path) as strip:
                labels, palette = np.asarray(strip), strip.getpalette() or []
            image_id = path.relative_to(folder / "gallery").as_posix().removesuffix(".png")
            found[image_id] = Thumbnails(
                (path.parent / f"{path.name.removesuffix('.png')}.jpg").read_bytes(),
                labels.reshape(1 + thresholds, -1, labels.shape[1]),
                bytes(palette),
            )
        except (OSError, ValueError):
            continue
    return found


def disagreement(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> float:
    """Share of pixels that two label maps (h, w) label differently, where the ground truth does not ignore them."""
    kept = truth != IGNORE if (truth != IGNORE).any() else np.ones_like(truth, bool)
    return float((first != second)[kept].mean())


def _resized(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Nearest-neighbour thumbnail of a label map; ids above 255 have no colour and are shown as ignored."""
    small = np.where(label > IGNORE, IGNORE, label).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((size[0], size[1]), Image.Resampling.NEAREST))
