"""ADE20K as in the MIT scene parsing benchmark (SceneParse150): 150 classes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.label_maps import identity_map

_FOLDERS = {"train": "training", "val": "validation"}


@dataclass(config=CONFIG, kw_only=True)
class ADE20K(SegmentationDataset):
    """Masks hold 0 for "other objects" and 1 ... 150 for the classes."""

    COUNTS: ClassVar = {"train": 20210, "val": 2000}
    TREE: ClassVar = """\
  ADEChallengeData2016/images/{training,validation}/<id>.jpg
  ADEChallengeData2016/annotations/{training,validation}/<id>.png"""
    SOURCE: ClassVar = "http://sceneparsing.csail.mit.edu/ (or: python -m goca.data get dataset=ade20k)"

    CANNOT_OCCUR: ClassVar = {
        255: "its masks hold 0 for other objects and 1 ... 150; these seem to be reduced by one (reduce_zero_label), "
        "so that every class is off by one: use the official ones"
    }

    name: str = "ade20k"

    def list_ids(self) -> list[str]:
        folder = _FOLDERS[str(self.split)]
        ids = self.stems("*.png", ".png", *self._official, "annotations", folder)
        self.leave_out_unpaired(ids, ".jpg", *self._official, "images", folder)
        return ids

    @cached_property
    def _official(self) -> tuple[str, ...]:
        """The official folder's place under the root: there, or where mmsegmentation wants it."""
        places = (("ADEChallengeData2016",), ("ade", "ADEChallengeData2016"))
        return next((place for place in places if self.root.joinpath(*place).is_dir()), places[0])

    def image_path(self, image_id: str) -> Path:
        return self.root.joinpath(*self._official) / "images" / _FOLDERS[str(self.split)] / f"{image_id}.jpg"

    def label_path(self, image_id: str) -> Path:
        return self.root.joinpath(*self._official) / "annotations" / _FOLDERS[str(self.split)] / f"{image_id}.png"

    @cached_property
    def label_map(self) -> np.ndarray:
        return identity_map(151)
