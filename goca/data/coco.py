"""COCO 2017 in two ways: the 80 objects from the panoptic annotation, and the 27 coarse classes of COCO-Stuff."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.files import inside
from goca.data.label_maps import IGNORE, stored_map
from goca.data.masks import read_panoptic
from goca.errors import DataError

_STUFF_IDS = range(91, 201)  # category ids of stuff in the panoptic annotation


@dataclass(config=CONFIG, kw_only=True)
class CocoObject(SegmentationDataset):
    """The 80 things of the panoptic annotation; stuff is background, pixels of no segment (id 0) are void.

    Every segment is looked up once, by its id. The released code relabels the mask in place, segment by segment, so that a
    segment with an id below 81 takes pixels that were already relabelled (docs/parity.md, E9).
    """

    COUNTS: ClassVar = {"train": 118287, "val": 5000}
    TREE: ClassVar = """\
  coco/{train,val}2017/<id>.jpg
  coco/annotations/panoptic_{train,val}2017.json
  coco/annotations/panoptic_{train,val}2017/<id>.png"""
    SOURCE: ClassVar = "https://cocodataset.org/#download (or: python -m goca.data get dataset=coco_object)"

    name: str = "coco_object"
    background: bool = True
    segments: dict[str, dict[int, int]] = Field(default_factory=dict, init=False)  # image id -> segment id -> category id

    def list_ids(self) -> list[str]:
        folder = self.need("coco", "annotations", f"panoptic_{self.split}2017")
        file = self.need("coco", "annotations", f"panoptic_{self.split}2017.json")
        try:
            self.segments = {_stem(row, folder): _categories(row) for row in json.loads(file.read_bytes())["annotations"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not a COCO panoptic annotation: {type(error).__name__} {error}") from error
        self.leave_out_unpaired(self.segments, ".jpg", "coco", f"{self.split}2017")
        return sorted(self.segments)

    def image_path(self, image_id: str) -> Path:
        return self.root / "coco" / f"{self.split}2017" / f"{image_id}.jpg"

    def label_path(self, image_id: str) -> Path:
        return self.root / "coco" / "annotations" / f"panoptic_{self.split}2017" / f"{image_id}.png"

    def raw_label(self, image_id: str) -> np.ndarray:
        return self.categories(read_panoptic(self.label_path(image_id), self.max_pixels), image_id)

    def categories(self, segment_ids: np.ndarray, image_id: str) -> np.ndarray:
        """(H, W) segment ids -> (H, W) category ids, 0 for void.

        Raises:
            DataError: a segment that the annotation does not list.
        """
        listed = {0: 0, **self.segments[image_id]}
        found, inverse = np.unique(segment_ids, return_inverse=True)
        unlisted = [int(segment) for segment in found if int(segment) not in listed]
        if unlisted:
            raise DataError(f"{self.label_path(image_id)} has segments that the annotation does not list: {unlisted[:8]}")
        return np.array([listed[int(segment)] for segment in found])[inverse].reshape(segment_ids.shape)

    @cached_property
    def label_map(self) -> np.ndarray:
        return stored_map("coco_object", 201, other=_STUFF_IDS, void=[0])


@dataclass(config=CONFIG, kw_only=True)
class CocoStuff(SegmentationDataset):
    """The 182 fine values of the official `stuffthingmaps` (0 ... 181, 255 for void) as 27 coarse classes.

    Args:
        shift: look every value up one too low, as the released code does (docs/parity.md, E8): person (0) becomes background
        and other
            classes take their predecessor's coarse class. Only for parity with the paper's numbers.
    """

    COUNTS: ClassVar = {"train": 118287, "val": 5000}
    TREE: ClassVar = """\
  coco/{train,val}2017/<id>.jpg
  coco/stuffthingmaps/{train,val}2017/<id>.png"""
    SOURCE: ClassVar = "https://github.com/nightrome/cocostuff#downloads (or: python -m goca.data get dataset=coco_stuff)"

    name: str = "coco_stuff"
    shift: bool = False

    def list_ids(self) -> list[str]:
        ids = self.stems("*.png", ".png", "coco", "stuffthingmaps", f"{self.split}2017")
        self.leave_out_unpaired(ids, ".jpg", "coco", f"{self.split}2017")
        return ids

    def image_path(self, image_id: str) -> Path:
        return self.root / "coco" / f"{self.split}2017" / f"{image_id}.jpg"

    def label_path(self, image_id: str) -> Path:
        return self.root / "coco" / "stuffthingmaps" / f"{self.split}2017" / f"{image_id}.png"

    @cached_property
    def label_map(self) -> np.ndarray:
        table = stored_map("coco_stuff", 256, void=[255])
        if self.shift:
            table = np.roll(table, 1)
            table[[0, 255]] = IGNORE
        return table


def _stem(row: Mapping[str, Any], folder: Path) -> str:
    inside(folder, row["file_name"])
    return row["file_name"].removesuffix(".png")


def _categories(row: Mapping[str, Any]) -> dict[int, int]:
    return {int(segment["id"]): int(segment["category_id"]) for segment in row["segments_info"]}
