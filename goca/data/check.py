"""Whether a data set folder is complete and sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from goca.data.base import SegmentationDataset
from goca.data.datamodule import SegmentationDataModule, Unreadable
from goca.errors import DataError


@dataclass(frozen=True)
class Report:
    """What was found in one split.

    Attributes:
        images: listed pictures; `expected` is their official number.
        problems: what keeps images or the whole split from being used.
        classes: those that occur in a mask.
        read, masks: pictures that could be read, and those of them with a mask.
        notes: what a run would do without asking: files left out, lists understood in one of two ways, pictures turned.
    """

    split: str
    images: int
    expected: int | None
    problems: tuple[str, ...]
    classes: tuple[str, ...]
    read: int = 0
    masks: int = 0
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.problems and self.expected in (None, self.images)


def check(dataset: SegmentationDataset, num_workers: int = 0, advance: Callable[[], None] = lambda: None) -> Report:
    """Read every image and mask of the data set's split.

    The number of images, the pairs, their sizes and the ids in the masks are compared with what the data set should have; a
    folder that is missing is one problem, every bad image another.
    """
    split = str(dataset.split)
    expected = dataset.official_count
    try:
        datamodule = SegmentationDataModule(dataset, batch_size=8, num_workers=num_workers, keep_unreadable=True)
        datamodule.setup()
    except DataError as error:
        return Report(split, 0, expected, (str(error),), (), notes=_notes(dataset, {}))
    problems: list[str] = []
    present: set[int] = set()
    read = masks = 0
    chosen: Counter[str] = Counter()
    for batch in datamodule.predict_dataloader():
        for entry in batch:
            if isinstance(entry, Unreadable):
                problems.append(f"{entry.image_id}: {entry.reason}")
            else:
                present.update(entry.present)
                read += 1
                masks += entry.label is not None
                chosen.update(entry.notes)
            advance()
    names = tuple(dataset.classes.names[class_id] for class_id in sorted(present))
    notes = _notes(dataset, chosen)
    return Report(split, len(datamodule.positions), expected, tuple(problems), names, read, masks, notes)


def _notes(dataset: SegmentationDataset, chosen: Mapping[str, int]) -> tuple[str, ...]:
    counted = (f"{note} ({count} images)" for note, count in chosen.items())
    return (*dataset.remarks, *dataset.left_out_lines(), *counted)
