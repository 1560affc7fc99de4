"""Cityscapes: 19 evaluation classes of street scenes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.label_maps import stored_map

_IMAGE = "_leftImg8bit.png"


@dataclass(config=CONFIG, kw_only=True)
class Cityscapes(SegmentationDataset):
    """Fine annotations as `labelIds` (0 ... 33); the ids outside the 19 classes are void."""

    COUNTS: ClassVar = {"train": 2975, "val": 500}
    TREE: ClassVar = """\
  cityscapes/leftImg8bit/{train,val}/<city>/<id>_leftImg8bit.png
  cityscapes/gtFine/{train,val}/<city>/<id>_gtFine_labelIds.png"""
    SOURCE: ClassVar = (
        "https://www.cityscapes-dataset.com/downloads/ (register; leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
    )

    CANNOT_OCCUR: ClassVar = {
        255: "labelIds end at 33; this seems to be a file of trainIds under that name, whose ids mean other classes"
    }

    name: str = "cityscapes"

    def list_ids(self) -> list[str]:
        self.need("cityscapes", "gtFine", str(self.split))
        return self.stems(f"*/*{_IMAGE}", _IMAGE, "cityscapes", "leftImg8bit", str(self.split))

    def image_path(self, image_id: str) -> Path:
        return self._city("leftImg8bit", image_id) / f"{image_id}{_IMAGE}"

    def label_path(self, image_id: str) -> Path:
        return self._city("gtFine", image_id) / f"{image_id}_gtFine_labelIds.png"

    def _city(self, kind: str, image_id: str) -> Path:
        return self.root / "cityscapes" / kind / str(self.split) / image_id.split("_")[0]

    @cached_property
    def label_map(self) -> np.ndarray:
        return stored_map("cityscapes", 256, other=range(34))
