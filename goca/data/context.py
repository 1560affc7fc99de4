"""Pascal Context: 59 frequent classes of a 459-class labelling of VOC 2010, with or without background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import scipy.io
from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.classes import ClassTable
from goca.data.label_maps import IGNORE, UNKNOWN, stored_map
from goca.errors import DataError

_CONVERTED = "SegmentationClassContext"
_IN_VOC_2012 = {"train": 964}  # images of its segmentation list that have a label
# Images of VOC 2010's lists that the detail annotation lacks, and so every list that was made with its interface.
_NOT_IN_DETAIL = {"train": ("2008_003252", "2010_001592"), "val": ("2010_001606",)}


@dataclass(config=CONFIG, kw_only=True)
class Context(SegmentationDataset):
    """Labels are MATLAB files with a `LabelMap` of ids 1 ... 459; ids outside the 59 are background.

    `background: true` is Context-60, `false` Context-59. The official lists are those of VOC 2010. The released code runs on
    the VOC 2012 segmentation list instead and drops images without a label (964 of `train` are left), as `upstream` does.
    Where there are no MATLAB files, the PNGs that mmsegmentation's converter makes of them are read: 0 for background, and the
    59 classes in alphabetical order.

    Args:
        image_list: `all` images of VOC 2010's lists (5105 of val); `detail`, those that the annotation's own
            interface knows and mmsegmentation evaluates (5104).
    """

    UPSTREAM_SPLIT: ClassVar = "train"
    COUNTS: ClassVar = {"train": 4998, "val": 5105}
    TREE: ClassVar = """\
  VOCdevkit/VOC2010/JPEGImages/<id>.jpg        (VOC2012/JPEGImages holds the same images and is used where this is missing)
  VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt
  VOCdevkit/VOC2010/trainval/<id>.mat          the 459-class labels
  (or, where trainval is missing, as mmsegmentation's converter makes them:
  VOCdevkit/VOC2010/{SegmentationClassContext/<id>.png,ImageSets/SegmentationContext/{train,val}.txt})
  VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt   (protocol upstream only)"""
    SOURCE: ClassVar = "https://cs.stanford.edu/~roozbeh/pascal-context/ and http://host.robots.ox.ac.uk/pascal/VOC/voc2010/"

    name: str = "context"
    background: bool = True
    image_list: Literal["all", "detail"] = "all"
    converted: bool = Field(default=False, init=False)  # after setup(): the labels are mmsegmentation's PNGs

    @property
    def official_count(self) -> int | None:
        if self.protocol.name == "upstream":
            return _IN_VOC_2012.get(str(self.split))
        count = super().official_count
        return count if count is None or self.image_list == "all" else count - len(_NOT_IN_DETAIL[str(self.split)])

    def list_ids(self) -> list[str]:
        year = self.root / "VOCdevkit" / "VOC2010"
        self.converted = not (year / "trainval").is_dir() and (year / _CONVERTED).is_dir()
        if self.converted:
            self.remarks.append(f"there is no folder trainval: the labels are those of {_CONVERTED}")
        labels = self.need("VOCdevkit", "VOC2010", _CONVERTED if self.converted else "trainval")
        if self.protocol.name == "upstream":
            ids = self.read_list("VOCdevkit", "VOC2012", "ImageSets", "Segmentation", f"{self.split}.txt")
            labelled = {image_id for image_id in ids if (labels / f"{image_id}{self._ending}").is_file()}
            self.leave_out("images of the VOC 2012 list without a Context label", set(ids) - labelled)
            return [image_id for image_id in ids if image_id in labelled]
        own = year / "ImageSets" / "SegmentationContext" / f"{self.split}.txt"
        kind = "SegmentationContext" if self.converted and own.is_file() else "Main"
        ids = self.read_list("VOCdevkit", "VOC2010", "ImageSets", kind, f"{self.split}.txt")
        if self.image_list == "all":
            return ids
        return [image_id for image_id in ids if image_id not in _NOT_IN_DETAIL[str(self.split)]]

    def image_path(self, image_id: str) -> Path:
        years = (self.root / "VOCdevkit" / year / "JPEGImages" / f"{image_id}.jpg" for year in ("VOC2010", "VOC2012"))
        first, second = years
        return first if first.is_file() or not second.is_file() else second

    def label_path(self, image_id: str) -> Path:
        folder = self.root / "VOCdevkit" / "VOC2010" / (_CONVERTED if self.converted else "trainval")
        return folder / f"{image_id}{self._ending}"

    def listed_order(self, table: ClassTable) -> Sequence[int]:
        return sorted(range(1, len(table)), key=table.names.__getitem__)  # mmsegmentation's order is alphabetical

    @property
    def _ending(self) -> str:
        return ".png" if self.converted else ".mat"

    def raw_label(self, image_id: str) -> np.ndarray:
        path = self.label_path(image_id)
        if self.converted:
            return self.read_mask(path)
        if not path.is_file():
            raise DataError(f"missing file: {path}")
        try:
            label = np.asarray(scipy.io.loadmat(path, variable_names=["LabelMap"])["LabelMap"])
        except KeyError as error:
            raise DataError(f"{path} holds no LabelMap") from error
        except Exception as error:  # scipy's reader raises nearly anything on a broken file
            raise DataError(f"cannot read the label {path}: {error}") from error
        if label.ndim != 2 or label.dtype.kind not in "iu":
            raise DataError(f"the LabelMap of {path} must be a matrix of integers, it is {label.dtype} {label.shape}")
        return label.astype(np.int32)

    @property
    def label_map(self) -> np.ndarray:
        if not self.converted:
            return stored_map("context", 460, other=range(460))
        table = np.full(256, UNKNOWN)
        table[: len(self.classes)] = [0, *self.listed_order(self.classes)]
        table[255] = IGNORE
        return table
