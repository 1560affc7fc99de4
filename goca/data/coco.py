"""COCO 2017: the 80 objects, and things and stuff in 171 classes or in 27 coarse ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.files import inside
from goca.data.label_maps import IGNORE, UNKNOWN, identity_map, stored_lists, stored_map
from goca.data.layouts import Layout, first_layout
from goca.data.masks import read_panoptic
from goca.errors import DataError

_STUFF_IDS = range(91, 201)  # category ids of stuff in the panoptic annotation
_STUFF_VALUES = range(91, 182)  # of the stuffthingmaps
_COUNTS = {"train": 118287, "val": 5000}
_STUFF_TREE = """\
  coco/{train,val}2017/<id>.jpg
  coco/stuffthingmaps/{train,val}2017/<id>.png
or as mmsegmentation lays it out
  coco_stuff164k/images/{train,val}2017/<id>.jpg
  coco_stuff164k/annotations/{train,val}2017/<id>.png"""


def thing_values() -> list[int]:
    """Values of the 80 things in the `stuffthingmaps`, in the order of their classes: category ids from 0 on."""
    return [category - 1 for category in stored_lists("coco_object")]


@dataclass(config=CONFIG, kw_only=True)
class _Coco(SegmentationDataset):
    """Data sets whose masks lie one per image in a folder, official or converted."""

    COUNTS: ClassVar = _COUNTS
    layout: Layout | None = Field(default=None, init=False)  # the one that was found

    def layouts(self) -> tuple[Layout, ...]:
        """Layouts by precedence; the first one is the official."""
        official = Layout(f"coco/{self.split}2017", f"coco/stuffthingmaps/{self.split}2017", ".png", "official")
        return official, self._converted("coco_stuff164k", ".png", "official")

    def _converted(self, folder: str, ending: str, values: str) -> Layout:
        return Layout(f"{folder}/images/{self.split}2017", f"{folder}/annotations/{self.split}2017", ending, values)

    def list_ids(self) -> list[str]:
        found = self.layout = first_layout(self.root, self.layouts())
        folder = self.need(found.masks)
        names = found.names(self.root)
        if found.values != "official" or found != self.layouts()[0]:
            self.remarks.append(f"the masks are those of {found.masks}, {found.ending.lstrip('_')}")
        if found == self.layouts()[0]:
            self.leave_out(
                f"files in {folder.name} that are no *.png", {path.name for path in folder.iterdir()}.difference(names)
            )
        ids = [name.removesuffix(found.ending) for name in names]
        self.leave_out_unpaired(ids, ".jpg", found.images)
        return ids

    def _found(self) -> Layout:
        return self.layout or self.layouts()[0]

    def image_path(self, image_id: str) -> Path:
        return self.root / self._found().images / f"{image_id}.jpg"

    def label_path(self, image_id: str) -> Path:
        found = self._found()
        return self.root / found.masks / f"{image_id}{found.ending}"


@dataclass(config=CONFIG, kw_only=True)
class CocoObject(_Coco):
    """The 80 things, everything else is background.

    Every segment of the panoptic annotation is looked up once, by its id. The released code relabels the mask in place, segment
    by segment, so that a segment with an id below 81 takes pixels that were already relabelled (docs/parity.md, E9).

    Args:
        annotation: `panoptic`, where pixels of no segment (id 0) are void; `stuffthingmaps`, as the benchmark of that name has
            it, where pixels of no label (255) are background; `auto` takes the latter under protocol `ovss`.
    """

    TREE: ClassVar = """\
  coco/{train,val}2017/<id>.jpg
  coco/annotations/panoptic_{train,val}2017.json       (annotation panoptic)
  coco/annotations/panoptic_{train,val}2017/<id>.png
  coco/stuffthingmaps/{train,val}2017/<id>.png         (annotation stuffthingmaps)
