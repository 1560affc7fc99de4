"""A folder of one's own images, with or without masks."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.class_lists import ClassList
from goca.data.classes import ClassTable
from goca.data.colours import Colour
from goca.data.files import existing, inside, readable_name, repeated, shown
from goca.data.image_lists import read_lines
from goca.data.label_maps import identity_map
from goca.data.masks import voc_palette
from goca.data.pictures import ENDINGS
from goca.errors import ConfigError, DataError

_MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")
_PROBED = 20  # masks looked into at the start, until one holds a class


@dataclass(config=CONFIG, kw_only=True)
class Folder(SegmentationDataset):
    """`images/` and, where there is a ground truth, `masks/<same name>.png`; without masks there are predictions but no metric.

    Masks store 0 for what is not a class, 1 ... n for the classes in the order of the list, and 255 for void. An image's id
    is its file's name without the ending, in Unicode's composed form.

    Args:
        images, masks: folders under the root; without a folder `masks` every label is None.
        class_names: the classes, each `name` or `name, synonym, ...`; null reads `classes_file`.
        classes_file: a text file under the root with one class per line.
    """

    SPLITS: ClassVar = ("val",)
    TREE: ClassVar = """\
  images/<name>.jpg (or png, webp, bmp, tif, gif, avif)
  masks/<name>.png  (optional) 0 = no class, 1 ... n = the classes in order, 255 = void
  classes.txt       one class per line: name, synonym, ..."""
    SOURCE: ClassVar = "your own images; see docs/datasets.md"

    name: str = "folder"
    images: str = "images"
    masks: str = "masks"
    class_names: list[str] | None = None
    classes_file: str = "classes.txt"
    files: dict[str, Path] = Field(default_factory=dict, init=False)
    mask_files: dict[str, Path] = Field(default_factory=dict, init=False)

    @cached_property
    def class_list(self) -> ClassList:
        """The list as it is meant; raises as `classes`."""
        if self.class_names is not None:
            return ClassList.read(self.class_names, "dataset.class_names")
        inside(self.root, self.classes_file)
        file = self.need(self.classes_file)
        return ClassList.read(read_lines(file), str(file))

    @cached_property
    def classes(self) -> ClassTable:
        """The user's classes.

        Raises:
            ConfigError: the list is empty or names a class twice.
            DataError: there is neither a list nor a file.
        """
        try:
            return self.worded(ClassTable.from_names(self.class_list.names))
        except ConfigError as error:
            raise ConfigError(f"{self.class_list.source}: {error}") from error

    def list_ids(self) -> list[str]:
        if len(self.classes) > 255:
            raise ConfigError(f"{len(self.classes) - 1} classes do not fit a mask, whose ids end at 254")
        self.remarks.extend(self.class_list.remarks)
        inside(self.root, self.images)
        folder = self.need(self.images)
        self.files = self._by_id(folder, ENDINGS, "images")
        if not self.files and self.left_out:
            raise self.folder_error(f"{folder} holds no picture: {self.left_out_lines()[0]}")
        if self._mask_folder.is_dir():
            self.mask_files = self._by_id(self._mask_folder, _MASK_ENDINGS, "masks")
            missing = [image_id for image_id in self.files if image_id not in self.mask_files]
            if missing:
                raise DataError(
                    f"{self._mask_folder} lacks the masks of {len(missing)} images: {shown(missing)}; without that folder no "
                    "image needs one"
                )
            self.leave_out("masks without a picture", (self.mask_files[i] for i in self.mask_files if i not in self.files))
            self._refuse_binary_masks()
        return list(self.files)

    def _by_id(self, folder: Path, endings: tuple[str, ...], what: str) -> dict[str, Path]:
        """Files with these endings by image id, sorted by name; the others are left out."""
        entries = sorted(path for path in folder.iterdir())
        folders = [path for path in entries if path.is_dir()]
        files = [path for path in entries if not path.is_dir()]
        taken = [path for path in files if path.suffix.lower() in endings and path.name[0] != "."]
        self.leave_out(f"files in {what} of another format", set(files).difference(taken))
        for inner in folders:
            held = [path for path in inner.rglob("*") if path.suffix.lower() in endings]
            if held:
                self.leave_out(f"files in subfolders of {what} (dataset.{what}={what}/<subfolder> reads one)", held)
        if again := repeated(readable_name(path.stem) for path in taken):
            raise DataError(f"{folder} has several {what} of one name: {shown(again)}")
        return {readable_name(path.stem): path for path in taken}

    def _refuse_binary_masks(self) -> None:
        """Say what masks are in which nobody will find a class, before a model is loaded."""
        seen: set[int] = set()
        paths = [self.mask_files[image_id] for image_id in self.files]
        for path in paths[:: max(1, len(paths) // _PROBED)]:
            try:
                seen.update(np.unique(self.read_mask(path)).tolist())
            except DataError:
                return  # it is reported as that image's
            if not seen <= {0, 255}:
                return
        if 255 in seen:
            raise DataError(
                f"the masks in {self._mask_folder} hold only 0 and 255: 0 is not a class and 255 is void: nothing to "
                f"compare with. For binary masks write 1 where {self.classes.names[1]} is, in place of 255"
            )

    def image_path(self, image_id: str) -> Path:
        return self.files[image_id]

    def label_path(self, image_id: str) -> Path | None:
        if not self._mask_folder.is_dir():
            return None
        return self.mask_files.get(image_id) or self._mask_folder / f"{image_id}.png"

    @property
    def _mask_folder(self) -> Path:
        return existing(inside(self.root, self.masks))

    @property
    def id_hint(self) -> str:
        begins = any("background" in remark for remark in self.remarks)
        return f" (background, named first, is 0: the ids end at {len(self.classes) - 1})" if begins else ""

    @property
    def palettes(self) -> tuple[tuple[Colour, ...], ...]:
        return voc_palette(), self.classes.colours[:255]  # many tools' colours, and those of our own predictions

    @cached_property
    def label_map(self) -> np.ndarray:
        return identity_map(len(self.classes))
