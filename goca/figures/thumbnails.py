"""Thumbnails in a run folder, written as images are done, so that `goca.compare` can show the same images across runs."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image

from goca.data.base import IGNORE
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
        image_ids: the images that get thumbnails.
        worst: how many others get them: those with the lowest mIoU of their own, whatever the threshold. What a run had kept
            before it was continued stays besides.
    """

    def __init__(self, folder: Path, classes: ClassTable, image_ids: Collection[str], worst: int = 0) -> None:
        self.folder, self.classes, self.image_ids, self.worst = folder / "gallery", classes, image_ids, worst
        self._kept: list[tuple[float, str]] = []  # (negative mIoU, image): the best of the worst comes first

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for sample, result in zip(batch, outputs, strict=True):
            if isinstance(result, Prediction) and (sample.image_id in self.image_ids or self._is_bad(result)):
                write(self.folder, sample.image_id, sample.image, sample.label, result.labels.cpu().numpy(), self.classes)

    def _is_bad(self, result: Prediction) -> bool:
        """Whether the image is among the worst so far; the one whose place it takes loses its thumbnails."""
        if not self.worst or result.counts is None or not result.counts.any():
            return False
        counts = result.counts.double()
        hits = counts.diagonal(dim1=-2, dim2=-1)
        iou = hits / (counts.sum(-1) + counts.sum(-2) - hits)  # NaN for what is not in this image
        heapq.heappush(self._kept, (-float(iou.nanmean(-1).max()), result.image_id))
        if len(self._kept) <= self.worst:
            return True
        _, best = heapq.heappop(self._kept)
        for ending in (".jpg", ".png") if best != result.image_id else ():
            _place(self.folder, best, ending).unlink(missing_ok=True)
        return best != result.image_id


def write(
    folder: Path, image_id: str, image: np.ndarray, truth: np.ndarray | None, labels: np.ndarray, classes: ClassTable
) -> None:
    """Write the two thumbnails of one image (H, W, 3): itself, and its ground truth (H, W) above the labels (T, H, W)."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = np.full((height, width), IGNORE, np.uint8) if truth is None else truth
    strip = Image.fromarray(np.concatenate([_resized(label, size) for label in (shown, *labels)]), mode="P")
    palette = np.full((256, 3), _VOID, np.uint8)
    palette[: min(len(classes), IGNORE)] = classes.colours[:IGNORE]
    strip.putpalette(palette.tobytes())
    picture, labelled = _place(folder, image_id, ".jpg"), _place(folder, image_id, ".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(picture, quality=85)
    strip.save(labelled, optimize=True)


def _place(folder: Path, image_id: str, ending: str) -> Path:
    path = folder / file_name(image_id, most=251)
    return path.with_name(f"{path.name}{ending}")


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
