"""A folder of one's own images, with or without masks."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, SegmentationDataset
from goca.data.classes import ClassTable
from goca.data.files import inside
from goca.data.label_maps import identity_map
from goca.errors import ConfigError, DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(config=CONFIG, kw_only=True)
class Folder(SegmentationDataset):
    """`images/` and, where there is a ground truth, `masks/<same name>.png`; without masks there are predictions but no metric.

    Masks store 0 for what is no class, 1 ... n for the classes in the order of the list, and 255 for void.

    Args:
        images, masks: folders under the root; without a folder `masks` every label is None.
        class_names: the classes, each `name` or `name, synonym, ...`; null reads `classes_file`.
        classes_file: a text file under the root with one class per line.
    """

    SPLITS: ClassVar = ("val",)
    TREE: ClassVar = """\
  images/<name>.jpg (or png, webp, bmp, tif)
  masks/<name>.png  (optional) 0 = no class, 1 ... n = the classes in order, 255 = void
  classes.txt       one class per line: name, synonym, ..."""
    SOURCE: ClassVar = "your own images; see docs/datasets.md"

    name: str = "folder"
    images: str = "images"
    masks: str = "masks"
    class_names: list[str] | None = None
    classes_file: str = "classes.txt"
    files: dict[str, Path] = Field(default_factory=dict, init=False)

    @cached_property
    def classes(self) -> ClassTable:
        """The user's classes.

        Raises:
            ConfigError: the list is empty or names a class twice.
            DataError: there is neither a list nor a file.
        """
        if self.class_names is not None:
            return ClassTable.from_names(self.class_names)
        inside(self.root, self.classes_file)
        file = self.need(self.classes_file)
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            return ClassTable.from_names(line for line in lines if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the classes in {file}: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    def list_ids(self) -> list[str]:
        if len(self.classes) > 255:
            raise ConfigError(f"{len(self.classes) - 1} classes do not fit a mask, whose ids end at 254")
        inside(self.root, self.images)
        folder = self.need(self.images)
        pictures = sorted(path for path in folder.glob("*") if path.suffix.lower() in _ENDINGS and path.name[0] != ".")
        self.files = {path.stem: path for path in pictures}
        if len(self.files) < len(pictures):
            repeated = [stem for stem, count in Counter(path.stem for path in pictures).items() if count > 1]
            raise DataError(f"{folder} has several images of one name: {', '.join(repeated[:8])}")
        missing = [image_id for image_id in self.files if (path := self.label_path(image_id)) and not path.is_file()]
        if missing:
            shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise DataError(
                f"{self._mask_folder} lacks the masks of {len(missing)} images: {shown}; without that folder no image needs one"
            )
        return list(self.files)

    def image_path(self, image_id: str) -> Path:
        return self.files[image_id]

    def label_path(self, image_id: str) -> Path | None:
        return self._mask_folder / f"{image_id}.png" if self._mask_folder.is_dir() else None

    @property
    def _mask_folder(self) -> Path:
        return inside(self.root, self.masks)

    @cached_property
    def label_map(self) -> np.ndarray:
        return identity_map(len(self.classes))
