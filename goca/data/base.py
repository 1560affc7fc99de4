"""What every data set has in common: samples, protocols, the folder check and the reading of image and mask."""

from __future__ import annotations

import dataclasses
import logging
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch.utils.data import Dataset

from goca.data.classes import ClassTable, Synonyms
from goca.data.colours import Colour
from goca.data.files import existing, printable, repeated, shown
from goca.data.image_lists import listed_id, read_lines
from goca.data.label_maps import IGNORE, UNKNOWN
from goca.data.masks import read_indices
from goca.data.name_lists import OWN, worded
from goca.data.pictures import ENDINGS, MAX_PIXELS, Orientation, read_picture
from goca.data.protocol import Protocol
from goca.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


NOTHING_SCORED = "the mask holds nothing that is scored, only no class or void"


@dataclasses.dataclass(eq=False)  # not frozen: Lightning moves batches to the device by rebuilding dataclasses
class Sample:
    """One image of a data set.

    Attributes:
        image_id: unique in the data set; the file name without its ending.
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 class ids, `IGNORE` where the protocol does not look; None for images without a mask.
        present: ids of the classes in the label, ascending, without the background.
        caption: words that come with the image.
        pixels: (3, size, size) float in [-1, 1] for the model, filled in by the DataModule.
        notes: what was chosen in reading it that a reader of the results should know.
    """

    image_id: str
    image: np.ndarray
    label: np.ndarray | None
    present: tuple[int, ...]
    caption: str | None = None
    pixels: torch.Tensor | None = None
    notes: tuple[str, ...] = ()


