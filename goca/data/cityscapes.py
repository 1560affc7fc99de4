"""Cityscapes: 19 evaluation classes of street scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.label_maps import IGNORE, UNKNOWN, stored_map

_IMAGE = "_leftImg8bit.png"


@dataclass(config=CONFIG, kw_only=True)
class Cityscapes(SegmentationDataset):
    """Fine annotations as `labelIds` (0 ... 33); the ids outside the 19 classes are void.

    Where there are none, `labelTrainIds` as the official scripts and mmsegmentation make them: 0 ... 18, and 255 for void.
    """

    COUNTS: ClassVar = {"train": 2975, "val": 500}
    TREE: ClassVar = """\
  cityscapes/leftImg8bit/{train,val}/<city>/<id>_leftImg8bit.png
  cityscapes/gtFine/{train,val}/<city>/<id>_gtFine_labelIds.png
                                                (or <id>_gtFine_labelTrainIds.png)"""
    SOURCE: ClassVar = (
        "https://www.cityscapes-dataset.com/downloads/ (register; leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
    )

    name: str = "cityscapes"
    train_ids: bool = Field(default=False, init=False)  # after setup(): the masks are labelTrainIds

    def list_ids(self) -> list[str]:
        masks = self.need("cityscapes", "gtFine", str(self.split))
        official, converted = (any(masks.glob(f"*/*_gtFine_{kind}.png")) for kind in ("labelIds", "labelTrainIds"))
        self.train_ids = converted and not official
        if self.train_ids:
            self.remarks.append("there are no labelIds: the masks are labelTrainIds")
        return self.stems(f"*/*{_IMAGE}", _IMAGE, "cityscapes", "leftImg8bit", str(self.split))

    def image_path(self, image_id: str) -> Path:
        return self._city("leftImg8bit", image_id) / f"{image_id}{_IMAGE}"

    def label_path(self, image_id: str) -> Path:
        kind = "labelTrainIds" if self.train_ids else "labelIds"
        return self._city("gtFine", image_id) / f"{image_id}_gtFine_{kind}.png"

    def _city(self, kind: str, image_id: str) -> Path:
        return self.root / "cityscapes" / kind / str(self.split) / image_id.split("_")[0]

    @property
    def cannot_occur(self) -> Mapping[int, str]:
        what = "labelIds end at 33; this seems to be a file of trainIds under that name, whose ids mean other classes"
        return {} if self.train_ids else {255: what}

    @property
    def label_map(self) -> np.ndarray:
        if not self.train_ids:
            return stored_map("cityscapes", 256, other=range(34))
        table = np.full(256, UNKNOWN)
        table[:19], table[255] = np.arange(1, 20), IGNORE
        return table