or as the converters of the field lay it out
  coco_object/images/{train,val}2017/<id>.jpg
  coco_object/annotations/{train,val}2017/<id>_instanceTrainIds.png"""
    SOURCE: ClassVar = "https://cocodataset.org/#download (or: python -m goca.data get dataset=coco_object)"

    name: str = "coco_object"
    background: bool = True
    annotation: Literal["auto", "panoptic", "stuffthingmaps"] = "auto"
    segments: dict[str, dict[int, int]] = Field(default_factory=dict, init=False)  # image id -> segment id -> category id

    @property
    def panoptic(self) -> bool:
        """Whether labels come from the panoptic annotation."""
        if self.annotation == "auto":
            return self.protocol.name != "ovss"
        return self.annotation == "panoptic"

    @property
    def label_rules(self) -> Mapping[str, Any]:
        usual = self.panoptic == (self.protocol.name != "ovss")
        return {} if usual else {"annotation": self.annotation}

    @property
    def archives(self) -> str:
        return "coco_object_panoptic" if self.panoptic else "coco_stuff"

    def layouts(self) -> tuple[Layout, ...]:
        """Layouts by precedence; the masks of the panoptic annotation have one."""
        if self.panoptic:
            return (Layout(f"coco/{self.split}2017", f"coco/annotations/panoptic_{self.split}2017", ".png", "panoptic"),)
        converted = (
            self._converted(folder, "_instanceTrainIds.png", "objects") for folder in ("coco_object", "coco_stuff164k")
        )
        return (*super().layouts(), *converted)

    def list_ids(self) -> list[str]:
        if not self.panoptic:
            return super().list_ids()
        folder = self.need("coco", "annotations", f"panoptic_{self.split}2017")
        file = self.need("coco", "annotations", f"panoptic_{self.split}2017.json")
        try:
            self.segments = {_stem(row, folder): _categories(row) for row in json.loads(file.read_bytes())["annotations"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not a COCO panoptic annotation: {type(error).__name__} {error}") from error
        self.leave_out_unpaired(self.segments, ".jpg", "coco", f"{self.split}2017")
        return sorted(self.segments)

    def raw_label(self, image_id: str) -> np.ndarray | None:
        if not self.panoptic:
            return super().raw_label(image_id)
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

    @property
    def label_map(self) -> np.ndarray:
        if self._found().values == "objects":
            return identity_map(81)
        return _panoptic_map() if self.panoptic else _object_map()


@dataclass(config=CONFIG, kw_only=True)
class CocoStuff171(_Coco):
    """All 171 classes of the official `stuffthingmaps`: 80 things and 91 kinds of stuff; 255 is void."""

    TREE: ClassVar = _STUFF_TREE + "            (or <id>_labelTrainIds.png)"
    SOURCE: ClassVar = "https://github.com/nightrome/cocostuff#downloads (or: python -m goca.data get dataset=coco_stuff171)"

    name: str = "coco_stuff171"

    def layouts(self) -> tuple[Layout, ...]:
        """As of COCO-Stuff, and masks in which mmsegmentation has numbered the classes from 0 on."""
        return (*super().layouts(), self._converted("coco_stuff164k", "_labelTrainIds.png", "numbered"))

    @property
    def label_map(self) -> np.ndarray:
        return _stuff_map(self._found().values == "numbered")


@dataclass(config=CONFIG, kw_only=True)
class CocoStuff(_Coco):
    """The 182 fine values of the official `stuffthingmaps` (0 ... 181, 255 for void) as 27 coarse classes.

    Args:
        merge: count food-stuff (15) and furniture-stuff (16) as food (3) and furniture (4), as the released code does; null
            does so under protocol `upstream` alone.
        image_list: `all` images, or the `curated` ones that unsupervised methods are compared on (2,175 of val).
        shift: look every value up one too low, as the released code does (docs/parity.md, E8): person (0) becomes background
            and other classes take their predecessor's coarse class. Only for parity with the paper's numbers.
    """

    TREE: ClassVar = (
        _STUFF_TREE
        + """
with image_list curated also
  curated/{train,val}2017/Coco164kFull_Stuff_Coarse_7.txt   (https://github.com/janghyuncho/PiCIE; 2,175 images of val)"""
    )
    SOURCE: ClassVar = "https://github.com/nightrome/cocostuff#downloads (or: python -m goca.data get dataset=coco_stuff)"
    CURATED: ClassVar = {"val": 2175}

    name: str = "coco_stuff"
    merge: bool | None = True
    image_list: Literal["all", "curated"] = "all"
    shift: bool = False

    def layouts(self) -> tuple[Layout, ...]:
        """As of COCO-Stuff, and masks in which mmsegmentation has numbered the classes from 0 on."""
        return (*super().layouts(), self._converted("coco_stuff164k", "_labelTrainIds.png", "numbered"))

    @property
    def merged(self) -> bool:
        """Whether 15 and 16 are counted as 3 and 4."""
        return self.protocol.name == "upstream" if self.merge is None else self.merge

    @property
    def label_rules(self) -> Mapping[str, Any]:
        return {"shift": True} if self.shift else {}

    @property
    def table_name(self) -> str:
        return "coco_stuff" if self.merged else "coco_stuff27"

    @property
    def official_count(self) -> int | None:
        return super().official_count if self.image_list == "all" else self.CURATED.get(str(self.split))

    def list_ids(self) -> list[str]:
        ids = super().list_ids()
        if self.image_list == "all":
            return ids
        self.left_out.clear()  # most pictures are on no such list
        there = set(ids)
        listed = self.read_list("curated", f"{self.split}2017", "Coco164kFull_Stuff_Coarse_7.txt")
        if missing := [image_id for image_id in listed if image_id not in there]:
            self.leave_out("images of the curated list without a mask", missing)
        return [image_id for image_id in listed if image_id in there]

    @property
    def label_map(self) -> np.ndarray:
        table = stored_map("coco_stuff27", 256, void=[255])
        if self.merged:
            table[table == 15], table[table == 16] = 3, 4
        if self.shift:
            table = np.roll(table, 1)
            table[[0, 255]] = IGNORE
        return _numbered(table) if self._found().values == "numbered" else table


def _panoptic_map() -> np.ndarray:
    return stored_map("coco_object", 201, other=_STUFF_IDS, void=[0])


def _object_map() -> np.ndarray:
    """(256,) from the values of `stuffthingmaps`: things in their order, and 0 for stuff and for no label."""
    table = np.full(256, UNKNOWN)
    table[[*_STUFF_VALUES, 255]] = 0
    table[thing_values()] = np.arange(1, 81)
    return table


def _stuff_map(numbered: bool) -> np.ndarray:
    """(256,) from the values of `stuffthingmaps`, or from those numbered without gaps, to 1 ... 171."""
    table = np.full(256, UNKNOWN)
    table[255] = IGNORE
    table[[*thing_values(), *_STUFF_VALUES]] = np.arange(1, 172)
    return _numbered(table) if numbered else table


def _numbered(table: np.ndarray) -> np.ndarray:
    """A map from official values as one from values that are numbered without gaps."""
    renumbered = np.full(256, UNKNOWN)
    official = [*thing_values(), *_STUFF_VALUES]
    renumbered[: len(official)] = table[official]
    renumbered[255] = table[255]
    return renumbered


def _stem(row: Mapping[str, Any], folder: Path) -> str:
    inside(folder, row["file_name"])
    return row["file_name"].removesuffix(".png")


def _categories(row: Mapping[str, Any]) -> dict[int, int]:
    return {int(segment["id"]): int(segment["category_id"]) for segment in row["segments_info"]}
