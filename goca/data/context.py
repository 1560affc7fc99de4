"""Pascal Context: 59 frequent classes of a 459-class labelling of VOC 2010, with or without background."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.io
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.label_maps import stored_map
from goca.errors import DataError


@dataclass(config=CONFIG, kw_only=True)
class Context(SegmentationDataset):
    """Labels are MATLAB files with a `LabelMap` of ids 1 ... 459; ids outside the 59 are background.

    `background: true` is Context-60, `false` Context-59. The official lists are those of VOC 2010. The released code runs on
    the VOC 2012 segmentation list instead and drops images without a label (964 of `train` are left), as `upstream` does.
    """

    UPSTREAM_SPLIT: ClassVar = "train"
    COUNTS: ClassVar = {"train": 4998, "val": 5105}
    TREE: ClassVar = """\
  VOCdevkit/VOC2010/JPEGImages/<id>.jpg        (VOC2012/JPEGImages holds the same images and is used where this is missing)
  VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt
  VOCdevkit/VOC2010/trainval/<id>.mat          the 459-class labels
  VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt   (protocol upstream only)"""
    SOURCE: ClassVar = "https://cs.stanford.edu/~roozbeh/pascal-context/ and http://host.robots.ox.ac.uk/pascal/VOC/voc2010/"

    name: str = "context"
    background: bool = True

    def list_ids(self) -> list[str]:
        labels = self.need("VOCdevkit", "VOC2010", "trainval")
        if self.protocol.name == "upstream":
            ids = self.read_list("VOCdevkit", "VOC2012", "ImageSets", "Segmentation", f"{self.split}.txt")
            labelled = {image_id for image_id in ids if (labels / f"{image_id}.mat").is_file()}
            self.leave_out("images of the VOC 2012 list without a Context label", set(ids) - labelled)
            return [image_id for image_id in ids if image_id in labelled]
        return self.read_list("VOCdevkit", "VOC2010", "ImageSets", "Main", f"{self.split}.txt")

    def image_path(self, image_id: str) -> Path:
        years = (self.root / "VOCdevkit" / year / "JPEGImages" / f"{image_id}.jpg" for year in ("VOC2010", "VOC2012"))
        first, second = years
        return first if first.is_file() or not second.is_file() else second

    def label_path(self, image_id: str) -> Path:
        return self.root / "VOCdevkit" / "VOC2010" / "trainval" / f"{image_id}.mat"

    def raw_label(self, image_id: str) -> np.ndarray:
        path = self.label_path(image_id)
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

    @cached_property
    def label_map(self) -> np.ndarray:
        return stored_map("context", 460, other=range(460))
