"""Pascal VOC 2012: 20 objects and background, masks as palette PNGs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.label_maps import identity_map
from goca.data.masks import voc_palette


@dataclass(config=CONFIG, kw_only=True)
class VOC(SegmentationDataset):
    """Images of `ImageSets/Segmentation/<split>.txt`. The void border (255) is ignored under `standard`."""

    SPLITS: ClassVar = ("train", "val", "trainval")
    UPSTREAM_SPLIT: ClassVar = "train"
    COUNTS: ClassVar = {"train": 1464, "val": 1449, "trainval": 2913}
    TREE: ClassVar = """\
  VOCdevkit/VOC2012/JPEGImages/<id>.jpg
  VOCdevkit/VOC2012/SegmentationClass/<id>.png
  VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,trainval}.txt"""
    SOURCE: ClassVar = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (or: python -m goca.data get dataset=voc)"

    PALETTES: ClassVar = (voc_palette(),)

    name: str = "voc"
    background: bool = True

    def list_ids(self) -> list[str]:
        self.need("VOCdevkit", "VOC2012", "SegmentationClass")
        return self.read_list("VOCdevkit", "VOC2012", "ImageSets", "Segmentation", f"{self.split}.txt")

    def image_path(self, image_id: str) -> Path:
        return self.root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{image_id}.jpg"

    def label_path(self, image_id: str) -> Path:
        return self.root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{image_id}.png"

    @cached_property
    def label_map(self) -> np.ndarray:
        return identity_map(21)