@dataclass(config=CONFIG, kw_only=True)
class SegmentationDataset(Dataset[Sample]):
    """Base of all data sets. Construction touches no file; `setup()` checks the folder and lists the images.

    A data set states its facts (class variables) and implements `list_ids`, `image_path`, `raw_label` and `label_map`.

    Args:
        name: of the data set, in results; also that of its class table, unless `table` names one.
        protocol: what void pixels mean and, with `split` null, which split is evaluated.
        root: the folder that holds the data set's official folder.
        split: null for the protocol's split.
        table: the class table, where the data set goes by another name.
        background: evaluate class 0 under `standard` too (VOC-21 against VOC-20, Context-60 against Context-59).
        synonyms: words of the classes, `corrected` or `upstream`.
        names: words that are asked for, see `goca.data.name_lists`: the first of the class table (`dataset`), `sclip`,
            `proxyclip`, or a file.
        background_words: words for what is no class, a list or by whose code; null takes those of `names`, or the usual ones.
        background_token, add_missing: how captions of this data set are turned into prompts (docs/prompts.md);
            prompt configs refer to them as `${dataset.background_token}` and `${dataset.add_missing}`.
        threshold: of the background under protocol `ovss`, by what the decision compares it with (`decision`'s rule).
        max_pixels: larger pictures are refused before they are decoded.
        orientation: whether an EXIF tag turns pictures, see `goca.data.pictures.read_picture`.
        palette: `colours` of palette masks are looked up in the official palette or stand for their grey level; `index` takes
            the indices as they are.

    Attributes:
        left_out: after `setup()`, files that are not read, by the reason.
        remarks: after `setup()`, what was understood in reading lists.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val")
    UPSTREAM_SPLIT: ClassVar[str] = "val"
    COUNTS: ClassVar[Mapping[str, int]] = {}  # official number of images per split
    TREE: ClassVar[str] = ""  # the official folder, for messages
    SOURCE: ClassVar[str] = ""  # where it comes from, for messages
    PALETTES: ClassVar[tuple[tuple[Colour, ...], ...]] = ()  # official colours of its masks, by value
    CANNOT_OCCUR: ClassVar[Mapping[int, str]] = {}  # values that tell of a common mistake -> which one

    name: str
    protocol: Protocol
    root: Path = Path()
    split: str | None = None
    table: str | None = None
    background: bool = False
    synonyms: Synonyms = "corrected"
    names: str = OWN
    background_words: str | list[str] | None = None
    background_token: bool = False
    add_missing: bool = False
    threshold: dict[str, float] = Field(default_factory=dict)
    max_pixels: Annotated[int, Field(gt=0, le=178_000_000)] = MAX_PIXELS  # above, PIL itself refuses
    orientation: Orientation = "auto"
    palette: Literal["colours", "index"] = "colours"
    image_ids: list[str] = Field(default_factory=list, init=False)
    left_out: dict[str, list[str]] = Field(default_factory=dict, init=False)
    remarks: list[str] = Field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.split is None:
            self.split = self.UPSTREAM_SPLIT if self.protocol.name == "upstream" else "val"
        if self.split not in self.SPLITS:
            raise ConfigError(f"{self.name} has no split {self.split!r}; splits: {', '.join(self.SPLITS)}")

    # ------------------------------------------------------------------------------------------------ for subclasses
    @abstractmethod
    def list_ids(self) -> list[str]:
        """Ids of the split's images, in evaluation order; DataError where the folder is not as it should be."""

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Where the picture lies."""

    def label_path(self, image_id: str) -> Path | None:
        """Where the mask lies; None for an image that has none."""
        raise NotImplementedError

    def raw_label(self, image_id: str) -> np.ndarray | None:
        """(H, W) values as stored, indices into `label_map`; None for an image without a mask."""
        path = self.label_path(image_id)
        return None if path is None else self.read_mask(path)

    def read_mask(self, path: Path) -> np.ndarray:
        """(H, W) values of a mask picture."""
        return read_indices(path, self.max_pixels, self.palettes, self.label_map != UNKNOWN, self.palette == "index")

    @property
    def cannot_occur(self) -> Mapping[int, str]:
        """Values that tell of a common mistake -> which one."""
        return self.CANNOT_OCCUR

    @property
    def id_hint(self) -> str:
        """Why a mask may hold ids that the data set lacks, for messages."""
        return ""

    @property
    def palettes(self) -> tuple[tuple[Colour, ...], ...]:
        """Palettes in which colours of the masks are looked up, by value."""
        return self.PALETTES

    def has_masks(self, image_id: str) -> bool:
        """Whether there is a ground truth for an image; reads nothing."""
        try:
            return self.label_path(image_id) is not None
        except NotImplementedError:  # a data set without files, whose labels are made with the images
            return True

    @property
    def label_map(self) -> np.ndarray:
        """(R,) class id of every raw value: `IGNORE` for void, 0 for what is not a class, `UNKNOWN` for what cannot occur."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- for all
    @cached_property
    def classes(self) -> ClassTable:
        """The table of classes: NAME.yaml beside the module of a data set outside this package, else one in `tables`."""
        module = getattr(sys.modules.get(type(self).__module__), "__file__", None)
        beside = Path(module).with_name(f"{self.table_name}.yaml") if module else None
        return self.worded(ClassTable.load(beside if beside and beside.is_file() else self.table_name, self.synonyms))

    def worded(self, table: ClassTable) -> ClassTable:
        """The table with the words that are asked for."""
        return worded(table, self.table_name, self.names, self.background_words, self.listed_order(table), self.has_background)

    def listed_order(self, table: ClassTable) -> Sequence[int]:
        """Ids of the classes in the order in which the field lists their names; empty for ascending ids."""
        return ()

    @property
    def table_name(self) -> str:
        """Name of the class table."""
        return self.table or self.name

    @property
    def label_rules(self) -> Mapping[str, Any]:
        """Settings by which labels or pictures are not those usual under a protocol, though names and image ids are."""
        return {}

    @property
    def archives(self) -> str:
        """Name of its archives in `downloads.yaml`."""
        return self.name

    @property
    def official_count(self) -> int | None:
        """How many images the split has, where that is known."""
        return self.COUNTS.get(str(self.split))

    @property
    def has_background(self) -> bool:
        """Whether class 0 is evaluated: as configured, and always where the protocol turns void into background."""
        return self.background or self.protocol.void == "background"

    def setup(self) -> None:
        """Check the folder and list the images; a second call does nothing.

        Raises:
            DataError: the folder is missing, incomplete or empty; the message shows the expected tree and the source.
        """
        if self.image_ids:
            return
        ids = self.list_ids()
        if not ids:
            raise self.folder_error(f"the split {self.split!r} of {self.name} lists no image")
        self.image_ids = ids
        for line in (*self.remarks, *self.left_out_lines()):
            log.warning("%s: %s", self.name, line)

    def left_out_lines(self) -> list[str]:
        """A line per reason for which files are not read, with their number and the first names."""
        return [f"not read: {len(names)} {reason} ({shown(names)})" for reason, names in self.left_out.items()]

    def folder_error(self, what: str) -> DataError:
        """An error about the folder that says what it should look like and where to get it."""
        return DataError(f"{what}.\nExpected under {self.root}:\n{self.TREE}\nSource: {self.SOURCE}")

    def need(self, *relative: str) -> Path:
        """The path `root/relative`, which has to exist."""
        path = existing(self.root.joinpath(*relative))
        if not path.exists():
            raise self.folder_error(f"{self.name}: {path} does not exist")
        return path

    def read_list(self, *relative: str) -> list[str]:
        """Image ids of a list file under the root, in its order.

        Raises:
            DataError: the file is missing or unreadable, repeats an id, or names one outside the data set's folder.
        """
        file = self.need(*relative)
        ids = [listed_id(line, number, file) for number, line in enumerate(read_lines(file), start=1) if line.strip()]
        if again := repeated(ids):
            raise DataError(f"the list {file} names {again[0]!r} more than once")
        return ids

    def stems(self, pattern: str, ending: str, *relative: str) -> list[str]:
        """Sorted names of the files under `root/relative` that match, without their common ending; see `left_out`."""
        folder = self.need(*relative)
        found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
        if "/" not in pattern:
            self.leave_out(f"files in {relative[-1]} that are no {pattern}", set(folder.iterdir()).difference(found))
        return [path.name.removesuffix(ending) for path in found]

    def leave_out(self, reason: str, files: Iterable[Path | str]) -> None:
        """Note files that are not read, and why."""
        names = sorted(printable(file.name if isinstance(file, Path) else file) for file in files)
        if names:
            self.left_out.setdefault(reason, []).extend(names)

    def leave_out_unpaired(self, ids: Iterable[str], ending: str, *relative: str) -> None:
        """Note the pictures under `root/relative` whose ids are not among those that have a mask."""
        folder, wanted = self.root.joinpath(*relative), set(ids)
        if folder.is_dir():
            files = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS]
            self.leave_out("pictures without a mask", (path for path in files if path.name.removesuffix(ending) not in wanted))

    def __len__(self) -> int:
        self.setup()
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        self.setup()
        image_id = self.image_ids[index]
        raw = self.raw_label(image_id)
        mask_size = None if raw is None else raw.shape
        picture = read_picture(self.image_path(image_id), self.max_pixels, mask_size, self.orientation)  # type: ignore[arg-type]
        image = picture.pixels
        if raw is None:
            return Sample(image_id, image, None, (), notes=picture.notes)
        if raw.shape != image.shape[:2]:
            sizes = f"{raw.shape[1]} x {raw.shape[0]}, its image {image.shape[1]} x {image.shape[0]}"
            raise DataError(f"the mask of {image_id} is {sizes} pixels ({self._label_name(image_id)})")
        for value, cause in self.cannot_occur.items():
            if (raw == value).any():
                raise DataError(
                    f"{self._label_name(image_id)} has the value {value}, which cannot occur in {self.name}: {cause}"
                )
        label = self.to_classes(raw, image_id)
        notes = picture.notes if (label != IGNORE).any() else (*picture.notes, NOTHING_SCORED)
        return Sample(image_id, image, label, present_classes(label), notes=notes)

    def _label_name(self, image_id: str) -> str:
        path = self.label_path(image_id)
        return "the label" if path is None else printable(path)

    def to_classes(self, raw: np.ndarray, image_id: str) -> np.ndarray:
        """(H, W) raw values -> (H, W) uint8 class ids under the protocol.

        Where void counts as background, so do values that do not exist, as in the released code; otherwise they are errors.
        """
        table = self.label_map
        known = (raw >= 0) & (raw < len(table))
        label = np.where(known, table[np.where(known, raw, 0)], UNKNOWN)
        if self.protocol.void == "background":
            label[(label == IGNORE) | (label == UNKNOWN)] = 0
            return label.astype(np.uint8)
        if (label == UNKNOWN).any():
            what = shown(map(str, np.unique(raw[label == UNKNOWN]).tolist())) + self.id_hint
            raise DataError(f"{self._label_name(image_id)} has values that are no ids of {self.name}: {what}")
        if not self.background:
            label[label == 0] = IGNORE
        return label.astype(np.uint8)


def present_classes(label: np.ndarray) -> tuple[int, ...]:
    """Ids in a label map, ascending, without background and ignored pixels.

    >>> present_classes(np.array([[0, 3], [255, 1]]))
    (1, 3)
    """
    return tuple(int(value) for value in np.unique(label) if value not in (0, IGNORE))
