"""Whether a data set folder is complete and sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from goca.data.base import SegmentationDataset
from goca.data.datamodule import SegmentationDataModule, Unreadable
from goca.errors import DataError


@dataclass(frozen=True)
class Report:
    """What was found in one split: `expected` is the official number of images, `classes` those that occur in a mask."""

    split: str
    images: int
    expected: int | None
    problems: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.problems and self.expected in (None, self.images)


def check(dataset: SegmentationDataset, num_workers: int = 0, advance: Callable[[], None] = lambda: None) -> Report:
    """Read every image and mask of the data set's split.

    The number of images, the pairs, their sizes and the ids in the masks are compared with what the data set should have; a
    folder that is missing is one problem, every bad image another.
    """
    split = str(dataset.split)
    expected = dataset.COUNTS.get(split)
    try:
        datamodule = SegmentationDataModule(dataset, batch_size=8, num_workers=num_workers, keep_unreadable=True)
        datamodule.setup()
    except DataError as error:
        return Report(split, 0, expected, (str(error),), ())
    problems: list[str] = []
    present: set[int] = set()
    for batch in datamodule.predict_dataloader():
        for entry in batch:
            if isinstance(entry, Unreadable):
                problems.append(f"{entry.image_id}: {entry.reason}")
            else:
                present.update(entry.present)
            advance()
    names = tuple(dataset.classes.names[class_id] for class_id in sorted(present))
    return Report(split, len(datamodule.positions), expected, tuple(problems), names)
